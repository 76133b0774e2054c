"""The best trials of a study with several objectives, in the order of Optuna's TPE, without Optuna's study.

TPE sorts complete trials by their non-domination rank; rank 0 is the Pareto front. Pruned trials follow by number, and
those that violate a constraint come last. Of the last rank that it needs, it takes the trials that together dominate
the most; this choice depends on the whole rank, so ranks are kept whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tuner.trial import optuna_private as private


class Ended(NamedTuple):
    """A trial that has ended.

    Attributes:
        number: Its number.
        values: Its objectives; None if it was pruned.
        violation: By how much it violates its constraints in total; 0 if it satisfies all.
    """

    number: int
    values: Sequence[float] | None
    violation: float


class Fronts(NamedTuple):
    """The best trials, by number.

    Attributes:
        best: The whole ranks that have the wanted number of trials, or all, and then the best of the others.
        last: Those of the last rank among them.
        known: The whole ranks up to `depth`, and the best of the others.
        depth: The rank up to which all trials are known; infinite if that is all of them.
        is_short: Whether trials that are not known might be among the best.
    """

    best: set[int]
    last: set[int]
    known: set[int]
    depth: float
    is_short: bool


def violation_of(constraints: Iterable[float]) -> float:
    """Return by how much constraints are violated in total, as Optuna counts it."""
    return sum(value for value in constraints if value > 0)


def split(ended: Sequence[Ended], maximize: Sequence[bool], count: int, depth: float = math.inf) -> Fronts:
    """Return the best trials, at least so many if there are as many.

    A rank only rises when trials are added, and it depends on better trials only. So it is right for all trials up to
    `depth`, if those given contain them all and all later ones. Twice as many trials are known as are wanted, so that
    trials may fall below `depth` before the others must be read again.

    Args:
        ended: The trials that are known, with all up to `depth`, in order of their numbers.
        maximize: Whether larger is better, for each objective.
        count: The wanted number of trials.
        depth: The rank up to which all trials are given; infinite if all trials are given.
    """
    complete = [one for one in ended if one.values is not None and not one.violation > 0]
    ranks = _ranks([one.values for one in complete if one.values is not None], maximize, 2 * count)
    depth = min(depth, _depth(ranks, 2 * count))
    limit = min(depth, _depth(ranks, count))
    numbers = np.array([one.number for one in complete], dtype=int)
    best, known = {*numbers[ranks <= limit].tolist()}, {*numbers[ranks <= depth].tolist()}
    missing = count - len(best)
    if missing <= 0:
        return Fronts(best, {*numbers[ranks == limit].tolist()}, known, depth, is_short=False)
    if math.isfinite(depth):
        return Fronts(best, set(), known, depth, is_short=True)
    pruned = [one for one in ended if one.values is None and not one.violation > 0]
    violating = sorted((one for one in ended if one.violation > 0), key=lambda one: one.violation)
    others = {one.number for one in [*pruned, *violating][:missing]}
    return Fronts(best | others, set(), known | others, depth, is_short=False)


def _ranks(values: Sequence[Sequence[float]], maximize: Sequence[bool], count: int) -> np.ndarray:
    """Return non-domination ranks, right for at least the first so many trials and larger for the others."""
    if not values:
        return np.zeros(0, dtype=int)
    costs = np.array(values, dtype=float) * np.where(np.array(maximize), -1.0, 1.0)
    return private.domination_ranks(costs, count)


def _depth(ranks: np.ndarray, count: int) -> float:
    """Return the least rank up to which there are at least so many trials; infinite if there are fewer."""
    if len(ranks) < count:
        return math.inf
    return float(np.sort(ranks)[count - 1])
