"""Times of trials: UTC in the database. Earlier versions stored local time without recording the zone."""

from __future__ import annotations

import datetime
import itertools
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from tuner.errors import UsageError
from tuner.storage.sql.dialect import clock
from tuner.storage.sql.tables import attempts, leases, records, studies, trials, unknown_zones

UTC = datetime.UTC
ADVICE = "`tuner upgrade --from-timezone ZONE` converts them to UTC; ZONE is a name such as America/New_York"
_EPOCH, _SECOND = datetime.datetime(1970, 1, 1), datetime.timedelta(seconds=1)
_MOST_AHEAD = datetime.timedelta(minutes=5)  # the largest expected difference between clocks of machines


def local_time(stored: datetime.datetime) -> datetime.datetime:
    """Return a stored time as local time without a zone, like Optuna's own storage."""
    # Twice as fast as `astimezone` and equally exact, because a study has many trials.
    return datetime.datetime.fromtimestamp((stored - _EPOCH) // _SECOND).replace(microsecond=stored.microsecond)


def utc_time(moment: datetime.datetime) -> datetime.datetime:
    """Return a time in the stored form: UTC without a zone."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def find_zone(name: str) -> zoneinfo.ZoneInfo:
    """Return a time zone.

    Raises:
        UsageError: there is no zone of that name.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        missing = "" if zoneinfo.available_timezones() else "; this machine has no such database: pip install tzdata"
        raise UsageError(
            f"a time zone must be a name from the IANA database, such as America/New_York or UTC: got {name!r}{missing}"
        ) from None


def is_optuna_5(connection: Connection) -> bool:
    """Return whether Optuna 5 or newer created the tables: older versions stored local time."""
    if not sa.inspect(connection).has_table("version_info"):
        return False
    version = connection.execute(sa.text("SELECT library_version FROM version_info")).scalar_one_or_none() or ""
    major = version.partition(".")[0]
    return major.isdecimal() and int(major) >= 5


def mark(connection: Connection) -> None:
    """Mark the times that another program may have stored in local time.

    Workers have always stored UTC. A lease, an attempt or a record of a trial shows that a worker stored its start; a
    record shows that a worker stored its end too. The zone of all other times is unknown.
    """
    present = set(sa.inspect(connection).get_table_names())

    def has(table: sa.Table) -> sa.ColumnElement[bool]:
        if table.name not in present:
            return sa.false()
        return sa.exists().where(table.c.trial_id == trials.c.trial_id)

    is_ours = has(leases) | has(attempts) | has(records)
    start = trials.c.datetime_start.is_not(None) & ~is_ours
    end = trials.c.datetime_complete.is_not(None) & ~has(records)
    found = sa.select(trials.c.trial_id, start, end).where(start | end)
    connection.execute(unknown_zones.insert().from_select(["trial_id", "is_start", "is_end"], found))


def count(connection: Connection) -> int:
    """Return the number of trials with times of an unknown zone."""
    if not sa.inspect(connection).has_table(unknown_zones.name):
        return 0
    return connection.execute(sa.select(sa.func.count()).select_from(unknown_zones)).scalar_one()


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        trials: The number of converted trials.
        ambiguous: The number of them with a time that occurred twice, because clocks were put back.
        left: Why other trials were not converted, one line per trial.
    """

    trials: int
    ambiguous: int
    left: list[str]


def convert(connection: Connection, zone: zoneinfo.ZoneInfo) -> Converted:
    """Convert the marked times from a zone to UTC, and remove their marks.

    Times that cannot belong to this zone are not converted and stay marked.

    Args:
        connection: A connection in an exclusive transaction.
        zone: The zone of the processes that stored them.
    """
    now_s = connection.execute(sa.select(clock(connection.dialect.name))).scalar_one()
    latest = datetime.datetime.fromtimestamp(now_s, UTC).replace(tzinfo=None) + _MOST_AHEAD
    query = (
        sa.select(
            trials.c.trial_id, trials.c.number, studies.c.study_name, trials.c.datetime_start,
            trials.c.datetime_complete, unknown_zones.c.is_start, unknown_zones.c.is_end,
        )
        .join(unknown_zones, unknown_zones.c.trial_id == trials.c.trial_id)
        .join(studies, studies.c.study_id == trials.c.study_id)
        .order_by(trials.c.trial_id)
    )  # fmt: skip
    ambiguous = 0
    changes: list[dict[str, Any]] = []
    left: list[str] = []
    for trial_id, number, study, start, end, is_start, is_end in connection.execute(query).all():
        starts: list[datetime.datetime | None] = list(_instants(start, zone)) if is_start else [start]
        ends: list[datetime.datetime | None] = list(_instants(end, zone)) if is_end else [end]
        found = next((pair for pair in itertools.product(starts, ends) if _is_possible(*pair, latest)), None)
        if found is None:
            shown = " to ".join("-" if one is None else one.isoformat(" ", "seconds") for one in (start, end))
            why = _objection(starts, ends, latest, zone.key)
            left.append(f"trial {number} of {study!r} ({shown}) {why}")
        else:
            changes.append({"of_trial": trial_id, "start": found[0], "end": found[1]})
            ambiguous += len(starts) > 1 or len(ends) > 1
    if changes:
        of_trial: sa.ColumnElement[int] = sa.bindparam("of_trial")
        times: dict[str, sa.ColumnElement[Any]] = {
            "datetime_start": sa.bindparam("start"),
            "datetime_complete": sa.bindparam("end"),
        }
        connection.execute(trials.update().where(trials.c.trial_id == of_trial).values(times), changes)
        connection.execute(unknown_zones.delete().where(unknown_zones.c.trial_id == of_trial), changes)
    return Converted(len(changes), ambiguous, left)


def _instants(moment: datetime.datetime, zone: zoneinfo.ZoneInfo) -> Iterator[datetime.datetime]:
    """Yield the UTC times at which clocks of a zone show a time: none in a gap, two in a repeated hour."""
    found = None
    for fold in (0, 1):
        try:
            instant = moment.replace(tzinfo=zone, fold=fold).astimezone(UTC)
            shown = instant.astimezone(zone).replace(tzinfo=None)
        except OverflowError:  # at the ends of the calendar
            return
        if shown == moment and instant != found:
            found = instant
            yield instant.replace(tzinfo=None)


def _is_possible(start: datetime.datetime | None, end: datetime.datetime | None, latest: datetime.datetime) -> bool:
    times = [time for time in (start, end) if time is not None]
    return times == sorted(times) and all(time <= latest for time in times)


def _objection(
    starts: list[datetime.datetime | None], ends: list[datetime.datetime | None], latest: datetime.datetime, zone: str
) -> str:
    """Return why a trial's times cannot belong to the zone."""
    if not starts or not ends:
        return f"has a time that clocks in {zone} skipped"
    if any(one is not None and one > latest for one in (starts[0], ends[0])):
        return f"would be in the future if its times were in {zone}"
    return f"would end before it starts if its times were in {zone}"
