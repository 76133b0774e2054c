"""Successive halving in the database: a trial's place in a rung is a count over an index, not a scan of all trials."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.dialect import insert
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
        value: The trial's value; not NaN.
        reduction_factor: One in so many trials is promoted; > 1.
        bootstrap_count: Trials that a rung must have before any is promoted.
        maximize: Whether larger is better.

    Concurrency: one transaction. Of two trials that enter at the same moment each may miss the other.
    """

    def work(connection: Connection, _: int) -> bool:
        before = sa.select(rungs.c.is_promoted).where(rungs.c.trial_id == trial_id, rungs.c.rung == rung)
        is_better = rungs.c.value > value if maximize else rungs.c.value < value
        query = sa.select(
            sa.func.count(),
            sa.func.count(sa.case((is_better, 1))),
            before.scalar_subquery(),
        ).where(
            rungs.c.study_id == study_id,
            rungs.c.bracket == bracket,
            rungs.c.rung == rung,
            rungs.c.trial_id != trial_id,
        )
        others, better, decided = connection.execute(query).one()
        if decided is not None:
            return bool(decided)
        count = others + 1
        is_promoted = count > bootstrap_count and better <= max(0, count // reduction_factor - 1)
        row = {"trial_id": trial_id, "rung": rung, "study_id": study_id, "bracket": bracket}
        connection.execute(
            insert(connection.dialect.name, rungs)
            .values(**row, value=value, is_promoted=is_promoted)
            .on_conflict_do_nothing(index_elements=["trial_id", "rung"])
        )
        return is_promoted

    return write(engine, work)
