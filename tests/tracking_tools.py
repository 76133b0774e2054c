"""What the tests of tracking share: a study with every kind of trial, and what its database says of it."""

from __future__ import annotations

import json
import math
from typing import Any

import sqlalchemy as sa
from storage_tools import Desk

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


def report(desk: Desk, lease: Lease, *epochs: int, **metrics: float) -> None:
    values = {"loss": 1.0, **metrics}
    several = [Report(epoch, 10 * epoch, {name: v / epoch for name, v in values.items()}) for epoch in epochs]
    leases.report(desk.engine, lease, several, "loss")


def fill(desk: Desk) -> None:
    """Give a study a trial of every kind: the outcomes in their order, then one retried, given back, odd, running."""
    join(
        desk.engine,
        Claimant(desk.study_id, "one", trials=50, lease_s=300.0),
        {
            "host": "here", "pid": 1, "devices": "gpu 0", "file": "/studies/it.py",
            "versions": {"jax": "0.10.2"}, "git": {"commit": "abc", "is_changed": True},
        },
    )  # fmt: skip
    for outcome in (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.FAILED):
        lease = desk.claim(budget=50)
        leases.store_suggested(desk.engine, lease, [("x", lease.number / 10, FLOAT)], {})
        report(desk, lease, 1, 2, accuracy=0.25 + lease.number)
        if outcome is Outcome.DIVERGED:
            values = {"loss": math.nan, "accuracy": math.inf, "low": -math.inf}
            leases.report(desk.engine, lease, [Report(3, 30, values)], "loss")
        error = {"error": "Traceback\nValueError: no", "error_kind": "no"} if outcome is Outcome.FAILED else {}
        leases.tell(
            desk.engine, lease, outcome, [0.5] if outcome is Outcome.COMPLETE else None, {"train_s": 1.5, **error}
        )
    retried = desk.claim(budget=50)
    report(desk, retried, 1, 2, 3)
    assert leases.retry(desk.engine, retried, "ValueError: once", 1)
    retried = desk.claim(budget=50)
    report(desk, retried, 1)
    desk.tell(retried)
    given_back = desk.claim(budget=50)
    report(desk, given_back, 1)
    leases.release(desk.engine, given_back)
    again = desk.claim("two", budget=50)
    assert (again.number, again.fence) == (given_back.number, 2)
    report(desk, again, 2)
    desk.tell(again)
    odd = desk.claim(budget=50)
    leases.store_suggested(desk.engine, odd, [(name, 0.5, FLOAT) for name in ODD], {})
    leases.report(desk.engine, odd, [Report(1, 7, {"loss": 1.0, **{name: 2.0 for name in ODD}})], "loss")
    desk.tell(odd)
    running = desk.claim(budget=50)
    leases.store_suggested(desk.engine, running, [("x", 0.75, FLOAT)], {})
    report(desk, running, 1)


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
