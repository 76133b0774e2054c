"""Who runs which trial, on SQLite and on Postgres: exact budgets, take-overs, fences, and what Optuna sees of it."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy import event
from storage_tools import LEASE_S, StudyDatabase, report, study_database

from tuner.errors import LeaseLost
from tuner.storage import connect
from tuner.storage.sql.dialect import now_s
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import MAX_DEATHS, Claimant, NoTrial
from tuner.storage.worker.fences import Lease
from tuner.trial import Outcome

nan, inf = math.nan, math.inf


@pytest.fixture
def postgres_db(postgres_url: str) -> Iterator[StudyDatabase]:
    with study_database(postgres_url) as db:
        yield db


BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

WRITES: dict[str, Callable[[sa.Engine, Lease], None]] = {
    "renew": leases.renew,
    "report": lambda engine, lease: report(engine, lease, 1, 0.125),
    "tell": lambda engine, lease: leases.tell(engine, lease, Outcome.COMPLETE, [0.125], {"worker": "stale"}),
    "release": leases.release,
    "bury": leases.bury,
    "forget": leases.forget_reports,
}


def assert_lost(db: StudyDatabase, lease: Lease) -> None:
    """Every write of an old holder is refused and changes nothing."""
    before = db.trials(), db.leases()
    for write in WRITES.values():
        with pytest.raises(LeaseLost, match=f"trial {lease.number} no longer belongs to {lease.worker}: "):
            write(db.engine, lease)
    assert (db.trials(), db.leases()) == before


def test_a_trial_that_starts_again_has_no_reports_and_others_keep_theirs(db: StudyDatabase) -> None:
    again, other = db.claim(), db.claim("two")
    for lease in (again, other):
        report(db.engine, lease, 1, 0.5)
        report(db.engine, lease, 2, 0.25)

    leases.forget_reports(db.engine, again)

    assert [trial.intermediate_values for trial in db.trials()] == [{}, {1: 0.5, 2: 0.25}]
    query = "SELECT trial_id, count(*) FROM tuner_reports JOIN trials USING (trial_id) WHERE study_id = :id GROUP BY 1"
    with db.engine.connect() as connection:
        rows = connection.execute(sa.text(query), {"id": db.study_id}).all()
    assert [tuple(row) for row in rows] == [(other.trial_id, 2)]
    report(db.engine, again, 1, 0.75)
    assert db.trials()[0].intermediate_values == {1: 0.75}


# --- Budgets


def test_claims_count_from_zero(db: StudyDatabase) -> None:
    claimed = [db.claim(), db.claim("two"), db.claim()]

    assert [(lease.number, lease.worker) for lease in claimed] == [(0, "one"), (1, "two"), (2, "one")]
    assert db.leases() == [(lease.number, lease.worker, 1, 0) for lease in claimed]
    assert db.states() == ["RUNNING"] * 3
    assert [trial.number for trial in db.trials()] == [0, 1, 2]
    assert all(trial.datetime_start is not None for trial in db.trials())


def test_a_worker_waits_while_the_rest_runs_elsewhere(db: StudyDatabase) -> None:
    first, second = db.claim(budget=2), db.claim("two", budget=2)

    assert db.ask("three", budget=2) is NoTrial.WAIT
    db.tell(first)
    assert db.ask("three", budget=2) is NoTrial.WAIT
    db.tell(second)
    assert db.ask("three", budget=2) is NoTrial.DONE
    assert db.claim("three", budget=3).number == 2  # more trials may be asked for later
    assert db.ask(budget=1) is NoTrial.DONE


@pytest.mark.parametrize(
    "outcome", [outcome for outcome in Outcome if outcome not in ("running", "waiting", "preempted")]
)
def test_only_a_failed_trial_does_not_use_the_budget(db: StudyDatabase, outcome: Outcome) -> None:
    db.tell(db.claim(budget=1), outcome)

    again = db.ask(budget=1)
    if outcome.uses_budget:
        assert again is NoTrial.DONE
    else:
        assert isinstance(again, Lease)
        assert again.number == 1


def test_many_workers_run_exactly_the_budget(db: StudyDatabase) -> None:
    """Six workers race; each third trial of a worker fails, and each fifth is given back in the middle."""
    budget, deadline_s = 20, time.monotonic() + 300.0
    changed = threading.Condition()
    begun: list[tuple[int, int]] = []

    def run(engine: sa.Engine, lease: Lease, turn: int) -> None:
        begun.append((lease.number, lease.fence))
        report(engine, lease, 1, 0.5)
        if turn % 5 == 0:
            leases.release(engine, lease)
        elif turn % 3 == 0:
            leases.tell(engine, lease, Outcome.FAILED, None, {"error": lease.worker})
        else:
            leases.tell(engine, lease, Outcome.COMPLETE, [float(lease.number)], {})

    def work(name: str) -> None:
        engine, turn = connect(db.url), 0
        claimant = Claimant(db.study_id, name, trials=budget, lease_s=LEASE_S)
        while True:
            lease = claims.claim(engine, claimant)
            assert time.monotonic() < deadline_s
            with changed:
                if isinstance(lease, Lease):
                    turn += 1
                elif lease is NoTrial.DONE:
                    break
                else:
                    changed.wait(timeout=0.05)
                    continue
            run(engine, lease, turn)
            with changed:
                changed.notify_all()
        engine.dispose()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, [f"worker-{index}" for index in range(6)]))

    trials = db.trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert db.states().count("COMPLETE") == budget
    assert db.states().count("FAIL") == len(trials) - budget
    assert all(trial.values == [float(trial.number)] for trial in trials if trial.state is TrialState.COMPLETE)
    assert len(set(begun)) == len(begun)  # no trial was begun twice under one fence
    assert {number for number, _ in begun} == set(range(len(trials)))
    assert db.leases() == []


@pytest.mark.slow
def test_a_trial_that_ends_during_a_claim_is_counted(postgres_db: StudyDatabase) -> None:
    """On SQLite a claim locks all writers out; on Postgres another worker may end a trial between two statements."""
    db = postgres_db
    for at in range(8):
        db.study_id = db.register(f"{db.name}-{at}")
        db.claim("done", budget=2)
        held, engine, statements = db.claim("one", budget=2), connect(db.url), []
        telling = threading.Thread(target=db.tell, args=(held,))

        def tell_meanwhile(*_: Any, at: int = at, telling: Any = telling, statements: list[Any] = statements) -> None:
            statements.append(None)
            if len(statements) == at + 1:
                telling.start()
                telling.join(timeout=1.0)  # it may have to wait for the claim

        event.listen(engine, "after_cursor_execute", tell_meanwhile)
        claimant = Claimant(db.study_id, "two", trials=2, lease_s=LEASE_S)
        assert isinstance(claims.claim(engine, claimant), NoTrial), f"{at=}"
        if telling.ident is not None:
            telling.join()
        engine.dispose()


def test_queued_trials_come_first_and_count(db: StudyDatabase) -> None:
    db.claim(budget=4)
    db.study.enqueue_trial({"width": 3})
    db.study.enqueue_trial({"width": 4})

    assert [db.claim(budget=4).number for _ in range(3)] == [1, 2, 3]
    assert db.ask(budget=4) is NoTrial.WAIT
    assert db.states() == ["RUNNING"] * 4
    queued = db.trials()[1]
    assert queued.datetime_start is not None
    assert optuna.Trial(db.study, queued._trial_id).suggest_int("width", 1, 9) == 3


def test_trials_of_plain_optuna_are_left_alone(db: StudyDatabase) -> None:
    theirs = db.study.ask()

    assert db.ask(budget=1) is NoTrial.WAIT  # it will probably be the one that was asked for
    assert db.claim(budget=2).number == 1
    assert db.ask(budget=2) is NoTrial.WAIT
    assert db.states() == ["RUNNING", "RUNNING"]
    db.study.tell(theirs, 0.25)
    assert db.ask(budget=1) is NoTrial.DONE


def test_studies_of_one_database_have_budgets_and_leases_of_their_own(db: StudyDatabase) -> None:
    db.claim(lease_s=-1.0)
    other = StudyDatabase(db.url, db.storage, db.engine)

    lease = other.claim("two", budget=1)
    assert (lease.number, lease.fence) == (0, 1)


def test_a_budget_that_was_lowered_holds_for_trials_that_were_given_back_too(db: StudyDatabase) -> None:
    several = [db.claim(f"worker-{at}") for at in range(5)]
    for lease in several:
        leases.release(db.engine, lease)

    taken = [db.ask(f"other-{at}", budget=2) for at in range(5)]
    assert [isinstance(lease, Lease) for lease in taken] == [True, True, False, False, False]
    assert taken[2] is NoTrial.WAIT


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.slow
def test_a_budget_is_exact_whatever_isolation_the_database_sets(postgres_db: StudyDatabase, level: str) -> None:
    db = postgres_db
    with db.engine.begin() as connection:
        name = connection.execute(sa.text("SELECT current_database()")).scalar_one()
        connection.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'"))
    db.engine.dispose()
    test_many_workers_run_exactly_the_budget(db)


# --- Take-overs


@pytest.mark.parametrize("lease_s", [0.0, -1.0])
@pytest.mark.parametrize("worker", ["one", "two"])
def test_an_expired_trial_is_taken_over_with_its_number(db: StudyDatabase, lease_s: float, worker: str) -> None:
    _, old = db.claim("other", budget=2), db.claim("one", budget=2, lease_s=lease_s)

    new = db.claim(worker, budget=2)  # perhaps by its own worker, who then has two leases on it, one of them void
    assert (new.trial_id, new.number, new.fence) == (old.trial_id, old.number, old.fence + 1)
    assert db.leases() == [(0, "other", 1, 0), (1, worker, 2, 1)]
    assert_lost(db, old)
    db.tell(new)
    assert_lost(db, new)


def test_the_oldest_expired_trial_comes_before_queued_and_new_ones(db: StudyDatabase) -> None:
    for worker in ("one", "two", "one"):
        db.claim(worker)
    db.study.enqueue_trial({})
    claims.release_all(db.engine, "one", died=True)

    assert [db.claim("three").number for _ in range(4)] == [0, 2, 3, 4]


@pytest.mark.parametrize("deaths", [0, MAX_DEATHS - 1])
def test_a_trial_that_ends_while_it_is_taken_over_stays_as_it_ended(postgres_db: StudyDatabase, deaths: int) -> None:
    db = postgres_db
    held = db.claim("one", budget=1, lease_s=-1.0)
    engine = sa.create_engine(db.engine.url)
    with ThreadPoolExecutor(1) as pool, engine.connect() as owner, engine.connect() as watcher:
        # What `tell` does, in slow motion; a claim that finds the lease locked waits, or leaves it alone.
        of_trial = {"id": held.trial_id}
        owner.execute(sa.text(f"UPDATE tuner_leases SET deaths = {deaths} WHERE trial_id = :id"), of_trial)
        owner.execute(sa.text("UPDATE trials SET state = 'COMPLETE' WHERE trial_id = :id"), of_trial)
        taking = pool.submit(db.ask, "two", budget=1)
        deadline_s = time.monotonic() + 300.0
        while not taking.done() and not watcher.execute(sa.text(BLOCKED)).scalar_one():
            assert time.monotonic() < deadline_s
        owner.execute(sa.text("DELETE FROM tuner_leases WHERE trial_id = :id"), of_trial)
        owner.commit()
        taken = taking.result(timeout=300)
    engine.dispose()

    assert isinstance(taken, NoTrial)
    assert db.states() == ["COMPLETE"]
    assert_lost(db, held)


@pytest.mark.parametrize("write", [leases.renew, WRITES["report"]], ids=["renew", "report"])
def test_a_lease_is_extended_from_now(db: StudyDatabase, write: Callable[[sa.Engine, Lease], None]) -> None:
    lease = db.claim(budget=1, lease_s=0.0)
    held = Lease(lease.trial_id, lease.number, lease.worker, lease.fence, LEASE_S)

    before_s = now_s(db.engine)
    write(db.engine, held)  # expired, but nobody has come: it is still this worker's
    after_s = now_s(db.engine)
    assert db.ask("two", budget=1) is NoTrial.WAIT
    query = sa.text("SELECT expires_at_s FROM tuner_leases WHERE trial_id = :id")
    with db.engine.connect() as connection:
        end_s = connection.execute(query, {"id": lease.trial_id}).scalar_one()
    assert before_s + LEASE_S <= end_s <= after_s + LEASE_S


def test_a_released_trial_is_taken_over_at_once_and_nobody_died(db: StudyDatabase) -> None:
    old = db.claim("one", budget=1)
    leases.release(db.engine, old)

    assert db.leases() == [(0, None, 1, 0)]
    assert_lost(db, old)
    for fence in range(2, MAX_DEATHS + 3):  # as often as it likes
        lease = db.claim("two", budget=1)
        assert (lease.number, lease.fence) == (0, fence)
        assert db.leases() == [(0, "two", fence, 0)]
        leases.release(db.engine, lease)


@pytest.mark.parametrize(("died", "deaths"), [(True, 1), (False, 0)])
def test_the_leases_of_a_worker_that_is_gone_end_at_once(db: StudyDatabase, died: bool, deaths: int) -> None:
    gone, other = db.claim("one", budget=2), db.claim("two", budget=2)

    claims.release_all(db.engine, "one", died=died)
    new = db.claim("three", budget=2)
    assert (new.number, new.fence) == (gone.number, 2)
    assert db.leases() == [(0, "three", 2, deaths), (1, "two", 1, 0)]
    assert_lost(db, gone)
    leases.renew(db.engine, other)


def test_a_trial_that_kills_its_workers_is_failed(db: StudyDatabase) -> None:
    held = [db.claim("worker-0", budget=1)]
    for fence in range(2, MAX_DEATHS + 1):
        claims.release_all(db.engine, held[-1].worker, died=True)
        held.append(db.claim(f"worker-{fence - 1}", budget=1))
        assert (held[-1].number, held[-1].fence) == (0, fence)
    claims.release_all(db.engine, held[-1].worker, died=True)

    assert db.claim("last", budget=1).number == 1  # in its place, since a failed trial does not use the budget
    deadly = db.trials()[0]
    assert deadly.state is TrialState.FAIL
    assert deadly.datetime_complete is not None
    assert deadly.user_attrs["outcome"] == "failed"
    (record,) = db.records("error_kind", "error")
    assert record["error_kind"] == "dead workers"
    assert record["error"] == "3 workers in a row died without the trial getting further, the last was worker-2"
    assert_lost(db, held[-1])


# --- Reports and ends


def test_a_report_is_overwritten_and_never_doubled(db: StudyDatabase) -> None:
    lease = db.claim()
    for epoch, value in [(1, 0.5), (2, inf), (3, -inf), (4, nan), (1, 0.25), (2, 0.5), (4, 4.0), (5, nan), (3, -inf)]:
        report(db.engine, lease, epoch, value)

    (trial,) = db.trials()
    assert trial.intermediate_values == pytest.approx({1: 0.25, 2: 0.5, 3: -inf, 4: 4.0, 5: nan}, rel=0, nan_ok=True)
    query = sa.text("SELECT count(*) FROM trial_intermediate_values WHERE trial_id = :id")
    with db.engine.connect() as connection:
        assert connection.execute(query, {"id": lease.trial_id}).scalar_one() == 5


@pytest.mark.parametrize("value", [0.1, -1e300, 5e-324, inf, -inf, nan])
def test_a_report_is_stored_as_optuna_stores_it(db: StudyDatabase, value: float) -> None:
    ours, theirs = db.claim(), db.study.ask()
    report(db.engine, ours, 7, value)
    theirs.report(value, 7)

    columns = "step, intermediate_value, intermediate_value_type"
    query = sa.text(f"SELECT {columns} FROM trial_intermediate_values WHERE trial_id = :id")
    with db.engine.connect() as connection:
        stored = [connection.execute(query, {"id": id}).one() for id in (ours.trial_id, theirs._trial_id)]
    assert stored[0] == stored[1]


@pytest.mark.parametrize(
    ("outcome", "values", "state"),
    [
        (Outcome.COMPLETE, [0.25], TrialState.COMPLETE),
        (Outcome.COMPLETE, [inf], TrialState.COMPLETE),
        (Outcome.COMPLETE, [0.25, -inf, 3.0], TrialState.COMPLETE),
        (Outcome.PRUNED, None, TrialState.PRUNED),
        (Outcome.DIVERGED, None, TrialState.PRUNED),
        (Outcome.OUT_OF_MEMORY, None, TrialState.PRUNED),
        (Outcome.TIMED_OUT, None, TrialState.PRUNED),
        (Outcome.FAILED, None, TrialState.FAIL),
    ],
)
def test_optuna_sees_how_a_trial_ended(
    db: StudyDatabase, outcome: Outcome, values: list[float] | None, state: TrialState
) -> None:
    lease = db.claim()
    record = {"worker": "one", "train_s": 0.5, "error": "Ärger\n'quoted'", "compilations": 3, "checkpoint": None}
    leases.tell(db.engine, lease, outcome, values, record)

    (trial,) = db.trials()
    assert (trial.state, trial.values) == (state, values)
    assert trial.user_attrs == {"outcome": outcome.value}
    # Earlier versions raise an error for an outcome that they do not know.
    recorded = Outcome.PRUNED if outcome is Outcome.TIMED_OUT else outcome
    assert db.records() == [{**record, "number": 0, "outcome": recorded.value}]
    (kind,) = db.records("error_kind")
    assert kind["error_kind"] == ("timed_out" if outcome is Outcome.TIMED_OUT else None)
    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    assert trial.datetime_start <= trial.datetime_complete
    assert db.leases() == []
    assert_lost(db, lease)


def test_a_trial_without_progress_is_free_and_the_third_death_fails_it(db: StudyDatabase) -> None:
    for fence in (1, 2, 3):
        lease = db.claim()
        assert (lease.number, lease.fence) == (0, fence)
        leases.bury(db.engine, lease)
        assert_lost(db, lease)

    assert db.claim().number == 1
    (trial, _) = db.trials()
    assert trial.state == TrialState.FAIL
    (record,) = db.records()
    assert record["error"] == "3 workers in a row died without the trial getting further"


def test_the_time_of_earlier_attempts_is_added_up(db: StudyDatabase) -> None:
    first = db.claim()
    assert leases.earlier_s(db.engine, first) == 0.0
    leases.release(db.engine, first)
    second = db.claim()
    leases.release(db.engine, second)
    with db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE tuner_attempts SET started_at_s = 100, ended_at_s = 100 + 7 * fence"))
    third = db.claim()
    assert third.fence == 3
    assert leases.earlier_s(db.engine, third) == 7.0 + 14.0


def test_a_trial_that_another_tool_ended_is_lost(db: StudyDatabase) -> None:
    lease = db.claim()
    db.study.tell(lease.number, state=TrialState.FAIL)

    assert_lost(db, lease)
    assert db.claim().number == 1
