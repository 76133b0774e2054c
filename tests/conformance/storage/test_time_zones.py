"""Times of trials: stored in UTC by all programs in all zones; local times of earlier versions, and converting them."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import sys
import time
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from storage_tools import StudyDatabase, connection_to, everything, restore, study_database

from tuner.admin.doctor import _storage
from tuner.dashboard.app import routes
from tuner.dashboard.study_detail import StudyDetail
from tuner.errors import StorageSchemaError, UsageError
from tuner.results.export import export_trials
from tuner.results.rows import show_row, trial_rows
from tuner.storage import connect, open_storage, parse_url
from tuner.storage.mirroring import read_unsent
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.queries import find_study, read_trials
from tuner.storage.sql import schema, zones
from tuner.storage.sql.tables import attempts, deliveries, logs, notices, records, trials, unknown_zones
from tuner.tracking import mirror

pytestmark = pytest.mark.timezone

UTC = datetime.UTC
NEW_YORK = zoneinfo.ZoneInfo("America/New_York")


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Kolkata"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The zone of this process."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


@contextlib.contextmanager
def plain_study(url: str, name: str) -> Iterator[optuna.Study]:
    """A study through Optuna's own storage."""
    storage = RDBStorage(parse_url(url).driver)
    try:
        yield optuna.load_study(study_name=name, storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def stored_times(url: str) -> dict[int, tuple[datetime.datetime | None, datetime.datetime | None]]:
    """Return what the database has: number -> start and end."""
    with connection_to(url) as connection:
        query = sa.select(trials.c.number, trials.c.datetime_start, trials.c.datetime_complete)
        return {number: (start, end) for number, start, end in connection.execute(query)}


def run_one_of_each(db: StudyDatabase) -> None:
    """Add a trial of ours through Optuna, one of a plain Optuna process, two of both, and one of a worker."""
    study = db.study
    study.tell(study.ask(), 1.0)
    with plain_study(db.url, db.name) as plain:
        plain.tell(plain.ask(), 1.0)
        study.tell(plain.ask().number, 1.0)
        plain.tell(study.ask().number, 1.0)
    db.tell(db.claim())


@pytest.mark.with_tables
def test_all_programs_store_utc_and_all_read_the_same(storage_url: str, zone: str) -> None:
    with study_database(storage_url) as db:
        before = datetime.datetime.now(UTC).replace(tzinfo=None) - datetime.timedelta(seconds=1)
        run_one_of_each(db)
        after = datetime.datetime.now(UTC).replace(tzinfo=None) + datetime.timedelta(seconds=1)

        stored = stored_times(storage_url)
        assert len(stored) == 5
        assert all(start and end and before <= start <= end <= after for start, end in stored.values())
        with plain_study(storage_url, db.name) as plain:
            theirs = [(one.datetime_start, one.datetime_complete) for one in plain.trials]
        ours = [(one.datetime_start, one.datetime_complete) for one in open_storage(storage_url).get_all_trials(1)]
        assert ours == theirs
        here = zoneinfo.ZoneInfo(zone)
        for number, times in enumerate(ours):
            shown = [moment.astimezone(here).replace(tzinfo=None) for moment in _in_utc(stored[number])]
            assert list(times) == shown
        for number, moments in stored.items():
            row: Any = show_row(db.engine, db.name, number)
            told = [moment.isoformat(timespec="seconds") + "Z" for moment in moments if moment]
            assert [row["started"], row["completed"]] == told
            assert 0 <= row["seconds"] < 60


def _in_utc(times: tuple[datetime.datetime | None, ...]) -> list[datetime.datetime]:
    return [moment.replace(tzinfo=UTC) for moment in times if moment is not None]


def test_local_times_are_those_of_optuna_and_an_hour_that_occurs_twice_is_told_apart(zone: str) -> None:
    from optuna.storages._rdb.models import TrialModel

    for month, day in ((3, 8), (7, 1), (11, 1)):
        for quarter in range(4 * 24):
            stored = datetime.datetime(2026, month, day, 0, 0, 0, 7) + datetime.timedelta(minutes=15 * quarter)
            theirs: Any = TrialModel()
            theirs._datetime_start_utc = stored
            ours = zones.local_time(stored)
            assert ours == theirs.datetime_start
            assert zones.utc_time(ours) == stored


@pytest.mark.with_tables
def test_a_trial_that_is_given_with_its_times_keeps_them(storage_url: str, zone: str) -> None:
    start = datetime.datetime(2026, 7, 1, 12, 0, 0, 250_000)
    given = optuna.trial.create_trial(value=1.0)
    given.datetime_start, given.datetime_complete = start, start + datetime.timedelta(seconds=5)
    with study_database(storage_url) as db:
        db.study.add_trial(given)
        utc = start.replace(tzinfo=zoneinfo.ZoneInfo(zone)).astimezone(UTC).replace(tzinfo=None)
        assert stored_times(storage_url)[0] == (utc, utc + datetime.timedelta(seconds=5))
        (trial,) = open_storage(storage_url).get_all_trials(db.study_id)
        assert (trial.datetime_start, trial.duration) == (start, datetime.timedelta(seconds=5))


@pytest.mark.slow
@pytest.mark.with_tables
def test_the_dashboard_tells_times_with_their_zone(storage_url: str, zone: str) -> None:
    with study_database(storage_url) as db:
        for _ in range(4):
            db.study.tell(db.study.ask(), 1.0)
        db.tell(db.claim())
        stored = {number: _in_utc(times) for number, times in stored_times(storage_url).items()}
        storage = Storage(storage_url, zone=UTC)
        app = StudyDetail(routes(storage), storage)
        told = _ask(app, f"/api/studies/{db.study_id}")
        storage.close()
    assert len(told["trials"]) == 5
    assert len(told["best_trials"]) == 1
    for trial in [*told["trials"], *told["best_trials"]]:
        found = [datetime.datetime.fromisoformat(trial[name]) for name in ("datetime_start", "datetime_complete")]
        assert all(one.tzinfo is not None for one in found)
        assert found == stored[trial["number"]]


def _ask(app: Any, path: str) -> Any:
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "SCRIPT_NAME": "", "SERVER_NAME": "localhost",
        "SERVER_PORT": "80", "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr,
    }  # fmt: skip
    return json.loads(b"".join(app(environ, lambda *_: None)))


# --- Databases of before


class Old:
    """A database as the version before left it in New York, each trial of another origin.

    Trial 0 is a worker's, 1 was run by Optuna's `optimize` on our storage, 2 was begun by a worker and ended through
    our storage (by the dashboard), 3 still runs, 4 is queued.
    """

    def __init__(self, db: StudyDatabase) -> None:
        self.db = db
        db.tell(db.claim())
        db.study.tell(db.study.ask(), 1.0)
        db.study.tell(db.claim().number, 2.0)
        db.study.ask()
        db.study.enqueue_trial({})
        self.utc = stored_times(db.url)
        self.local(1, "datetime_start", "datetime_complete")
        self.local(2, "datetime_complete")
        self.local(3, "datetime_start")
        with connection_to(db.url) as connection:
            for name in ("boot", "ahead_s", "ahead_fence", "farthest_epoch", "farthest_fence"):
                connection.execute(sa.text(f"ALTER TABLE tuner_leases DROP COLUMN {name}"))
            for name in ("metric", "others"):
                connection.execute(sa.text(f"ALTER TABLE tuner_rungs DROP COLUMN {name}"))
            for name in ("gpu_peak_bytes", "gpu_mean_bytes", "gpu_total_bytes", "gpu_percent"):
                connection.execute(sa.text(f"ALTER TABLE tuner_records DROP COLUMN {name}"))
            unknown_zones.drop(connection)
            for table in (logs, notices, deliveries):
                table.drop(connection)
            connection.execute(sa.text("UPDATE tuner_alembic_version SET version_num = '0004'"))

    def local(self, number: int, *columns: str) -> None:
        """Store times as the version before did."""
        start, end = self.utc[number]
        times = {"datetime_start": start, "datetime_complete": end}
        self.set(number, **{name: _new_york(times[name]) for name in columns})

    def set(self, number: int, **times: datetime.datetime | None) -> None:
        with connection_to(self.db.url) as connection:
            connection.execute(trials.update().where(trials.c.number == number).values(**times))

    def marks(self) -> dict[int, tuple[bool, bool]]:
        with connection_to(self.db.url) as connection:
            query = sa.select(trials.c.number, unknown_zones.c.is_start, unknown_zones.c.is_end).join(
                unknown_zones, unknown_zones.c.trial_id == trials.c.trial_id
            )
            return {number: (start, end) for number, start, end in connection.execute(query)}

    def shown(self) -> list[tuple[str | None, str | None]]:
        rows = [show_row(self.db.engine, self.db.name, number) for number in range(5)]
        return [(row["started"], row["completed"]) for row in rows]


def _new_york(moment: datetime.datetime | None) -> datetime.datetime | None:
    return moment and moment.replace(tzinfo=UTC).astimezone(NEW_YORK).replace(tzinfo=None)


@pytest.fixture
def old(storage_url: str) -> Iterator[Old]:
    with study_database(storage_url) as db:
        yield Old(db)


@pytest.mark.with_tables
def test_times_of_an_unknown_zone_stay_and_are_marked(old: Old, tmp_path: Path) -> None:
    before = stored_times(old.db.url)
    with pytest.raises(StorageSchemaError, match=r"are at version 0004, .* run `tuner upgrade`"):
        open_storage(old.db.url)

    said = schema.upgrade(old.db.url)

    assert said[-1].startswith("times in an unknown time zone: 3 trials; `tuner upgrade --from-timezone ZONE` converts")
    assert stored_times(old.db.url) == before
    assert old.marks() == {1: (True, True), 2: (False, True), 3: (True, False)}
    worker, ours, ended, running, queued = old.shown()
    assert (_ends(worker), _ends(ours), _ends(ended)) == ("ZZ", "..", "Z.")
    assert (running[0] and running[0][-1:].isdecimal(), running[1], queued) == (True, None, (None, None))
    seconds = [row["seconds"] for row in trial_rows(old.db.engine, old.db.name)]
    assert seconds[0] >= 0
    assert seconds[1] >= 0
    assert seconds[2] is None
    path = tmp_path / "trials.json"
    export_trials(old.db.engine, old.db.name, path)
    told = [(row["started"], row["completed"]) for row in json.loads(path.read_text())]
    assert [_ends(times) for times in told[:3]] == ["ZZ", "..", "Z."]
    assert "the times of 3 trials have an unknown time zone" in _times_row(old.db.url)["found"]


def _ends(times: tuple[str | None, ...]) -> str:
    """Return `Z` for a time in UTC, `.` for one without a zone."""
    assert all(one is not None and (one.endswith("Z") or one[-1].isdecimal()) for one in times)
    return "".join("Z" if one and one.endswith("Z") else "." for one in times)


def _times_row(url: str) -> Any:
    return next((row for row in _storage(parse_url(url)) if row["check"] == "times"), {})


@pytest.mark.slow
@pytest.mark.with_tables
def test_local_times_are_converted_once(old: Old) -> None:
    said = schema.upgrade(old.db.url, "America/New_York")

    assert said[-1] == "converted from America/New_York to UTC: the times of 3 trials"
    assert stored_times(old.db.url) == old.utc
    assert old.marks() == {}
    assert all(_ends(times) == "ZZ" for times in old.shown()[:3])
    assert _times_row(old.db.url) == {}
    with plain_study(old.db.url, old.db.name) as plain:
        assert [trial.duration is None or trial.duration.total_seconds() >= 0 for trial in plain.trials] == [True] * 5
    for zone in ("America/New_York", "Asia/Kolkata"):
        said = schema.upgrade(old.db.url, zone)
        assert said[-1] == "no trial has times in an unknown time zone: nothing was converted"
        assert stored_times(old.db.url) == old.utc


@pytest.mark.with_tables
def test_they_can_be_converted_after_the_upgrade(old: Old) -> None:
    schema.upgrade(old.db.url)
    new = old.db.study.ask()  # stored by this version: not to be converted
    old.db.study.tell(new, 1.0)
    kept = stored_times(old.db.url)[new.number]

    said = schema.upgrade(old.db.url, "America/New_York")

    assert any("a copy of the database" in line for line in said) == old.db.url.startswith("sqlite")
    assert stored_times(old.db.url) == old.utc | {new.number: kept}


@pytest.mark.with_tables
def test_a_conversion_that_fails_changes_nothing(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(old.db.url)
    real, calls = zones._is_possible, []

    def fail(*times: Any) -> bool:
        calls.append(times)
        if len(calls) == 3:
            raise RuntimeError("planted")
        return real(*times)

    with monkeypatch.context() as patch:
        patch.setattr(zones, "_is_possible", fail)
        with pytest.raises(RuntimeError, match="planted"):
            schema.upgrade(old.db.url, "America/New_York")
    assert everything(old.db.url) == before
    schema.upgrade(old.db.url, "America/New_York")
    assert stored_times(old.db.url) == old.utc


@pytest.mark.slow
@pytest.mark.with_tables
def test_hours_that_occur_twice_and_times_that_never_were(old: Old) -> None:
    """In New York 01:30 came twice on 2026-11-01, at 05:30 and 06:30 UTC; 02:30 did not come on 2026-03-08."""

    def at(month: int, day: int, hour: int, minute: int) -> datetime.datetime:
        return datetime.datetime(2026, month, day, hour, minute)

    schema.upgrade(old.db.url)
    old.set(1, datetime_start=at(11, 1, 1, 50), datetime_complete=at(11, 1, 1, 10))
    old.set(2, datetime_start=at(3, 8, 6, 0), datetime_complete=at(3, 8, 2, 30))
    old.set(3, datetime_start=at(11, 1, 1, 30))

    said = schema.upgrade(old.db.url, "America/New_York")

    stored = stored_times(old.db.url)
    assert stored[1] == (at(11, 1, 5, 50), at(11, 1, 6, 10))  # the only reading in which it ends after its start
    assert stored[3] == (at(11, 1, 5, 30), None)
    assert stored[2] == (at(3, 8, 6, 0), at(3, 8, 2, 30))
    assert old.marks() == {2: (False, True)}
    assert said[-3] == "converted from America/New_York to UTC: the times of 2 trials"
    assert said[-2].startswith(
        "of these, 2 trials with a time that occurred twice in America/New_York, when clocks were"
    )
    assert said[-1] == (
        f"left as they were, 1 trial: trial 2 of {old.db.name!r} (2026-03-08 06:00:00 to 2026-03-08 02:30:00) "
        "has a time that clocks in America/New_York skipped"
    )


@pytest.mark.with_tables
def test_what_cannot_be_of_the_zone_is_left(old: Old) -> None:
    schema.upgrade(old.db.url)
    start, end = old.utc[1]
    assert start
    assert end
    old.set(1, datetime_start=start, datetime_complete=_new_york(end))  # plain Optuna 5 began it
    old.set(3, datetime_start=old.utc[3][0])  # plain Optuna 5's, of a moment ago

    said = schema.upgrade(old.db.url, "America/New_York")

    assert old.marks() == {1: (True, True), 3: (True, False)}
    assert stored_times(old.db.url)[2] == old.utc[2]
    assert said[-1].startswith(f"left as they were, 2 trials: trial 1 of {old.db.name!r} (")
    assert said[-1].endswith(") would be in the future if its times were in America/New_York, and 1 more")
    old.set(1, datetime_start=start - datetime.timedelta(days=1), datetime_complete=end - datetime.timedelta(days=2))
    said = schema.upgrade(old.db.url, "America/New_York")
    assert "would end before it starts if its times were in America/New_York, and 1 more" in said[-1]
    old.set(1, datetime_start=start, datetime_complete=end)
    schema.upgrade(old.db.url, "UTC")
    assert (old.marks(), stored_times(old.db.url)) == ({}, old.utc)


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../zone", "America", "/etc/passwd", "EST5EDT4"])
def test_a_zone_must_exist(sqlite_url: str, name: str) -> None:
    message = r"a time zone must be a name from the IANA database, such as America/New_York or UTC: got "
    with pytest.raises(UsageError, match=message) as caught:
        schema.upgrade(sqlite_url, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("version", "is_new"), [("4.1.0", False), ("5.0.0", True)])
def test_times_of_plain_optuna_are_utc_from_its_version_5_on(storage_url: str, version: str, is_new: bool) -> None:
    restore(storage_url, "4.1.0")
    with connection_to(storage_url) as connection:
        connection.execute(sa.text(f"UPDATE version_info SET library_version = '{version}'"))
    engine = connect(storage_url)
    try:
        for _ in range(2):  # before and after there are tables of ours
            row = show_row(engine, "old", 0)
            assert [row[name].endswith("Z") for name in ("started", "completed")] == [is_new] * 2
            open_storage(storage_url).close()
    finally:
        engine.dispose()


@pytest.mark.slow
def test_an_upgrade_that_ends_in_the_middle_forgets_no_local_times(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's part notes its own version, after which nothing else tells that local times are there."""
    restore(storage_url, "2.10.1")
    real = schema._upgrade_optuna

    def end_after(url: Any) -> None:
        real(url)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(schema, "_upgrade_optuna", end_after)
        with pytest.raises(KeyboardInterrupt):
            schema.upgrade(storage_url)
    said = schema.upgrade(storage_url)

    assert "times in an unknown time zone: 5 trials" in said[-1]
    said = schema.upgrade(storage_url, "Asia/Tokyo")
    assert "converted from Asia/Tokyo to UTC: the times of 5 trials" in said


# --- Trackers


@pytest.mark.with_tables
def test_trackers_are_told_which_times_are_of_an_unknown_zone(old: Old) -> None:
    schema.upgrade(old.db.url)
    late = datetime.datetime(2026, 1, 1, 12)
    old.set(2, datetime_start=late, datetime_complete=late - datetime.timedelta(hours=5))
    told = _told(old.db)
    assert [told[number].tags.get("time_zone") for number in range(4)] == [None, "unknown", "unknown", "unknown"]
    assert told[2].began_s == told[2].ended_s == late.replace(tzinfo=UTC).timestamp()

    old.local(2, "datetime_complete")
    old.set(2, datetime_start=old.utc[2][0])
    schema.upgrade(old.db.url, "America/New_York")
    told = _told(old.db)
    for number in range(3):
        assert [told[number].began_s, told[number].ended_s] == [one.timestamp() for one in _in_utc(old.utc[number])]
        assert "time_zone" not in told[number].tags


def _told(db: StudyDatabase) -> dict[int, Any]:
    study = find_study(db.engine, db.name)
    ids = [row.trial_id for row in read_trials(db.engine, study)]
    unsent = read_unsent(db.engine, study, "none", ids)
    return {one.row.number: mirror.describe_trial(study, one) for one in unsent}


@pytest.mark.with_tables
def test_a_workers_own_tables_agree_with_the_trials_times(storage_url: str, zone: str) -> None:
    """Seconds since 1970 beside Optuna's columns: both are the database's clock."""
    with study_database(storage_url) as db:
        db.tell(db.claim())
        (start, end) = _in_utc(stored_times(storage_url)[0])
        with connection_to(storage_url) as connection:
            began_s = connection.execute(sa.select(attempts.c.started_at_s)).scalar_one()
            ended_s = connection.execute(sa.select(records.c.ended_at_s)).scalar_one()
    assert abs(start.timestamp() - began_s) < 1
    assert abs(end.timestamp() - ended_s) < 1
    assert abs(time.time() - began_s) < 60
