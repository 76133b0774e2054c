"""Deaths of a trial's workers count until the trial gets further than ever before, on SQLite and on Postgres."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from budgeted_study import BudgetedStudy
from optuna.trial import TrialState
from sqlalchemy import event
from storage_tools import LEASE_S, report

from tuner.storage.sql.dialect import clock
from tuner.storage.worker import claims, leases
from tuner.storage.worker.fences import Lease
from tuner.trial import Report


def kill(db: BudgetedStudy, lease: Lease) -> None:
    """Have a launcher find the worker dead."""
    claims.release_all(db.engine, lease.worker, died=True)


def vanish(db: BudgetedStudy, lease: Lease) -> None:
    """Have the lease expire."""
    db.set_lease(lease, f"{clock(db.engine.dialect.name)} - 0.5")


def bury(db: BudgetedStudy, lease: Lease) -> None:
    """Have the worker give up a trial that is stalled."""
    leases.bury(db.engine, lease)


def attempt(db: BudgetedStudy, at: int) -> Lease:
    return db.lease(db.claimant(f"worker-{at}", trials=1))


def deaths(db: BudgetedStudy) -> list[int]:
    return [row[3] for row in db.leases()]


@pytest.mark.parametrize(("die", "starts_again"), [(kill, True), (vanish, False), (bury, True)])
@pytest.mark.parametrize(
    ("reported", "counted", "fails"),
    [
        # Epochs that each attempt reports before its worker dies; the deaths that count at the start of each.
        ([[], [], []], [0, 1, 2], True),
        ([[1], [2], [3], [4], [5]], [0, 1, 1, 1, 1], False),
        ([[1, 2], [1, 2], [1, 2]], [0, 1, 2], True),
        ([[3], [3], [1]], [0, 1, 2], True),
        ([[2], [], [1, 2, 3], [3], [2, 3]], [0, 1, 2, 1, 2], True),
        ([[], [], [1], [], []], [0, 1, 2, 1, 2], True),
        ([[1], [], [2], [], [3], []], [0, 1, 2, 1, 2, 1], False),
        ([[0], [0], [0]], [0, 1, 2], True),
        ([[-2], [-1], [0], [1]], [0, 1, 1, 1], False),
    ],
)
def test_only_deaths_since_the_trial_last_got_further_count(
    db: BudgetedStudy,
    reported: list[list[int]],
    counted: list[int],
    fails: bool,
    die: Callable[[BudgetedStudy, Lease], None],
    starts_again: bool,
) -> None:
    found: list[int] = []
    for at, epochs in enumerate(reported):
        lease = attempt(db, at)
        assert (lease.number, lease.fence) == (0, at + 1)
        found += deaths(db)
        if starts_again:  # it has no checkpoint
            leases.forget_reports(db.engine, lease)
        for epoch in epochs:
            report(db.engine, lease, epoch, 0.5)
        die(db, lease)

    assert found == counted
    assert attempt(db, len(reported)).number == (1 if fails else 0)
    assert db.states() == (["FAIL", "RUNNING"] if fails else ["RUNNING"])
    if fails:
        (record,) = db.records("error", "error_kind")
        last = "" if die is bury else f", the last was worker-{len(reported) - 1}"
        assert record["error"] == f"3 workers in a row died without the trial getting further{last}"
        assert record["error_kind"] == "dead workers"


def test_attempts_that_are_given_back_neither_count_nor_are_progress(db: BudgetedStudy) -> None:
    for at in range(6):
        lease = attempt(db, at)
        assert (lease.number, deaths(db)) == (0, [at // 2])
        report(db.engine, lease, 1, 0.5)
        assert deaths(db) == [at // 2]
        if at % 2:
            kill(db, lease)
        else:
            leases.release(db.engine, lease)

    assert attempt(db, 6).number == 1
    assert db.trials()[0].state is TrialState.FAIL


def died_twice(db: BudgetedStudy) -> Lease:
    """Return the third attempt at a trial that died twice after its first epoch."""
    for at in range(2):
        lease = attempt(db, at)
        report(db.engine, lease, 1, 0.5)
        kill(db, lease)
    lease = attempt(db, 2)
    assert deaths(db) == [2]
    return lease


def test_of_several_reports_in_one_write_the_greatest_epoch_counts(db: BudgetedStudy) -> None:
    lease = died_twice(db)

    def store(*epochs: int) -> None:
        leases.report(db.engine, lease, [Report(epoch, epoch, {"loss": 0.5}) for epoch in epochs], "loss")

    store(5, 1)
    assert deaths(db) == [0]
    kill(db, lease)
    lease = attempt(db, 3)
    store(2, 5, 3)
    assert deaths(db) == [1]
    store(*range(1, 201))  # more than one statement stores
    assert deaths(db) == [0]


def test_other_writes_are_no_progress(db: BudgetedStudy) -> None:
    lease = died_twice(db)
    leases.renew(db.engine, lease)
    leases.store_log(db.engine, lease, ["epoch 2"])
    leases.store_suggested(db.engine, leases.Suggested(lease, [], {"note": "2"}))
    leases.forget_reports(db.engine, lease)
    assert deaths(db) == [2]


def test_a_lease_from_before_the_upgrade_gets_further_with_its_first_report(db: BudgetedStudy) -> None:
    lease = died_twice(db)
    db.execute(
        f"UPDATE tuner_leases SET farthest_epoch = NULL, farthest_fence = NULL WHERE trial_id = {lease.trial_id}"
    )
    report(db.engine, lease, 1, 0.5)
    assert deaths(db) == [0]
    kill(db, lease)
    report(db.engine, attempt(db, 3), 1, 0.5)
    assert deaths(db) == [1]


def test_a_death_is_withdrawn_only_while_it_counts(db: BudgetedStudy) -> None:
    slept = attempt(db, 0)
    report(db.engine, slept, 1, 0.5)
    vanish(db, slept)
    second = attempt(db, 1)
    leases.withdraw_death(db.engine, slept)
    assert deaths(db) == [0], "its own progress came before"

    vanish(db, second)
    third = attempt(db, 2)
    report(db.engine, third, 2, 0.5)
    assert deaths(db) == [0]
    kill(db, third)
    attempt(db, 3)
    assert deaths(db) == [1]
    leases.withdraw_death(db.engine, second)
    assert deaths(db) == [1], "the third worker died"
    assert [row[4] for row in db.attempts()] == ["preempted", "preempted", "died", None]


def test_a_report_is_one_statement_on_postgres(postgres_db: BudgetedStudy) -> None:
    db = postgres_db
    lease = db.lease(db.claimant(lease_s=LEASE_S))
    report(db.engine, lease, 1, 0.5)  # prepares it
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        sent.append(text)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        report(db.engine, lease, 2, 0.5)
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
    assert len(sent) == 1
    with db.engine.connect() as connection:
        query = sa.text("SELECT farthest_epoch, farthest_fence FROM tuner_leases WHERE trial_id = :id")
        assert connection.execute(query, {"id": lease.trial_id}).one() == (2, 1)
