"""The objectives of a trial that trains with several seeds: a value of each seed, their mean and its standard error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.output.numbers import plain

SEEDS_KEY = "tuner:seeds"
"""The system attribute of a trial with the values of its seeds; missing in a study with one seed."""
STDERR = "_stderr"
"""What follows the name of an objective in the name of the metric with the standard error of its mean."""


@dataclass(frozen=True)
class SeedValues:
    """The values of a trial's seeds, a sequence per seed with a value per objective."""

    of_seeds: Sequence[Sequence[float]]

    @property
    def means(self) -> list[float]:
        """The mean of each objective over the seeds: the values of the trial."""
        return [mean(values) for values in zip(*self.of_seeds, strict=True)]

    @property
    def stderrs(self) -> list[float] | None:
        """The standard error of each mean; None with one seed."""
        if len(self.of_seeds) < 2:
            return None
        return [standard_error(values) for values in zip(*self.of_seeds, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON, with their standard errors for readers that do not compute them."""
        values = [[plain(value) for value in one] for one in self.of_seeds]
        return {"values": values, "stderrs": None if self.stderrs is None else [plain(one) for one in self.stderrs]}


@dataclass(frozen=True)
class StoredSeeds:
    """What the storage has of a trial's seeds.

    Attributes:
        values: A list per seed, with a value per objective.
        stderrs: The standard error of the mean of each objective; None with one seed.
    """

    values: list[list[float]]
    stderrs: list[float] | None

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> StoredSeeds:
        """Return what `SeedValues.to_json` has written."""
        stderrs = stored["stderrs"]
        values = [[float(value) for value in one] for one in stored["values"]]
        return cls(values, None if stderrs is None else [float(one) for one in stderrs])


def mean(values: Sequence[float]) -> float:
    """Return the mean, correctly rounded; not finite if a value is not finite."""
    if not all(map(math.isfinite, values)):
        return sum(values)  # also of infinities with different signs, which give NaN
    return statistics.mean(values)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean: the sample standard deviation (n - 1) over the root of n.

    Args:
        values: At least two; if one is not finite, the result is NaN.
    """
    if not all(map(math.isfinite, values)):
        return math.nan
    try:
        return statistics.stdev(values) / math.sqrt(len(values))
    except OverflowError:
        return math.inf
