"""Each attempt at a trial is kept, and how it ended."""

import pytest
import sqlalchemy as sa
from budgeted_study import ENDS, BudgetedStudy
from storage_tools import LEASE_S

from tuner.storage.sql import dialect
from tuner.storage.sql.tables import attempts
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import MAX_DEATHS
from tuner.trial import Outcome


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
