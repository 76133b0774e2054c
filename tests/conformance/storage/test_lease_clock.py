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
from storage_tools import Desk, desk_at

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
WRITES: dict[str, Callable[[Desk, Lease], None]] = {
    "renew": lambda desk, lease: leases.renew(desk.engine, lease),
    "tell": lambda desk, lease: desk.tell(lease),
    "release": lambda desk, lease: leases.release(desk.engine, lease),
}


class ClockedDesk(Desk):
    """A desk whose wall clock can be set."""

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
def desk(sqlite_url: str) -> Iterator[ClockedDesk]:
    with desk_at(sqlite_url) as plain:
        yield ClockedDesk(plain.url, plain.storage, plain.engine)


@pytest.mark.parametrize("jump_s", JUMPS)
def test_a_jump_of_the_clock_takes_no_trial_from_a_live_worker(desk: ClockedDesk, jump_s: float) -> None:
    lease = desk.claim("A", budget=1, lease_s=30.0)
    for _ in range(4):  # one more than would fail the trial
        desk.jump(jump_s)
        assert desk.ask("B", budget=1) is NoTrial.WAIT
        assert 20 < desk.rest_s() <= 30
    leases.renew(desk.engine, lease)
    assert desk.leases() == [(0, "A", 1, 0)]
    desk.tell(lease)
    assert desk.states() == ["COMPLETE"]


@pytest.mark.parametrize("change", WRITES)
@pytest.mark.parametrize("jump_s", JUMPS)
def test_an_attempt_is_as_long_as_it_was_at_work(desk: ClockedDesk, jump_s: float, change: str) -> None:
    lease = desk.claim("A", lease_s=300.0)
    ended = desk.claim("B")
    desk.tell(ended)
    desk.jump(jump_s)
    (_, (before_s, end_s)) = desk.execute("SELECT started_at_s, ended_at_s FROM tuner_attempts ORDER BY trial_id")

    WRITES[change](desk, lease)

    running_s, ended_s = desk.lengths()
    assert 0 <= running_s < 60
    assert ended_s == end_s - before_s
    with desk.engine.connect() as connection:
        used, _ = count_hours(connection, desk.study_id, now_s(desk.engine), Hours())
    assert 0 <= used.device_s < 120


def test_a_jump_while_a_connection_is_open_is_noticed(desk: ClockedDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.claim("A", budget=1, lease_s=30.0)
    assert desk.ask("B", budget=1) is NoTrial.WAIT
    before_s, real = desk.rest_s(), lease_clock._ahead_s
    monkeypatch.setattr(lease_clock, "_ahead_s", lambda: real() + 60.0)
    assert desk.ask("B", budget=1) is NoTrial.WAIT
    assert 40.0 < desk.rest_s() - before_s <= 60.0


def test_a_change_of_the_clocks_rate_moves_nothing(desk: ClockedDesk) -> None:
    desk.claim("A", lease_s=30.0)
    desk.jump(0.5)
    before = desk.execute("SELECT expires_at_s, ahead_s FROM tuner_leases")
    assert desk.ask("B", budget=1) is NoTrial.WAIT
    assert desk.execute("SELECT expires_at_s, ahead_s FROM tuner_leases") == before


@pytest.mark.parametrize("jump_s", [-8 * HOUR, 8 * HOUR])
def test_a_dead_workers_trial_waits_for_its_lease_and_no_longer(
    desk: ClockedDesk, jump_s: float, wait_until: Callable[..., Any]
) -> None:
    desk.claim("A", budget=1, lease_s=2.0)
    desk.jump(jump_s)
    taken = wait_until(lambda: (found := desk.ask("B", budget=1)) is not NoTrial.WAIT and found)
    assert (taken.number, taken.fence, desk.leases()) == (0, 2, [(0, "B", 2, 1)])


def test_a_trial_that_was_given_back_stays_free(desk: ClockedDesk) -> None:
    leases.release(desk.engine, desk.claim("A", budget=1))
    desk.jump(-8 * HOUR)
    assert desk.claim("B", budget=1).fence == 2
    claims.release_all(desk.engine, "B", died=True)
    desk.jump(8 * HOUR)
    assert desk.claim("C", budget=1).fence == 3


# --- Boots


def _set_boot(desk: ClockedDesk, **changes: str) -> None:
    here = this_boot()
    assert here is not None
    desk.execute("UPDATE tuner_leases SET boot = :boot", boot=str(dataclasses.replace(here, **changes)))
    desk.engine.dispose()


def test_a_reboot_ends_the_leases_of_its_host(desk: ClockedDesk) -> None:
    desk.claim("A", budget=1, lease_s=300.0)
    _set_boot(desk, id="an-earlier-one")
    desk.jump(-8 * HOUR)  # a clock without a battery
    assert (desk.claim("B", budget=1).fence, desk.leases()) == (2, [(0, "B", 2, 1)])


@pytest.mark.parametrize("changes", [{"id": "another", "host": "elsewhere"}, {"namespace": "time:[1]"}])
def test_leases_of_other_hosts_and_time_namespaces_go_by_the_wall_clock(
    desk: ClockedDesk, changes: dict[str, str]
) -> None:
    desk.claim("A", budget=1, lease_s=30.0)
    _set_boot(desk, **changes)
    assert desk.ask("B", budget=1) is NoTrial.WAIT
    desk.jump(60.0)
    _set_boot(desk, **changes)
    assert desk.claim("B", budget=1).fence == 2


def test_containers_of_one_machine_have_one_clock(desk: ClockedDesk) -> None:
    desk.claim("A", budget=1, lease_s=30.0)
    _set_boot(desk, host="a-container")
    desk.jump(60.0)
    assert desk.ask("B", budget=1) is NoTrial.WAIT


def test_without_an_id_of_the_boot_leases_go_by_the_wall_clock(
    desk: ClockedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_clock, "this_boot", lambda: None)
    desk.claim("A", budget=1, lease_s=30.0)
    assert desk.execute("SELECT boot, ahead_s, ahead_fence FROM tuner_leases") == [(None, None, None)]
    assert desk.ask("B", budget=1) is NoTrial.WAIT
    desk.jump(60.0)
    assert desk.claim("B", budget=1).fence == 2


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


def test_workers_of_the_version_before_go_by_the_wall_clock(desk: ClockedDesk) -> None:
    """They neither write the new columns nor look at them."""
    desk.claim("old", budget=1, lease_s=30.0)
    desk.execute("UPDATE tuner_leases SET boot = NULL, ahead_s = NULL, ahead_fence = NULL")
    assert desk.ask("new", budget=1) is NoTrial.WAIT
    desk.jump(60.0)
    taken = desk.claim("new", budget=1, lease_s=30.0)
    # One of them takes it over after a jump; what stands in the new columns is the new worker's.
    desk.jump(-60.0)
    desk.execute("UPDATE tuner_leases SET worker = 'old', fence = 3, expires_at_s = :at", at=now_s(desk.engine) + 30)
    with pytest.raises(LeaseLost):
        leases.renew(desk.engine, taken)
    assert desk.ask("third", budget=1) is NoTrial.WAIT
    assert 20 < desk.rest_s() <= 30


def test_leases_of_the_version_before_are_kept_by_the_upgrade(desk: ClockedDesk) -> None:
    lease = desk.claim("A", budget=1, lease_s=300.0)
    for name in ("boot", "ahead_s", "ahead_fence"):
        desk.execute(f"ALTER TABLE tuner_leases DROP COLUMN {name}")
    desk.execute("UPDATE tuner_alembic_version SET version_num = '0005'")

    said = schema.upgrade(desk.url)

    assert said[-1] == "upgraded the tables of tuner from version 0005 to 0006"
    assert desk.leases() == [(0, "A", 1, 0)]
    assert desk.ask("B", budget=1) is NoTrial.WAIT
    leases.renew(desk.engine, lease)
    assert desk.execute("SELECT ahead_fence FROM tuner_leases") == [(1,)]


# --- Who is alive did not die


def test_a_worker_that_is_alive_after_all_did_not_die(storage_url: str) -> None:
    with desk_at(storage_url) as plain:
        desk = ClockedDesk(plain.url, plain.storage, plain.engine)
        slept = desk.claim("A", budget=1, lease_s=-1.0)
        desk.claim("B", budget=1, lease_s=-1.0)  # dies
        last = desk.claim("C", budget=1)
        assert desk.leases() == [(0, "C", 3, 2)]
        for _ in range(2):
            leases.withdraw_death(desk.engine, slept)
            assert desk.leases() == [(0, "C", 3, 1)]
        endings = "SELECT worker, ending FROM tuner_attempts ORDER BY fence"
        assert desk.execute(endings) == [("A", "preempted"), ("B", "died"), ("C", None)]
        leases.withdraw_death(desk.engine, last)  # it holds the trial
        desk.tell(last)
        leases.withdraw_death(desk.engine, last)
        assert desk.execute(endings) == [("A", "preempted"), ("B", "died"), ("C", "complete")]


def test_on_postgres_leases_have_the_servers_clock_alone(postgres_url: str) -> None:
    with desk_at(postgres_url) as plain:
        desk = ClockedDesk(plain.url, plain.storage, plain.engine)
        leases.renew(desk.engine, desk.claim())
        assert desk.execute("SELECT boot, ahead_s, ahead_fence FROM tuner_leases") == [(None, None, None)]


def test_suspended_time_is_not_counted_here() -> None:
    """What the storage relies on: the processes of a machine share `time.monotonic`."""
    before_s = time.monotonic()
    done = subprocess.run(["python3", "-c", "import time; print(time.monotonic())"], capture_output=True, text=True)
    assert before_s <= float(done.stdout) <= time.monotonic()
