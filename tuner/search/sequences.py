"""Samplers whose n-th suggestion is a function of n: grid and quasi-Monte Carlo.

Optuna's own samplers read their position from the study's attributes, add one and write it back, so that two workers
can get the same point. The trial's number avoids that.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, QMCSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from tuner.errors import StudyError
from tuner.trial import optuna_private as private

POINT = "tuner:grid_point"
"""The system attribute with a trial's combination before it has hyperparameters."""


class NumberedQMCSampler(QMCSampler):
    """Optuna's quasi-Monte Carlo sampler, with the trial's number as the index of the sample.

    The sequence starts after the first complete trial, which defines the search space; trials before are random.
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


class Limits(NamedTuple):
    """The number of trials needed to try every combination of a grid: one for each, and others.

    The others count, or are queued, but do not use a combination of the grid.

    Attributes:
        trials: The total number.
        new: The number without queued others. A new trial may start only while fewer trials count or run: a queued
            trial may start and fail after the trials were read, and then no combination is left for a new trial.
    """

    trials: int
    new: int


class GridSampler(BaseSampler):
    """Tries every combination once, in an order shuffled by the seed.

    Trial n gets the n-th combination, or the first one after it that no other trial has that is running or ended
    without an error. Combinations of failed trials are tried again, and those of queued trials are not repeated.
    Missing hyperparameters of a queued trial are chosen to give a free combination, if there is one.

    Args:
        distributions: The parameters, by name.
        number: The trial's number.
        seed: The study's seed.
        values: The values to try for a float, by parameter; integers and choices are enumerated.

    Raises:
        StudyError: a float has no `values`, or `values` has an unknown parameter or values outside its domain.

    Concurrency: on tuner's storage no two trials get the same combination; on other storages they may.
    """

    def __init__(
        self,
        *,
        distributions: Mapping[str, BaseDistribution],
        number: int,
        seed: int,
        values: Mapping[str, Sequence[object]] | None = None,
    ) -> None:
        values = values or {}
        unknown = sorted(set(values) - set(distributions))
        if unknown:
            raise StudyError(f"the grid has values for parameters that the space does not have: {', '.join(unknown)}")
        self._axes = {name: _axis(name, distribution, values.get(name)) for name, distribution in distributions.items()}
        self.size = math.prod(len(axis) for axis in self._axes.values())
        self._number, self._seed = number, seed
        self._point: Mapping[str, Any] = next(self._points({}))

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if POINT in trial.system_attrs:  # it was started before
            self._point = trial.system_attrs[POINT]
            return
        fixed = trial.system_attrs.get("fixed_params", {})
        if self._key(fixed) is not None:
            return
        storage, study_id, trial_id = private.storage_of(study), private.study_id(study), private.trial_id(trial)
        trials = storage.get_all_trials(study_id, deepcopy=False)
        others = [other for other in trials if other.number != trial.number]
        taken = {other.number: key for other in others if (key := self._key_of(other)) is not None}

        def choose(noted: Sequence[Mapping[str, object]], failed: Collection[int]) -> Mapping[str, Any]:
            still_taken = {key for number, key in taken.items() if number not in failed}
            all_taken = still_taken | {self._key(point) for point in noted}
            free = (point for point in self._points(fixed) if self._key(point) not in all_taken)
            return next(free, None) or next(self._points(fixed))

        take = getattr(storage, "take_point", None)
        if take is None:
            self._point = choose([], [])
            storage.set_trial_system_attr(trial_id, POINT, self._point)
        else:
            self._point = take(study_id, trial_id, POINT, choose)

    def limits(self, trials: Sequence[FrozenTrial]) -> Limits:
        """Return the number of trials that can count in a study, given its trials."""
        done = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        taken = {key for trial in done if self._is_on_grid(key := self._key_of(trial))}
        others_done = len(done) - len(taken)
        others_queued = 0
        for trial in trials:
            if trial.state != TrialState.WAITING:
                continue
            points = self._points(trial.system_attrs.get("fixed_params", {}))
            keys = (self._key(point) for point in points)
            key = next((key for key in keys if key not in taken and self._is_on_grid(key)), None)
            if key is None:
                others_queued += 1
            else:
                taken.add(key)
        return Limits(self.size + others_done + others_queued, self.size + others_done)

    def _key_of(self, trial: FrozenTrial) -> tuple[Any, ...] | None:
        """Return the combination that a trial has or will have; None if it failed or it is not known yet."""
        if trial.state == TrialState.FAIL:
            return None
        attributes = trial.system_attrs
        points = (trial.params, attributes.get(POINT, {}), attributes.get("fixed_params", {}))
        return next((key for point in points if (key := self._key(point)) is not None), None)

    def _key(self, point: Mapping[str, object]) -> tuple[Any, ...] | None:
        """Return a combination's values in the order of the axes; None if some are missing."""
        return tuple(point[name] for name in self._axes) if all(name in point for name in self._axes) else None

    def _is_on_grid(self, key: tuple[object, ...] | None) -> bool:
        return key is not None and all(value in axis for value, axis in zip(key, self._axes.values(), strict=True))

    def _points(self, fixed: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """Yield all combinations with some fixed values, starting at the trial's own."""
        axes = {name: [fixed[name]] if name in fixed else axis for name, axis in self._axes.items()}
        size = math.prod(len(axis) for axis in axes.values())
        for at in range(size):
            yield _point(axes, _shuffled((self._number + at) % size, size, self._seed))

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


def _axis(name: str, distribution: BaseDistribution, values: Sequence[object] | None) -> Sequence[Any]:
    if values is not None:
        outside = [value for value in values if not private.contains(distribution, value)]
        if outside or not values:
            raise StudyError(f"the grid's values for {name!r} must be inside its domain: got {outside or 'no values'}")
        return values
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    if isinstance(distribution, FloatDistribution) and distribution.single():
        return [distribution.low]
    raise StudyError(
        f"the sampler 'grid' needs a list of values for the float {name!r}: "
        f"{{'name': 'grid', 'values': {{{name!r}: [...], ...}}}}"
    )


def _shuffled(index: int, size: int, seed: int) -> int:
    """Return the position of an index in a shuffled `range(size)`, without shuffling all of it (Feistel cipher)."""
    half = (max(size - 1, 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            digest = hashlib.sha256(f"{seed}/{turn}/{right}".encode()).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        index = left << half | right
        if index < size:  # it permutes the next power of four; larger results are permuted again
            return index


def _point(axes: Mapping[str, Sequence[object]], index: int) -> dict[str, Any]:
    """Return the `index`-th combination, where the last axis varies fastest, without building the others."""
    point = {}
    for name, axis in reversed(list(axes.items())):
        index, at = divmod(index, len(axis))
        point[name] = axis[at]
    return {name: point[name] for name in axes}


class ExhaustiveSampler(BruteForceSampler):
    """Optuna's `BruteForceSampler`, which also ends a search that has tried every point before its next trial."""

    def limits(self, trials: Sequence[FrozenTrial]) -> Limits:
        """Return the number of trials that can count in a study: those that it has, once no point is left."""
        states = [trial.state for trial in trials]
        if not self._is_exhausted([trial for trial in trials if trial.state != TrialState.WAITING and trial.params]):
            return Limits(sys.maxsize, sys.maxsize)
        new = sum(state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING) for state in states)
        return Limits(new + states.count(TrialState.WAITING), new)

    def _is_exhausted(self, trials: list[FrozenTrial]) -> bool:
        return bool(trials) and not private.has_untried(self, trials)
