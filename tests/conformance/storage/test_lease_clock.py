"""Leases on SQLite when the wall clock jumps, the machine is suspended or was booted; who is alive keeps its trial.

A jump is made by moving all that is stored the other way: the clock itself cannot be set here. `tests/faults` sets it
for real processes.
"""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from storage_tools import StudyDatabase, study_database

from tuner.errors import LeaseLost
from tuner.storage.read.hours import Hours, count_hours
from tuner.storage.sql import lease_clock, schema
from tuner.storage.sql.dialect import now_s
from tuner.storage.sql.lease_clock import this_boot
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import NoTrial
from tuner.storage.worker.fences import Lease

HOUR = 3600.0
JUMPS = [60.0, 8 * HOUR, -60.0, -8 * HOUR]
WRITES: dict[str, Callable[[StudyDatabase, Lease], None]] = {
    "renew": lambda db, lease: leases.renew(db.engine, lease),
    "tell": lambda db, lease: db.tell(lease),
    "release": lambda db, lease: leases.release(db.engine, lease),
}


class ClockedStudyDatabase(StudyDatabase):
    """A study in a database, whose wall clock can be set."""

    def execute(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else []

    def jump(self, seconds: float) -> None:
        """Set the wall clock ahead: seen from now on, everything was written so much earlier."""
        self.execute("UPDATE tuner_leases SET expires_at_s = expires_at_s - :by WHERE expires_at_s > 0", by=seconds)
        self.execute("UPDATE tuner_leases SET ahead_s = ahead_s - :by", by=seconds)
        self.execute("UPDATE tuner_attempts SET started_at_s = started_at_s - :by", by=seconds)
        self.execute("UPDATE tuner_attempts SET ended_at_s = ended_at_s - :by", by=seconds)
        self.engine.dispose()  # else its connections know that the clock of this process has not jumped

    def rest_s(self) -> float:
        """Return the seconds to the end of the only lease, on the wall clock."""
        ((end_s,),) = self.execute("SELECT expires_at_s FROM tuner_leases")
        return end_s - now_s(self.engine)

    def lengths(self) -> list[float]:
        now = now_s(self.engine)
        rows = self.execute("SELECT started_at_s, ended_at_s FROM tuner_attempts ORDER BY trial_id, fence")
        return [(now if end_s is None else end_s) - start_s for start_s, end_s in rows]


@pytest.fixture
def db(sqlite_url: str) -> Iterator[ClockedStudyDatabase]:
    with study_database(sqlite_url) as plain:
        yield ClockedStudyDatabase(plain.url, plain.storage, plain.engine)


@pytest.mark.parametrize("jump_s", JUMPS)
def test_a_jump_of_the_clock_takes_no_trial_from_a_live_worker(db: ClockedStudyDatabase, jump_s: float) -> None:
    lease = db.claim("A", budget=1, lease_s=30.0)
    for _ in range(4):  # one more than would fail the trial
        db.jump(jump_s)
        assert db.ask("B", budget=1) is NoTrial.WAIT
        assert 20 < db.rest_s() <= 30
    leases.renew(db.engine, lease)
    assert db.leases() == [(0, "A", 1, 0)]
    db.tell(lease)
    assert db.states() == ["COMPLETE"]


@pytest.mark.parametrize("change", WRITES)
@pytest.mark.parametrize("jump_s", JUMPS)
def test_an_attempt_is_as_long_as_it_was_at_work(db: ClockedStudyDatabase, jump_s: float, change: str) -> None:
    lease = db.claim("A", lease_s=300.0)
    ended = db.claim("B")
    db.tell(ended)
    db.jump(jump_s)
    (_, (before_s, end_s)) = db.execute("SELECT started_at_s, ended_at_s FROM tuner_attempts ORDER BY trial_id")

    WRITES[change](db, lease)

    running_s, ended_s = db.lengths()
    assert 0 <= running_s < 60
    assert ended_s == end_s - before_s
    with db.engine.connect() as connection:
        used, _ = count_hours(connection, db.study_id, now_s(db.engine), Hours())
    assert 0 <= used.device_s < 120


def test_a_jump_while_a_connection_is_open_is_noticed(
    db: ClockedStudyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.claim("A", budget=1, lease_s=30.0)
    assert db.ask("B", budget=1) is NoTrial.WAIT
    before_s, real = db.rest_s(), lease_clock._ahead_s
    monkeypatch.setattr(lease_clock, "_ahead_s", lambda: real() + 60.0)
    assert db.ask("B", budget=1) is NoTrial.WAIT
    assert 40.0 < db.rest_s() - before_s <= 60.0


def test_a_change_of_the_clocks_rate_moves_nothing(db: ClockedStudyDatabase) -> None:
    db.claim("A", lease_s=30.0)
    db.jump(0.5)
    before = db.execute("SELECT expires_at_s, ahead_s FROM tuner_leases")
    assert db.ask("B", budget=1) is NoTrial.WAIT
    assert db.execute("SELECT expires_at_s, ahead_s FROM tuner_leases") == before


@pytest.mark.parametrize("jump_s", [-8 * HOUR, 8 * HOUR])
def test_a_dead_workers_trial_waits_for_its_lease_and_no_longer(
    db: ClockedStudyDatabase, jump_s: float, wait_until: Callable[..., Any]
) -> None:
    db.claim("A", budget=1, lease_s=2.0)
    db.jump(jump_s)
    taken = wait_until(lambda: (found := db.ask("B", budget=1)) is not NoTrial.WAIT and found)
    assert (taken.number, taken.fence, db.leases()) == (0, 2, [(0, "B", 2, 1)])


def test_a_trial_that_was_given_back_stays_free(db: ClockedStudyDatabase) -> None:
    leases.release(db.engine, db.claim("A", budget=1))
    db.jump(-8 * HOUR)
    assert db.claim("B", budget=1).fence == 2
    claims.release_all(db.engine, "B", died=True)
    db.jump(8 * HOUR)
    assert db.claim("C", budget=1).fence == 3


# --- Boots


def _set_boot(db: ClockedStudyDatabase, **changes: str) -> None:
    here = this_boot()
    assert here is not None
    db.execute("UPDATE tuner_leases SET boot = :boot", boot=str(dataclasses.replace(here, **changes)))
    db.engine.dispose()


def test_a_reboot_ends_the_leases_of_its_host(db: ClockedStudyDatabase) -> None:
    db.claim("A", budget=1, lease_s=300.0)
    _set_boot(db, id="an-earlier-one")
    db.jump(-8 * HOUR)  # a clock without a battery
    assert (db.claim("B", budget=1).fence, db.leases()) == (2, [(0, "B", 2, 1)])


@pytest.mark.parametrize("changes", [{"id": "another", "host": "elsewhere"}, {"namespace": "time:[1]"}])
def test_leases_of_other_hosts_and_time_namespaces_go_by_the_wall_clock(
    db: ClockedStudyDatabase, changes: dict[str, str]
) -> None:
    db.claim("A", budget=1, lease_s=30.0)
    _set_boot(db, **changes)
    assert db.ask("B", budget=1) is NoTrial.WAIT
    db.jump(60.0)
    _set_boot(db, **changes)
    assert db.claim("B", budget=1).fence == 2


def test_containers_of_one_machine_have_one_clock(db: ClockedStudyDatabase) -> None:
    db.claim("A", budget=1, lease_s=30.0)
    _set_boot(db, host="a-container")
    db.jump(60.0)
    assert db.ask("B", budget=1) is NoTrial.WAIT


def test_without_an_id_of_the_boot_leases_go_by_the_wall_clock(
    db: ClockedStudyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_clock, "this_boot", lambda: None)
    db.claim("A", budget=1, lease_s=30.0)
    assert db.execute("SELECT boot, ahead_s, ahead_fence FROM tuner_leases") == [(None, None, None)]
    assert db.ask("B", budget=1) is NoTrial.WAIT
    db.jump(60.0)
    assert db.claim("B", budget=1).fence == 2


def test_the_id_of_the_boot_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert lease_clock.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    monkeypatch.setattr(lease_clock, "_BOOT_ID", tmp_path / "none")
    for answer, found in [("printf 'A-B\\n'", "A-B"), ("exit 1", None), ("true", None)]:
        monkeypatch.setattr(lease_clock, "_SYSCTL", ("sh", "-c", answer))
        assert lease_clock.boot_id() == found
    monkeypatch.setattr(lease_clock, "_SYSCTL", (str(tmp_path / "none"),))
    assert lease_clock.boot_id() is None


def test_a_process_that_is_stopped_between_two_readings_sees_no_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10.0, 70.0, 70.0, 70.01])  # it stood still for a minute after the first
    monkeypatch.setattr(time, "monotonic", lambda: next(readings))
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert lease_clock._ahead_s() == 930.0


# --- Versions side by side


def test_workers_of_the_version_before_go_by_the_wall_clock(db: ClockedStudyDatabase) -> None:
    """They neither write the new columns nor look at them."""
    db.claim("old", budget=1, lease_s=30.0)
    db.execute("UPDATE tuner_leases SET boot = NULL, ahead_s = NULL, ahead_fence = NULL")
    assert db.ask("new", budget=1) is NoTrial.WAIT
    db.jump(60.0)
    taken = db.claim("new", budget=1, lease_s=30.0)
    # One of them takes it over after a jump; what stands in the new columns is the new worker's.
    db.jump(-60.0)
    db.execute("UPDATE tuner_leases SET worker = 'old', fence = 3, expires_at_s = :at", at=now_s(db.engine) + 30)
    with pytest.raises(LeaseLost):
        leases.renew(db.engine, taken)
    assert db.ask("third", budget=1) is NoTrial.WAIT
    assert 20 < db.rest_s() <= 30


def test_leases_of_the_version_before_are_kept_by_the_upgrade(db: ClockedStudyDatabase) -> None:
    lease = db.claim("A", budget=1, lease_s=300.0)
    for name in ("boot", "ahead_s", "ahead_fence", "farthest_epoch", "farthest_fence"):
        db.execute(f"ALTER TABLE tuner_leases DROP COLUMN {name}")
    for name in ("metric", "others"):
        db.execute(f"ALTER TABLE tuner_rungs DROP COLUMN {name}")
    for name in ("gpu_peak_bytes", "gpu_mean_bytes", "gpu_total_bytes", "gpu_percent"):
        db.execute(f"ALTER TABLE tuner_records DROP COLUMN {name}")
    for name in ("logs", "notices", "deliveries"):
        db.execute(f"DROP TABLE tuner_{name}")
    db.execute("UPDATE tuner_alembic_version SET version_num = '0005'")

    said = schema.upgrade(db.url)

    assert said[-1] == "upgraded the tables of tuner from version 0005 to 0011"
    assert db.leases() == [(0, "A", 1, 0)]
    assert db.ask("B", budget=1) is NoTrial.WAIT
    leases.renew(db.engine, lease)
    assert db.execute("SELECT ahead_fence, farthest_epoch FROM tuner_leases") == [(1, None)]


# --- Who is alive did not die


def test_a_worker_that_is_alive_after_all_did_not_die(storage_url: str) -> None:
    with study_database(storage_url) as plain:
        db = ClockedStudyDatabase(plain.url, plain.storage, plain.engine)
        slept = db.claim("A", budget=1, lease_s=-1.0)
        db.claim("B", budget=1, lease_s=-1.0)  # dies
        last = db.claim("C", budget=1)
        assert db.leases() == [(0, "C", 3, 2)]
        for _ in range(2):
            leases.withdraw_death(db.engine, slept)
            assert db.leases() == [(0, "C", 3, 1)]
        endings = "SELECT worker, ending FROM tuner_attempts ORDER BY fence"
        assert db.execute(endings) == [("A", "preempted"), ("B", "died"), ("C", None)]
        leases.withdraw_death(db.engine, last)  # it holds the trial
        db.tell(last)
        leases.withdraw_death(db.engine, last)
        assert db.execute(endings) == [("A", "preempted"), ("B", "died"), ("C", "complete")]


def test_on_postgres_leases_have_the_servers_clock_alone(postgres_url: str) -> None:
    with study_database(postgres_url) as plain:
        db = ClockedStudyDatabase(plain.url, plain.storage, plain.engine)
        leases.renew(db.engine, db.claim())
        assert db.execute("SELECT boot, ahead_s, ahead_fence FROM tuner_leases") == [(None, None, None)]


def test_suspended_time_is_not_counted_here() -> None:
    """What the storage relies on: the processes of a machine share `time.monotonic`."""
    before_s = time.monotonic()
    done = subprocess.run(["python3", "-c", "import time; print(time.monotonic())"], capture_output=True, text=True)
    assert before_s <= float(done.stdout) <= time.monotonic()
