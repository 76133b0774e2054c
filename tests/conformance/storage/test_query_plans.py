"""How Postgres runs the statements of a trial when a study is large: by indices, never through a whole table."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.study import StudyDirection
from sqlalchemy import event
from storage_tools import new_database, opened

from tuner.storage.optuna.storage import Storage
from tuner.storage.sql import prepared_statements, statements
from tuner.storage.sql.prepared_statements import Prepared, WithWrites
from tuner.storage.sql.tables import trial_system_attributes, trial_user_attributes
from tuner.storage.worker import claims, leases
from tuner.storage.worker.fences import Lease
from tuner.trial import Outcome, Report

pytestmark = pytest.mark.slow

TRIALS = 20_000
RUNS = 8  # after five Postgres decides whether to plan a prepared statement once for all

LARGE = {
    "trials", "trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes",
    "trial_system_attributes", "tuner_attempts", "tuner_records", "tuner_reports", "tuner_rungs",
}  # fmt: skip

FLOAT = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'
FILL = [
    "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete) "
    "SELECT i - 1, :study, 'COMPLETE', now(), now() FROM generate_series(1, :count) AS g (i)",
    "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
    "SELECT trial_id, 'x' || p, random(), :float FROM trials, generate_series(0, 2) AS s (p)",
    "INSERT INTO trial_values (trial_id, objective, value, value_type) "
    "SELECT trial_id, 0, random(), 'FINITE' FROM trials",
    "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
    "SELECT trial_id, s, random(), 'FINITE' FROM trials, generate_series(1, 3) AS t (s)",
    "INSERT INTO trial_user_attributes (trial_id, key, value_json) SELECT trial_id, 'outcome', '1' FROM trials",
    "INSERT INTO trial_system_attributes (trial_id, key, value_json) SELECT trial_id, 'k', '1' FROM trials",
    "INSERT INTO tuner_attempts (trial_id, fence, study_id, worker, devices, started_at_s, ended_at_s, ending) "
    "SELECT trial_id, 1, study_id, 'w' || trial_id % 32, 1, number, number + 30, 'complete' FROM trials",
    "INSERT INTO tuner_records (trial_id, study_id, outcome, ended_at_s) "
    "SELECT trial_id, study_id, 'complete', number + 30 FROM trials",
    "INSERT INTO tuner_reports (trial_id, epoch, step, metrics) "
    "SELECT trial_id, e, 10 * e, '{}' FROM trials, generate_series(1, 3) AS t (e)",
    "INSERT INTO tuner_rungs (trial_id, rung, study_id, position, bracket, value, is_promoted) "
    "SELECT trial_id, r, study_id, row_number() OVER (), 0, random(), true FROM trials, generate_series(0, 1) AS s (r) "
    "WHERE r = 0 OR number % 4 = 0",
]  # fmt: skip


class WorkerStatements:
    """A worker's statements on a large study, as they were sent last."""

    def __init__(self, storage: Storage, study_id: int) -> None:
        self.storage, self.study_id = storage, study_id
        self.engine = storage.engine
        self.sent: dict[str, tuple[str, Any]] = {}
        self.claimant = claims.Claimant(study_id, "one", trials=10 * TRIALS, lease_s=300.0, failures_since_s=0.0)
        event.listen(self.engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, text: str, parameters: Any, *_: Any) -> None:
        for call in text.split("; ") if text.startswith("EXECUTE") else ():
            self.sent[called(call)] = (call, parameters)

    def claim(self) -> Lease:
        lease = claims.claim(self.engine, self.claimant)
        assert isinstance(lease, Lease)
        return lease

    def run_a_trial(self) -> None:
        """Do what a worker does for a trial."""
        storage, engine = self.storage, self.engine
        storage.get_all_trials(self.study_id, deepcopy=False)
        lease = self.claim()
        params = [(f"x{at}", 0.5, FLOAT) for at in range(3)]
        leases.store_suggested(engine, leases.Suggested(lease, params, {"noted": "1"}))
        storage.get_trial(lease.trial_id)
        leases.renew(engine, lease)
        for table in (trial_user_attributes, trial_system_attributes):
            leases.store_attribute(engine, lease, table, "k", 1)
        for epoch in (1, 2):
            leases.report(engine, lease, [Report(epoch, 10 * epoch, {"loss": 0.5})], "loss")
            for maximize in (False, True):
                place: dict[str, Any] = {
                    "bracket": 0,
                    "reduction_factor": 4,
                    "bootstrap_count": 0,
                    "maximize": [maximize],
                }
                storage.enter_rung(self.study_id, lease.trial_id, rung=epoch - 1, values=[0.5], **place)
        # Plain Optuna's way into a trial.
        storage.set_trial_user_attr(lease.trial_id, "theirs", 1)
        storage.set_trial_system_attr(lease.trial_id, "theirs", 1)
        storage.set_trial_intermediate_value(lease.trial_id, 99, 0.5)
        leases.tell(engine, lease, Outcome.COMPLETE, [0.5], {"worker": "one"})
        failed = self.claim()
        leases.tell(engine, failed, Outcome.FAILED, None, {"error_kind": "E", "error": "E"})
        leases.release(engine, self.claim())
        again = self.claim()
        leases.tell(engine, again, Outcome.PRUNED, None, {})
        theirs = storage.create_new_trial(self.study_id)
        storage.set_trial_param(theirs, "x0", 0.5, optuna.distributions.FloatDistribution(0.0, 1.0))
        storage.set_trial_state_values(theirs, optuna.trial.TrialState.COMPLETE, [0.5])

    def name_of(self, key: Prepared) -> str:
        with self.engine.connect() as connection:
            return called(connection.info[prepared_statements._PREPARED][key])

    def plans(self, mode: str = "auto") -> dict[Prepared, dict[str, Any]]:
        """Return the plan of each prepared statement, with the values that it was last sent with."""
        plans = {}
        with self.engine.connect() as connection:
            names = {key: called(call) for key, call in connection.info[prepared_statements._PREPARED].items()}
            sent = dict(self.sent)
            connection.exec_driver_sql(f"SET plan_cache_mode = {mode}")
            for key, name in names.items():
                text, parameters = sent[name]
                rows = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {text}", parameters)
                (plan,) = rows.scalar_one()
                plans[key] = plan["Plan"]
            connection.exec_driver_sql("RESET plan_cache_mode")
        return plans


def called(call: str) -> str:
    """Return the name of the prepared statement in `EXECUTE name (...)`."""
    return call.split()[1]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def scans(plan: dict[str, Any]) -> set[tuple[str, str]]:
    """Return (kind, table or index) for all that reads a table."""
    found = set()
    for node in nodes(plan):
        if "Scan" in node["Node Type"]:
            found.add((node["Node Type"], node.get("Index Name") or node.get("Relation Name") or ""))
    return found


@pytest.fixture(scope="module")
def worker(request: pytest.FixtureRequest) -> Iterator[WorkerStatements]:
    url = new_database(request.getfixturevalue("postgres_server"))
    patch = pytest.MonkeyPatch()
    patch.setattr(prepared_statements, "_servers_prepare", True)
    with opened(url) as storage:
        study_id = storage.create_new_study([StudyDirection.MINIMIZE])
        with storage.engine.begin() as connection:
            for template in FILL:
                text = template
                for name, value in (("%", "%%"), (":study", study_id), (":count", TRIALS), (":float", f"'{FLOAT}'")):
                    text = text.replace(name, str(value))
                connection.exec_driver_sql(text)
        with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")
        worker = WorkerStatements(storage, study_id)
        for _ in range(RUNS):
            worker.run_a_trial()
        yield worker
    patch.undo()


def whole_tables(plan: dict[str, Any]) -> set[str]:
    return {table for kind, table in scans(plan) if kind == "Seq Scan" and table in LARGE}


def test_no_statement_of_a_trial_reads_a_whole_table(worker: WorkerStatements) -> None:
    plans = worker.plans()
    for first in (statements.trial_details, statements.load_trials):
        del plans[first.of(False)]  # the first reading of all trials

    found = {str(what): whole for what, plan in plans.items() if (whole := whole_tables(plan))}
    assert found == {}
    # Nothing that a trial needs has been left out: every statement but those for other situations.
    sent = {what.name for what in plans} | {
        write.name for what in plans if isinstance(what, WithWrites) for write in what.writes
    }
    assert prepared_statements._names - sent == {
        *("rebase", "hours", "delete rows", "enter rung, held", "bury lease", "delete attribute"),
    }


def rows_touched(worker: WorkerStatements, key: Prepared, /, **changed: Any) -> float:
    """Run a statement as it was sent last, undo it, and return how many rows its plan has looked at."""
    with worker.engine.connect() as connection:
        text, parameters = worker.sent[called(connection.info[prepared_statements._PREPARED][key])]
        rows = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", {**parameters, **changed})
        (plan,) = rows.scalar_one()
        connection.rollback()
    return sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in nodes(plan["Plan"])
    )


def test_the_trials_of_other_studies_are_not_looked_at(worker: WorkerStatements) -> None:
    """A study beside large and newer ones. After six times a statement is planned for any values."""
    fill = (
        "INSERT INTO trials (number, study_id, state) SELECT g, {}, 'COMPLETE' FROM generate_series(0, 9999) AS g (g)"
    )
    names = [f"other {at}" for at in range(4)]
    others = [worker.storage.create_new_study([StudyDirection.MINIMIZE], name) for name in names]
    with worker.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for other in others:
            connection.exec_driver_sql(fill.format(other))
        connection.exec_driver_sql("ANALYZE")
    for _ in range(RUNS):
        worker.run_a_trial()
    assert rows_touched(worker, statements.standing.of(True)) < 500
    assert rows_touched(worker, statements.load_trials.of(True)) < 500

    lease = worker.claim()
    held = {"held_id": lease.trial_id, "worker": lease.worker}
    ends: list[Any] = [what for what in worker.plans() if getattr(what, "name", "") == "end lease"]
    assert len(ends) > 1
    for end in ends:
        names = [name for name in worker.sent[worker.name_of(end)][1] if name.endswith("fence")]
        assert 0 < rows_touched(worker, end, **held, **dict.fromkeys(names, lease.fence)) < 100
    leases.tell(worker.engine, lease, Outcome.COMPLETE, [0.5], {})
    for other in others:
        worker.storage.delete_study(other)


def test_a_claim_counts_only_trials_that_are_not_settled(worker: WorkerStatements) -> None:
    assert worker.claimant.settled.total >= TRIALS
    settled = worker.plans()[statements.standing.of(True)]
    assert "trials_pkey" in {index for _, index in scans(settled)}
    assert settled["Plan Rows"] == 1
    assert sum(node["Plan Rows"] for node in nodes(settled)) < TRIALS / 20

    # A worker that has just come counts all trials once, before it has the lock.
    worker.claimant = new = replace(worker.claimant, settled=claims.Settled())
    lease = worker.claim()
    assert statements.standing.of(False) not in worker.plans(), "which would count all trials under the lock"
    assert new.settled.total >= TRIALS
    leases.tell(worker.engine, lease, Outcome.COMPLETE, [0.5], {})
    worker.run_a_trial()
    assert whole_tables(worker.plans()[statements.standing.of(True)]) == set()


def test_of_a_rung_only_what_is_new_is_read(worker: WorkerStatements) -> None:
    count = sa.text("SELECT count(*) FROM tuner_rungs")
    with worker.engine.connect() as connection:
        assert connection.execute(count).scalar_one() >= TRIALS
    place: dict[str, Any] = {"bracket": 0, "reduction_factor": 4, "bootstrap_count": 0, "maximize": [True]}
    for _ in range(3):
        trial_id = worker.storage.create_new_trial(worker.study_id)
        worker.storage.enter_rung(worker.study_id, trial_id, rung=0, values=[0.5], **place)

    plan = worker.plans()[statements.new_in_rungs]
    assert whole_tables(plan) == set()
    assert "tuner_rungs_by_position" in {index for _, index in scans(plan)}


def test_the_latest_errors_are_read_from_the_end_of_their_index(worker: WorkerStatements) -> None:
    plan = worker.plans()[statements.latest_errors]

    kinds = {node["Node Type"] for node in nodes(plan)}
    assert {"Limit", "Index Scan"} <= kinds
    assert "Sort" not in kinds  # which would read all records first
    assert ("Index Scan", "tuner_records_by_end") in scans(plan)


def test_refreshing_reads_what_is_new_by_its_id(worker: WorkerStatements) -> None:
    open_ids = [worker.storage.create_new_trial(worker.study_id) for _ in range(64)]  # as many run elsewhere
    for _ in range(RUNS):
        worker.storage.get_all_trials(worker.study_id, deepcopy=False)
    plans = worker.plans()

    for what in (statements.load_trials.of(True), statements.trial_details.of(True)):
        assert whole_tables(plans[what]) == set(), what
        assert {index for kind, index in scans(plans[what]) if "Index" in kind} != set()
    for trial_id in open_ids:
        worker.storage.set_trial_state_values(trial_id, optuna.trial.TrialState.FAIL)


def test_a_scan_of_a_whole_table_would_be_noticed(worker: WorkerStatements) -> None:
    with worker.engine.connect() as connection:
        connection.exec_driver_sql("SET enable_indexscan = off")
        connection.exec_driver_sql("SET enable_bitmapscan = off")
        connection.exec_driver_sql("SET enable_indexonlyscan = off")
        connection.commit()
    try:
        plans = worker.plans("force_custom_plan")
    finally:
        with worker.engine.connect() as connection:
            connection.exec_driver_sql("RESET ALL")
            connection.commit()

    found: set[str] = set().union(*(whole_tables(plan) for plan in plans.values()))
    assert LARGE - found <= {"tuner_reports"}  # which a worker only writes to
