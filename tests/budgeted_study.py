"""A study in a database whose workers have budgets of every kind, for the tests of what the database counts."""

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy as sa
from storage_tools import LEASE_S, StudyDatabase

from tuner.storage.sql.dialect import now_s
from tuner.storage.sql.tables import trials as trials_table
from tuner.storage.worker import claims
from tuner.storage.worker.claims import Claimant
from tuner.storage.worker.fences import Lease
from tuner.trial import Outcome

TICK_S = 0.005  # SQLite's clock counts milliseconds: after this pause, the next time is a later one
ENDS = [outcome for outcome in Outcome if outcome.uses_budget] + [Outcome.FAILED]
"""All ways in which a worker ends a trial."""
STATES = {Outcome.COMPLETE: "COMPLETE", Outcome.FAILED: "FAIL"}
"""The state that Optuna has of an outcome, where it is not PRUNED."""


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


def stored_reports(db: BudgetedStudy, lease: Lease) -> dict[int, Any]:
    rows = db.execute(f"SELECT epoch, step, metrics FROM tuner_reports WHERE trial_id = {lease.trial_id}")
    return {epoch: (step, json.loads(metrics)) for epoch, step, metrics in sorted(map(tuple, rows))}
