"""How sure one can be that a trial is the best, from repeats of it with other seeds.

Repeat `k` has the same seed in every trial: trials are compared by the differences of their repeats, in which what a
seed does to all of them alike cancels out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Repeats = Mapping[int, float | None]
"""Repeat -> objective, None if it was not finite."""

LEVEL = 0.95


@dataclass(frozen=True)
class Confirmed:
    """What repeats say of a trial.

    Attributes:
        seeds: How many there are.
        mean: Of those that are finite; None if one is not, or there is none: such a trial is never the best.
        low: Lower end of the 95 % t interval of the mean; None for fewer than two.
        high: Its upper end.
        is_tied: Whether it cannot be told apart from the trial with the best mean.
    """

    seeds: int
    mean: float | None
    low: float | None
    high: float | None
    is_tied: bool


def rank(repeats: Mapping[int, Repeats], *, maximize: bool) -> dict[int, Confirmed]:
    """Return what the repeats of several trials say, the best mean first; those that were not always finite last.

    A trial is tied with the first unless the t interval of their paired difference excludes 0, at a level of 95 % for
    all comparisons together (Bonferroni). With fewer than two repeats in common nothing can be told apart.

    Args:
        repeats: trial -> its repeats.
        maximize: Whether larger is better.
    """
    means = {trial: _mean(of_trial) for trial, of_trial in repeats.items()}
    worst = -math.inf if maximize else math.inf

    def key(trial: int) -> float:
        mean = means[trial]
        value = worst if mean is None else mean
        return -value if maximize else value

    order = sorted(repeats, key=key)
    ranked = {}
    for trial in order:
        mean = means[trial]
        half = None if mean is None else half_width(_finite(repeats[trial]), LEVEL)
        low, high = (None, None) if mean is None or half is None else (mean - half, mean + half)
        is_tied = mean is not None and _is_tied(repeats[order[0]], repeats[trial], len(order) - 1)
        ranked[trial] = Confirmed(len(repeats[trial]), mean, low, high, is_tied)
    return ranked


def _is_tied(best: Repeats, other: Repeats, comparisons: int) -> bool:
    differences = [
        first - second
        for repeat, first in best.items()
        if first is not None and (second := other.get(repeat)) is not None
    ]
    half = half_width(differences, 1 - (1 - LEVEL) / max(1, comparisons))
    return half is None or abs(statistics.fmean(differences)) <= half


def half_width(values: Sequence[float], level: float) -> float | None:
    """Return half the width of the t interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, (1 + level) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _finite(repeats: Repeats) -> list[float]:
    return [value for value in repeats.values() if value is not None]


def _mean(repeats: Repeats) -> float | None:
    values = _finite(repeats)
    return statistics.fmean(values) if values and len(values) == len(repeats) else None
