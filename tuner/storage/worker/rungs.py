"""Successive halving: ranks a trial in a rung, reading only the rows that this process has not read yet."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine

from tuner.storage.sql import statements
from tuner.storage.sql.prepared_statements import run
from tuner.storage.sql.retry import write
from tuner.storage.worker.fences import Lease, lost_lease


@dataclass
class Rungs:
    """What a process knows of the rungs of a study.

    Attributes:
        newest: The position up to which the table was read.
        values: (bracket, rung) -> the values in it, ascending.
        decided: (trial's id, rung) -> whether the trial was promoted.
    """

    newest: int = 0
    values: dict[tuple[int, int], list[float]] = field(default_factory=dict[tuple[int, int], list[float]])
    decided: dict[tuple[int, int], bool] = field(default_factory=dict[tuple[int, int], bool])

    def add(self, position: int, trial_id: int, bracket: int, rung: int, value: float, is_promoted: bool) -> None:
        """Take in a row of the table."""
        self.newest = position
        insort(self.values.setdefault((bracket, rung), []), value)
        self.decided[trial_id, rung] = bool(is_promoted)


def enter_rung(
    engine: Engine,
    known: Rungs,
    lease: Lease | None,
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
        known: What this process knows of the study's rungs; brought up to date.
        lease: The lease on the trial; None for one that is not ours.
        trial_id: The trial.
        study_id: Its study.
        bracket: Which of Hyperband's brackets; 0 without.
        rung: Counted from 0.
        value: The trial's value; with NaN it is not promoted, and the rung is left as it is.
        reduction_factor: One in so many trials is promoted; > 1.
        bootstrap_count: Trials that a rung must have before any is promoted.
        maximize: Whether larger is better.

    Raises:
        LeaseLost: another worker has the trial.

    Concurrency: one transaction that holds the study's row, so that positions have no gaps and no trial misses
        another. `known` is for one thread at a time.
    """
    place = {"study_id": study_id, "bracket": bracket, "rung": rung, "trial_id": trial_id}

    def work(connection: Connection, _: int) -> bool:
        news = {"study_id": study_id, "newest": known.newest}
        for row in run(connection, statements.new_in_rungs, news, after=statements.lock_rungs):
            known.add(*row)
        decided = known.decided.get((trial_id, rung))
        if decided is not None:
            return decided
        if math.isnan(value):
            return False
        others = known.values.get((bracket, rung), [])
        better = len(others) - bisect_right(others, value) if maximize else bisect_left(others, value)
        count = len(others) + 1
        is_promoted = count > bootstrap_count and better <= max(0, count // reduction_factor - 1)
        row = {**place, "position": known.newest + 1, "value": value, "is_promoted": is_promoted}
        if lease is None:
            run(connection, statements.enter_rung, row)
            return is_promoted
        held = {**row, "fence": lease.fence, "worker": lease.worker}
        if run(connection, statements.enter_rung_held, held).rowcount != 1:
            raise lost_lease(lease)
        return is_promoted

    return write(engine, work)
