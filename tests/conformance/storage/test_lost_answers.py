"""The connection breaks when a statement was done, or before: what is written again is written once."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from budgeted_study import STATES, BudgetedStudy, stored_reports
from optuna.trial import TrialState
from sqlalchemy import event
from storage_tools import report
from tracking_tools import FLOAT

from tuner.errors import LeaseLost, StorageLost
from tuner.storage import connect
from tuner.storage.sql.retry import Patience, patient
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import MAX_DEATHS, Claimant, NoTrial
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import resume, stop
from tuner.trial import Outcome, Report


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


def test_a_claim_of_several_whose_answer_was_lost_is_the_same_claim(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy]
) -> None:
    db = breaking_db()
    claimant = db.claimant()
    (held,) = claims.claim_several(postgres_db.engine, claimant, 1)  # pyright: ignore[reportGeneralTypeIssues]
    claimant.held = {held.trial_id}
    several = claims.claim_several(db.engine, claimant, 3)

    assert isinstance(several, list)
    assert [(lease.number, lease.worker, lease.fence) for lease in several] == [(at, "one", 1) for at in (1, 2, 3)]
    assert postgres_db.states() == ["RUNNING"] * 4, "none is claimed twice"
    assert leases.renew_together(postgres_db.engine, [held, *several]) == [True] * 4


def test_reports_of_several_trials_whose_answer_was_lost_are_stored_once(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy]
) -> None:
    db = postgres_db
    held = [db.lease(db.claimant(f"worker {at}")) for at in range(3)]
    given = [(lease, [Report(1, 10, {"loss": float(lease.number)})]) for lease in held]
    assert leases.report_together(breaking_db().engine, given, "loss") == [True] * 3
    assert [stored_reports(db, lease) for lease in held] == [{1: (10, {"loss": float(at)})} for at in range(3)]


def test_ends_of_several_trials_whose_answer_was_lost_are_stored_once(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy]
) -> None:
    db = postgres_db
    held = [db.lease(db.claimant(f"worker {at}")) for at in range(3)]
    several = [leases.Ending(lease, Outcome.COMPLETE, [float(lease.number)], {}) for lease in held]
    assert leases.end_together(breaking_db().engine, several) == [True] * 3
    assert [trial.values for trial in db.trials()] == [[0.0], [1.0], [2.0]]
    assert [ending for *_, ending in db.attempts()] == ["complete"] * 3


def test_suggestions_for_several_trials_whose_answer_was_lost_are_stored_once(
    postgres_db: BudgetedStudy, breaking_db: Callable[[], BudgetedStudy]
) -> None:
    db = postgres_db
    held = [db.lease(db.claimant(f"worker {at}")) for at in range(3)]
    several = [leases.Suggested(lease, [("x", lease.number / 4, FLOAT)], {"noted": "1"}) for lease in held]
    assert leases.store_suggested_together(breaking_db().engine, several) == [True] * 3
    assert [trial.params for trial in db.trials()] == [{"x": 0.0}, {"x": 0.25}, {"x": 0.5}]
    assert [trial.system_attrs for trial in db.trials()] == [{"noted": 1}] * 3


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
