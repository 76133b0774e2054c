"""Judges the reports of a running trial: whether its pruner would end it, and whether it is feasible so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tuner.errors import StorageLost
from tuner.search import TrialPruner
from tuner.storage.read.ranking import is_feasible
from tuner.storage.sql.retry import PROMPT, hurried
from tuner.study.constraints import check_metrics
from tuner.trial import Report
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    import optuna

    from tuner.worker.context import WorkerContext


class Judge:
    """Judges the reports of a trial.

    Args:
        context: The context of the worker's trials.
        trial: The Optuna trial.
    """

    def __init__(self, context: WorkerContext, trial: optuna.Trial) -> None:
        self._context, self._trial, self._followed = context, trial, context.study.followed
        self._pruner = TrialPruner(context.pruning_study, trial, self._followed)
        self.must_judge = self._pruner.must_judge

    def compares(self) -> bool:
        """Return whether the pruner judges trials; with several objectives, only if it can compare them."""
        from optuna.pruners import NopPruner

        pruner = self._context.pruning_study.pruner
        return len(self._context.study.objectives) == 1 or not isinstance(pruner, NopPruner)

    def is_hopeless(self, report: Report) -> bool:
        """Ask the pruner; if the database goes down, do not wait, and do not prune."""
        try:
            with hurried(dataclasses.replace(PROMPT, is_over=self._context.must_end)):
                return self._pruner.should_prune(
                    report.epoch, *self._followed.of(report.metrics), is_feasible=self._is_feasible(report)
                )
        except StorageLost:
            return False

    def next_place(self, report: Report) -> Mapping[str, Any] | None:
        """Return the rung that `is_hopeless` would enter first, as arguments of the storage's `enter_rung`, if any."""
        values, is_feasible = self._followed.of(report.metrics), self._is_feasible(report)
        return self._pruner.next_place(report.epoch, *values, is_feasible=is_feasible)

    def _is_feasible(self, report: Report) -> bool | None:
        """Return whether the trial satisfies its constraints at an epoch, as far as it has some; None without any."""
        own = self._context.storage.get_trial(private.trial_id(self._trial)).constraints
        constraints = self._context.study.all_constraints
        checked = check_metrics(constraints, report.epoch, report.metrics, is_complete=False)
        found = {**own, **checked.violations}
        return is_feasible(found) if found else None
