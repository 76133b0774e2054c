"""What samplers learn from trials that diverged, ran out of memory or timed out, and from earlier studies.

Such trials are stored as pruned. TPE reads pruned trials and ranks these last. Optuna's other samplers read only
complete trials. An `InformedSampler` shows them the bad ones in the form that each can use.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState, create_trial

from tuner.trial import Outcome
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_OUTCOMES = (Outcome.DIVERGED.value, Outcome.OUT_OF_MEMORY.value, Outcome.TIMED_OUT.value)
_CONSTRAINT = "constraints:tuner:bad"
"""Optuna's attribute for the constraint that bad trials violate, in the view of a sampler."""
_TRIES = 20
"""The number of proposals of which the first that is not near a bad trial is taken."""
_NEAR = 0.5
"""A proposal is near bad trials if the nearest one is less than this times as far away as the nearest other trial."""

See = Callable[["Sequence[FrozenTrial]"], "Sequence[FrozenTrial]"]


def is_bad(trial: FrozenTrial) -> bool:
    """Return whether a trial diverged, ran out of memory or timed out."""
    return trial.state is TrialState.PRUNED and private.user_attrs(trial).get("outcome") in _OUTCOMES


def as_violations(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return trials with a constraint that only the bad ones violate; these are complete, with median values.

    A Gaussian process models the constraint apart from the objective, and multiplies its acquisition function by the
    probability that a trial is not bad (Gardner et al. 2014, Bayesian Optimization with Inequality Constraints). The
    median says as little as possible about the objective. A bad trial has the medians of other constraints, too.

    Args:
        trials: The trials of a study, in any state.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete or not any(is_bad(trial) for trial in trials):
        return list(trials)
    values = [_median(one) for one in zip(*(trial.values for trial in complete), strict=True)]
    names = {name for trial in complete for name in trial.constraints}
    medians = {
        f"constraints:{name}": _median([trial.constraints[name] for trial in complete if name in trial.constraints])
        for name in names
    }
    told: list[FrozenTrial] = []
    for trial in trials:
        if is_bad(trial):
            trial = _changed(trial, {**medians, **private.system_attrs(trial), _CONSTRAINT: 1.0})
            trial.state, trial.values = TrialState.COMPLETE, list(values)
        elif trial.state == TrialState.COMPLETE:
            trial = _changed(trial, {**private.system_attrs(trial), _CONSTRAINT: -1.0})
        told.append(trial)
    return told


def in_generation(trials: Sequence[FrozenTrial], kind: type[BaseGASampler]) -> list[FrozenTrial]:
    """Return trials of earlier studies as the first generation of a genetic algorithm."""
    key = private.generation_key(kind)
    return [_changed(trial, {**private.system_attrs(trial), key: 0}) for trial in trials]


def numbers_of(trials: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
    """Return complete trials with nothing but the numeric parameters of a space, for CMA-ES.

    Args:
        trials: The trials; those without one of the parameters, or with a value outside its domain, are skipped.
        space: The parameters, by name.
    """
    numeric: dict[str, BaseDistribution] = {
        name: one
        for name, one in space.items()
        if isinstance(one, FloatDistribution | IntDistribution) and not one.single()
    }
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    complete = [trial for trial in complete if numeric.keys() <= trial.params.keys()]
    return [
        create_trial(
            params={name: trial.params[name] for name in numeric}, distributions=numeric, values=list(trial.values)
        )
        for trial in complete
        if numeric and all(private.contains(one, trial.params[name]) for name, one in numeric.items())
    ]


def _median(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else 0.0


def _changed(trial: FrozenTrial, attributes: dict[str, Any]) -> FrozenTrial:
    copied = copy.copy(trial)
    private.set_system_attrs(copied, attributes)
    return copied


class _History:
    """The storage, whose trials are changed for a sampler."""

    def __init__(self, storage: BaseStorage, see: See) -> None:
        self._storage, self._see = storage, see

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials; see `optuna.storages.BaseStorage`."""
        found = self._see(self._storage.get_all_trials(study_id, deepcopy=deepcopy))
        return [trial for trial in found if states is None or trial.state in states]


BaseStorage.register(_History)


class InformedSampler(BaseSampler):
    """A sampler that also learns from bad trials, and from those of earlier studies.

    Without any such trials, it suggests what the given sampler would.

    Args:
        sampler: Optuna's sampler, for one trial.
        see: How the sampler sees the trials of a study with bad ones, in any state; unchanged if None.
        earlier: Trials that the sampler sees before those of the study, with negative numbers and ids.
        rejects: Whether a proposal near bad trials is drawn again, at most 20 times; see `Neighbours`.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        *,
        see: See | None = None,
        earlier: Sequence[FrozenTrial] = (),
        rejects: bool = False,
    ) -> None:
        self.sampler, self._told, self._earlier, self._rejects = sampler, see, earlier, rejects
        self._seen: tuple[int, Study] | None = None

    def _see(self, study: Study, trial: FrozenTrial) -> Study:
        """Return the study as the sampler sees it during a trial."""
        if self._told is None and not self._earlier:
            return study
        if self._seen is None or self._seen[0] != trial.number:
            is_changed = self._earlier or any(is_bad(one) for one in private.all_trials(study))
            history: Any = _History(private.storage_of(study), self._change)
            self._seen = trial.number, private.with_storage(study, history, trial) if is_changed else study
        return self._seen[1]

    def _change(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        known = [*self._earlier, *trials]
        return known if self._told is None else self._told(known)

    def reseed_rng(self) -> None:
        self.sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.sampler.after_trial(study, trial, state, values)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(self._see(study, trial), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        seen = self._see(study, trial)
        known = [*self._earlier, *private.all_trials(study)] if self._rejects and search_space else []
        if not any(is_bad(one) for one in known):
            return self.sampler.sample_relative(seen, trial, search_space)
        neighbours = Neighbours(known, search_space)
        if not neighbours.has_bad:  # none has all these parameters
            return self.sampler.sample_relative(seen, trial, search_space)
        drawn: list[tuple[float, dict[str, Any]]] = []
        while len(drawn) < _TRIES:
            params = self.sampler.sample_relative(seen, trial, search_space)
            for name in search_space.keys() - params.keys():  # what a genetic algorithm mutates, or a random trial
                params[name] = self.sampler.sample_independent(seen, trial, name, search_space[name])
            margin = neighbours.margin(params)
            if margin >= 0:
                return params
            drawn.append((margin, params))
        return max(drawn, key=lambda one: one[0])[1]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler.sample_independent(self._see(study, trial), trial, param_name, param_distribution)


class Neighbours:
    """The trials that have ended, as points of a search space.

    Distances are Euclidean, with each parameter scaled to [0, 1], the logarithm of those with a log scale. Two choices
    have distance 1.

    Args:
        trials: The trials of a study; those without a parameter of the space do not count.
        search_space: The parameters.
    """

    def __init__(self, trials: Sequence[FrozenTrial], search_space: Mapping[str, BaseDistribution]) -> None:
        self._space = dict(sorted(search_space.items()))
        ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        ended = [trial for trial in ended if self._space.keys() <= private.params(trial).keys()]
        self._bad = np.array([is_bad(trial) for trial in ended], dtype=bool)
        self._points = np.array([self._point(private.params(trial)) for trial in ended]).reshape(len(ended), -1)
        self._is_choice = np.array([isinstance(one, CategoricalDistribution) for one in self._space.values()])

    @property
    def has_bad(self) -> bool:
        """Whether a trial is bad."""
        return bool(self._bad.any())

    def margin(self, params: Mapping[str, object]) -> float:
        """Return the distance of the nearest bad trial, less half that of the nearest other one; < 0 is near."""
        away = np.abs(self._points - self._point(params))
        away = np.where(self._is_choice, away > 0, away)
        distances = np.sqrt((away**2).sum(axis=1))
        good = distances[~self._bad]
        return float(distances[self._bad].min() - _NEAR * (good.min() if good.size else 0.0))

    def _point(self, params: Mapping[str, Any]) -> np.ndarray:
        return np.array([_scaled(one, params[name]) for name, one in self._space.items()])


def _scaled(distribution: BaseDistribution, value: Any) -> float:
    number = distribution.to_internal_repr(value)
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return number
    scale = math.log if distribution.log else float
    low, high = scale(distribution.low), scale(distribution.high)
    return (scale(number) - low) / (high - low) if high > low else 0.0
