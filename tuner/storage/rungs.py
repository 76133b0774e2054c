"""Successive halving in the database: a trial's place is counted among the rung's values; no trial is read."""

from __future__ import annotations

import math
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.dialect import insert, run_prepared
from tuner.storage.engine import write
from tuner.storage.tables import rungs


def enter_rung(
    engine: Engine,
    trial_id: int,
    study_id: int,
    *,
    bracket: int,
    rung: int,
    value: float,
    reduction_factor: int,
    bootstrap_count: int,
    maximize: bool,
) -> bool:
    """Enter a trial into a rung and return whether it is promoted to the next.

    It is if its value is among the best n // reduction_factor of the n values that the rung has, at least among the
    best one, and n is more than `bootstrap_count`: as Optuna's `SuccessiveHalvingPruner` has it. A trial that has been
    in this rung is not judged again: it comes a second time because a worker died.

    Args:
        engine: The storage's engine.
        trial_id: The trial.
        study_id: Its study.
        bracket: Which of Hyperband's brackets; 0 without.
        rung: Counted from 0.
        value: The trial's value; with NaN it is not promoted, and the rung is left as it is.
        reduction_factor: One in so many trials is promoted; > 1.
        bootstrap_count: Trials that a rung must have before any is promoted.
        maximize: Whether larger is better.

    Concurrency: one transaction. Of two trials that enter at the same moment each may miss the other.
    """
    place = {"study_id": study_id, "bracket": bracket, "rung": rung, "trial_id": trial_id}

    def count() -> sa.Select[Any]:
        at = {name: sa.bindparam(name) for name in place}
        better = sa.bindparam("value", type_=sa.Float(53))
        is_better = rungs.c.value > better if maximize else rungs.c.value < better
        decided = sa.select(rungs.c.is_promoted).where(rungs.c.trial_id == at["trial_id"], rungs.c.rung == at["rung"])
        return sa.select(
            sa.func.count(), sa.func.count(sa.case((is_better, sa.literal_column("1")))), decided.scalar_subquery()
        ).where(*(rungs.c[name] == at[name] for name in ("study_id", "bracket", "rung")))

    def store(dialect: str) -> Any:
        columns = {name: sa.bindparam(name, type_=rungs.c[name].type) for name in (*place, "value", "is_promoted")}
        return insert(dialect, rungs).values(columns).on_conflict_do_nothing(index_elements=["trial_id", "rung"])

    def work(connection: Connection, _: int) -> bool:
        values = {**place, "value": value}
        others, better, decided = run_prepared(connection, ("count rung", maximize), count, values).one()
        if decided is not None:
            return bool(decided)
        if math.isnan(value):
            return False
        is_promoted = others + 1 > bootstrap_count and better <= max(0, (others + 1) // reduction_factor - 1)
        dialect = connection.dialect.name
        run_prepared(connection, "store rung", lambda: store(dialect), {**values, "is_promoted": is_promoted})
        return is_promoted

    return write(engine, work)
