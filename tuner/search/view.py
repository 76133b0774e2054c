"""The storage as samplers see it: trials that diverged, ran out of memory or timed out have no reports."""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from tuner.trial import Outcome
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_OUTCOMES = (Outcome.DIVERGED.value, Outcome.OUT_OF_MEMORY.value, Outcome.TIMED_OUT.value)


class SamplerView:
    """The storage, in which trials that diverged, ran out of memory or timed out have no reports.

    Such trials are stored as pruned. TPE ranks pruned trials by how long they ran, so a trial that diverged late would
    rank above all that were pruned early. Without reports it ranks last.

    A trial that timed out ranks last even if its reports were good. No trial with such hyperparameters completes within
    the limit, and with the reports TPE would suggest more of them.

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
        return [_shown(trial) for trial in self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)]


BaseStorage.register(SamplerView)


def _shown(trial: FrozenTrial) -> FrozenTrial:
    if trial.state != TrialState.PRUNED or private.user_attrs(trial).get("outcome") not in _OUTCOMES:
        return trial
    copied = copy.copy(trial)
    copied.intermediate_values = {}
    return copied
