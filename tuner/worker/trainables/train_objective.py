"""Runs an Optuna objective as a trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.storages import BaseStorage

from tuner.study import StudySpec
from tuner.study.objective import OptunaObjective
from tuner.trial import Report
from tuner.worker.trainables.trainable import End, NoCheckpoints, Run

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class ObjectiveTrainable:
    """A study's Optuna objective.

    Args:
        study: The study.
    """

    def __init__(self, study: StudySpec) -> None:
        assert isinstance(study.train, OptunaObjective)
        self._function, self._count = study.train.function, len(study.objectives)

    def make_trial(self, study: optuna.Study, trial_id: int, run: Run) -> LeasedTrial:
        if run.is_resumed:  # an objective has no checkpoint
            run.forget_reports()
        return LeasedTrial(study, trial_id, run)

    def saved(self, run: Run) -> NoCheckpoints:
        return NoCheckpoints(run.root)

    def run(self, run: Run, saved: NoCheckpoints) -> End:
        trial: Any = run.trial
        try:
            returned = self._function(trial)
        except optuna.TrialPruned:
            return End.STOPPED if getattr(trial, "is_stopped", False) else End.PRUNED
        if getattr(trial, "is_stopped", False):  # it ended early without raising TrialPruned
            return End.STOPPED
        run.set_values(self._checked(returned))
        return End.FINISHED

    def _checked(self, returned: object) -> list[float]:
        """Return the values of an objective as Optuna reads them.

        Raises:
            ValueError: they are not numbers, or not one for each objective.
        """
        several: Sequence[Any] = cast("Any", returned) if isinstance(returned, Sequence) else [returned]
        try:
            values = [float(value) for value in several]
        except (TypeError, ValueError):
            raise ValueError(f"an objective must return a number for each objective: got {returned!r}") from None
        if len(values) != self._count:
            raise ValueError(f"the study has {self._count} objectives, and the function returned {len(values)} values")
        return values


class LeasedTrial(optuna.trial.Trial):
    """An Optuna trial whose reports and suggestions are stored under the worker's lease.

    Args:
        study: The study.
        trial_id: The trial's id in the storage.
        run: The worker's run of the trial.
    """

    def __init__(self, study: optuna.Study, trial_id: int, run: Run) -> None:
        super().__init__(study, trial_id)
        self._run = run
        self._reporting = _Reporting(self.storage, run)
        self.storage = cast("BaseStorage", self._reporting)
        self.is_stopped = False

    def should_prune(self) -> bool:
        """Return whether the pruner ends the trial, it has passed a limit, or the worker must give it back."""
        if len(self.study.directions) > 1:
            return super().should_prune()  # raises Optuna's error
        self._run.note_progress()
        self.is_stopped = self._run.must_stop()
        return self.is_stopped or self._reporting.is_hopeless


class _Reporting:
    """The storage of one trial: reports go to the worker's run, everything else to the storage itself.

    Args:
        storage: The storage.
        run: The worker's run of the trial.
    """

    def __init__(self, storage: BaseStorage, run: Run) -> None:
        self._storage, self._run = storage, run
        self.is_hopeless = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_param(self, trial_id: int, name: str, value: float, distribution: BaseDistribution) -> None:
        """See `optuna.storages.BaseStorage`."""
        self._storage.set_trial_param(trial_id, name, value, distribution)
        self._run.note_progress()
        self._run.flush_later()

    def set_trial_intermediate_value(self, trial_id: int, step: int, value: float) -> None:
        """See `optuna.storages.BaseStorage`."""
        report = Report(step, step, {self._run.objectives[0]: value})
        self.is_hopeless = self._run.store(report, may_prune=not math.isnan(value))


BaseStorage.register(_Reporting)
