"""Samplers whose n-th suggestion is a function of n: grid and quasi-Monte Carlo.

Optuna's own keep their position in the study's attributes, where they read it, add one and write it back: two workers
at once get the same point. The trial's number needs no such agreement.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler
from optuna.trial import FrozenTrial

from tuner.errors import StudyError


class NumberedQMCSampler(QMCSampler):
    """Optuna's quasi-Monte Carlo sampler, whose sample is the one of the trial's number.

    The sequence starts when a first trial is complete, which gives the search space; trials before are random.
    """

    def __init__(
        self,
        *,
        number: int,
        qmc_type: str = "sobol",
        scramble: bool = True,
        seed: int | None = None,
        warn_independent_sampling: bool = False,
    ) -> None:
        super().__init__(
            qmc_type=qmc_type,
            scramble=scramble,
            seed=seed,
            warn_asynchronous_seeding=False,
            warn_independent_sampling=warn_independent_sampling,
            independent_sampler=RandomSampler(seed=None if seed is None else (seed + number) % 2**32),
        )
        self._number = number

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


class GridSampler(BaseSampler):
    """Every combination once, in an order shuffled by the seed; trial n gets the n-th.

    A trial that fails takes its combination with it: the trial that comes in its place starts the order again.

    Args:
        distributions: The parameters, by name.
        number: The trial's number.
        seed: The study's seed.
        values: The values to try for a float, by parameter; integers and choices are enumerated.

    Raises:
        StudyError: a float has no `values`, or `values` name an unknown parameter or lie outside its range.
    """

    def __init__(
        self,
        *,
        distributions: Mapping[str, BaseDistribution],
        number: int,
        seed: int,
        values: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        values = values or {}
        unknown = sorted(set(values) - set(distributions))
        if unknown:
            raise StudyError(f"the grid's values must name parameters of the space: got {', '.join(unknown)}")
        axes = {name: _axis(name, distribution, values.get(name)) for name, distribution in distributions.items()}
        self.size = math.prod(len(axis) for axis in axes.values())
        self._point = _point(axes, _shuffled(number % self.size, self.size, seed))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._point[param_name]


def _axis(name: str, distribution: BaseDistribution, values: Sequence[Any] | None) -> Sequence[Any]:
    if values is not None:
        outside = [value for value in values if not distribution._contains(distribution.to_internal_repr(value))]
        if outside or not values:
            raise StudyError(f"the grid's values for {name!r} must lie in its domain: got {outside or 'none'}")
        return values
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    if isinstance(distribution, FloatDistribution) and distribution.single():
        return [distribution.low]
    raise StudyError(
        f"the sampler 'grid' needs values for the float {name!r}: "
        f"{{'name': 'grid', 'values': {{{name!r}: [...], ...}}}}"
    )


def _shuffled(index: int, size: int, seed: int) -> int:
    """Return where a shuffle of `range(size)` takes an index, without shuffling the rest: a small Feistel cipher."""
    half = (max(size - 1, 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            digest = hashlib.sha256(f"{seed}/{turn}/{right}".encode()).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        index = left << half | right
        if index < size:  # it permutes the next power of four; the others go round again
            return index


def _point(axes: Mapping[str, Sequence[Any]], index: int) -> dict[str, Any]:
    """Return the `index`-th combination, the last axis running fastest, without building the others."""
    point = {}
    for name, axis in reversed(list(axes.items())):
        index, at = divmod(index, len(axis))
        point[name] = axis[at]
    return point
