"""What ends a study early: a stop until it is resumed, and failures. A failed trial may be tried again."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy as sa
from budgeted_study import TICK_S, BudgetedStudy, add_ended

from tuner.errors import LeaseLost
from tuner.storage import connect, parse_url
from tuner.storage.sql.tables import budgets
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import NoTrial
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import register, resume, stop
from tuner.trial import Outcome
from tuner.trial.failures import ANY_FAILURES


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


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome.uses_budget])
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


@pytest.mark.slow
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
