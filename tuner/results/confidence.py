"""Estimates how certain it is that a trial is the best, from repeats with other seeds.

Repeat `k` has the same seed in every trial, so that the objectives form a table of trials and seeds. The common effect
of a seed on all trials cancels in their differences; the rest is noise. For differences, the noise is estimated from
all trials together, because a few values of one trial may be equal by chance, for example if the metric counts images.
The interval of a trial's mean uses only that trial's values, because rows that share seeds are not independent, and one
trial may be noisier than the others.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

Repeats = Mapping[int, float | None]
"""Repeat -> objective; None if it was not finite."""

LEVEL = 0.95
_HUGE = 1e100


@dataclass(frozen=True)
class Confirmed:
    """The result of a trial's repeats.

    Attributes:
        seeds: The number of repeats that count: those that all confirmed trials have.
        mean: Their mean; None if one was not finite. Such a trial is never the best.
        low: The lower end of the 95 % t interval of the mean, from the trial's own values; None for fewer than two
            values, or if all are equal.
        high: Its upper end.
        is_tied: Whether it cannot be distinguished from the trial with the best mean.
        margin: The difference between two means from which trials are distinguishable; None if it is not known.
    """

    seeds: int
    mean: float | None
    low: float | None
    high: float | None
    is_tied: bool
    margin: float | None


def rank(repeats: Mapping[int, Repeats], *, maximize: bool, infeasible: Collection[int] = ()) -> dict[int, Confirmed]:
    """Rank several trials by their repeats, best mean first; trials with values that are not finite are last.

    The repeats that all trials have are compared. A trial is tied with the first unless their means differ by more than
    Tukey's honestly significant difference in a two-way layout without interaction (Scheffé, The Analysis of Variance,
    1959, 3.6 and 4.2): with 95 % confidence, no two equal trials are distinguished, whichever is first. With fewer than
    two repeats, or without any noise, trials cannot be distinguished. The interval of a mean is Student's t for that
    trial alone.

    Args:
        repeats: Trial -> its repeats.
        maximize: Whether larger is better.
        infeasible: Trials that violate a constraint. They are compared with the others, but ranked after the finite
            ones, and are never the best or tied with it.
    """
    finite = {trial: row for trial, row in repeats.items() if row and None not in row.values()}
    shared = functools.reduce(lambda known, row: known & row.keys(), finite.values(), _keys_of_first(finite))
    # Squares and sums of very large values could overflow.
    unit = max((abs(value) for row in finite.values() for value in row.values() if value is not None), default=1.0)
    unit = unit if unit > _HUGE else 1.0
    table = {
        trial: [value / unit for repeat in sorted(shared) if (value := row[repeat]) is not None]
        for trial, row in finite.items()
    }
    means = {trial: statistics.fmean(row) for trial, row in table.items() if row}
    order = sorted(means, key=lambda trial: means[trial], reverse=maximize)
    order.sort(key=lambda trial: trial in infeasible)
    rows = [table[trial] for trial in order]
    margin = significant_difference(rows)
    ranked: dict[int, Confirmed] = {}
    for trial in order:
        mean, half = means[trial], half_width(table[trial])
        low, high = (None, None) if half is None else ((mean - half) * unit, (mean + half) * unit)
        is_tied = trial == order[0] or margin is None or abs(mean - means[order[0]]) <= margin
        is_tied = is_tied and trial not in infeasible
        differ_by = None if margin is None else margin * unit
        ranked[trial] = Confirmed(len(table[trial]), mean * unit, low, high, is_tied, differ_by)
    others = [trial for trial in repeats if trial not in ranked]
    return ranked | {trial: Confirmed(len(repeats[trial]), None, None, None, False, None) for trial in others}


def _keys_of_first(finite: Mapping[int, Repeats]) -> set[int]:
    nothing: Repeats = {}
    return set(next(iter(finite.values()), nothing))


def half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the mean's 95 % t interval; None for fewer than two values, or if all are equal."""
    if len(values) < 2 or len({*values}) == 1:
        return None
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

    quantile = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def single_run_margin(repeats: Iterable[Repeats]) -> float | None:
    """Return the difference from which two trials, each trained once, differ by more than the noise of seeds.

    The noise is the standard deviation of a trial's repeats around their mean, pooled over all trials. The difference
    of two runs has twice its variance; the margin is Student's t for that, with 95 % confidence.

    Returns:
        The margin; None if the noise was not measured: no trial has two finite repeats.
    """
    rows = [[value for value in row.values() if value is not None] for row in repeats]
    rows = [row for row in rows if len(row) >= 2]
    freedom = sum(len(row) - 1 for row in rows)
    if not freedom:
        return None
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

    squares = math.fsum((len(row) - 1) * statistics.variance(row) for row in rows)
    return float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(2 * squares / freedom)


def significant_difference(rows: Sequence[Sequence[float]]) -> float | None:
    """Return Tukey's honestly significant difference for the means of rows; columns are blocks."""
    count = len(rows[0]) if rows else 0
    if count < 2 or len(rows) < 2:
        return None
    row_means = [statistics.fmean(row) for row in rows]
    column_means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    mean = statistics.fmean(row_means)
    residuals = [
        value - row_mean - column_mean + mean
        for row, row_mean in zip(rows, row_means, strict=True)
        for value, column_mean in zip(row, column_means, strict=True)
    ]
    freedom = (len(rows) - 1) * (count - 1)
    noise = math.sqrt(math.fsum(residual**2 for residual in residuals) / freedom)
    scale = max(map(abs, (*row_means, *column_means)))
    if noise <= 1e-12 * scale:  # of rounding
        return None
    return _studentized_range(len(rows), freedom) * noise / math.sqrt(count)


def single_difference(repeats: Mapping[int, Repeats]) -> float | None:
    """Return the difference from which two single trainings are distinguishable with 95 % confidence.

    It is Student's least significant difference, from the variance of the repeats within each trial, pooled over the
    trials (Scheffé, The Analysis of Variance, 1959, 3.2). Two trials of a study have different seeds, so the effect of
    a seed is part of the noise here.

    Args:
        repeats: Trial -> its repeats; values that are not finite are skipped.

    Returns:
        The difference; None if no trial has two repeats, or if the repeats show no noise.
    """
    rows = [[value for value in row.values() if value is not None] for row in repeats.values()]
    rows = [row for row in rows if len(row) > 1]
    freedom = sum(len(row) - 1 for row in rows)
    if not freedom:
        return None
    variance = math.fsum((len(row) - 1) * statistics.variance(row) for row in rows) / freedom
    if variance == 0.0:
        return None
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

    return float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(2 * variance)


@functools.cache
def _studentized_range(groups: int, freedom: int) -> float:
    from scipy.stats import studentized_range  # pyright: ignore[reportMissingTypeStubs]

    return float(cast("Any", studentized_range).ppf(LEVEL, groups, freedom))
