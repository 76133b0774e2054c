"""Successive halving and Hyperband with rungs in the database, if the storage supports that.

Optuna's pruners read all trials at each rung, and count a trial twice if it was started again. These pruners make the
same decisions from the rungs alone, of which they read only new rows. On any other storage they work like Optuna's.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


class AshaPruner(SuccessiveHalvingPruner):
    """Asynchronous successive halving (Li et al. 2018, https://arxiv.org/abs/1810.05934, algorithm 2).

    Args: those of `optuna.pruners.SuccessiveHalvingPruner`, whose decisions it makes.
    """

    @cached_property
    def _is_auto(self) -> bool:
        return self._min_resource is None  # set before the first decision, which uses it

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if self._is_auto or not hasattr(study._storage, "enter_rung"):
            return super().prune(study, trial)
        return _is_hopeless(self, study, trial, bracket=0)


class BracketPruner(HyperbandPruner):
    """Hyperband (Li et al. 2018, https://jmlr.org/papers/v18/16-558.html): a trial's number gives its bracket.

    Args: those of `optuna.pruners.HyperbandPruner`, whose decisions it makes.
    """

    @cached_property
    def _is_auto(self) -> bool:
        return self._max_resource == "auto"

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if self._is_auto or not hasattr(study._storage, "enter_rung"):
            return super().prune(study, trial)
        if not self._pruners:
            self._try_initialization(study)
        bracket = self._get_bracket_id(study, trial)
        return _is_hopeless(self._pruners[bracket], study, trial, bracket)


def _is_hopeless(pruner: SuccessiveHalvingPruner, study: Study, trial: FrozenTrial, bracket: int) -> bool:
    """Enter the rungs that a trial has reached until one does not promote it; return whether one did not."""
    step = trial.last_step
    if step is None:
        return False
    value = trial.intermediate_values[step]
    assert pruner._min_resource is not None
    first = pruner._min_resource * pruner._reduction_factor**pruner._min_early_stopping_rate
    rung = 0
    while step >= first * pruner._reduction_factor**rung:
        key = f"completed_rung_{rung}"
        if key not in trial.system_attrs:
            enter = getattr(study._storage, "enter_rung")  # noqa: B009 (Optuna's interface has no such method)
            is_promoted = enter(
                study._study_id,
                trial._trial_id,
                bracket=bracket,
                rung=rung,
                value=value,
                reduction_factor=pruner._reduction_factor,
                bootstrap_count=pruner._bootstrap_count,
                maximize=study.direction == StudyDirection.MAXIMIZE,
            )
            if not is_promoted:
                return True
            trial._system_attrs[key] = value  # the caller keeps the trial and need not read it again
        rung += 1
    return False
