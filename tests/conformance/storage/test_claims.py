"""How many trials a claim counts: those of all workers and of plain Optuna, the settled ones only once."""

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import optuna
import pytest
from budgeted_study import ENDS, STATES, BudgetedStudy, add_ended
from optuna.trial import TrialState
from storage_tools import report

from tuner.errors import LeaseLost
from tuner.storage import connect, parse_url
from tuner.storage.sql import dialect
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import MAX_DEATHS, NoTrial
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.preference import MOST_AHEAD, Preference
from tuner.storage.worker.studies import join, leave
from tuner.trial import Outcome


@dataclass
class Row:
    """A trial of the model; its fence is 0 unless it is under our workers."""

    state: str
    worker: str | None = None
    fence: int = 0
    deaths: int = 0
    has_expired: bool = False
    farthest: int = 0

    def report(self, epoch: int) -> None:
        if epoch > self.farthest:
            self.farthest, self.deaths = epoch, 0


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

    def report(self) -> None:
        epoch = self.random.randint(1, 5)

        def act(lease: Lease) -> None:
            report(self.db.engine, lease, epoch, 0.5)
            self.model.rows[lease.number].report(epoch)

        self.write(act, has_expired=False)

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
            self.report: 6,
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
@pytest.mark.slow
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
    rows = [(number, row.worker, row.fence, row.deaths, row.state) for number, row in enumerate(done.model.rows)]
    held = [row[:4] for row in rows if row[4] == "RUNNING" and row[2]]
    assert [row for row in db.leases() if trials[row[0]].state is TrialState.RUNNING] == held
    assert len(done.marks) > 2, "the mark moved"


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
    assert second.settled == claims.Settled(held[2].trial_id, 204, 201, open_ids), "counted before its first claim"

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

    assert [found.total for found in seen] == [0, 1, 2], "450 were counted before the lock"

    held = db.lease(db.claimant("holder", trials=454))
    waiting = db.claimant("waiting", trials=454)
    for _ in range(2):
        assert claims.claim(db.engine, waiting) is NoTrial.WAIT
    assert [found.total for found in seen[-2:]] == [1, 1], "who waits counts only the trial that is held"
    db.tell(held)
    assert claims.claim(db.engine, waiting) is NoTrial.DONE


def test_racing_workers_with_marks_of_their_own_run_exactly_the_budget(
    db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 3)
    monkeypatch.setattr(claims, "_MOST_OPEN", 3)
    budget, deadline_s = 40, time.monotonic() + 300.0
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


# --- Several at once


def test_several_trials_are_claimed_as_one_after_another(db: BudgetedStudy) -> None:
    claimant = db.claimant("one", trials=6)
    add_ended(db, "COMPLETE")
    abandoned = db.lease(db.claimant("gone", lease_s=-1.0))
    db.storage.create_new_trial(db.study_id, optuna.create_trial(state=TrialState.WAITING))

    several = claims.claim_several(db.engine, claimant, 3)
    assert isinstance(several, list)
    # One that was lost, then a queued one, then a new one.
    assert [(lease.number, lease.fence, lease.is_new) for lease in several] == [
        (abandoned.number, 2, False),
        (2, 1, False),
        (3, 1, True),
    ]
    rest = claims.claim_several(db.engine, claimant, 10)
    assert isinstance(rest, list)
    assert [lease.number for lease in rest] == [4, 5]
    assert claims.claim_several(db.engine, claimant, 10) is NoTrial.WAIT
    for lease in [*several, *rest]:
        db.tell(lease)
    assert claims.claim_several(db.engine, claimant, 10) is NoTrial.DONE
    assert db.states() == ["COMPLETE"] * 6


def several_of(db: BudgetedStudy, claimant: claims.Claimant, most: int) -> list[Lease]:
    claimed = claims.claim_several(db.engine, claimant, most)
    assert isinstance(claimed, list)
    claimant.held |= {lease.trial_id for lease in claimed}
    return claimed


def test_a_worker_claims_its_part_if_others_run(db: BudgetedStudy) -> None:
    claimants = [db.claimant(name, trials=10) for name in ("one", "two", "three")]
    for claimant in claimants:
        join(db.engine, claimant, {"host": "here", "pid": 1, "devices": "cpu"})
    claimed = [several_of(db, claimant, 8) for claimant in claimants]
    assert [len(several) for several in claimed] == [4, 4, 2]  # a third, rounded up, and what is left
    assert claims.claim_several(db.engine, claimants[0], 8) is NoTrial.WAIT
    for lease in claimed[1]:
        leases.release(db.engine, lease)
    claimants[1].held = set()
    assert claims.claim_several(db.engine, claimants[0], 8) is NoTrial.WAIT  # it has its part
    leave(db.engine, "two")
    assert len(several_of(db, claimants[0], 8)) == 1  # now half of them
    assert len(several_of(db, claimants[2], 8)) == 3


def test_many_claims_at_once_are_counted_as_they_settle(db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """After many trials a worker does not count the ended ones again, also within a claim of several."""
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 3)
    claimant, numbers = db.claimant("one", trials=50), list[int]()
    while isinstance(several := claims.claim_several(db.engine, claimant, 7), list):
        numbers += [lease.number for lease in several]
        for lease in several[::2]:
            db.tell(lease)
        for lease in several[1::2]:
            db.tell(lease, Outcome.PRUNED)
    assert several is NoTrial.DONE
    assert numbers == list(range(50))


@pytest.mark.parametrize(("trials", "new_trials", "expected"), [(20, None, 8), (5, None, 5), (20, 6, 6), (8, 8, 8)])
def test_a_claim_of_several_new_trials_counts_the_study_once(
    db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch, trials: int, new_trials: int | None, expected: int
) -> None:
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 3)
    calls, standing, settled = list[str](), claims._standing, claims.Settled
    monkeypatch.setattr(claims, "_standing", lambda *given: calls.append("count") or standing(*given))
    monkeypatch.setattr(claims, "Settled", lambda *given: calls.append("settle") or settled(*given))
    claimant = db.claimant(trials=trials, new_trials=new_trials)
    several = claims.claim_several(db.engine, claimant, 8)
    assert isinstance(several, list)
    assert [(lease.number, lease.fence, lease.is_new) for lease in several] == [(at, 1, True) for at in range(expected)]
    is_limited = new_trials == 6
    assert calls == [*["count"] * (2 + is_limited), "settle"], (
        "for its part, to claim, and again if new ones are limited"
    )
    assert claimant.settled.still_open == tuple(lease.trial_id for lease in several)
    assert (claims.claim_several(db.engine, claimant, 8) is NoTrial.WAIT) == (trials < 20 or is_limited)


def test_queued_trials_are_claimed_although_another_tool_took_the_first(
    db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        db.study.enqueue_trial({})
    start, calls = claims._start_queued, list[int]()

    def start_later(*given: Any) -> Any:
        calls.append(1)
        return start(*given) if len(calls) > 1 else None

    monkeypatch.setattr(claims, "_start_queued", start_later)
    several = claims.claim_several(db.engine, db.claimant(trials=9), 3)
    assert isinstance(several, list)
    assert [(lease.number, lease.is_new) for lease in several] == [(2, True), (0, False), (1, False)]


@pytest.mark.parametrize("new_trials", [None, 8, 20])
def test_a_claim_of_several_new_trials_counts_those_of_other_workers(db: BudgetedStudy, new_trials: int | None) -> None:
    others = [db.lease(db.claimant("other", trials=8)) for _ in range(3)]
    db.tell(others[0])
    claimant = db.claimant(trials=8, new_trials=new_trials)
    several = claims.claim_several(db.engine, claimant, 8)
    assert isinstance(several, list)
    assert [lease.number for lease in several] == [3, 4, 5, 6, 7]
    assert claims.claim_several(db.engine, claimant, 8) is NoTrial.WAIT


def test_a_first_claim_in_a_large_study_counts_before_it_locks(
    db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_SETTLE_AFTER", 5)
    add_ended(db, *["COMPLETE"] * 20, "FAIL")
    db.study.enqueue_trial({})
    add_ended(db, "PRUNED")
    lock, steps, standing = claims._lock_study, [], claims._standing
    monkeypatch.setattr(claims, "_lock_study", lambda *given: steps.append("lock") or lock(*given))
    monkeypatch.setattr(claims, "_standing", lambda *given: steps.append("count") or standing(*given))
    claimant = db.claimant("one", trials=25)
    queued = db.lease(claimant)
    assert queued.number == 21
    assert claimant.settled == claims.Settled(queued.trial_id + 1, 22, 21, (queued.trial_id,))
    assert steps == ["lock", "lock", "count"], "the first lock only reads the newest id"
    assert [db.lease(claimant).number for _ in range(3)] == [23, 24, 25]
    assert claims.claim(db.engine, claimant) is NoTrial.WAIT


# --- Which of several trials that wait


def with_width(db: BudgetedStudy, width: int) -> None:
    db.study.enqueue_trial({"width": width})


def test_a_worker_takes_waiting_trials_whose_program_it_has_first(db: BudgetedStudy) -> None:
    widths = optuna.distributions.CategoricalDistribution((16, 32, 64))
    storage: Any = db.storage
    claimant = db.claimant(preference=Preference(frozenset({"width"})))
    begun: list[Lease] = []
    for width in (16, 32, 64):
        lease = db.lease(claimant)
        storage.hold(lease, db.study_id)
        storage.set_trial_param(lease.trial_id, "width", widths.to_internal_repr(width), widths)
        storage.flush(lease.trial_id)
        begun.append(lease)
    for lease in begun:
        leases.release(db.engine, lease)
        storage.drop(lease.trial_id)
    for width in (16, 64, 32, 64):
        with_width(db, width)

    claimant.preference.note({"width": 64, "rate": 0.5})
    taken = [db.lease(claimant).number for _ in range(7)]
    # First the trials that were given back, then those that were queued: of each, first those with the width 64.
    assert taken == [2, 0, 1, 4, 6, 3, 5]


def test_one_worker_takes_every_waiting_trial_once_whatever_it_prefers(db: BudgetedStudy) -> None:
    for number in range(30):
        with_width(db, 16 if number % 3 else 32)
    claimant = db.claimant(trials=30, preference=Preference(frozenset({"width"})))
    claimant.preference.note({"width": 16})
    taken = [db.lease(claimant).number for _ in range(30)]
    assert sorted(taken) == list(range(30))
    assert taken[: MOST_AHEAD + 1] == [1, 2, 4, 5, 7, 8, 10, 11, 0]
    assert claims.claim(db.engine, claimant) is NoTrial.WAIT


def test_transactions_of_several_trials_lock_leases_in_one_order(
    db: BudgetedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers that lock the same leases in different orders would wait for each other."""
    held = [db.lease(db.claimant(f"worker {at}")) for at in range(3)]
    lost = dataclasses.replace(held[1], fence=held[1].fence + 1)
    locked, fenced = list[int](), leases.fenced

    def note(connection: Any, lease: Lease, *given: Any, **options: Any) -> bool:
        locked.append(lease.number)
        return fenced(connection, lease, *given, **options)

    monkeypatch.setattr(leases, "fenced", note)
    assert leases.renew_together(db.engine, [held[2], lost, held[0]]) == [True, False, True]
    assert locked == [0, 1, 2]
