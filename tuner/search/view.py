"""The storage as samplers see it, and as a pruner sees it that follows another metric than the objective."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from tuner.search.informed import is_bad
from tuner.trial import optuna_private as private
from tuner.trial.extension import EXTENSION_KEY

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class SamplerView:
    """The storage, in which trials that diverged, ran out of memory or timed out have no reports.

    Such trials are stored as pruned. TPE ranks pruned trials by how long they ran, so a trial that diverged late would
    rank above all that were pruned early. Without reports it ranks last.

    A trial that timed out ranks last even if its reports were good. No trial with such hyperparameters completes within
    the limit, and with the reports TPE would suggest more of them.

    If the study's space was changed, trials have the present distributions, and those outside of them are hidden.

    Args:
        storage: The storage.
        distributions: The present distributions by name; None if the space was never changed.
    """

    def __init__(self, storage: BaseStorage, distributions: Mapping[str, BaseDistribution] | None = None) -> None:
        self._storage, self._distributions = storage, distributions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials; see `optuna.storages.BaseStorage`."""
        found = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        if self._distributions is not None:
            found = in_space(found, self._distributions)
        return [_shown(trial) for trial in found]


BaseStorage.register(SamplerView)

Curve = Mapping[int, float]
"""The values of a metric by epoch."""


class MetricView:
    """The storage, in which ended trials have the curve of another metric than the objective.

    The study has one direction, that of the metric. Trials that still run have no reports: no pruner of Optuna looks at
    them, except at the trial that it judges.

    Args:
        storage: The storage.
        maximize: Whether a larger value of the metric is better.
        read: Returns the curves of trials by id; each ended trial is asked for once.
    """

    def __init__(
        self, storage: BaseStorage, maximize: bool, read: Callable[[Collection[int]], Mapping[int, Curve]]
    ) -> None:
        self._storage, self._maximize, self._read = storage, maximize, read
        self._curves: dict[int, Curve] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the direction of the metric."""
        return [StudyDirection.MAXIMIZE if self._maximize else StudyDirection.MINIMIZE]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials; see `optuna.storages.BaseStorage`."""
        found = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        new = {private.trial_id(one) for one in found if one.state.is_finished()} - self._curves.keys()
        if new:
            self._curves |= {trial_id: {} for trial_id in new} | dict(self._read(new))
        return [self._with_curve(trial) for trial in found]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best feasible trial by the objective.

        Raises:
            ValueError: there is none.
        """
        complete = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        feasible = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
        larger = self._storage.get_study_directions(study_id)[0] == StudyDirection.MAXIMIZE
        return (max if larger else min)(feasible, key=lambda trial: trial.values[0])

    def _with_curve(self, trial: FrozenTrial) -> FrozenTrial:
        copied = copy.copy(trial)
        copied.intermediate_values = dict(self._curves.get(private.trial_id(trial), {}))
        return copied


BaseStorage.register(MetricView)


class PrunerView:
    """The storage without the trials that continue others: they repeat a curve, and have more epochs than the rest.

    Args:
        storage: The storage.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials; see `optuna.storages.BaseStorage`."""
        found = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        return [trial for trial in found if self.is_shown(trial)]

    def is_shown(self, trial: FrozenTrial) -> bool:
        """Return whether others are compared with a trial."""
        return EXTENSION_KEY not in private.system_attrs(trial)


class FeasibleView(PrunerView):
    """The storage without the trials that violate a constraint."""

    def is_shown(self, trial: FrozenTrial) -> bool:
        """Return whether a trial violates no constraint."""
        return not any(value > 0 for value in trial.constraints.values())


BaseStorage.register(FeasibleView)
BaseStorage.register(PrunerView)


def in_space(trials: Sequence[FrozenTrial], distributions: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
    """Return trials with the present distributions, without those that are outside of them."""
    return [moved for trial in trials if (moved := _in_space(trial, distributions)) is not None]


def _in_space(trial: FrozenTrial, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial | None:
    """Return a trial with the present distributions; None if it is outside of them."""
    own = trial.distributions
    present = {name: distributions.get(name, distribution) for name, distribution in own.items()}
    if not all(private.contains(present[name], trial.params[name]) for name in own if name in distributions):
        return None
    if present == own:
        return trial
    copied = copy.copy(trial)
    copied.distributions = present
    return copied


def _shown(trial: FrozenTrial) -> FrozenTrial:
    if not is_bad(trial):
        return trial
    copied = copy.copy(trial)
    copied.intermediate_values = {}
    return copied
