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
from storage_tools import LEASE_S, StudyDatabase, report, shared_study_database

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


class BudgetedStudy(StudyDatabase):
    """A study whose workers have budgets of every kind, and what its database says of them."""

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
def shared_db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyDatabase]:
    with shared_study_database(request, tmp_path_factory, "budgets") as db:
        yield db


@pytest.fixture
def db(shared_db: StudyDatabase) -> BudgetedStudy:
    return BudgetedStudy(shared_db.url, shared_db.storage, shared_db.engine)


@pytest.fixture(scope="module", params=["postgres"])
def shared_postgres(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StudyDatabase]:
    with shared_study_database(request, tmp_path_factory, "more_budgets") as db:
        yield db


@pytest.fixture
def postgres_db(shared_postgres: StudyDatabase) -> BudgetedStudy:
    return BudgetedStudy(shared_postgres.url, shared_postgres.storage, shared_postgres.engine)


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

    def __init__(self, db: BudgetedStudy, seed: int) -> None:
        self.db, self.study, self.model, self.random = db, db.study, Model(), random.Random(seed)
        self.claimants = [db.claimant(f"{seed}-{index}", trials=0) for index in range(4)]
        self.budget = 25
        self.leases: list[Lease] = []
        self.theirs: list[int] = []
        self.marks: set[int] = set()

    def claim(self) -> None:
        (claimant,) = self.random.choices(self.claimants, [8, 4, 2, 1])
        claimant.trials = self.budget - self.random.choice([0, 0, 0, 10])  # launches may ask for different numbers
        expected = self.model.claim(claimant.worker, claimant.trials)
        found = claims.claim(self.db.engine, claimant)
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
        self.write(lambda lease: self.db.tell(lease, outcome), state=STATES.get(outcome, "PRUNED"))

    def release(self) -> None:
        self.write(lambda lease: leases.release(self.db.engine, lease), worker=None, has_expired=True)

    def renew(self) -> None:
        self.write(lambda lease: leases.renew(self.db.engine, lease), has_expired=False)

    def expire(self) -> None:
        for lease in self.random.sample(self.leases, min(1, len(self.leases))):
            if self.model.holds(lease):
                clock = str(dialect.clock(self.db.engine.dialect.name))
                self.db.set_lease(lease, f"{clock} - 0.5")
                self.model.rows[lease.number].has_expired = True

    def release_all(self) -> None:
        worker, died = self.random.choice(self.claimants).worker, self.random.random() < 0.5
        claims.release_all(self.db.engine, worker, died=died)
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
    db: BudgetedStudy, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 4)
    done = Workers(db, seed)
    done.run(300)

    trials = db.trials()
    assert [(trial.number, trial.state.name) for trial in trials] == [
        (number, row.state) for number, row in enumerate(done.model.rows)
    ]
    held = [(number, row.worker, row.fence) for number, row in enumerate(done.model.rows) if row.state == "RUNNING"]
    assert [row[:3] for row in db.leases() if trials[row[0]].state is TrialState.RUNNING] == [
        row for row in held if row[2]
    ]
    assert len(done.marks) > 2, "the mark moved"


def add_ended(db: BudgetedStudy, *states: str) -> list[int]:
    """Insert trials that have ended; return their ids."""
    (last,) = db.execute("SELECT coalesce(max(trial_id), 0) AS id FROM trials")
    count = len(db.states())
    rows = [
        {"id": last.id + 1 + at, "number": count + at, "study_id": db.study_id, "state": state}
        for at, state in enumerate(states)
    ]
    db.execute("INSERT INTO trials (trial_id, number, study_id, state) VALUES (:id, :number, :study_id, :state)", rows)
    if db.engine.dialect.name == "postgresql":
        db.execute("SELECT setval('trials_trial_id_seq', (SELECT max(trial_id) FROM trials))")
    return [row["id"] for row in rows]


def test_at_first_and_after_two_hundred_ended_trials_the_mark_moves_over_all_that_is_there(db: BudgetedStudy) -> None:
    first, second = db.claimant("one", trials=500), db.claimant("two", trials=500)
    add_ended(db, *["COMPLETE", "PRUNED", "FAIL"] * 2)  # of which four count
    zombie = db.study.ask()  # of a plain Optuna process, which was killed two hours ago
    db.set_start(zombie, -7200)

    held = [db.lease(first)]
    assert first.settled == claims.Settled(held[0].trial_id, 6, 4, (zombie._trial_id, held[0].trial_id))
    add_ended(db, *["COMPLETE"] * 197)
    held.append(db.lease(first))
    assert (held[1].number, first.settled.total) == (205, 6), "too few to settle"
    add_ended(db, "FAIL")
    held.append(db.lease(first))
    open_ids = (zombie._trial_id, *(lease.trial_id for lease in held))
    assert first.settled == claims.Settled(held[2].trial_id, 204, 201, open_ids)
    held.append(db.lease(second))
    assert held[3].number == 208
    assert second.settled == claims.Settled(held[3].trial_id, 204, 201, (*open_ids, held[3].trial_id))

    # Four are held, the zombie does not count.
    for trials, answer in ((201, NoTrial.DONE), (202, NoTrial.WAIT), (205, NoTrial.WAIT)):
        for claimant in (first, second, db.claimant("three")):
            claimant.trials = trials
            assert claims.claim(db.engine, claimant) is answer
    db.study.tell(zombie, 1.0)
    db.tell(held[0])
    db.tell(held[1], Outcome.FAILED)
    for claimant in (first, second):
        claimant.trials = 205
        assert claims.claim(db.engine, claimant) is NoTrial.WAIT, "203 used, two held"
    first.trials = 206
    assert db.lease(first).number == 209


@pytest.fixture
def plain(db: BudgetedStudy) -> Iterator[optuna.Study]:
    """The study as a process of plain Optuna has it."""
    storage = optuna.storages.RDBStorage(parse_url(db.url).for_optuna)
    yield optuna.load_study(study_name=db.name, storage=storage)
    storage.remove_session()
    storage.engine.dispose()


def test_a_running_trial_of_a_plain_optuna_process_uses_budget(db: BudgetedStudy, plain: optuna.Study) -> None:
    claimant = db.claimant(trials=2)
    theirs, held = plain.ask(), db.lease(claimant)
    assert claims.claim(db.engine, claimant) is NoTrial.WAIT
    db.tell(held)
    assert claims.claim(db.engine, claimant) is NoTrial.WAIT
    plain.tell(theirs, 1.0)
    assert claims.claim(db.engine, claimant) is NoTrial.DONE

    # One that failed leaves its place to another.
    claimant.trials = 3
    failing = plain.ask()
    assert claims.claim(db.engine, claimant) is NoTrial.WAIT
    plain.tell(failing, state=TrialState.FAIL)
    db.tell(db.lease(claimant))
    assert claims.claim(db.engine, claimant) is NoTrial.DONE


def test_a_queued_trial_that_a_plain_optuna_process_took_uses_budget(db: BudgetedStudy, plain: optuna.Study) -> None:
    db.study.enqueue_trial({"x": 0.5})
    assert plain.ask().number == 0
    assert claims.claim(db.engine, db.claimant(trials=1)) is NoTrial.WAIT


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
    db: BudgetedStudy, plain: Any, began_s: float, heartbeat_s: float | None, is_counted: bool, zone: str
) -> None:
    theirs = plain.ask()
    db.set_start(theirs, began_s)
    is_postgres = db.engine.dialect.name == "postgresql"
    if is_postgres:  # which has heartbeats in the time zone of the session
        db.execute(f"ALTER DATABASE {db.engine.url.database} SET TimeZone = '{zone}'")
        db.engine.dispose()
        plain._storage.remove_session()
        plain._storage._backend.engine.dispose()
    try:
        if heartbeat_s is not None:
            for _ in range(2):  # the first is written by the server, later ones by the process
                plain._storage.record_heartbeat(theirs._trial_id)
            later = f"heartbeat + interval '{heartbeat_s} seconds'"
            if not is_postgres:
                later = f"strftime('%Y-%m-%d %H:%M:%f', heartbeat, '{heartbeat_s} seconds')"
            db.execute(f"UPDATE trial_heartbeats SET heartbeat = {later} WHERE trial_id = {theirs._trial_id}")
        claimant = db.claimant(trials=1)
        if is_counted:
            assert claims.claim(db.engine, claimant) is NoTrial.WAIT
        else:
            db.tell(db.lease(claimant))
            assert claims.claim(db.engine, claimant) is NoTrial.DONE
    finally:
        if is_postgres:
            db.execute(f"ALTER DATABASE {db.engine.url.database} RESET TimeZone")
            db.engine.dispose()


def test_of_a_long_queue_a_part_is_settled_at_a_time(db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_MOST_OPEN", 3)
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 2)
    claimant = db.claimant("one")
    queued = [db.study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING)) for _ in range(8)]
    ids = [trial._trial_id for trial in db.study.get_trials(deepcopy=False)]
    assert len(queued) == len(ids)
    found = []
    for at in range(10):
        lease = db.lease(claimant)
        assert lease.number == at
        found.append((claimant.settled.up_to - ids[0], claimant.settled.total, len(claimant.settled.still_open)))
        db.tell(lease)

    assert found == [
        (2, 0, 3), (2, 0, 3), (4, 2, 3), (4, 2, 3), (6, 4, 3),
        (6, 4, 3), (7, 6, 2), (7, 6, 2), (8, 8, 1), (8, 8, 1),
    ]  # fmt: skip


def test_a_claim_of_a_long_study_reads_the_rest_only(db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    claimant, seen = db.claimant(), []
    standing = claims._standing
    monkeypatch.setattr(claims, "_standing", lambda *given: seen.append(standing(*given)) or seen[-1])
    add_ended(db, *["COMPLETE"] * 450)
    for _ in range(3):
        db.tell(db.lease(claimant))

    assert [found.total for found in seen] == [450, 1, 2]

    held = db.lease(db.claimant("holder", trials=454))
    waiting = db.claimant("waiting", trials=454)
    for _ in range(2):
        assert claims.claim(db.engine, waiting) is NoTrial.WAIT
    assert [found.total for found in seen[-2:]] == [454, 1], "who waits counts all but once"
    db.tell(held)
    assert claims.claim(db.engine, waiting) is NoTrial.DONE


def test_racing_workers_with_marks_of_their_own_run_exactly_the_budget(
    db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 3)
    monkeypatch.setattr(claims, "_MOST_OPEN", 3)
    budget, deadline_s = 40, time.monotonic() + 60.0
    marks: list[int] = []

    def work(index: int) -> None:
        engine, turn = connect(db.url), index
        claimant = db.claimant(f"worker-{index}", trials=budget)
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

    states = db.states()
    assert states.count("COMPLETE") + states.count("PRUNED") == budget
    assert states.count("FAIL") == len(states) - budget
    assert [trial.number for trial in db.trials()] == list(range(len(states)))
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


def store_attempts(db: BudgetedStudy, several: Sequence[Interval]) -> None:
    """Write each attempt, a trial with it; those that ended belong to the trial of the one before, now and then."""
    rows = []
    for at, one in enumerate(several):
        trial_id, fence = rows[-1]["trial_id"] if rows else 0, at + 1
        if at % 3 == 0 or several[at - 1].end is None:
            (trial_id,) = add_ended(db, "RUNNING")
        end_s = None if one.end is None else one.end / 4
        row = {"trial_id": trial_id, "fence": fence, "study_id": db.study_id, "worker": "x", "devices": one.devices}
        rows.append({**row, "start_s": one.start / 4, "end_s": end_s, "ending": None if end_s is None else "died"})
        if one.lease_end is not None:
            lease = {"id": trial_id, "fence": fence, "end_s": one.lease_end / 4}
            names = "trial_id, worker, fence, deaths, expires_at_s"
            db.execute(f"INSERT INTO tuner_leases ({names}) VALUES (:id, 'x', :fence, 0, :end_s)", lease)
    columns = "trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending"
    values = ":trial_id, :fence, :study_id, :worker, :devices, :start_s, :end_s, :ending"
    if rows:
        db.execute(f"INSERT INTO tuner_attempts ({columns}) VALUES ({values})", rows)


@pytest.mark.timezone
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 20, 60])
def test_the_hours_spent_are_those_of_a_count_by_hand(db: BudgetedStudy, count: int) -> None:
    generator, now = random.Random(count), 300
    other = BudgetedStudy(db.url, db.storage, db.engine)
    store_attempts(other, [Interval(0, 1000, 8)])
    several = []
    for _ in range(count):
        start, length = generator.randrange(400), generator.choice([0, 1, 5, 20, 80])
        if generator.random() < 0.3:  # still open, with a lease that goes on, has ended, or never began
            several.append(Interval(start, None, generator.randint(1, 8), generator.choice([0, start - 4, 290, 900])))
        else:
            several.append(Interval(start, start + length, generator.randint(1, 8)))
    store_attempts(db, several)

    covered = {cell for one in several for cell in one.cells(now)}
    with db.engine.connect() as connection:
        used, settled = hours.count_hours(connection, db.study_id, now / 4, hours.Hours())
    assert settled == hours.Hours(), "too few to settle"
    assert used.wall_s == len(covered) / 4
    assert used.device_s == sum(len(one.cells(now)) * one.devices for one in several) / 4


@pytest.mark.parametrize("seed", range(4))
def test_hours_that_are_settled_are_not_counted_otherwise_later(
    db: BudgetedStudy, seed: int, monkeypatch: pytest.MonkeyPatch
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
            db.execute(f"UPDATE tuner_attempts SET ended_at_s = {min(now, lease_end) / 4}, ending = 'died' {where}")
            db.execute(f"DELETE FROM tuner_leases {where}")
        for trial_id, lease_end in running.items():
            if generator.random() < (0.7 if lease_end > now else 0.3):  # also one that had slept through its lease
                running[trial_id] = now + 30
                db.execute(f"UPDATE tuner_leases SET expires_at_s = {(now + 30) / 4} WHERE trial_id = {trial_id}")
        if generator.random() < 0.6:
            store_attempts(db, [Interval(now, None, generator.randint(1, 4), now + 30)])
            (newest,) = db.execute("SELECT max(trial_id) AS id FROM trials")
            running[newest.id] = now + 30
        with db.engine.connect() as connection:
            expected, _ = hours.count_hours(connection, db.study_id, now / 4, hours.Hours())
            used, settled = hours.count_hours(connection, db.study_id, now / 4, settled)
        assert used == expected
        marks.append(settled.until_s)
    assert len(set(marks)) > 5


@pytest.mark.parametrize(("limit", "spent_s"), [("wall_s", 150.0), ("device_s", 360.0)])
def test_hours_end_a_study_and_more_of_them_let_it_go_on(db: BudgetedStudy, limit: str, spent_s: float) -> None:
    # Two at once for 20 seconds, then nobody for long, then one: 150 seconds in all, 360 of devices.
    store_attempts(db, [Interval(0, 400, 2), Interval(320, 480, 2), Interval(40_000, 40_120, 3)])
    running = db.lease(db.claimant("running", devices=4))
    short, enough = (db.claimant("one", **{limit: seconds}) for seconds in (spent_s, spent_s + 60.0))

    assert claims.claim(db.engine, short) is NoTrial.HOURS
    assert claims.must_stop(db.engine, short)
    assert not claims.must_stop(db.engine, enough)
    lease = db.lease(enough)
    for held in (lease, running):
        leases.release(db.engine, held)
    assert claims.claim(db.engine, short) is NoTrial.HOURS, "nor is an unfinished trial taken over"
    assert db.lease(enough).number == running.number


@pytest.mark.timezone
def test_the_hours_of_running_trials_count_as_they_pass(db: BudgetedStudy) -> None:
    by_wall, by_device = db.claimant("one", wall_s=60.0, devices=4), db.claimant("two", device_s=400.0, devices=4)
    db.lease(by_wall)

    def pass_by(seconds: float) -> None:
        db.execute(attempts.update().values(started_at_s=attempts.c.started_at_s - seconds))

    assert not claims.must_stop(db.engine, by_wall)
    pass_by(59.0)
    assert not claims.must_stop(db.engine, by_wall)
    assert not claims.must_stop(db.engine, by_device)
    pass_by(1.0)
    assert claims.must_stop(db.engine, by_wall)
    assert claims.claim(db.engine, by_wall) is NoTrial.HOURS
    db.lease(by_device)
    pass_by(19.0)  # 4 devices for 79 seconds, 4 others for 19
    assert not claims.must_stop(db.engine, by_device)
    pass_by(2.0)
    assert claims.must_stop(db.engine, by_device)


def test_a_vanished_worker_counts_to_the_end_of_its_lease(db: BudgetedStudy) -> None:
    claimant = db.claimant(wall_s=100.0)
    lease = db.lease(claimant)
    db.execute(attempts.update().where(attempts.c.trial_id == lease.trial_id).values(started_at_s=1000.0))

    assert claims.must_stop(db.engine, claimant)
    db.set_lease(lease, "1099.0")
    assert not claims.must_stop(db.engine, claimant)


def test_a_study_whose_trials_are_done_is_done_whatever_its_hours(db: BudgetedStudy) -> None:
    store_attempts(db, [Interval(0, 400, 1)])
    claimant = db.claimant(trials=1, wall_s=1.0)
    add_ended(db, "COMPLETE")

    assert claims.claim(db.engine, claimant) is NoTrial.DONE


# --- Stop and resume


def test_a_stopped_study_gives_no_trial_until_it_is_resumed(db: BudgetedStudy) -> None:
    other, claimant = BudgetedStudy(db.url, db.storage, db.engine), db.claimant()
    held = db.lease(claimant)
    assert not claims.must_stop(db.engine, claimant)

    assert stop(db.engine, db.study_id)
    assert not stop(db.engine, db.study_id), "it was stopped already"
    for worker in ("one", "two"):
        assert claims.claim(db.engine, db.claimant(worker)) is NoTrial.STOPPED
        assert claims.must_stop(db.engine, db.claimant(worker))
    assert other.lease(other.claimant()).number == 0, "other studies go on"
    leases.release(db.engine, held)
    assert claims.claim(db.engine, claimant) is NoTrial.STOPPED

    assert resume(db.engine, db.study_id)
    assert not resume(db.engine, db.study_id), "it was not stopped"
    assert not claims.must_stop(db.engine, claimant)
    assert db.lease(claimant).number == held.number


def test_a_second_stop_does_not_change_when_it_was(db: BudgetedStudy) -> None:
    query = sa.select(budgets.c.stopped_at_s).where(budgets.c.study_id == db.study_id)
    stop(db.engine, db.study_id)
    (first,) = db.execute(query)
    time.sleep(TICK_S)
    stop(db.engine, db.study_id)

    assert db.execute(query) == [first]
    assert abs(first.stopped_at_s - db.now_s()) < 60.0


def test_a_study_that_was_never_launched_can_be_stopped(db: BudgetedStudy) -> None:
    name = uuid.uuid4().hex
    db.study_id = optuna.create_study(study_name=name, storage=db.storage)._study_id

    assert not resume(db.engine, db.study_id)
    assert stop(db.engine, db.study_id)
    assert not stop(db.engine, db.study_id)
    registered = register(db.storage, db.engine, name, ["minimize"], {})
    claimant = db.claimant(identity=registered.identity)
    assert claims.claim(db.engine, claimant) is NoTrial.STOPPED
    assert resume(db.engine, db.study_id)
    assert db.lease(claimant).number == 0


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


def test_three_equal_failures_in_a_row_stop_all_workers(db: BudgetedStudy) -> None:
    one, two = (db.claimant(worker, failures_since_s=0.0) for worker in ("one", "two"))
    db.fail(one, "A")
    db.fail(two, "A")
    running = db.lease(two)
    db.fail(one, "A")

    for claimant in (one, two, db.claimant("three", failures_since_s=0.0)):
        assert claims.claim(db.engine, claimant) is NoTrial.FAILING
    assert len(db.trials()) == 4
    db.end(running)
    assert db.lease(one).number == 4, "one that did not fail is a sign of hope"
    assert isinstance(claims.claim(db.engine, db.claimant("careless")), Lease)


def test_failures_count_in_the_order_of_their_ends(db: BudgetedStudy) -> None:
    claimant = db.claimant(failures_since_s=0.0)
    first, second, third, fourth = (db.lease(claimant) for _ in range(4))
    db.end(fourth, "A")
    db.end(third, "A")
    db.end(first)
    db.end(second, "A")

    for _ in range(2):  # one since the last success, then two
        db.fail(claimant, "A")
    assert claims.claim(db.engine, claimant) is NoTrial.FAILING


def test_failures_of_different_kinds_stop_a_study_at_the_tenth(db: BudgetedStudy) -> None:
    claimant = db.claimant(failures_since_s=0.0)
    for at in range(ANY_FAILURES):
        db.fail(claimant, "AABB"[at % 4])

    assert claims.claim(db.engine, claimant) is NoTrial.FAILING
    assert len(db.trials()) == 10


@pytest.mark.parametrize("outcome", [Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY])
def test_any_other_end_between_starts_the_count_again(db: BudgetedStudy, outcome: Outcome) -> None:
    claimant = db.claimant(failures_since_s=0.0)
    for _ in range(4):
        db.fail(claimant, "A")
        db.fail(claimant, "A")
        time.sleep(TICK_S)
        db.tell(db.lease(claimant), outcome)

    assert isinstance(claims.claim(db.engine, claimant), Lease)


def test_failures_before_a_launch_do_not_count(db: BudgetedStudy) -> None:
    for _ in range(ANY_FAILURES + 1):
        db.fail(db.claimant(), "A")
    time.sleep(TICK_S)
    claimant = db.claimant(failures_since_s=db.now_s())
    db.fail(claimant, "A")
    db.fail(claimant, "A")

    assert claims.claim(db.engine, db.claimant(failures_since_s=0.0)) is NoTrial.FAILING
    db.fail(claimant, "A")
    assert claims.claim(db.engine, claimant) is NoTrial.FAILING


def test_a_trial_that_is_to_be_tried_again_is_no_failure(db: BudgetedStudy) -> None:
    claimant = db.claimant(failures_since_s=0.0)
    for lease in [db.lease(claimant) for _ in range(ANY_FAILURES + 1)]:
        assert leases.retry(db.engine, lease, "trace", limit=10)

    assert isinstance(claims.claim(db.engine, claimant), Lease)


def test_a_study_that_fails_is_stopped_before_a_trial_is_taken_over_and_done_before_it_fails(db: BudgetedStudy) -> None:
    claimant = db.claimant(failures_since_s=0.0, trials=1)
    unfinished = db.lease(db.claimant("two"))
    for kind in "AAA":
        db.fail(db.claimant(), kind)
    leases.release(db.engine, unfinished)

    assert claims.claim(db.engine, claimant) is NoTrial.FAILING
    add_ended(db, "COMPLETE")
    assert claims.claim(db.engine, claimant) is NoTrial.DONE


def test_racing_workers_start_nothing_after_the_third_failure(db: BudgetedStudy) -> None:
    count, started = 4, []

    def work(index: int) -> None:
        engine = connect(db.url)
        claimant = db.claimant(f"worker-{index}", failures_since_s=0.0)
        while len(started) < 50 and isinstance(lease := claims.claim(engine, claimant), Lease):
            started.append(lease.number)
            leases.tell(engine, lease, Outcome.FAILED, None, {"error_kind": "A"})
        engine.dispose()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))

    assert 3 <= len(started) < 3 + count


# --- Trials that are tried again


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_failed_trial_is_given_back_as_often_as_asked(db: BudgetedStudy, limit: int) -> None:
    for attempt in range(1, limit + 1):
        lease = db.lease(db.claimant(f"worker-{attempt}"))
        assert (lease.number, lease.fence) == (0, attempt)
        assert leases.retry(db.engine, lease, f"trace {attempt}", limit)
        with pytest.raises(LeaseLost):
            leases.retry(db.engine, lease, "again", limit + 1)
        assert db.leases() == [(0, None, attempt, 0)], "nobody died"
    last = db.lease(db.claimant("last"))
    assert not leases.retry(db.engine, last, "last trace", limit)
    db.tell(last, Outcome.FAILED, worker="last", error="last trace", error_kind="A")

    errors = db.execute(
        "SELECT fence, error, ending FROM tuner_attempts "
        f"WHERE study_id = {db.study_id} AND trial_id = {last.trial_id} ORDER BY fence"
    )
    expected = [(attempt, f"trace {attempt}", "failed") for attempt in range(1, limit + 1)]
    assert [tuple(row) for row in errors] == [*expected, (limit + 1, "last trace", "failed")]
    assert db.states() == ["FAIL"]
    (record,) = db.records("worker", "error")
    assert record == {"number": 0, "outcome": "failed", "worker": "last", "error": "last trace"}
    assert db.lease(db.claimant()).number == 1


def test_only_failures_count_against_a_trial_that_is_tried_again(db: BudgetedStudy) -> None:
    leases.release(db.engine, db.lease(db.claimant()))
    db.lease(db.claimant("gone"))
    claims.release_all(db.engine, "gone", died=True)

    assert leases.retry(db.engine, db.lease(db.claimant()), "trace", limit=1)
    assert not leases.retry(db.engine, db.lease(db.claimant()), "trace", limit=1)


# --- Attempts


@pytest.mark.parametrize("outcome", ENDS)
def test_an_attempt_ends_as_its_trial(db: BudgetedStudy, outcome: Outcome) -> None:
    lease = db.lease(db.claimant(devices=2))
    assert db.attempts() == [(0, 1, "one", 2, None)]

    db.tell(lease, outcome, error="trace" if outcome is Outcome.FAILED else None)
    assert db.attempts() == [(0, 1, "one", 2, outcome.value)]


def test_every_attempt_at_a_trial_is_kept(db: BudgetedStudy) -> None:
    given_back = db.lease(db.claimant("one", devices=1))
    leases.release(db.engine, given_back)
    db.lease(db.claimant("two", devices=2, lease_s=-1.0))  # vanishes
    db.lease(db.claimant("three", devices=3))
    claims.release_all(db.engine, "three", died=True)
    assert [row[4] for row in db.attempts()] == ["preempted", "died", "died"], "at once, not when another comes"
    db.lease(db.claimant("four", devices=4))
    claims.release_all(db.engine, "four", died=False)
    assert leases.retry(db.engine, db.lease(db.claimant("five", devices=5)), "trace", 1)
    db.study.enqueue_trial({})
    db.tell(db.lease(db.claimant("six", devices=6)), Outcome.PRUNED)
    db.tell(db.lease(db.claimant("seven", devices=7)))

    endings = ["preempted", "died", "died", "preempted", "failed", "pruned"]
    names = ["one", "two", "three", "four", "five", "six"]
    expected = [(0, at, name, at, ending) for at, (name, ending) in enumerate(zip(names, endings, strict=True), 1)]
    assert db.attempts() == [*expected, (1, 1, "seven", 7, "complete")]


@pytest.mark.parametrize("vanished", [True, False])
def test_the_attempts_at_a_trial_that_kills_its_workers_are_closed(db: BudgetedStudy, vanished: bool) -> None:
    for at in range(MAX_DEATHS):
        db.lease(db.claimant(f"worker-{at}", lease_s=-1.0 if vanished else LEASE_S))
        if not vanished:
            claims.release_all(db.engine, f"worker-{at}", died=True)
    db.tell(db.lease(db.claimant("last")))

    died = [(0, at + 1, f"worker-{at}", 1, "died") for at in range(MAX_DEATHS)]
    assert db.attempts() == [*died, (1, 1, "last", 1, "complete")]


def test_a_vanished_worker_worked_until_its_lease_ended(db: BudgetedStudy) -> None:
    lease = db.lease(db.claimant("gone"))
    db.execute(attempts.update().where(attempts.c.trial_id == lease.trial_id).values(started_at_s=1000.0))
    clock = str(dialect.clock(db.engine.dialect.name))
    db.set_lease(lease, f"{clock} - 1.0")
    before_s = db.now_s()
    db.lease(db.claimant("next"))

    query = sa.select(attempts.c.ended_at_s).where(attempts.c.study_id == db.study_id, attempts.c.worker == "gone")
    ((ended_at_s,),) = db.execute(query)
    assert before_s - 2.0 < ended_at_s <= before_s - 0.9


def test_a_dead_workers_attempts_and_those_of_others_are_told_apart(db: BudgetedStudy) -> None:
    for worker in ("one", "two"):
        db.lease(db.claimant(worker))
    claims.release_all(db.engine, "one", died=True)

    assert db.attempts() == [(0, 1, "one", 1, "died"), (1, 1, "two", 1, None)]


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
def breaking_db(
    postgres_db: BudgetedStudy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], BudgetedStudy]]:
    """Return a function that makes a connection whose next write loses its answer."""
    made: list[sa.Engine] = []

    def make() -> BudgetedStudy:
        engine = connect(postgres_db.url)
        made.append(engine)
        db = BudgetedStudy(postgres_db.url, postgres_db.storage, patient(engine, Patience(10.0)))
        db.name, db.study_id = postgres_db.name, postgres_db.study_id
        losses.append(lose_answer(engine, monkeypatch, is_done=request.param))
        return db

    losses: list[list[None]] = []
    yield make
    assert [len(lost) for lost in losses] == [1] * len(losses), "the answer was lost"
    for engine in made:
        engine.dispose()


def test_a_claim_whose_answer_was_lost_is_the_same_claim(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy]
) -> None:
    db = postgres_db
    db.lease(db.claimant("other"))
    lease = breaking_db().lease(db.claimant())

    assert (lease.number, lease.worker, lease.fence) == (1, "one", 1)
    assert db.states() == ["RUNNING"] * 2
    assert db.attempts() == [(0, 1, "other", 1, None), (1, 1, "one", 1, None)]
    leases.renew(db.engine, lease)


def test_a_take_over_whose_answer_was_lost_is_the_same(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy]
) -> None:
    db = postgres_db
    db.lease(db.claimant("gone", lease_s=-1.0))
    lease = breaking_db().lease(db.claimant())

    assert (lease.number, lease.fence) == (0, 2)
    assert db.leases() == [(0, "one", 2, 1)], "one died, not two"
    db.tell(lease)
    assert db.attempts() == [(0, 1, "gone", 1, "died"), (0, 2, "one", 1, "complete")]


def test_a_claim_whose_answer_was_lost_before_a_stop_is_not_forgotten(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy], monkeypatch: pytest.MonkeyPatch
) -> None:
    db, lock_study, calls = breaking_db(), claims._lock_study, []

    def stopped_at_the_second(connection: sa.Connection, claimant: Claimant) -> bool:
        calls.append(lock_study(connection, claimant))
        return len(calls) > 1

    monkeypatch.setattr(claims, "_lock_study", stopped_at_the_second)
    answer = claims.claim(db.engine, db.claimant())

    # Were it forgotten, its lease would run out, and the trial would be said to have killed its worker.
    assert len(calls) == 2
    assert db.states() == ([] if answer is NoTrial.STOPPED else ["RUNNING"])
    assert isinstance(answer, Lease) == bool(db.leases())


def test_a_claim_whose_answer_was_lost_is_not_one_of_a_trial_that_another_tool_ended(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy]
) -> None:
    postgres_db.study.tell(postgres_db.lease(postgres_db.claimant()).number, state=TrialState.FAIL)

    assert breaking_db().lease(postgres_db.claimant()).number == 1
    assert postgres_db.states() == ["FAIL", "RUNNING"]


@pytest.mark.parametrize("outcome", [Outcome.COMPLETE, Outcome.FAILED, Outcome.DIVERGED])
def test_an_end_whose_answer_was_lost_counts(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy], outcome: Outcome
) -> None:
    lease = postgres_db.lease(postgres_db.claimant())
    breaking_db().tell(lease, outcome, worker="one")

    assert postgres_db.states() == [STATES.get(outcome, "PRUNED")]
    assert postgres_db.records("worker") == [{"number": 0, "outcome": outcome.value, "worker": "one"}]
    assert postgres_db.attempts() == [(0, 1, "one", 1, outcome.value)]
    with pytest.raises(LeaseLost):
        breaking_db().tell(lease, Outcome.PRUNED)
    with pytest.raises(LeaseLost):
        postgres_db.tell(lease, outcome)  # a second end is no lost answer


def test_a_trial_that_is_given_back_is_given_back_though_the_answer_was_lost(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy]
) -> None:
    db = postgres_db
    leases.release(breaking_db().engine, db.lease(db.claimant("one")))
    assert db.leases() == [(0, None, 1, 0)]
    assert leases.retry(breaking_db().engine, db.lease(db.claimant("two")), "trace", 1)
    assert db.leases() == [(0, None, 2, 0)]

    assert db.attempts() == [(0, 1, "one", 1, "preempted"), (0, 2, "two", 1, "failed")]


def test_a_report_whose_answer_was_lost_is_there_once(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy]
) -> None:
    lease = postgres_db.lease(postgres_db.claimant())
    report(breaking_db().engine, lease, 1, 0.5)
    report(breaking_db().engine, lease, 2, 0.25)

    (trial,) = postgres_db.trials()
    assert trial.intermediate_values == {1: 0.5, 2: 0.25}
    assert stored_reports(postgres_db, lease) == {1: (10, {"loss": 0.5}), 2: (20, {"loss": 0.25})}


def test_a_stop_whose_answer_was_lost_has_stopped_the_study(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy]
) -> None:
    stop(breaking_db().engine, postgres_db.study_id)
    assert claims.claim(postgres_db.engine, postgres_db.claimant()) is NoTrial.STOPPED
    resume(breaking_db().engine, postgres_db.study_id)
    assert isinstance(claims.claim(postgres_db.engine, postgres_db.claimant()), Lease)


def test_a_claim_that_is_undone_settles_nothing(postgres_db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that has killed its workers is failed by the claim: undone, it runs again."""
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 1)
    db, claimant = postgres_db, postgres_db.claimant(trials=1)
    for at in range(MAX_DEATHS):
        db.lease(db.claimant(f"gone-{at}", trials=1, lease_s=-1.0))
    engine = connect(db.url)
    lost = lose_answer(engine, monkeypatch, is_done=False)
    with pytest.raises(StorageLost):
        claims.claim(engine, claimant)
    engine.dispose()
    assert lost
    assert db.states() == ["RUNNING"]

    assert db.lease(claimant).number == 1
    assert db.states() == ["FAIL", "RUNNING"]


# --- Studies that were deleted, and servers that were restarted


def test_a_worker_of_a_deleted_study_gets_nothing_from_its_namesake(db: BudgetedStudy) -> None:
    def make() -> Registered:
        return register(db.storage, db.engine, "again", ["minimize"], {})

    old = make()
    db.study_id = old.study_id
    claimant = db.claimant(identity=old.identity)
    db.lease(claimant)
    db.storage.delete_study(old.study_id)
    new = make()
    assert new.identity != old.identity
    if db.engine.dialect.name == "sqlite":
        assert new.study_id == old.study_id, "SQLite gives the same id again"

    with pytest.raises(UnknownStudy, match=f"was deleted while it ran: id {old.study_id}"):
        claims.claim(db.engine, claimant)
    db.study_id = new.study_id
    assert db.lease(db.claimant(identity=new.identity)).number == 0
    assert make() == new
    db.storage.delete_study(new.study_id)


@pytest.mark.parametrize("grace_s", [3600.0, 0.0])
def test_after_a_restart_of_the_server_leases_may_be_renewed_for_a_while(
    postgres_db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch, grace_s: float
) -> None:
    monkeypatch.setattr(statements, "AFTER_RESTART_S", grace_s)
    monkeypatch.setattr(prepared_statements, "_texts", {})
    started = "CAST(extract(epoch FROM pg_postmaster_start_time()) AS double precision)"
    with_own_texts = connect(postgres_db.url)
    db = BudgetedStudy(postgres_db.url, postgres_db.storage, with_own_texts)
    held = [db.lease(db.claimant(f"worker-{at}", trials=4)) for at in range(4)]
    db.set_lease(held[0], f"{started} - 1.0")
    db.set_lease(held[1], f"{started} - 3000.0")

    claimant = db.claimant(trials=4)
    if grace_s:
        assert claims.claim(db.engine, claimant) is NoTrial.WAIT
        db.set_lease(held[2], "0.0")
        assert db.lease(claimant).number == 2, "this one was given back"
        db.set_lease(held[3], f"{started} + 0.25")
        assert db.lease(claimant).number == 3, "this one ended while the server was up"
        assert claims.claim(db.engine, claimant) is NoTrial.WAIT
        leases.renew(db.engine, held[0])
        leases.renew(db.engine, held[1])
    else:
        assert [db.lease(claimant).number for _ in range(2)] == [0, 1]
    assert claims.claim(db.engine, claimant) is NoTrial.WAIT
    with_own_texts.dispose()


def test_a_lease_is_as_long_for_a_worker_that_had_to_wait_for_its_claim(postgres_db: BudgetedStudy) -> None:
    db, found = postgres_db, []
    claiming = threading.Thread(target=lambda: found.append(db.lease(db.claimant(lease_s=1.0))))
    with db.engine.begin() as connection:
        connection.execute(sa.text("SELECT 1 FROM studies FOR UPDATE"))
        claiming.start()
        claiming.join(timeout=0.9)
    claiming.join()

    query = "SELECT expires_at_s - extract(epoch FROM clock_timestamp()) FROM tuner_leases WHERE trial_id = {}"
    ((left_s,),) = db.execute(query.format(found[0].trial_id))
    assert 0.5 < left_s <= 1.0


# --- Who works on a study


ABOUT = {"host": "here", "pid": 7, "devices": "0,1", "versions": {"python": "3.11.9"}, "git": None}


def worker_row(db: BudgetedStudy, name: str) -> dict[str, Any]:
    (row,) = db.execute(sa.select(workers).where(workers.c.worker == name))
    return {**row._mapping, "about": json.loads(row.about)}


def test_a_worker_is_entered_and_its_signs_of_life(db: BudgetedStudy) -> None:
    name, before_s = uuid.uuid4().hex, db.now_s()
    claimant = db.claimant(name)
    join(db.engine, claimant, ABOUT)

    first = worker_row(db, name)
    assert first["study_id"] == db.study_id
    assert (first["host"], first["pid"], first["devices"]) == ("here", 7, "0,1")
    assert first["about"] == {"versions": {"python": "3.11.9"}, "git": None}
    assert before_s <= first["started_at_s"] <= first["seen_at_s"] <= db.now_s()
    assert first["ended_at_s"] is None

    time.sleep(TICK_S)
    claims.must_stop(db.engine, claimant)
    second = worker_row(db, name)
    assert second["seen_at_s"] > first["seen_at_s"]
    assert second | {"seen_at_s": None} == first | {"seen_at_s": None}

    time.sleep(TICK_S)
    leave(db.engine, name)
    third = worker_row(db, name)
    assert second["seen_at_s"] < third["ended_at_s"] <= db.now_s()
    assert third | {"ended_at_s": None} == second


def test_a_worker_that_comes_again_under_its_name_has_not_ended(db: BudgetedStudy) -> None:
    name = uuid.uuid4().hex
    join(db.engine, db.claimant(name), ABOUT)
    leave(db.engine, name)
    first = worker_row(db, name)
    time.sleep(TICK_S)
    join(db.engine, db.claimant(name), {**ABOUT, "pid": 8, "git": {"commit": "abc"}})

    again = worker_row(db, name)
    assert again["ended_at_s"] is None
    assert (again["pid"], again["about"]["git"]) == (8, {"commit": "abc"})
    assert again["started_at_s"] > first["started_at_s"]


@pytest.mark.parametrize("died", [True, False])
def test_a_worker_whose_launcher_saw_it_end_has_ended(db: BudgetedStudy, died: bool) -> None:
    name, other = uuid.uuid4().hex, uuid.uuid4().hex
    for each in (name, other):
        join(db.engine, db.claimant(each), ABOUT)
    claims.release_all(db.engine, name, died=died)

    ended_at_s = worker_row(db, name)["ended_at_s"]
    assert ended_at_s is not None
    assert worker_row(db, other)["ended_at_s"] is None
    time.sleep(TICK_S)
    claims.release_all(db.engine, name, died=died)
    assert worker_row(db, name)["ended_at_s"] == ended_at_s


def test_the_database_has_what_the_latest_launch_asked_for(db: BudgetedStudy) -> None:
    query = sa.select(budgets.c.trials, budgets.c.wall_s, budgets.c.device_s).where(budgets.c.study_id == db.study_id)
    assert [tuple(row) for row in db.execute(query)] == [(None, None, None)]
    for asked in ((10, 3600.0, None), (20, None, 7200.0)):
        trials, wall_s, device_s = asked
        join(db.engine, db.claimant("one", trials=trials, wall_s=wall_s, device_s=device_s), ABOUT)
        assert [tuple(row) for row in db.execute(query)] == [asked]


def test_a_real_worker_says_where_it_runs_and_with_what(db: BudgetedStudy) -> None:
    name = uuid.uuid4().hex
    join(db.engine, db.claimant(name), Place(Path(), {"file": __file__}, None, "", None, TimeUse({})).describe())

    row = worker_row(db, name)
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


def stored_reports(db: BudgetedStudy, lease: Lease) -> dict[int, Any]:
    rows = db.execute(f"SELECT epoch, step, metrics FROM tuner_reports WHERE trial_id = {lease.trial_id}")
    return {epoch: (step, json.loads(metrics)) for epoch, step, metrics in sorted(map(tuple, rows))}


def refuse_constant(word: str) -> None:
    raise ValueError(f"no JSON: {word}")


def test_reports_are_kept_while_the_storage_is_away_and_stored_together(
    db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away, lease = Away(monkeypatch), db.lease(db.claimant())
    ours = Reporter(db.engine, lease, "loss")
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

    assert stored_reports(db, lease) == {epoch: (10 * epoch, {"loss": epoch / 8}) for epoch in range(1, 7)}
    assert db.trials()[0].intermediate_values == {epoch: epoch / 8 for epoch in range(1, 7)}
    assert capsys.readouterr().err.splitlines() == [
        "tuner: cannot reach the storage; trial 0 continues meanwhile",
        "tuner: the storage answers again",
    ]


def test_the_pauses_between_tries_grow_to_a_limit_and_start_again(
    db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, lease = Away(monkeypatch), db.lease(db.claimant())
    ours, epoch, tried = Reporter(db.engine, lease, "loss"), 0, []

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
    assert len(stored_reports(db, lease)) == epoch, "as before, once it is back"
    away.is_away, tried = True, []
    train(1)
    assert 2 <= len(tried) <= 3


def test_the_rest_is_stored_at_the_end(db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    away, lease = Away(monkeypatch), db.lease(db.claimant())
    ours = Reporter(db.engine, lease, "loss")
    away.is_away = True
    for epoch in (1, 2, 3):
        assert not ours.store(one_report(epoch))
    with pytest.raises(StorageLost):
        ours.flush(db.engine)
    away.is_away = False
    ours.flush(db.engine)  # whatever the pause
    ours.flush(db.engine)

    assert away.calls == [[1], [1, 2, 3], [1, 2, 3]], "nothing is sent twice"
    assert list(stored_reports(db, lease)) == [1, 2, 3]


def test_who_lost_its_trial_learns_it_from_a_report(db: BudgetedStudy) -> None:
    lease = db.lease(db.claimant(lease_s=-1.0))
    ours = Reporter(db.engine, lease, "loss")
    db.lease(db.claimant("two"))

    with pytest.raises(LeaseLost):
        ours.store(one_report(1))
    with pytest.raises(LeaseLost):
        ours.flush(db.engine)
    assert stored_reports(db, lease) == {}


def test_all_metrics_are_stored_as_json_that_any_language_reads(db: BudgetedStudy) -> None:
    lease = db.lease(db.claimant())
    metrics = {"accuracy": 0.1, "nan": nan, "up": inf, "down": -inf, "tiny": 5e-324}
    assert Reporter(db.engine, lease, "accuracy").store(one_report(1, **metrics))

    query = f"SELECT metrics FROM tuner_reports WHERE trial_id = {lease.trial_id}"
    ((text,),) = db.execute(query)
    assert json.loads(text, parse_constant=refuse_constant) == {
        "loss": 0.125,
        "accuracy": 0.1,
        "nan": "nan",
        "up": "inf",
        "down": "-inf",
        "tiny": 5e-324,
    }
    assert db.trials()[0].intermediate_values == {1: 0.1}


def test_optuna_is_told_no_value_of_several_objectives(db: BudgetedStudy) -> None:
    lease = db.lease(db.claimant())
    assert Reporter(db.engine, lease, None).store(one_report(1, size=3.0))

    assert stored_reports(db, lease) == {1: (10, {"loss": 0.125, "size": 3.0})}
    assert db.trials()[0].intermediate_values == {}


def test_however_long_the_storage_was_away_all_is_stored(db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    away, lease = Away(monkeypatch), db.lease(db.claimant())
    ours = Reporter(db.engine, lease, "loss")
    away.is_away = True
    for epoch in range(1, 701):
        ours.store(one_report(epoch))
    away.is_away = False
    ours.flush(db.engine)

    assert stored_reports(db, lease) == {epoch: (10 * epoch, {"loss": epoch / 8}) for epoch in range(1, 701)}
