"""Successive halving: ranks a trial in a rung, reading only the rows that this process has not read yet."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.search.fronts import count_better
from tuner.storage.sql import statements
from tuner.storage.sql.prepared_statements import run
from tuner.storage.sql.retry import write
from tuner.storage.sql.tables import rungs, studies
from tuner.storage.worker.fences import Change, Lease, fenced, lost_lease

_LEFT = -1
"""The bracket of a trial that has left a rung."""
_ASIDE = -2
"""Less the bracket: the bracket of a trial that violates a constraint, whose values do not count for the others."""


class Place(NamedTuple):
    """What a rung's values are compared within.

    Attributes:
        bracket: The bracket of Hyperband; 0 without Hyperband; see `aside` for trials that violate a constraint.
        rung: The rung, counted from 0.
        metric: The metric that the pruner follows; None for the objectives.
        size: The number of values of each trial.
    """

    bracket: int
    rung: int
    metric: str | None
    size: int

    def aside(self) -> Place:
        """Return the place for the values of trials that violate a constraint."""
        return self._replace(bracket=_ASIDE - self.bracket)


Vector = tuple[float, ...]


@dataclass
class Rungs:
    """The rungs of a study, as far as this process has read them.

    Attributes:
        newest: The position up to which the table was read.
        values: The vectors in each place, ascending.
        decided: (trial's id, rung) -> whether the trial was promoted.
        entered: (trial's id, rung) -> the place and the values with which it is in the rung.
    """

    newest: int = 0
    values: dict[Place, list[Vector]] = field(default_factory=dict[Place, list[Vector]])
    decided: dict[tuple[int, int], bool] = field(default_factory=dict[tuple[int, int], bool])
    entered: dict[tuple[int, int], tuple[Place, Vector]] = field(
        default_factory=dict[tuple[int, int], tuple[Place, Vector]]
    )

    def add(
        self,
        position: int,
        trial_id: int,
        bracket: int,
        rung: int,
        value: float,
        is_promoted: bool,
        metric: str | None = None,
        others: str | None = None,
    ) -> None:
        """Add a row of the table; it replaces an earlier one of the same trial and rung."""
        self.newest = position
        before = self.entered.pop((trial_id, rung), None)
        if before is not None:
            self.values[before[0]].remove(before[1])
            del self.decided[trial_id, rung]
        if bracket == _LEFT:
            return
        vector = (value, *(() if others is None else json.loads(others)))
        place = Place(bracket, rung, metric, len(vector))
        self.entered[trial_id, rung] = place, vector
        insort(self.values.setdefault(place, []), vector)
        self.decided[trial_id, rung] = bool(is_promoted)

    def forget(self) -> None:
        """Forget everything, so that all rows are read again."""
        self.newest = 0
        for known in (self.values, self.decided, self.entered):
            known.clear()

    def promotes(
        self,
        place: Place,
        own: Vector,
        *,
        reduction_factor: int,
        bootstrap_count: int,
        maximize: Sequence[bool],
        is_feasible: bool = True,
    ) -> bool:
        """Return whether a trial that enters a rung with its values is promoted; see `enter_rung`."""
        others = self.values.get(place, [])
        if not is_feasible:
            others = sorted([*others, *self.values.get(place.aside(), [])])
        count = len(others) + 1
        most = max(0, count // reduction_factor - 1)
        return count > bootstrap_count and _better(own, others, maximize, most) <= most


@dataclass(frozen=True)
class Entry:
    """A trial that reaches a rung.

    Attributes:
        trial_id: The trial.
        lease: The lease on it; None for a trial of another tool.
        bracket: The bracket of Hyperband; 0 without Hyperband.
        rung: The rung, counted from 0.
        values: The trial's value, or its value in each objective; with NaN it is not promoted, and the rung does not
            change.
        reduction_factor: One in this many trials is promoted; > 1.
        bootstrap_count: The number of trials that a rung must have before any is promoted.
        maximize: Whether larger is better, for each value.
        metric: The metric that the pruner follows, which is only compared with itself; None for the objectives.
        is_feasible: Whether the trial satisfies its constraints so far. If not, it is compared with all trials of the
            rung; others are only compared with those that do.
    """

    trial_id: int
    lease: Lease | None
    bracket: int
    rung: int
    values: Sequence[float]
    reduction_factor: int
    bootstrap_count: int
    maximize: Sequence[bool]
    metric: str | None = None
    is_feasible: bool = True


def enter_rung(engine: Engine, known: Rungs, study_id: int, entry: Entry) -> bool:
    """Enter a trial into a rung and return whether it is promoted to the next.

    It is promoted if its value is among the best n // reduction_factor (at least one) of the n values in the rung, and
    n is greater than `bootstrap_count`, like in Optuna's `SuccessiveHalvingPruner`. Several values are ranked by
    `tuner.search.fronts`. If the trial has already been in this rung, because a worker died, the earlier decision is
    returned.

    Args:
        engine: The storage's engine.
        known: The rungs that this process has read; updated.
        study_id: The study.
        entry: The trial and its rung.

    Raises:
        LeaseLost: another worker has the trial.

    Concurrency: one transaction that locks the study's row, so that positions have no gaps and no trial misses
        another. `known` is for one thread at a time.
    """
    (is_promoted,) = enter_rungs(engine, known, study_id, [entry])
    if is_promoted is None:
        assert entry.lease is not None
        raise lost_lease(entry.lease)
    return is_promoted


def enter_rungs(engine: Engine, known: Rungs, study_id: int, entries: Sequence[Entry]) -> list[bool | None]:
    """Enter trials into rungs, one after another, in one transaction; see `enter_rung`.

    Returns:
        For each, whether it is promoted; None if another worker has the trial: it has not entered the rung.
    """

    def work(connection: Connection, tries: int) -> list[bool | None]:
        if tries:
            known.forget()  # what it knows of the earlier try may have been rolled back
        news = {"study_id": study_id, "newest": known.newest}
        for row in run(connection, statements.new_in_rungs, news, after=statements.lock_rungs):
            known.add(*row)
        return [_enter(connection, known, study_id, entry) for entry in entries]

    try:
        return write(engine, work)
    except BaseException:
        known.forget()
        raise


def _enter(connection: Connection, known: Rungs, study_id: int, entry: Entry) -> bool | None:
    own = tuple(entry.values)
    place = Place(entry.bracket, entry.rung, entry.metric, len(own))
    decided = known.decided.get((entry.trial_id, entry.rung))
    if decided is not None:
        return decided
    if any(math.isnan(value) for value in own):
        return False
    is_promoted = known.promotes(
        place,
        own,
        reduction_factor=entry.reduction_factor,
        bootstrap_count=entry.bootstrap_count,
        maximize=entry.maximize,
        is_feasible=entry.is_feasible,
    )
    row: dict[str, Any] = {
        "study_id": study_id,
        "position": known.newest + 1,
        "bracket": (place if entry.is_feasible else place.aside()).bracket,
        "rung": entry.rung,
        "trial_id": entry.trial_id,
        "value": own[0],
        "metric": entry.metric,
        "others": json.dumps(own[1:]) if own[1:] else None,
        "is_promoted": is_promoted,
    }
    if entry.lease is None:
        run(connection, statements.enter_rung, row)
    else:
        held = {**row, "fence": entry.lease.fence, "worker": entry.lease.worker}
        if run(connection, statements.enter_rung_held, held).rowcount != 1:
            return None
    added = ("position", "trial_id", "bracket", "rung", "value", "is_promoted", "metric", "others")
    known.add(*(row[name] for name in added))
    return is_promoted


def _better(own: Vector, others: Sequence[Vector], maximize: Sequence[bool], most: int) -> int:
    """Return how many of the others, in ascending order, rank before a trial's own values, exactly up to `most`."""
    if len(own) > 1:
        return count_better(own, others, maximize, most)
    return len(others) - bisect_right(others, own) if maximize[0] else bisect_left(others, own)


def leave_rungs(engine: Engine, lease: Lease, study_id: int) -> None:
    """Take a trial that starts again out of its rungs, and extend its lease; it will enter them again.

    Raises:
        LeaseLost: another worker has the trial.

    Concurrency: one transaction that locks the study's row. Each changed row gets a new position, so that other
        processes read it again.
    """
    of_study, of_trial = rungs.c.study_id == study_id, rungs.c.trial_id == lease.trial_id

    def work(connection: Connection, _: int) -> None:
        connection.execute(sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update())
        if not fenced(connection, lease, Change.EXTEND, []):
            raise lost_lease(lease)
        newest = connection.execute(sa.select(sa.func.max(rungs.c.position)).where(of_study)).scalar_one()
        entered = connection.execute(sa.select(rungs.c.rung).where(of_trial, rungs.c.bracket != _LEFT)).scalars().all()
        for at, rung in enumerate(entered, 1):
            changed = {"position": newest + at, "bracket": _LEFT, "is_promoted": False}
            connection.execute(rungs.update().where(of_trial, rungs.c.rung == rung).values(changed))

    write(engine, work)
