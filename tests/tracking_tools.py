"""What the tests of tracking share: a study with every kind of trial, and what its database says of it."""

from __future__ import annotations

import json
import math
from typing import Any

import sqlalchemy as sa
from storage_tools import StudyDatabase

from tuner.output.log import LogLine
from tuner.results.rows import show_row, trial_rows
from tuner.storage import connect
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import join
from tuner.trial import Outcome, Report

FLOAT = json.dumps({"name": "FloatDistribution", "attributes": {"step": None, "low": 0.0, "high": 1.0, "log": False}})
ODD = ["a b", "x@y", "ä", "../up", "a//b", "opt.momentum", "long" * 80, "x#y"]
"""Names of hyperparameters and metrics, half of which MLflow does not take."""


class RecordedProgress:
    """The lines that a launch shows of its mirror."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str, event: str, level: str = "info", **fields: Any) -> None:
        self.lines.append(message)

    def say(self, said: LogLine) -> None:
        self.lines.append(said.message)


def report(db: StudyDatabase, lease: Lease, *epochs: int, **metrics: float) -> None:
    values = {"loss": 1.0, **metrics}
    several = [Report(epoch, 10 * epoch, {name: v / epoch for name, v in values.items()}) for epoch in epochs]
    leases.report(db.engine, lease, several, "loss")


def fill(db: StudyDatabase) -> None:
    """Give a study a trial of every kind: the outcomes in their order, then one retried, given back, odd, running."""
    join(
        db.engine,
        Claimant(db.study_id, "one", trials=50, lease_s=300.0),
        {
            "host": "here", "pid": 1, "devices": "gpu 0", "file": "/studies/it.py",
            "versions": {"jax": "0.10.2"}, "git": {"commit": "abc", "is_changed": True},
        },
    )  # fmt: skip
    for outcome in (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.FAILED):
        lease = db.claim(budget=50)
        leases.store_suggested(db.engine, leases.Suggested(lease, [("x", lease.number / 10, FLOAT)], {}))
        report(db, lease, 1, 2, accuracy=0.25 + lease.number)
        if outcome is Outcome.DIVERGED:
            values = {"loss": math.nan, "accuracy": math.inf, "low": -math.inf}
            leases.report(db.engine, lease, [Report(3, 30, values)], "loss")
        error = {"error": "Traceback\nValueError: no", "error_kind": "no"} if outcome is Outcome.FAILED else {}
        leases.tell(
            db.engine, lease, outcome, [0.5] if outcome is Outcome.COMPLETE else None, {"train_s": 1.5, **error}
        )
    retried = db.claim(budget=50)
    report(db, retried, 1, 2, 3)
    assert leases.retry(db.engine, retried, "ValueError: once", 1)
    retried = db.claim(budget=50)
    report(db, retried, 1)
    db.tell(retried)
    given_back = db.claim(budget=50)
    report(db, given_back, 1)
    leases.release(db.engine, given_back)
    again = db.claim("two", budget=50)
    assert (again.number, again.fence) == (given_back.number, 2)
    report(db, again, 2)
    db.tell(again)
    odd = db.claim(budget=50)
    leases.store_suggested(db.engine, leases.Suggested(odd, [(name, 0.5, FLOAT) for name in ODD], {}))
    leases.report(db.engine, odd, [Report(1, 7, {"loss": 1.0, **{name: 2.0 for name in ODD}})], "loss")
    db.tell(odd)
    running = db.claim(budget=50)
    leases.store_suggested(db.engine, leases.Suggested(running, [("x", 0.75, FLOAT)], {}))
    report(db, running, 1)


def curves(url: str, study: str) -> dict[int, dict[tuple[str, int], float]]:
    """Return all metrics of each trial that has begun: (name, step) -> value."""
    query = (
        "SELECT number, step, metrics FROM trials LEFT JOIN tuner_reports USING (trial_id) "
        "JOIN studies USING (study_id) WHERE study_name = :study AND state <> 'WAITING'"
    )
    engine = connect(url)
    found: dict[int, dict[tuple[str, int], float]] = {}
    with engine.connect() as connection:
        for number, step, metrics in connection.execute(sa.text(query), {"study": study}):
            own = found.setdefault(number, {})
            own |= {(name, step): float(value) for name, value in json.loads(metrics or "{}").items()}
    engine.dispose()
    return found


def rows(url: str, study: str) -> dict[int, dict[str, Any]]:
    """Return what `tuner trials` and `tuner show` say of each trial."""
    engine = connect(url)
    try:
        return {row["number"]: {**row, **show_row(engine, study, row["number"])} for row in trial_rows(engine, study)}
    finally:
        engine.dispose()
