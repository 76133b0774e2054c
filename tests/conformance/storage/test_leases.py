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
from storage_tools import LEASE_S, Desk, desk_at, report, shared_desk_at

from tuner.errors import LeaseLost
from tuner.storage import connect
from tuner.storage.worker import claims, leases
from tuner.storage.worker.claims import MAX_DEATHS, Claimant, NoTrial
from tuner.storage.worker.fences import Lease
from tuner.trial import Outcome

nan, inf = math.nan, math.inf


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with shared_desk_at(request, tmp_path_factory, "leases") as desk:
        yield desk


@pytest.fixture
def desk(shared_desk: Desk) -> Desk:
    return Desk(shared_desk.url, shared_desk.storage, shared_desk.engine)


@pytest.fixture
def postgres_desk(postgres_url: str) -> Iterator[Desk]:
    with desk_at(postgres_url) as desk:
        yield desk


BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

WRITES: dict[str, Callable[[sa.Engine, Lease], None]] = {
    "renew": leases.renew,
    "report": lambda engine, lease: report(engine, lease, 1, 0.125),
    "tell": lambda engine, lease: leases.tell(engine, lease, Outcome.COMPLETE, [0.125], {"worker": "stale"}),
    "release": leases.release,
    "bury": leases.bury,
    "forget": leases.forget_reports,
}


def assert_lost(desk: Desk, lease: Lease) -> None:
    """Every write of an old holder is refused and changes nothing."""
    before = desk.trials(), desk.leases()
    for write in WRITES.values():
        with pytest.raises(LeaseLost, match=f"trial {lease.number} no longer belongs to {lease.worker}: "):
            write(desk.engine, lease)
    assert (desk.trials(), desk.leases()) == before


def test_a_trial_that_starts_again_has_no_reports_and_others_keep_theirs(desk: Desk) -> None:
    again, other = desk.claim(), desk.claim("two")
    for lease in (again, other):
        report(desk.engine, lease, 1, 0.5)
        report(desk.engine, lease, 2, 0.25)

    leases.forget_reports(desk.engine, again)

    assert [trial.intermediate_values for trial in desk.trials()] == [{}, {1: 0.5, 2: 0.25}]
    query = "SELECT trial_id, count(*) FROM tuner_reports JOIN trials USING (trial_id) WHERE study_id = :id GROUP BY 1"
    with desk.engine.connect() as connection:
        rows = connection.execute(sa.text(query), {"id": desk.study_id}).all()
    assert [tuple(row) for row in rows] == [(other.trial_id, 2)]
    report(desk.engine, again, 1, 0.75)
    assert desk.trials()[0].intermediate_values == {1: 0.75}


# --- Budgets


def test_claims_count_from_zero(desk: Desk) -> None:
    claimed = [desk.claim(), desk.claim("two"), desk.claim()]

    assert [(lease.number, lease.worker) for lease in claimed] == [(0, "one"), (1, "two"), (2, "one")]
    assert desk.leases() == [(lease.number, lease.worker, 1, 0) for lease in claimed]
    assert desk.states() == ["RUNNING"] * 3
    assert [trial.number for trial in desk.trials()] == [0, 1, 2]
    assert all(trial.datetime_start is not None for trial in desk.trials())


def test_a_worker_waits_while_the_rest_runs_elsewhere(desk: Desk) -> None:
    first, second = desk.claim(budget=2), desk.claim("two", budget=2)

    assert desk.ask("three", budget=2) is NoTrial.WAIT
    desk.tell(first)
    assert desk.ask("three", budget=2) is NoTrial.WAIT
    desk.tell(second)
    assert desk.ask("three", budget=2) is NoTrial.DONE
    assert desk.claim("three", budget=3).number == 2  # more trials may be asked for later
    assert desk.ask(budget=1) is NoTrial.DONE


@pytest.mark.parametrize(
    "outcome", [outcome for outcome in Outcome if outcome not in ("running", "waiting", "preempted")]
)
def test_only_a_failed_trial_does_not_use_the_budget(desk: Desk, outcome: Outcome) -> None:
    desk.tell(desk.claim(budget=1), outcome)

    again = desk.ask(budget=1)
    if outcome.uses_budget:
        assert again is NoTrial.DONE
    else:
        assert isinstance(again, Lease)
        assert again.number == 1


def test_many_workers_run_exactly_the_budget(desk: Desk) -> None:
    """Six workers race; each third trial of a worker fails, and each fifth is given back in the middle."""
    budget, deadline_s = 20, time.monotonic() + 60.0
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
        engine, turn = connect(desk.url), 0
        claimant = Claimant(desk.study_id, name, trials=budget, lease_s=LEASE_S)
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

    trials = desk.trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert desk.states().count("COMPLETE") == budget
    assert desk.states().count("FAIL") == len(trials) - budget
    assert all(trial.values == [float(trial.number)] for trial in trials if trial.state is TrialState.COMPLETE)
    assert len(set(begun)) == len(begun)  # no trial was begun twice under one fence
    assert {number for number, _ in begun} == set(range(len(trials)))
    assert desk.leases() == []


def test_a_trial_that_ends_during_a_claim_is_counted(postgres_desk: Desk) -> None:
    """On SQLite a claim locks all writers out; on Postgres another worker may end a trial between two statements."""
    desk = postgres_desk
    for at in range(8):
        desk.study_id = desk.register(f"{desk.name}-{at}")
        desk.claim("done", budget=2)
        held, engine, statements = desk.claim("one", budget=2), connect(desk.url), []
        telling = threading.Thread(target=desk.tell, args=(held,))

        def tell_meanwhile(*_: Any, at: int = at, telling: Any = telling, statements: list[Any] = statements) -> None:
            statements.append(None)
            if len(statements) == at + 1:
                telling.start()
                telling.join(timeout=1.0)  # it may have to wait for the claim

        event.listen(engine, "after_cursor_execute", tell_meanwhile)
        claimant = Claimant(desk.study_id, "two", trials=2, lease_s=LEASE_S)
        assert isinstance(claims.claim(engine, claimant), NoTrial), f"{at=}"
        if telling.ident is not None:
            telling.join()
        engine.dispose()


def test_queued_trials_come_first_and_count(desk: Desk) -> None:
    desk.claim(budget=4)
    desk.study.enqueue_trial({"width": 3})
    desk.study.enqueue_trial({"width": 4})

    assert [desk.claim(budget=4).number for _ in range(3)] == [1, 2, 3]
    assert desk.ask(budget=4) is NoTrial.WAIT
    assert desk.states() == ["RUNNING"] * 4
    queued = desk.trials()[1]
    assert queued.datetime_start is not None
    assert optuna.Trial(desk.study, queued._trial_id).suggest_int("width", 1, 9) == 3


def test_trials_of_plain_optuna_are_left_alone(desk: Desk) -> None:
    theirs = desk.study.ask()

    assert desk.ask(budget=1) is NoTrial.WAIT  # it will probably be the one that was asked for
    assert desk.claim(budget=2).number == 1
    assert desk.ask(budget=2) is NoTrial.WAIT
    assert desk.states() == ["RUNNING", "RUNNING"]
    desk.study.tell(theirs, 0.25)
    assert desk.ask(budget=1) is NoTrial.DONE


def test_studies_of_one_database_have_budgets_and_leases_of_their_own(desk: Desk) -> None:
    desk.claim(lease_s=-1.0)
    other = Desk(desk.url, desk.storage, desk.engine)

    lease = other.claim("two", budget=1)
    assert (lease.number, lease.fence) == (0, 1)


def test_a_budget_that_was_lowered_holds_for_trials_that_were_given_back_too(desk: Desk) -> None:
    several = [desk.claim(f"worker-{at}") for at in range(5)]
    for lease in several:
        leases.release(desk.engine, lease)

    taken = [desk.ask(f"other-{at}", budget=2) for at in range(5)]
    assert [isinstance(lease, Lease) for lease in taken] == [True, True, False, False, False]
    assert taken[2] is NoTrial.WAIT


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_budget_is_exact_whatever_isolation_the_database_sets(postgres_desk: Desk, level: str) -> None:
    desk = postgres_desk
    with desk.engine.begin() as connection:
        name = connection.execute(sa.text("SELECT current_database()")).scalar_one()
        connection.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'"))
    desk.engine.dispose()
    test_many_workers_run_exactly_the_budget(desk)


# --- Take-overs


@pytest.mark.parametrize("lease_s", [0.0, -1.0])
@pytest.mark.parametrize("worker", ["one", "two"])
def test_an_expired_trial_is_taken_over_with_its_number(desk: Desk, lease_s: float, worker: str) -> None:
    _, old = desk.claim("other", budget=2), desk.claim("one", budget=2, lease_s=lease_s)

    new = desk.claim(worker, budget=2)  # perhaps by its own worker, who then has two leases on it, one of them void
    assert (new.trial_id, new.number, new.fence) == (old.trial_id, old.number, old.fence + 1)
    assert desk.leases() == [(0, "other", 1, 0), (1, worker, 2, 1)]
    assert_lost(desk, old)
    desk.tell(new)
    assert_lost(desk, new)


def test_the_oldest_expired_trial_comes_before_queued_and_new_ones(desk: Desk) -> None:
    for worker in ("one", "two", "one"):
        desk.claim(worker)
    desk.study.enqueue_trial({})
    claims.release_all(desk.engine, "one", died=True)

    assert [desk.claim("three").number for _ in range(4)] == [0, 2, 3, 4]


@pytest.mark.parametrize("deaths", [0, MAX_DEATHS - 1])
def test_a_trial_that_ends_while_it_is_taken_over_stays_as_it_ended(postgres_desk: Desk, deaths: int) -> None:
    desk = postgres_desk
    held = desk.claim("one", budget=1, lease_s=-1.0)
    engine = sa.create_engine(desk.engine.url)
    with ThreadPoolExecutor(1) as pool, engine.connect() as owner, engine.connect() as watcher:
        # What `tell` does, in slow motion; a claim that finds the lease locked waits, or leaves it alone.
        of_trial = {"id": held.trial_id}
        owner.execute(sa.text(f"UPDATE tuner_leases SET deaths = {deaths} WHERE trial_id = :id"), of_trial)
        owner.execute(sa.text("UPDATE trials SET state = 'COMPLETE' WHERE trial_id = :id"), of_trial)
        taking = pool.submit(desk.ask, "two", budget=1)
        deadline_s = time.monotonic() + 60.0
        while not taking.done() and not watcher.execute(sa.text(BLOCKED)).scalar_one():
            assert time.monotonic() < deadline_s
        owner.execute(sa.text("DELETE FROM tuner_leases WHERE trial_id = :id"), of_trial)
        owner.commit()
        taken = taking.result(timeout=60)
    engine.dispose()

    assert isinstance(taken, NoTrial)
    assert desk.states() == ["COMPLETE"]
    assert_lost(desk, held)


@pytest.mark.parametrize("write", [leases.renew, WRITES["report"]], ids=["renew", "report"])
def test_a_lease_is_extended_from_now(desk: Desk, write: Callable[[sa.Engine, Lease], None]) -> None:
    lease = desk.claim(budget=1, lease_s=0.0)
    held = Lease(lease.trial_id, lease.number, lease.worker, lease.fence, LEASE_S)

    write(desk.engine, held)  # expired, but nobody has come: it is still this worker's
    assert desk.ask("two", budget=1) is NoTrial.WAIT
    query = sa.text("SELECT expires_at_s FROM tuner_leases WHERE trial_id = :id")
    with desk.engine.connect() as connection:
        left_s = connection.execute(query, {"id": lease.trial_id}).scalar_one() - time.time()
    assert LEASE_S - 60.0 < left_s < LEASE_S + 60.0


def test_a_released_trial_is_taken_over_at_once_and_nobody_died(desk: Desk) -> None:
    old = desk.claim("one", budget=1)
    leases.release(desk.engine, old)

    assert desk.leases() == [(0, None, 1, 0)]
    assert_lost(desk, old)
    for fence in range(2, MAX_DEATHS + 3):  # as often as it likes
        lease = desk.claim("two", budget=1)
        assert (lease.number, lease.fence) == (0, fence)
        assert desk.leases() == [(0, "two", fence, 0)]
        leases.release(desk.engine, lease)


@pytest.mark.parametrize(("died", "deaths"), [(True, 1), (False, 0)])
def test_the_leases_of_a_worker_that_is_gone_end_at_once(desk: Desk, died: bool, deaths: int) -> None:
    gone, other = desk.claim("one", budget=2), desk.claim("two", budget=2)

    claims.release_all(desk.engine, "one", died=died)
    new = desk.claim("three", budget=2)
    assert (new.number, new.fence) == (gone.number, 2)
    assert desk.leases() == [(0, "three", 2, deaths), (1, "two", 1, 0)]
    assert_lost(desk, gone)
    leases.renew(desk.engine, other)


def test_a_trial_that_kills_its_workers_is_failed(desk: Desk) -> None:
    held = [desk.claim("worker-0", budget=1)]
    for fence in range(2, MAX_DEATHS + 1):
        claims.release_all(desk.engine, held[-1].worker, died=True)
        held.append(desk.claim(f"worker-{fence - 1}", budget=1))
        assert (held[-1].number, held[-1].fence) == (0, fence)
    claims.release_all(desk.engine, held[-1].worker, died=True)

    assert desk.claim("last", budget=1).number == 1  # in its place, since a failed trial does not use the budget
    deadly = desk.trials()[0]
    assert deadly.state is TrialState.FAIL
    assert deadly.datetime_complete is not None
    assert deadly.user_attrs["outcome"] == "failed"
    (record,) = desk.records("error_kind", "error")
    assert record["error_kind"] == "dead workers"
    assert record["error"] == "3 workers died while running this trial, the last was worker-2"
    assert_lost(desk, held[-1])


# --- Reports and ends


def test_a_report_is_overwritten_and_never_doubled(desk: Desk) -> None:
    lease = desk.claim()
    for epoch, value in [(1, 0.5), (2, inf), (3, -inf), (4, nan), (1, 0.25), (2, 0.5), (4, 4.0), (5, nan), (3, -inf)]:
        report(desk.engine, lease, epoch, value)

    (trial,) = desk.trials()
    assert trial.intermediate_values == pytest.approx({1: 0.25, 2: 0.5, 3: -inf, 4: 4.0, 5: nan}, rel=0, nan_ok=True)
    query = sa.text("SELECT count(*) FROM trial_intermediate_values WHERE trial_id = :id")
    with desk.engine.connect() as connection:
        assert connection.execute(query, {"id": lease.trial_id}).scalar_one() == 5


@pytest.mark.parametrize("value", [0.1, -1e300, 5e-324, inf, -inf, nan])
def test_a_report_is_stored_as_optuna_stores_it(desk: Desk, value: float) -> None:
    ours, theirs = desk.claim(), desk.study.ask()
    report(desk.engine, ours, 7, value)
    theirs.report(value, 7)

    columns = "step, intermediate_value, intermediate_value_type"
    query = sa.text(f"SELECT {columns} FROM trial_intermediate_values WHERE trial_id = :id")
    with desk.engine.connect() as connection:
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
    desk: Desk, outcome: Outcome, values: list[float] | None, state: TrialState
) -> None:
    lease = desk.claim()
    record = {"worker": "one", "train_s": 0.5, "error": "Ärger\n'quoted'", "compilations": 3, "checkpoint": None}
    leases.tell(desk.engine, lease, outcome, values, record)

    (trial,) = desk.trials()
    assert (trial.state, trial.values) == (state, values)
    assert trial.user_attrs == {"outcome": outcome.value}
    # Earlier versions raise an error for an outcome that they do not know.
    recorded = Outcome.PRUNED if outcome is Outcome.TIMED_OUT else outcome
    assert desk.records() == [{**record, "number": 0, "outcome": recorded.value}]
    (kind,) = desk.records("error_kind")
    assert kind["error_kind"] == ("timed_out" if outcome is Outcome.TIMED_OUT else None)
    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    assert trial.datetime_start <= trial.datetime_complete
    assert desk.leases() == []
    assert_lost(desk, lease)


def test_a_trial_without_progress_is_free_and_the_third_death_fails_it(desk: Desk) -> None:
    for fence in (1, 2, 3):
        lease = desk.claim()
        assert (lease.number, lease.fence) == (0, fence)
        leases.bury(desk.engine, lease)
        assert_lost(desk, lease)

    assert desk.claim().number == 1
    (trial, _) = desk.trials()
    assert trial.state == TrialState.FAIL
    (record,) = desk.records()
    assert record["error"] == "3 workers died while running this trial"


def test_the_time_of_earlier_attempts_is_added_up(desk: Desk) -> None:
    first = desk.claim()
    assert leases.earlier_s(desk.engine, first) == 0.0
    leases.release(desk.engine, first)
    second = desk.claim()
    leases.release(desk.engine, second)
    with desk.engine.begin() as connection:
        connection.execute(sa.text("UPDATE tuner_attempts SET started_at_s = 100, ended_at_s = 100 + 7 * fence"))
    third = desk.claim()
    assert third.fence == 3
    assert leases.earlier_s(desk.engine, third) == 7.0 + 14.0


def test_a_trial_that_another_tool_ended_is_lost(desk: Desk) -> None:
    lease = desk.claim()
    desk.study.tell(lease.number, state=TrialState.FAIL)

    assert_lost(desk, lease)
    assert desk.claim().number == 1
