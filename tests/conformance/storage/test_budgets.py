"""What may still be spent on a study, and who worked on it: counts, hours, stops, failures, attempts, lost answers."""

import datetime
import itertools
import json
import math
import random
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy import event
from storage_tools import LEASE_S, Desk, report, shared_desk_at

from tuner.errors import LeaseLost, StorageLost, UnknownStudy
from tuner.storage import connect, parse_url
from tuner.storage.read import hours
from tuner.storage.sql import dialect, prepared_statements, statements
from tuner.storage.sql.dialect import now_s
from tuner.storage.sql.retry import Patience, patient
from tuner.storage.sql.tables import attempts, budgets, workers
from tuner.storage.sql.tables import trials as trials_table
from tuner.storage.worker import claims, leases, reporter
from tuner.storage.worker.claims import MAX_DEATHS, Claimant, NoTrial
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.reporter import Reporter
from tuner.storage.worker.studies import Registered, join, leave, register, resume, stop
from tuner.study.source import git_state
from tuner.trial import Outcome, Report
from tuner.trial.failures import ANY_FAILURES
from tuner.worker.context import Place
from tuner.worker.time_use import TimeUse

nan, inf = math.nan, math.inf
TICK_S = 0.005  # SQLite's clock counts milliseconds


class Books(Desk):
    """A desk whose workers have budgets of every kind, and what its books say."""

    def claimant(self, worker: str = "one", **budget: Any) -> Claimant:
        return Claimant(self.study_id, worker, **{"trials": 10**6, "lease_s": LEASE_S, **budget})

    def lease(self, claimant: Claimant) -> Lease:
        lease = claims.claim(self.engine, claimant)
        assert isinstance(lease, Lease), lease
        return lease

    def execute(self, statement: Any, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> Any:
        with self.engine.begin() as connection:
            statement = sa.text(statement) if isinstance(statement, str) else statement
            result = connection.execute(statement, values)
            return result.fetchall() if result.returns_rows else None

    def set_lease(self, lease: Lease, expires_at_s: str) -> None:
        """Let a lease end at a time, which is an SQL expression."""
        self.execute(f"UPDATE tuner_leases SET expires_at_s = {expires_at_s} WHERE trial_id = {lease.trial_id}")

    def set_start(self, trial: optuna.Trial, offset_s: float) -> None:
        """Let a trial have begun so many seconds from now."""
        start = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=offset_s)
        table = trials_table.update().where(trials_table.c.trial_id == trial._trial_id)
        self.execute(table.values(datetime_start=start))

    def now_s(self) -> float:
        return now_s(self.engine)

    def fail(self, claimant: Claimant, kind: str, error: str = "trace") -> Lease:
        """Have a worker claim a trial and fail in it."""
        lease = self.lease(claimant)
        self.end(lease, kind, error)
        return lease

    def end(self, lease: Lease, kind: str | None = None, error: str = "trace") -> None:
        """End a trial, in failure if there is a kind of it, at a time of its own."""
        time.sleep(TICK_S)
        if kind is None:
            self.tell(lease)
        else:
            self.tell(lease, Outcome.FAILED, error_kind=kind, error=error)

    def attempts(self) -> list[tuple[int, int, str, int, str | None]]:
        """Return (number, fence, worker, devices, ending) of each attempt; those that ended did so after they began."""
        rows = self.execute(
            "SELECT number, fence, worker, devices, ending, started_at_s, ended_at_s, a.study_id FROM tuner_attempts a "
            f"JOIN trials USING (trial_id) WHERE trials.study_id = {self.study_id} ORDER BY number, fence"
        )
        now_s = self.now_s()
        for row in rows:
            assert row.study_id == self.study_id
            assert now_s - 600.0 < row.started_at_s <= now_s
            assert (row.ended_at_s is None) == (row.ending is None)
            assert row.ended_at_s is None or row.started_at_s <= row.ended_at_s <= now_s
        return [tuple(row)[:5] for row in rows]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with shared_desk_at(request, tmp_path_factory, "budgets") as desk:
        yield desk


@pytest.fixture
def desk(shared_desk: Desk) -> Books:
    return Books(shared_desk.url, shared_desk.storage, shared_desk.engine)


@pytest.fixture(scope="module", params=["postgres"])
def shared_postgres(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with shared_desk_at(request, tmp_path_factory, "more_budgets") as desk:
        yield desk


@pytest.fixture
def postgres_desk(shared_postgres: Desk) -> Books:
    return Books(shared_postgres.url, shared_postgres.storage, shared_postgres.engine)


# --- Counts, of which the settled ones are not read again


@dataclass
class Row:
    """A trial of the model; its fence is 0 unless it is under our workers."""

    state: str
    worker: str | None = None
    fence: int = 0
    deaths: int = 0
    has_expired: bool = False


class Model:
    """What a claim must answer: everything counted anew each time."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def claim(self, worker: str, budget: int) -> tuple[int, int, bool] | NoTrial:
        """Return number, fence, and whether the trial is new."""
        used = sum(row.state in ("COMPLETE", "PRUNED") for row in self.rows)
        if used >= budget:
            return NoTrial.DONE
        # Also those of plain Optuna, whose processes have begun them just now.
        held = sum(row.state == "RUNNING" and not row.has_expired for row in self.rows)
        if used + held >= budget:
            return NoTrial.WAIT  # of a budget that has been lowered, nothing is left for those that were given back
        for number, row in enumerate(self.rows):
            if row.state == "RUNNING" and row.has_expired:
                row.deaths += row.worker is not None
                if row.deaths >= MAX_DEATHS:
                    row.state = "FAIL"
                    continue
                row.worker, row.fence, row.has_expired = worker, row.fence + 1, False
                return number, row.fence, False
        if used + sum(row.state == "RUNNING" for row in self.rows) >= budget:
            return NoTrial.WAIT
        for number, row in enumerate(self.rows):
            if row.state == "WAITING":
                row.state, row.worker, row.fence = "RUNNING", worker, 1
                return number, 1, False
        self.rows.append(Row("RUNNING", worker, 1))
        return len(self.rows) - 1, 1, True

    def holds(self, lease: Lease) -> bool:
        row = self.rows[lease.number]
        return (row.state, row.worker, row.fence) == ("RUNNING", lease.worker, lease.fence)


STATES = {Outcome.COMPLETE: "COMPLETE", Outcome.FAILED: "FAIL"}
ENDS = [outcome for outcome in Outcome if outcome.uses_budget] + [Outcome.FAILED]


class Workers:
    """Workers, and tools of plain Optuna, that do anything in any order; each answer is compared with the model's."""

    def __init__(self, desk: Books, seed: int) -> None:
        self.desk, self.study, self.model, self.random = desk, desk.study, Model(), random.Random(seed)
        self.claimants = [desk.claimant(f"{seed}-{index}", trials=0) for index in range(4)]
        self.budget = 25
        self.leases: list[Lease] = []
        self.theirs: list[int] = []
        self.marks: set[int] = set()

    def claim(self) -> None:
        (claimant,) = self.random.choices(self.claimants, [8, 4, 2, 1])
        claimant.trials = self.budget - self.random.choice([0, 0, 0, 10])  # launches may ask for different numbers
        expected = self.model.claim(claimant.worker, claimant.trials)
        found = claims.claim(self.desk.engine, claimant)
        if isinstance(found, Lease):
            self.leases.append(found)
            assert (found.number, found.fence, found.is_new) == expected
        else:
            assert found is expected
        self.marks.add(claimant.settled.up_to)

    def write(self, act: Callable[[Lease], None], **change: Any) -> None:
        """Do a write of one of the latest leases, held or lost."""
        if not self.leases:
            return
        lease = self.random.choice(self.leases[:4] if self.random.random() < 0.5 else self.leases[-6:])
        if self.model.holds(lease):
            act(lease)
            for name, value in change.items():
                setattr(self.model.rows[lease.number], name, value)
        else:
            with pytest.raises(LeaseLost):
                act(lease)
            self.leases.remove(lease)

    def end(self) -> None:
        outcome = self.random.choice(ENDS)
        self.write(lambda lease: self.desk.tell(lease, outcome), state=STATES.get(outcome, "PRUNED"))

    def release(self) -> None:
        self.write(lambda lease: leases.release(self.desk.engine, lease), worker=None, has_expired=True)

    def renew(self) -> None:
        self.write(lambda lease: leases.renew(self.desk.engine, lease), has_expired=False)

    def expire(self) -> None:
        for lease in self.random.sample(self.leases, min(1, len(self.leases))):
            if self.model.holds(lease):
                clock = str(dialect.clock(self.desk.engine.dialect.name))
                self.desk.set_lease(lease, f"{clock} - 0.5")
                self.model.rows[lease.number].has_expired = True

    def release_all(self) -> None:
        worker, died = self.random.choice(self.claimants).worker, self.random.random() < 0.5
        claims.release_all(self.desk.engine, worker, died=died)
        for row in self.model.rows:
            if row.state == "RUNNING" and row.worker == worker:
                row.has_expired, row.worker = True, worker if died else None

    def enqueue(self) -> None:
        self.study.enqueue_trial({"x": 0.5})
        self.model.rows.append(Row("WAITING"))

    def ask(self) -> None:
        number = self.study.ask().number
        waiting = [number for number, row in enumerate(self.model.rows) if row.state == "WAITING"]
        if waiting:
            assert number in waiting
            self.model.rows[number].state = "RUNNING"
        else:
            assert number == len(self.model.rows)
            self.model.rows.append(Row("RUNNING"))
        self.theirs.append(number)

    def tell(self) -> None:
        for number in self.random.sample(self.theirs, min(1, len(self.theirs))):
            self.theirs.remove(number)
            state = self.random.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
            self.study.tell(number, [1.0] if state is TrialState.COMPLETE else None, state)
            self.model.rows[number].state = state.name

    def end_from_outside(self) -> None:
        """End a trial of ours by a tool of plain Optuna."""
        for number in [number for number, row in enumerate(self.model.rows) if row.state == "RUNNING" and row.fence][
            :1
        ]:
            self.study.tell(number, state=TrialState.FAIL)
            self.model.rows[number].state = "FAIL"

    def add(self) -> None:
        state = self.random.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
        value = 1.0 if state is TrialState.COMPLETE else None
        self.study.add_trial(optuna.trial.create_trial(state=state, value=value))
        self.model.rows.append(Row(state.name))

    def raise_budget(self) -> None:
        self.budget += 5

    def run(self, steps: int) -> None:
        acts = {
            self.claim: 40,
            self.end: 30,
            self.release: 3,
            self.renew: 3,
            self.expire: 6,
            self.release_all: 3,
            self.enqueue: 3,
            self.ask: 3,
            self.tell: 6,
            self.end_from_outside: 1,
            self.add: 2,
            self.raise_budget: 5,
        }
        for act in self.random.choices(list(acts), list(acts.values()), k=steps):
            act()
            assert len(self.model.rows) < 10 * steps


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 40))])
def test_the_count_is_that_of_one_who_counts_everything(
    desk: Books, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 4)
    done = Workers(desk, seed)
    done.run(300)

    trials = desk.trials()
    assert [(trial.number, trial.state.name) for trial in trials] == [
        (number, row.state) for number, row in enumerate(done.model.rows)
    ]
    held = [(number, row.worker, row.fence) for number, row in enumerate(done.model.rows) if row.state == "RUNNING"]
    assert [row[:3] for row in desk.leases() if trials[row[0]].state is TrialState.RUNNING] == [
        row for row in held if row[2]
    ]
    assert len(done.marks) > 2, "the mark moved"


def add_ended(desk: Books, *states: str) -> list[int]:
    """Insert trials that have ended; return their ids."""
    (last,) = desk.execute("SELECT coalesce(max(trial_id), 0) AS id FROM trials")
    count = len(desk.states())
    rows = [
        {"id": last.id + 1 + at, "number": count + at, "study_id": desk.study_id, "state": state}
        for at, state in enumerate(states)
    ]
    desk.execute(
        "INSERT INTO trials (trial_id, number, study_id, state) VALUES (:id, :number, :study_id, :state)", rows
    )
    if desk.engine.dialect.name == "postgresql":
        desk.execute("SELECT setval('trials_trial_id_seq', (SELECT max(trial_id) FROM trials))")
    return [row["id"] for row in rows]


def test_at_first_and_after_two_hundred_ended_trials_the_mark_moves_over_all_that_is_there(desk: Books) -> None:
    first, second = desk.claimant("one", trials=500), desk.claimant("two", trials=500)
    add_ended(desk, *["COMPLETE", "PRUNED", "FAIL"] * 2)  # of which four count
    zombie = desk.study.ask()  # of a plain Optuna process, which was killed two hours ago
    desk.set_start(zombie, -7200)

    held = [desk.lease(first)]
    assert first.settled == claims.Settled(held[0].trial_id, 6, 4, (zombie._trial_id, held[0].trial_id))
    add_ended(desk, *["COMPLETE"] * 197)
    held.append(desk.lease(first))
    assert (held[1].number, first.settled.total) == (205, 6), "too few to settle"
    add_ended(desk, "FAIL")
    held.append(desk.lease(first))
    open_ids = (zombie._trial_id, *(lease.trial_id for lease in held))
    assert first.settled == claims.Settled(held[2].trial_id, 204, 201, open_ids)
    held.append(desk.lease(second))
    assert held[3].number == 208
    assert second.settled == claims.Settled(held[3].trial_id, 204, 201, (*open_ids, held[3].trial_id))

    # Four are held, the zombie does not count.
    for trials, answer in ((201, NoTrial.DONE), (202, NoTrial.WAIT), (205, NoTrial.WAIT)):
        for claimant in (first, second, desk.claimant("three")):
            claimant.trials = trials
            assert claims.claim(desk.engine, claimant) is answer
    desk.study.tell(zombie, 1.0)
    desk.tell(held[0])
    desk.tell(held[1], Outcome.FAILED)
    for claimant in (first, second):
        claimant.trials = 205
        assert claims.claim(desk.engine, claimant) is NoTrial.WAIT, "203 used, two held"
    first.trials = 206
    assert desk.lease(first).number == 209


@pytest.fixture
def plain(desk: Books) -> Iterator[optuna.Study]:
    """The desk's study as a process of plain Optuna has it."""
    storage = optuna.storages.RDBStorage(parse_url(desk.url).for_optuna)
    yield optuna.load_study(study_name=desk.name, storage=storage)
    storage.remove_session()
    storage.engine.dispose()


def test_a_running_trial_of_a_plain_optuna_process_uses_budget(desk: Books, plain: optuna.Study) -> None:
    claimant = desk.claimant(trials=2)
    theirs, held = plain.ask(), desk.lease(claimant)
    assert claims.claim(desk.engine, claimant) is NoTrial.WAIT
    desk.tell(held)
    assert claims.claim(desk.engine, claimant) is NoTrial.WAIT
    plain.tell(theirs, 1.0)
    assert claims.claim(desk.engine, claimant) is NoTrial.DONE

    # One that failed leaves its place to another.
    claimant.trials = 3
    failing = plain.ask()
    assert claims.claim(desk.engine, claimant) is NoTrial.WAIT
    plain.tell(failing, state=TrialState.FAIL)
    desk.tell(desk.lease(claimant))
    assert claims.claim(desk.engine, claimant) is NoTrial.DONE


def test_a_queued_trial_that_a_plain_optuna_process_took_uses_budget(desk: Books, plain: optuna.Study) -> None:
    desk.study.enqueue_trial({"x": 0.5})
    assert plain.ask().number == 0
    assert claims.claim(desk.engine, desk.claimant(trials=1)) is NoTrial.WAIT


@pytest.mark.parametrize(
    ("began_s", "heartbeat_s", "is_counted"),
    [
        (-3500, None, True),
        (-3700, None, False),
        (3700, None, False),  # in the local time of another zone
        (-36000, -540, True),
        (-36000, -660, False),
        (-3500, -660, True),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_a_trial_of_a_process_that_died_uses_budget_for_a_while(
    desk: Books, plain: Any, began_s: float, heartbeat_s: float | None, is_counted: bool, zone: str
) -> None:
    theirs = plain.ask()
    desk.set_start(theirs, began_s)
    is_postgres = desk.engine.dialect.name == "postgresql"
    if is_postgres:  # which has heartbeats in the time zone of the session
        desk.execute(f"ALTER DATABASE {desk.engine.url.database} SET TimeZone = '{zone}'")
        desk.engine.dispose()
        plain._storage.remove_session()
        plain._storage._backend.engine.dispose()
    try:
        if heartbeat_s is not None:
            for _ in range(2):  # the first is written by the server, later ones by the process
                plain._storage.record_heartbeat(theirs._trial_id)
            later = f"heartbeat + interval '{heartbeat_s} seconds'"
            if not is_postgres:
                later = f"strftime('%Y-%m-%d %H:%M:%f', heartbeat, '{heartbeat_s} seconds')"
            desk.execute(f"UPDATE trial_heartbeats SET heartbeat = {later} WHERE trial_id = {theirs._trial_id}")
        claimant = desk.claimant(trials=1)
        if is_counted:
            assert claims.claim(desk.engine, claimant) is NoTrial.WAIT
        else:
            desk.tell(desk.lease(claimant))
            assert claims.claim(desk.engine, claimant) is NoTrial.DONE
    finally:
        if is_postgres:
            desk.execute(f"ALTER DATABASE {desk.engine.url.database} RESET TimeZone")
            desk.engine.dispose()


def test_of_a_long_queue_a_part_is_settled_at_a_time(desk: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_MOST_OPEN", 3)
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 2)
    claimant = desk.claimant("one")
    queued = [desk.study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING)) for _ in range(8)]
    ids = [trial._trial_id for trial in desk.study.get_trials(deepcopy=False)]
    assert len(queued) == len(ids)
    found = []
    for at in range(10):
        lease = desk.lease(claimant)
        assert lease.number == at
        found.append((claimant.settled.up_to - ids[0], claimant.settled.total, len(claimant.settled.still_open)))
        desk.tell(lease)

    assert found == [
        (2, 0, 3), (2, 0, 3), (4, 2, 3), (4, 2, 3), (6, 4, 3),
        (6, 4, 3), (7, 6, 2), (7, 6, 2), (8, 8, 1), (8, 8, 1),
    ]  # fmt: skip


def test_a_claim_of_a_long_study_reads_the_rest_only(desk: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    claimant, seen = desk.claimant(), []
    standing = claims._standing
    monkeypatch.setattr(claims, "_standing", lambda *given: seen.append(standing(*given)) or seen[-1])
    add_ended(desk, *["COMPLETE"] * 450)
    for _ in range(3):
        desk.tell(desk.lease(claimant))

    assert [found.total for found in seen] == [450, 1, 2]

    held = desk.lease(desk.claimant("holder", trials=454))
    waiting = desk.claimant("waiting", trials=454)
    for _ in range(2):
        assert claims.claim(desk.engine, waiting) is NoTrial.WAIT
    assert [found.total for found in seen[-2:]] == [454, 1], "who waits counts all but once"
    desk.tell(held)
    assert claims.claim(desk.engine, waiting) is NoTrial.DONE


def test_racing_workers_with_marks_of_their_own_run_exactly_the_budget(
    desk: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 3)
    monkeypatch.setattr(claims, "_MOST_OPEN", 3)
    budget, deadline_s = 40, time.monotonic() + 60.0
    marks: list[int] = []

    def work(index: int) -> None:
        engine, turn = connect(desk.url), index
        claimant = desk.claimant(f"worker-{index}", trials=budget)
        while (lease := claims.claim(engine, claimant)) is not NoTrial.DONE:
            assert time.monotonic() < deadline_s
            if isinstance(lease, Lease):
                turn += 1
                leases.tell(engine, lease, ENDS[turn % len(ENDS)], None, {})
            else:
                time.sleep(0.002)
        marks.append(claimant.settled.up_to)
        engine.dispose()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    states = desk.states()
    assert states.count("COMPLETE") + states.count("PRUNED") == budget
    assert states.count("FAIL") == len(states) - budget
    assert [trial.number for trial in desk.trials()] == list(range(len(states)))
    assert max(marks) > -1


# --- Hours


@dataclass
class Interval:
    """An attempt in quarters of a second; its end is None while it goes on, and then it has a lease."""

    start: int
    end: int | None
    devices: int
    lease_end: int | None = None

    def cells(self, now: int) -> range:
        """Return the quarters in which somebody was at work."""
        if self.end is not None:
            return range(self.start, self.end)
        assert self.lease_end is not None
        return range(self.start, min(now, self.lease_end))


def store_attempts(desk: Books, several: Sequence[Interval]) -> None:
    """Write each attempt, a trial with it; those that ended belong to the trial of the one before, now and then."""
    rows = []
    for at, one in enumerate(several):
        trial_id, fence = rows[-1]["trial_id"] if rows else 0, at + 1
        if at % 3 == 0 or several[at - 1].end is None:
            (trial_id,) = add_ended(desk, "RUNNING")
        end_s = None if one.end is None else one.end / 4
        row = {"trial_id": trial_id, "fence": fence, "study_id": desk.study_id, "worker": "x", "devices": one.devices}
        rows.append({**row, "start_s": one.start / 4, "end_s": end_s, "ending": None if end_s is None else "died"})
        if one.lease_end is not None:
            lease = {"id": trial_id, "fence": fence, "end_s": one.lease_end / 4}
            names = "trial_id, worker, fence, deaths, expires_at_s"
            desk.execute(f"INSERT INTO tuner_leases ({names}) VALUES (:id, 'x', :fence, 0, :end_s)", lease)
    columns = "trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending"
    values = ":trial_id, :fence, :study_id, :worker, :devices, :start_s, :end_s, :ending"
    if rows:
        desk.execute(f"INSERT INTO tuner_attempts ({columns}) VALUES ({values})", rows)


@pytest.mark.timezone
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 20, 60])
def test_the_hours_spent_are_those_of_a_count_by_hand(desk: Books, count: int) -> None:
    generator, now = random.Random(count), 300
    other = Books(desk.url, desk.storage, desk.engine)
    store_attempts(other, [Interval(0, 1000, 8)])
    several = []
    for _ in range(count):
        start, length = generator.randrange(400), generator.choice([0, 1, 5, 20, 80])
        if generator.random() < 0.3:  # still open, with a lease that goes on, has ended, or never began
            several.append(Interval(start, None, generator.randint(1, 8), generator.choice([0, start - 4, 290, 900])))
        else:
            several.append(Interval(start, start + length, generator.randint(1, 8)))
    store_attempts(desk, several)

    covered = {cell for one in several for cell in one.cells(now)}
    with desk.engine.connect() as connection:
        used, settled = hours.count_hours(connection, desk.study_id, now / 4, hours.Hours())
    assert settled == hours.Hours(), "too few to settle"
    assert used.wall_s == len(covered) / 4
    assert used.device_s == sum(len(one.cells(now)) * one.devices for one in several) / 4


@pytest.mark.parametrize("seed", range(4))
def test_hours_that_are_settled_are_not_counted_otherwise_later(
    desk: Books, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts begin, go on and end; a worker with settled hours counts what one counts that has none."""
    monkeypatch.setattr(hours, "_SETTLE_AFTER", 3)
    generator, settled, marks = random.Random(seed), hours.Hours(), []
    now, running = 1000, {}
    for _ in range(40):
        now += generator.choice([0, 1, 7, 30])
        for trial_id in [
            one for one, lease_end in running.items() if generator.random() < 0.3 or lease_end <= now - 50
        ]:
            # It ends now, or a worker that vanished is found to have ended when its lease did.
            lease_end = running.pop(trial_id)
            where = f"WHERE trial_id = {trial_id}"
            desk.execute(f"UPDATE tuner_attempts SET ended_at_s = {min(now, lease_end) / 4}, ending = 'died' {where}")
            desk.execute(f"DELETE FROM tuner_leases {where}")
        for trial_id, lease_end in running.items():
            if generator.random() < (0.7 if lease_end > now else 0.3):  # also one that had slept through its lease
                running[trial_id] = now + 30
                desk.execute(f"UPDATE tuner_leases SET expires_at_s = {(now + 30) / 4} WHERE trial_id = {trial_id}")
        if generator.random() < 0.6:
            store_attempts(desk, [Interval(now, None, generator.randint(1, 4), now + 30)])
            (newest,) = desk.execute("SELECT max(trial_id) AS id FROM trials")
            running[newest.id] = now + 30
        with desk.engine.connect() as connection:
            expected, _ = hours.count_hours(connection, desk.study_id, now / 4, hours.Hours())
            used, settled = hours.count_hours(connection, desk.study_id, now / 4, settled)
        assert used == expected
        marks.append(settled.until_s)
    assert len(set(marks)) > 5


@pytest.mark.parametrize(("limit", "spent_s"), [("wall_s", 150.0), ("device_s", 360.0)])
def test_hours_end_a_study_and_more_of_them_let_it_go_on(desk: Books, limit: str, spent_s: float) -> None:
    # Two at once for 20 seconds, then nobody for long, then one: 150 seconds in all, 360 of devices.
    store_attempts(desk, [Interval(0, 400, 2), Interval(320, 480, 2), Interval(40_000, 40_120, 3)])
    running = desk.lease(desk.claimant("running", devices=4))
    short, enough = (desk.claimant("one", **{limit: seconds}) for seconds in (spent_s, spent_s + 60.0))

    assert claims.claim(desk.engine, short) is NoTrial.HOURS
    assert claims.must_stop(desk.engine, short)
    assert not claims.must_stop(desk.engine, enough)
    lease = desk.lease(enough)
    for held in (lease, running):
        leases.release(desk.engine, held)
    assert claims.claim(desk.engine, short) is NoTrial.HOURS, "nor is an unfinished trial taken over"
    assert desk.lease(enough).number == running.number


@pytest.mark.timezone
def test_the_hours_of_running_trials_count_as_they_pass(desk: Books) -> None:
    by_wall, by_device = desk.claimant("one", wall_s=60.0, devices=4), desk.claimant("two", device_s=400.0, devices=4)
    desk.lease(by_wall)

    def pass_by(seconds: float) -> None:
        desk.execute(attempts.update().values(started_at_s=attempts.c.started_at_s - seconds))

    assert not claims.must_stop(desk.engine, by_wall)
    pass_by(59.0)
    assert not claims.must_stop(desk.engine, by_wall)
    assert not claims.must_stop(desk.engine, by_device)
    pass_by(1.0)
    assert claims.must_stop(desk.engine, by_wall)
    assert claims.claim(desk.engine, by_wall) is NoTrial.HOURS
    desk.lease(by_device)
    pass_by(19.0)  # 4 devices for 79 seconds, 4 others for 19
    assert not claims.must_stop(desk.engine, by_device)
    pass_by(2.0)
    assert claims.must_stop(desk.engine, by_device)


def test_a_vanished_worker_counts_to_the_end_of_its_lease(desk: Books) -> None:
    claimant = desk.claimant(wall_s=100.0)
    lease = desk.lease(claimant)
    desk.execute(attempts.update().where(attempts.c.trial_id == lease.trial_id).values(started_at_s=1000.0))

    assert claims.must_stop(desk.engine, claimant)
    desk.set_lease(lease, "1099.0")
    assert not claims.must_stop(desk.engine, claimant)


def test_a_study_whose_trials_are_done_is_done_whatever_its_hours(desk: Books) -> None:
    store_attempts(desk, [Interval(0, 400, 1)])
    claimant = desk.claimant(trials=1, wall_s=1.0)
    add_ended(desk, "COMPLETE")

    assert claims.claim(desk.engine, claimant) is NoTrial.DONE


# --- Stop and resume


def test_a_stopped_study_gives_no_trial_until_it_is_resumed(desk: Books) -> None:
    other, claimant = Books(desk.url, desk.storage, desk.engine), desk.claimant()
    held = desk.lease(claimant)
    assert not claims.must_stop(desk.engine, claimant)

    assert stop(desk.engine, desk.study_id)
    assert not stop(desk.engine, desk.study_id), "it was stopped already"
    for worker in ("one", "two"):
        assert claims.claim(desk.engine, desk.claimant(worker)) is NoTrial.STOPPED
        assert claims.must_stop(desk.engine, desk.claimant(worker))
    assert other.lease(other.claimant()).number == 0, "other studies go on"
    leases.release(desk.engine, held)
    assert claims.claim(desk.engine, claimant) is NoTrial.STOPPED

    assert resume(desk.engine, desk.study_id)
    assert not resume(desk.engine, desk.study_id), "it was not stopped"
    assert not claims.must_stop(desk.engine, claimant)
    assert desk.lease(claimant).number == held.number


def test_a_second_stop_does_not_change_when_it_was(desk: Books) -> None:
    query = sa.select(budgets.c.stopped_at_s).where(budgets.c.study_id == desk.study_id)
    stop(desk.engine, desk.study_id)
    (first,) = desk.execute(query)
    time.sleep(TICK_S)
    stop(desk.engine, desk.study_id)

    assert desk.execute(query) == [first]
    assert abs(first.stopped_at_s - desk.now_s()) < 60.0


def test_a_study_that_was_never_launched_can_be_stopped(desk: Books) -> None:
    name = uuid.uuid4().hex
    desk.study_id = optuna.create_study(study_name=name, storage=desk.storage)._study_id

    assert not resume(desk.engine, desk.study_id)
    assert stop(desk.engine, desk.study_id)
    assert not stop(desk.engine, desk.study_id)
    registered = register(desk.storage, desk.engine, name, ["minimize"], {})
    claimant = desk.claimant(identity=registered.identity)
    assert claims.claim(desk.engine, claimant) is NoTrial.STOPPED
    assert resume(desk.engine, desk.study_id)
    assert desk.lease(claimant).number == 0


def test_a_study_in_a_database_of_plain_optuna_can_be_stopped(storage_url: str) -> None:
    plain = optuna.storages.RDBStorage(parse_url(storage_url).for_optuna)
    study_id = optuna.create_study(study_name="plain", storage=plain)._study_id
    plain.remove_session()
    plain.engine.dispose()
    engine = connect(storage_url)
    try:
        assert not resume(engine, study_id)
        assert stop(engine, study_id)
    finally:
        engine.dispose()


# --- Failures


def test_three_equal_failures_in_a_row_stop_all_workers(desk: Books) -> None:
    one, two = (desk.claimant(worker, failures_since_s=0.0) for worker in ("one", "two"))
    desk.fail(one, "A")
    desk.fail(two, "A")
    running = desk.lease(two)
    desk.fail(one, "A")

    for claimant in (one, two, desk.claimant("three", failures_since_s=0.0)):
        assert claims.claim(desk.engine, claimant) is NoTrial.FAILING
    assert len(desk.trials()) == 4
    desk.end(running)
    assert desk.lease(one).number == 4, "one that did not fail is a sign of hope"
    assert isinstance(claims.claim(desk.engine, desk.claimant("careless")), Lease)


def test_failures_count_in_the_order_of_their_ends(desk: Books) -> None:
    claimant = desk.claimant(failures_since_s=0.0)
    first, second, third, fourth = (desk.lease(claimant) for _ in range(4))
    desk.end(fourth, "A")
    desk.end(third, "A")
    desk.end(first)
    desk.end(second, "A")

    for _ in range(2):  # one since the last success, then two
        desk.fail(claimant, "A")
    assert claims.claim(desk.engine, claimant) is NoTrial.FAILING


def test_failures_of_different_kinds_stop_a_study_at_the_tenth(desk: Books) -> None:
    claimant = desk.claimant(failures_since_s=0.0)
    for at in range(ANY_FAILURES):
        desk.fail(claimant, "AABB"[at % 4])

    assert claims.claim(desk.engine, claimant) is NoTrial.FAILING
    assert len(desk.trials()) == 10


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome.uses_budget])
def test_any_other_end_between_starts_the_count_again(desk: Books, outcome: Outcome) -> None:
    claimant = desk.claimant(failures_since_s=0.0)
    for _ in range(4):
        desk.fail(claimant, "A")
        desk.fail(claimant, "A")
        time.sleep(TICK_S)
        desk.tell(desk.lease(claimant), outcome)

    assert isinstance(claims.claim(desk.engine, claimant), Lease)


def test_failures_before_a_launch_do_not_count(desk: Books) -> None:
    for _ in range(ANY_FAILURES + 1):
        desk.fail(desk.claimant(), "A")
    time.sleep(TICK_S)
    claimant = desk.claimant(failures_since_s=desk.now_s())
    desk.fail(claimant, "A")
    desk.fail(claimant, "A")

    assert claims.claim(desk.engine, desk.claimant(failures_since_s=0.0)) is NoTrial.FAILING
    desk.fail(claimant, "A")
    assert claims.claim(desk.engine, claimant) is NoTrial.FAILING


def test_a_trial_that_is_to_be_tried_again_is_no_failure(desk: Books) -> None:
    claimant = desk.claimant(failures_since_s=0.0)
    for lease in [desk.lease(claimant) for _ in range(ANY_FAILURES + 1)]:
        assert leases.retry(desk.engine, lease, "trace", limit=10)

    assert isinstance(claims.claim(desk.engine, claimant), Lease)


def test_a_study_that_fails_is_stopped_before_a_trial_is_taken_over_and_done_before_it_fails(desk: Books) -> None:
    claimant = desk.claimant(failures_since_s=0.0, trials=1)
    unfinished = desk.lease(desk.claimant("two"))
    for kind in "AAA":
        desk.fail(desk.claimant(), kind)
    leases.release(desk.engine, unfinished)

    assert claims.claim(desk.engine, claimant) is NoTrial.FAILING
    add_ended(desk, "COMPLETE")
    assert claims.claim(desk.engine, claimant) is NoTrial.DONE


def test_racing_workers_start_nothing_after_the_third_failure(desk: Books) -> None:
    count, started = 4, []

    def work(index: int) -> None:
        engine = connect(desk.url)
        claimant = desk.claimant(f"worker-{index}", failures_since_s=0.0)
        while len(started) < 50 and isinstance(lease := claims.claim(engine, claimant), Lease):
            started.append(lease.number)
            leases.tell(engine, lease, Outcome.FAILED, None, {"error_kind": "A"})
        engine.dispose()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))

    assert 3 <= len(started) < 3 + count


# --- Trials that are tried again


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_failed_trial_is_given_back_as_often_as_asked(desk: Books, limit: int) -> None:
    for attempt in range(1, limit + 1):
        lease = desk.lease(desk.claimant(f"worker-{attempt}"))
        assert (lease.number, lease.fence) == (0, attempt)
        assert leases.retry(desk.engine, lease, f"trace {attempt}", limit)
        with pytest.raises(LeaseLost):
            leases.retry(desk.engine, lease, "again", limit + 1)
        assert desk.leases() == [(0, None, attempt, 0)], "nobody died"
    last = desk.lease(desk.claimant("last"))
    assert not leases.retry(desk.engine, last, "last trace", limit)
    desk.tell(last, Outcome.FAILED, worker="last", error="last trace", error_kind="A")

    errors = desk.execute(
        "SELECT fence, error, ending FROM tuner_attempts "
        f"WHERE study_id = {desk.study_id} AND trial_id = {last.trial_id} ORDER BY fence"
    )
    expected = [(attempt, f"trace {attempt}", "failed") for attempt in range(1, limit + 1)]
    assert [tuple(row) for row in errors] == [*expected, (limit + 1, "last trace", "failed")]
    assert desk.states() == ["FAIL"]
    (record,) = desk.records("worker", "error")
    assert record == {"number": 0, "outcome": "failed", "worker": "last", "error": "last trace"}
    assert desk.lease(desk.claimant()).number == 1


def test_only_failures_count_against_a_trial_that_is_tried_again(desk: Books) -> None:
    leases.release(desk.engine, desk.lease(desk.claimant()))
    desk.lease(desk.claimant("gone"))
    claims.release_all(desk.engine, "gone", died=True)

    assert leases.retry(desk.engine, desk.lease(desk.claimant()), "trace", limit=1)
    assert not leases.retry(desk.engine, desk.lease(desk.claimant()), "trace", limit=1)


# --- Attempts


@pytest.mark.parametrize("outcome", ENDS)
def test_an_attempt_ends_as_its_trial(desk: Books, outcome: Outcome) -> None:
    lease = desk.lease(desk.claimant(devices=2))
    assert desk.attempts() == [(0, 1, "one", 2, None)]

    desk.tell(lease, outcome, error="trace" if outcome is Outcome.FAILED else None)
    assert desk.attempts() == [(0, 1, "one", 2, outcome.value)]


def test_every_attempt_at_a_trial_is_kept(desk: Books) -> None:
    given_back = desk.lease(desk.claimant("one", devices=1))
    leases.release(desk.engine, given_back)
    desk.lease(desk.claimant("two", devices=2, lease_s=-1.0))  # vanishes
    desk.lease(desk.claimant("three", devices=3))
    claims.release_all(desk.engine, "three", died=True)
    assert [row[4] for row in desk.attempts()] == ["preempted", "died", "died"], "at once, not when another comes"
    desk.lease(desk.claimant("four", devices=4))
    claims.release_all(desk.engine, "four", died=False)
    assert leases.retry(desk.engine, desk.lease(desk.claimant("five", devices=5)), "trace", 1)
    desk.study.enqueue_trial({})
    desk.tell(desk.lease(desk.claimant("six", devices=6)), Outcome.PRUNED)
    desk.tell(desk.lease(desk.claimant("seven", devices=7)))

    endings = ["preempted", "died", "died", "preempted", "failed", "pruned"]
    names = ["one", "two", "three", "four", "five", "six"]
    expected = [(0, at, name, at, ending) for at, (name, ending) in enumerate(zip(names, endings, strict=True), 1)]
    assert desk.attempts() == [*expected, (1, 1, "seven", 7, "complete")]


@pytest.mark.parametrize("vanished", [True, False])
def test_the_attempts_at_a_trial_that_kills_its_workers_are_closed(desk: Books, vanished: bool) -> None:
    for at in range(MAX_DEATHS):
        desk.lease(desk.claimant(f"worker-{at}", lease_s=-1.0 if vanished else LEASE_S))
        if not vanished:
            claims.release_all(desk.engine, f"worker-{at}", died=True)
    desk.tell(desk.lease(desk.claimant("last")))

    died = [(0, at + 1, f"worker-{at}", 1, "died") for at in range(MAX_DEATHS)]
    assert desk.attempts() == [*died, (1, 1, "last", 1, "complete")]


def test_a_vanished_worker_worked_until_its_lease_ended(desk: Books) -> None:
    lease = desk.lease(desk.claimant("gone"))
    desk.execute(attempts.update().where(attempts.c.trial_id == lease.trial_id).values(started_at_s=1000.0))
    clock = str(dialect.clock(desk.engine.dialect.name))
    desk.set_lease(lease, f"{clock} - 1.0")
    before_s = desk.now_s()
    desk.lease(desk.claimant("next"))

    query = sa.select(attempts.c.ended_at_s).where(attempts.c.study_id == desk.study_id, attempts.c.worker == "gone")
    ((ended_at_s,),) = desk.execute(query)
    assert before_s - 2.0 < ended_at_s <= before_s - 0.9


def test_a_dead_workers_attempts_and_those_of_others_are_told_apart(desk: Books) -> None:
    for worker in ("one", "two"):
        desk.lease(desk.claimant(worker))
    claims.release_all(desk.engine, "one", died=True)

    assert desk.attempts() == [(0, 1, "one", 1, "died"), (1, 1, "two", 1, None)]


# --- Answers that are lost on their way


def lose_answer(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, *, is_done: bool) -> list[None]:
    """Break the connection once, after or before the server has committed; return a list that then has an entry."""
    lost: list[None] = []
    real = engine.dialect.do_commit

    def break_off(connection: Any) -> None:
        lost.append(None)
        connection.close()
        raise psycopg2.OperationalError("server closed the connection unexpectedly")

    def commit(connection: Any) -> None:
        if lost:
            return real(connection)
        if is_done:
            real(connection)
        return break_off(connection.dbapi_connection)

    monkeypatch.setattr(engine.dialect, "do_commit", commit)

    # What is a single statement has no commit.
    @event.listens_for(engine, "before_cursor_execute" if not is_done else "after_cursor_execute")
    def execute(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not lost and statement.startswith("EXECUTE") and connection.connection.dbapi_connection.autocommit:
            break_off(connection.connection.dbapi_connection)

    return lost


@pytest.fixture(params=[True, False], ids=["done", "undone"])
def breaking_desk(
    postgres_desk: Books, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Books]]:
    """Return a function that makes a desk whose next write loses its answer."""
    made: list[sa.Engine] = []

    def make() -> Books:
        engine = connect(postgres_desk.url)
        made.append(engine)
        desk = Books(postgres_desk.url, postgres_desk.storage, patient(engine, Patience(10.0)))
        desk.name, desk.study_id = postgres_desk.name, postgres_desk.study_id
        losses.append(lose_answer(engine, monkeypatch, is_done=request.param))
        return desk

    losses: list[list[None]] = []
    yield make
    assert [len(lost) for lost in losses] == [1] * len(losses), "the answer was lost"
    for engine in made:
        engine.dispose()


def test_a_claim_whose_answer_was_lost_is_the_same_claim(
    postgres_desk: Books, breaking_desk: Callable[[], Books]
) -> None:
    desk = postgres_desk
    desk.lease(desk.claimant("other"))
    lease = breaking_desk().lease(desk.claimant())

    assert (lease.number, lease.worker, lease.fence) == (1, "one", 1)
    assert desk.states() == ["RUNNING"] * 2
    assert desk.attempts() == [(0, 1, "other", 1, None), (1, 1, "one", 1, None)]
    leases.renew(desk.engine, lease)


def test_a_take_over_whose_answer_was_lost_is_the_same(
    postgres_desk: Books, breaking_desk: Callable[[], Books]
) -> None:
    desk = postgres_desk
    desk.lease(desk.claimant("gone", lease_s=-1.0))
    lease = breaking_desk().lease(desk.claimant())

    assert (lease.number, lease.fence) == (0, 2)
    assert desk.leases() == [(0, "one", 2, 1)], "one died, not two"
    desk.tell(lease)
    assert desk.attempts() == [(0, 1, "gone", 1, "died"), (0, 2, "one", 1, "complete")]


def test_a_claim_whose_answer_was_lost_before_a_stop_is_not_forgotten(
    postgres_desk: Books, breaking_desk: Callable[[], Books], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, lock_study, calls = breaking_desk(), claims._lock_study, []

    def stopped_at_the_second(connection: sa.Connection, claimant: Claimant) -> bool:
        calls.append(lock_study(connection, claimant))
        return len(calls) > 1

    monkeypatch.setattr(claims, "_lock_study", stopped_at_the_second)
    answer = claims.claim(desk.engine, desk.claimant())

    # Were it forgotten, its lease would run out, and the trial would be said to have killed its worker.
    assert len(calls) == 2
    assert desk.states() == ([] if answer is NoTrial.STOPPED else ["RUNNING"])
    assert isinstance(answer, Lease) == bool(desk.leases())


def test_a_claim_whose_answer_was_lost_is_not_one_of_a_trial_that_another_tool_ended(
    postgres_desk: Books, breaking_desk: Callable[[], Books]
) -> None:
    postgres_desk.study.tell(postgres_desk.lease(postgres_desk.claimant()).number, state=TrialState.FAIL)

    assert breaking_desk().lease(postgres_desk.claimant()).number == 1
    assert postgres_desk.states() == ["FAIL", "RUNNING"]


@pytest.mark.parametrize("outcome", [Outcome.COMPLETE, Outcome.FAILED, Outcome.DIVERGED])
def test_an_end_whose_answer_was_lost_counts(
    postgres_desk: Books, breaking_desk: Callable[[], Books], outcome: Outcome
) -> None:
    lease = postgres_desk.lease(postgres_desk.claimant())
    breaking_desk().tell(lease, outcome, worker="one")

    assert postgres_desk.states() == [STATES.get(outcome, "PRUNED")]
    assert postgres_desk.records("worker") == [{"number": 0, "outcome": outcome.value, "worker": "one"}]
    assert postgres_desk.attempts() == [(0, 1, "one", 1, outcome.value)]
    with pytest.raises(LeaseLost):
        breaking_desk().tell(lease, Outcome.PRUNED)
    with pytest.raises(LeaseLost):
        postgres_desk.tell(lease, outcome)  # a second end is no lost answer


def test_a_trial_that_is_given_back_is_given_back_though_the_answer_was_lost(
    postgres_desk: Books, breaking_desk: Callable[[], Books]
) -> None:
    desk = postgres_desk
    leases.release(breaking_desk().engine, desk.lease(desk.claimant("one")))
    assert desk.leases() == [(0, None, 1, 0)]
    assert leases.retry(breaking_desk().engine, desk.lease(desk.claimant("two")), "trace", 1)
    assert desk.leases() == [(0, None, 2, 0)]

    assert desk.attempts() == [(0, 1, "one", 1, "preempted"), (0, 2, "two", 1, "failed")]


def test_a_report_whose_answer_was_lost_is_there_once(postgres_desk: Books, breaking_desk: Callable[[], Books]) -> None:
    lease = postgres_desk.lease(postgres_desk.claimant())
    report(breaking_desk().engine, lease, 1, 0.5)
    report(breaking_desk().engine, lease, 2, 0.25)

    (trial,) = postgres_desk.trials()
    assert trial.intermediate_values == {1: 0.5, 2: 0.25}
    assert stored_reports(postgres_desk, lease) == {1: (10, {"loss": 0.5}), 2: (20, {"loss": 0.25})}


def test_a_stop_whose_answer_was_lost_has_stopped_the_study(
    postgres_desk: Books, breaking_desk: Callable[[], Books]
) -> None:
    stop(breaking_desk().engine, postgres_desk.study_id)
    assert claims.claim(postgres_desk.engine, postgres_desk.claimant()) is NoTrial.STOPPED
    resume(breaking_desk().engine, postgres_desk.study_id)
    assert isinstance(claims.claim(postgres_desk.engine, postgres_desk.claimant()), Lease)


def test_a_claim_that_is_undone_settles_nothing(postgres_desk: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that has killed its workers is failed by the claim: undone, it runs again."""
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 1)
    desk, claimant = postgres_desk, postgres_desk.claimant(trials=1)
    for at in range(MAX_DEATHS):
        desk.lease(desk.claimant(f"gone-{at}", trials=1, lease_s=-1.0))
    engine = connect(desk.url)
    lost = lose_answer(engine, monkeypatch, is_done=False)
    with pytest.raises(StorageLost):
        claims.claim(engine, claimant)
    engine.dispose()
    assert lost
    assert desk.states() == ["RUNNING"]

    assert desk.lease(claimant).number == 1
    assert desk.states() == ["FAIL", "RUNNING"]


# --- Studies that were deleted, and servers that were restarted


def test_a_worker_of_a_deleted_study_gets_nothing_from_its_namesake(desk: Books) -> None:
    def make() -> Registered:
        return register(desk.storage, desk.engine, "again", ["minimize"], {})

    old = make()
    desk.study_id = old.study_id
    claimant = desk.claimant(identity=old.identity)
    desk.lease(claimant)
    desk.storage.delete_study(old.study_id)
    new = make()
    assert new.identity != old.identity
    if desk.engine.dialect.name == "sqlite":
        assert new.study_id == old.study_id, "SQLite gives the same id again"

    with pytest.raises(UnknownStudy, match=f"was deleted while it ran: id {old.study_id}"):
        claims.claim(desk.engine, claimant)
    desk.study_id = new.study_id
    assert desk.lease(desk.claimant(identity=new.identity)).number == 0
    assert make() == new
    desk.storage.delete_study(new.study_id)


@pytest.mark.parametrize("grace_s", [3600.0, 0.0])
def test_after_a_restart_of_the_server_leases_may_be_renewed_for_a_while(
    postgres_desk: Books, monkeypatch: pytest.MonkeyPatch, grace_s: float
) -> None:
    monkeypatch.setattr(statements, "AFTER_RESTART_S", grace_s)
    monkeypatch.setattr(prepared_statements, "_texts", {})
    started = "CAST(extract(epoch FROM pg_postmaster_start_time()) AS double precision)"
    with_own_texts = connect(postgres_desk.url)
    desk = Books(postgres_desk.url, postgres_desk.storage, with_own_texts)
    held = [desk.lease(desk.claimant(f"worker-{at}", trials=4)) for at in range(4)]
    desk.set_lease(held[0], f"{started} - 1.0")
    desk.set_lease(held[1], f"{started} - 3000.0")

    claimant = desk.claimant(trials=4)
    if grace_s:
        assert claims.claim(desk.engine, claimant) is NoTrial.WAIT
        desk.set_lease(held[2], "0.0")
        assert desk.lease(claimant).number == 2, "this one was given back"
        desk.set_lease(held[3], f"{started} + 0.25")
        assert desk.lease(claimant).number == 3, "this one ended while the server was up"
        assert claims.claim(desk.engine, claimant) is NoTrial.WAIT
        leases.renew(desk.engine, held[0])
        leases.renew(desk.engine, held[1])
    else:
        assert [desk.lease(claimant).number for _ in range(2)] == [0, 1]
    assert claims.claim(desk.engine, claimant) is NoTrial.WAIT
    with_own_texts.dispose()


def test_a_lease_is_as_long_for_a_worker_that_had_to_wait_for_its_claim(postgres_desk: Books) -> None:
    desk, found = postgres_desk, []
    claiming = threading.Thread(target=lambda: found.append(desk.lease(desk.claimant(lease_s=1.0))))
    with desk.engine.begin() as connection:
        connection.execute(sa.text("SELECT 1 FROM studies FOR UPDATE"))
        claiming.start()
        claiming.join(timeout=0.9)
    claiming.join()

    query = "SELECT expires_at_s - extract(epoch FROM clock_timestamp()) FROM tuner_leases WHERE trial_id = {}"
    ((left_s,),) = desk.execute(query.format(found[0].trial_id))
    assert 0.5 < left_s <= 1.0


# --- Who works on a study


ABOUT = {"host": "here", "pid": 7, "devices": "0,1", "versions": {"python": "3.11.9"}, "git": None}


def worker_row(desk: Books, name: str) -> dict[str, Any]:
    (row,) = desk.execute(sa.select(workers).where(workers.c.worker == name))
    return {**row._mapping, "about": json.loads(row.about)}


def test_a_worker_is_entered_and_its_signs_of_life(desk: Books) -> None:
    name, before_s = uuid.uuid4().hex, desk.now_s()
    claimant = desk.claimant(name)
    join(desk.engine, claimant, ABOUT)

    first = worker_row(desk, name)
    assert first["study_id"] == desk.study_id
    assert (first["host"], first["pid"], first["devices"]) == ("here", 7, "0,1")
    assert first["about"] == {"versions": {"python": "3.11.9"}, "git": None}
    assert before_s <= first["started_at_s"] <= first["seen_at_s"] <= desk.now_s()
    assert first["ended_at_s"] is None

    time.sleep(TICK_S)
    claims.must_stop(desk.engine, claimant)
    second = worker_row(desk, name)
    assert second["seen_at_s"] > first["seen_at_s"]
    assert second | {"seen_at_s": None} == first | {"seen_at_s": None}

    time.sleep(TICK_S)
    leave(desk.engine, name)
    third = worker_row(desk, name)
    assert second["seen_at_s"] < third["ended_at_s"] <= desk.now_s()
    assert third | {"ended_at_s": None} == second


def test_a_worker_that_comes_again_under_its_name_has_not_ended(desk: Books) -> None:
    name = uuid.uuid4().hex
    join(desk.engine, desk.claimant(name), ABOUT)
    leave(desk.engine, name)
    first = worker_row(desk, name)
    time.sleep(TICK_S)
    join(desk.engine, desk.claimant(name), {**ABOUT, "pid": 8, "git": {"commit": "abc"}})

    again = worker_row(desk, name)
    assert again["ended_at_s"] is None
    assert (again["pid"], again["about"]["git"]) == (8, {"commit": "abc"})
    assert again["started_at_s"] > first["started_at_s"]


@pytest.mark.parametrize("died", [True, False])
def test_a_worker_whose_launcher_saw_it_end_has_ended(desk: Books, died: bool) -> None:
    name, other = uuid.uuid4().hex, uuid.uuid4().hex
    for each in (name, other):
        join(desk.engine, desk.claimant(each), ABOUT)
    claims.release_all(desk.engine, name, died=died)

    ended_at_s = worker_row(desk, name)["ended_at_s"]
    assert ended_at_s is not None
    assert worker_row(desk, other)["ended_at_s"] is None
    time.sleep(TICK_S)
    claims.release_all(desk.engine, name, died=died)
    assert worker_row(desk, name)["ended_at_s"] == ended_at_s


def test_the_books_have_what_the_latest_launch_asked_for(desk: Books) -> None:
    query = sa.select(budgets.c.trials, budgets.c.wall_s, budgets.c.device_s).where(budgets.c.study_id == desk.study_id)
    assert [tuple(row) for row in desk.execute(query)] == [(None, None, None)]
    for asked in ((10, 3600.0, None), (20, None, 7200.0)):
        trials, wall_s, device_s = asked
        join(desk.engine, desk.claimant("one", trials=trials, wall_s=wall_s, device_s=device_s), ABOUT)
        assert [tuple(row) for row in desk.execute(query)] == [asked]


def test_a_real_worker_says_where_it_runs_and_with_what(desk: Books) -> None:
    name = uuid.uuid4().hex
    join(desk.engine, desk.claimant(name), Place(Path(), {"file": __file__}, None, "", None, TimeUse({})).describe())

    row = worker_row(desk, name)
    assert row["host"]
    assert row["pid"] > 0
    assert row["devices"].startswith("cpu ")
    assert set(row["about"]) == {"file", "code", "git", "versions"}
    assert row["about"]["git"] == git_state(Path(__file__))
    assert {"python", "jax", "numpy"} <= set(row["about"]["versions"])


# --- Reports that are kept while the storage is away


class Away:
    """A storage that can be away, and a clock that is moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_away, self.now_s = False, 0.0
        self.calls: list[list[int]] = []
        self.error: Exception = StorageLost("cannot reach the storage")
        real = reporter.report

        def report_if_there(engine: sa.Engine, lease: Lease, several: Sequence[Report], objective: str | None) -> None:
            self.calls.append([one.epoch for one in several])
            if self.is_away:
                raise self.error
            real(engine, lease, several, objective)

        monkeypatch.setattr(reporter, "report", report_if_there)
        monkeypatch.setattr(reporter, "time", types.SimpleNamespace(monotonic=lambda: self.now_s))


def one_report(epoch: int, **metrics: float) -> Report:
    return Report(epoch, 10 * epoch, {"loss": epoch / 8, **metrics})


def stored_reports(desk: Books, lease: Lease) -> dict[int, Any]:
    rows = desk.execute(f"SELECT epoch, step, metrics FROM tuner_reports WHERE trial_id = {lease.trial_id}")
    return {epoch: (step, json.loads(metrics)) for epoch, step, metrics in sorted(map(tuple, rows))}


def refuse_constant(word: str) -> None:
    raise ValueError(f"no JSON: {word}")


def test_reports_are_kept_while_the_storage_is_away_and_stored_together(
    desk: Books, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away, lease = Away(monkeypatch), desk.lease(desk.claimant())
    ours = Reporter(desk.engine, lease, "loss")
    assert ours.store(one_report(1))

    away.is_away = True
    assert not ours.store(one_report(2))
    assert not ours.store(one_report(3))  # at once: nobody asks a storage that has just been away
    assert away.calls == [[1], [2]]
    away.is_away = False
    assert not ours.store(one_report(4))
    away.now_s += 0.6
    assert ours.store(one_report(5))
    assert away.calls == [[1], [2], [2, 3, 4, 5]]
    assert ours.store(one_report(6))

    assert stored_reports(desk, lease) == {epoch: (10 * epoch, {"loss": epoch / 8}) for epoch in range(1, 7)}
    assert desk.trials()[0].intermediate_values == {epoch: epoch / 8 for epoch in range(1, 7)}
    assert capsys.readouterr().err.splitlines() == [
        "tuner: cannot reach the storage; trial 0 continues meanwhile",
        "tuner: the storage answers again",
    ]


def test_the_pauses_between_tries_grow_to_a_limit_and_start_again(desk: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    away, lease = Away(monkeypatch), desk.lease(desk.claimant())
    ours, epoch, tried = Reporter(desk.engine, lease, "loss"), 0, []

    def train(seconds: int) -> None:
        nonlocal epoch
        for _ in range(10 * seconds):
            epoch += 1
            away.now_s += 0.1
            before = len(away.calls)
            ours.store(one_report(epoch))
            tried.extend([away.now_s] * (len(away.calls) - before))

    away.is_away = True
    train(60)
    pauses = [after - before for before, after in itertools.pairwise(tried)]
    assert all(0.25 * 2**at - 0.1 <= pause <= 0.5 * 2**at + 0.2 for at, pause in enumerate(pauses[:5]))
    assert all(7.5 - 0.1 <= pause <= 15.2 for pause in pauses[5:])
    assert len(pauses) > 6
    away.is_away = False
    train(16)
    assert len(stored_reports(desk, lease)) == epoch, "as before, once it is back"
    away.is_away, tried = True, []
    train(1)
    assert 2 <= len(tried) <= 3


def test_the_rest_is_stored_at_the_end(desk: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    away, lease = Away(monkeypatch), desk.lease(desk.claimant())
    ours = Reporter(desk.engine, lease, "loss")
    away.is_away = True
    for epoch in (1, 2, 3):
        assert not ours.store(one_report(epoch))
    with pytest.raises(StorageLost):
        ours.flush(desk.engine)
    away.is_away = False
    ours.flush(desk.engine)  # whatever the pause
    ours.flush(desk.engine)

    assert away.calls == [[1], [1, 2, 3], [1, 2, 3]], "nothing is sent twice"
    assert list(stored_reports(desk, lease)) == [1, 2, 3]


def test_who_lost_its_trial_learns_it_from_a_report(desk: Books) -> None:
    lease = desk.lease(desk.claimant(lease_s=-1.0))
    ours = Reporter(desk.engine, lease, "loss")
    desk.lease(desk.claimant("two"))

    with pytest.raises(LeaseLost):
        ours.store(one_report(1))
    with pytest.raises(LeaseLost):
        ours.flush(desk.engine)
    assert stored_reports(desk, lease) == {}


def test_all_metrics_are_stored_as_json_that_any_language_reads(desk: Books) -> None:
    lease = desk.lease(desk.claimant())
    metrics = {"accuracy": 0.1, "nan": nan, "up": inf, "down": -inf, "tiny": 5e-324}
    assert Reporter(desk.engine, lease, "accuracy").store(one_report(1, **metrics))

    query = f"SELECT metrics FROM tuner_reports WHERE trial_id = {lease.trial_id}"
    ((text,),) = desk.execute(query)
    assert json.loads(text, parse_constant=refuse_constant) == {
        "loss": 0.125,
        "accuracy": 0.1,
        "nan": "nan",
        "up": "inf",
        "down": "-inf",
        "tiny": 5e-324,
    }
    assert desk.trials()[0].intermediate_values == {1: 0.1}


def test_optuna_is_told_no_value_of_several_objectives(desk: Books) -> None:
    lease = desk.lease(desk.claimant())
    assert Reporter(desk.engine, lease, None).store(one_report(1, size=3.0))

    assert stored_reports(desk, lease) == {1: (10, {"loss": 0.125, "size": 3.0})}
    assert desk.trials()[0].intermediate_values == {}


def test_however_long_the_storage_was_away_all_is_stored(desk: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    away, lease = Away(monkeypatch), desk.lease(desk.claimant())
    ours = Reporter(desk.engine, lease, "loss")
    away.is_away = True
    for epoch in range(1, 701):
        ours.store(one_report(epoch))
    away.is_away = False
    ours.flush(desk.engine)

    assert stored_reports(desk, lease) == {epoch: (10 * epoch, {"loss": epoch / 8}) for epoch in range(1, 701)}
