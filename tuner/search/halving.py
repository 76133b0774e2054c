"""Successive halving and Hyperband with rungs in the database, if the storage supports that.

Optuna's pruners read all trials at each rung, and count a trial twice if it was started again. These pruners make the
same decisions from the rungs alone, of which they read only new rows. On any other storage they work like Optuna's.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection

from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial


class AshaPruner(SuccessiveHalvingPruner):
    """Asynchronous successive halving (Li et al. 2018, https://arxiv.org/abs/1810.05934, algorithm 2).

    Args: those of `optuna.pruners.SuccessiveHalvingPruner`, whose decisions it makes.
    """

    @cached_property
    def _is_auto(self) -> bool:
        return private.halving(self).min_resource is None  # set before the first decision, which uses it

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if self._is_auto or not hasattr(private.storage_of(study), "enter_rung"):
            return super().prune(study, trial)
        return _is_hopeless(self, study, trial, bracket=0)


class BracketPruner(HyperbandPruner):
    """Hyperband (Li et al. 2018, https://jmlr.org/papers/v18/16-558.html): a trial's number gives its bracket.

    Args: those of `optuna.pruners.HyperbandPruner`, whose decisions it makes.
    """

    @cached_property
    def _is_auto(self) -> bool:
        return not private.has_max_resource(self)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if self._is_auto or not hasattr(private.storage_of(study), "enter_rung"):
            return super().prune(study, trial)
        bracket, pruner = private.bracket(self, study, trial)
        return _is_hopeless(pruner, study, trial, bracket)


def _is_hopeless(pruner: BasePruner, study: Study, trial: FrozenTrial, bracket: int) -> bool:
    """Enter the rungs that a trial has reached until one does not promote it; return whether one did not."""
    step = trial.last_step
    if step is None:
        return False
    value = trial.intermediate_values[step]
    assert isinstance(pruner, SuccessiveHalvingPruner)
    settings = private.halving(pruner)
    assert settings.min_resource is not None
    first = settings.min_resource * settings.reduction_factor**settings.min_early_stopping_rate
    rung = 0
    while step >= first * settings.reduction_factor**rung:
        key = f"completed_rung_{rung}"
        if key not in trial.system_attrs:
            is_promoted = private.storage_of(study).enter_rung(
                private.study_id(study),
                private.trial_id(trial),
                bracket=bracket,
                rung=rung,
                value=value,
                reduction_factor=settings.reduction_factor,
                bootstrap_count=settings.bootstrap_count,
                maximize=study.direction == StudyDirection.MAXIMIZE,
            )
            if not is_promoted:
                return True
            private.system_attrs(trial)[key] = value  # the caller keeps the trial and need not read it again
        rung += 1
    return False
