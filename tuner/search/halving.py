"""Successive halving and Hyperband with rungs in the database, if the storage supports that.

Optuna's pruners read all trials at each rung, and count a trial twice if it was started again. These pruners make the
same decisions from the rungs alone, of which they read only new rows. On any other storage they work like Optuna's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection

from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Judged:
    """What a pruner judges at an epoch.

    Attributes:
        step: The epoch.
        values: The trial's value, or its value in each objective.
        maximize: Whether larger is better, for each value.
        metric: The metric that the value is of; None for the objectives.
        is_feasible: Whether the trial satisfies its constraints at this epoch, as far as it has reported them.
    """

    step: int
    values: tuple[float, ...]
    maximize: tuple[bool, ...]
    metric: str | None = None
    is_feasible: bool = True


class AshaPruner(SuccessiveHalvingPruner):
    """Asynchronous successive halving (Li et al. 2018, https://arxiv.org/abs/1810.05934, algorithm 2).

    Args: those of `optuna.pruners.SuccessiveHalvingPruner`, whose decisions it makes.
    """

    @cached_property
    def _is_auto(self) -> bool:
        return private.halving(self).min_resource is None  # set before the first decision, which uses it

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if not self.has_rungs(study):
            return super().prune(study, trial)
        judged = _last_report(study, trial)
        return judged is not None and self.judge(study, trial, judged)

    def has_rungs(self, study: Study) -> bool:
        """Return whether the pruner decides from the rungs in the database."""
        return not self._is_auto and hasattr(private.storage_of(study), "enter_rung")

    def judge(self, study: Study, trial: FrozenTrial, judged: Judged) -> bool:
        """Return whether to stop a trial."""
        return _is_hopeless(self, study, trial, judged, bracket=0)

    def next_place(self, study: Study, trial: FrozenTrial, judged: Judged) -> dict[str, Any] | None:
        """Return the rung that `judge` would enter first, as arguments of the storage's `enter_rung`, if any."""
        return _next_place(self, trial, judged, bracket=0)

    def has_reached_rung(self, study: Study, trial: FrozenTrial, step: int) -> bool:
        """Return whether `judge` would enter a trial into a rung at an epoch."""
        return any(True for _ in _open_rungs(self, trial, step))


class BracketPruner(HyperbandPruner):
    """Hyperband (Li et al. 2018, https://jmlr.org/papers/v18/16-558.html): a trial's number gives its bracket.

    Args: those of `optuna.pruners.HyperbandPruner`, whose decisions it makes.
    """

    @cached_property
    def _is_auto(self) -> bool:
        return not private.has_max_resource(self)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if not self.has_rungs(study):
            return super().prune(study, trial)
        judged = _last_report(study, trial)
        return judged is not None and self.judge(study, trial, judged)

    def has_rungs(self, study: Study) -> bool:
        """Return whether the pruner decides from the rungs in the database."""
        return not self._is_auto and hasattr(private.storage_of(study), "enter_rung")

    def judge(self, study: Study, trial: FrozenTrial, judged: Judged) -> bool:
        """Return whether to stop a trial."""
        bracket, pruner = private.bracket(self, study, trial)
        return _is_hopeless(pruner, study, trial, judged, bracket)

    def next_place(self, study: Study, trial: FrozenTrial, judged: Judged) -> dict[str, Any] | None:
        """Return the rung that `judge` would enter first, as arguments of the storage's `enter_rung`, if any."""
        bracket, pruner = private.bracket(self, study, trial)
        return _next_place(pruner, trial, judged, bracket)

    def has_reached_rung(self, study: Study, trial: FrozenTrial, step: int) -> bool:
        """Return whether `judge` would enter a trial into a rung at an epoch."""
        return any(True for _ in _open_rungs(private.bracket(self, study, trial)[1], trial, step))


def _last_report(study: Study, trial: FrozenTrial) -> Judged | None:
    step = trial.last_step
    if step is None:
        return None
    return Judged(step, (trial.intermediate_values[step],), (study.direction == StudyDirection.MAXIMIZE,))


def _open_rungs(pruner: BasePruner, trial: FrozenTrial, step: int) -> Iterator[int]:
    """Yield the rungs that a trial has reached at an epoch without having entered them."""
    assert isinstance(pruner, SuccessiveHalvingPruner)
    settings = private.halving(pruner)
    assert settings.min_resource is not None
    first = settings.min_resource * settings.reduction_factor**settings.min_early_stopping_rate
    rung = 0
    while step >= first * settings.reduction_factor**rung:
        if _key(rung) not in trial.system_attrs:
            yield rung
        rung += 1


def _key(rung: int) -> str:
    return f"{private.RUNG_KEY}{rung}"


def _is_hopeless(pruner: BasePruner, study: Study, trial: FrozenTrial, judged: Judged, bracket: int) -> bool:
    """Enter the rungs that a trial has reached until one does not promote it; return whether one did not."""
    for rung in _open_rungs(pruner, trial, judged.step):
        place = _place(pruner, judged, bracket, rung)
        if not private.storage_of(study).enter_rung(private.study_id(study), private.trial_id(trial), **place):
            return True
        private.system_attrs(trial)[_key(rung)] = judged.values[0]  # the caller keeps the trial and need not read it
    return False


def _place(pruner: BasePruner, judged: Judged, bracket: int, rung: int) -> dict[str, Any]:
    assert isinstance(pruner, SuccessiveHalvingPruner)
    settings = private.halving(pruner)
    return {
        "bracket": bracket,
        "rung": rung,
        "values": judged.values,
        "reduction_factor": settings.reduction_factor,
        "bootstrap_count": settings.bootstrap_count,
        "maximize": judged.maximize,
        "metric": judged.metric,
        **({} if judged.is_feasible else {"is_feasible": False}),
    }


def _next_place(pruner: BasePruner, trial: FrozenTrial, judged: Judged, bracket: int) -> dict[str, Any] | None:
    rung = next(_open_rungs(pruner, trial, judged.step), None)
    return None if rung is None else _place(pruner, judged, bracket, rung)
