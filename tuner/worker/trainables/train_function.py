"""Trains a trial with a function of `(hparams, trial)`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator
from typing import Any, cast

from tuner.errors import TrialPruned
from tuner.study import StudySpec
from tuner.study.trial import Trial
from tuner.worker.trainables.pytrees import registered_with_jax
from tuner.worker.trainables.saves import TrialSaves
from tuner.worker.trainables.trainable import AsksOptuna, End, Run, is_last_epoch


class FunctionTrainable(AsksOptuna):
    """A study's training function.

    Args:
        study: The study.
        about: Information to save with the trial's states.
    """

    def __init__(self, study: StudySpec, about: dict[str, Any]) -> None:
        self._study, self._about = study, about

    def saved(self, run: Run) -> TrialSaves:
        study = self._study
        is_best = study.value == "best"
        return TrialSaves(
            run.root,
            {**self._about, "trial": run.number},
            direction=study.all_directions[0] if is_best else None,
            objective=study.objectives[0],
        )

    def make_handle(self, run: Run, saved: TrialSaves, hparams: Any) -> Trial:
        """Return the trial for the function."""
        return Trial(run, saved)

    def train(self, run: Run, trial: Trial) -> Any:
        """Call the function; return what it returns."""
        function: Any = self._study.train
        return function(run.hparams, trial)

    def run(self, run: Run, saved: TrialSaves) -> End:
        if run.is_resumed and saved.newest is None:
            run.forget_reports()
        trial = self.make_handle(cast("Run", _Resumed(run, saved, run.epochs)), saved, run.hparams)
        try:
            with registered_with_jax(run.hparams):
                returned = self.train(run, trial)
                if isinstance(returned, Iterator):
                    returned = _reported(cast("Iterator[Any]", returned), trial)
            trial.finish(returned)
        except BaseException as error:
            if not is_pruned(error):
                raise
            return End.STOPPED if trial.is_told_to_end and not run.must_end else End.PRUNED
        return End.FINISHED


def _reported(reports: Iterator[Any], trial: Trial) -> Any:
    """Report what a generator yields; return what it returns."""
    is_generator = isinstance(reports, Generator)
    with contextlib.closing(cast("Generator[Any]", reports)) if is_generator else contextlib.nullcontext():
        while True:
            try:
                given = next(reports)
            except StopIteration as end:
                return end.value
            if isinstance(given, tuple):
                epoch, metrics = cast("tuple[int, Any]", given)
                trial.report(metrics, epoch=epoch)
            else:
                trial.report(given)


class _Resumed:
    """A run whose first report replaces all stored reports from its epoch on.

    Args:
        run: The run.
        saved: The states of the trial.
        epochs: The study's epochs: the report of the last one is not pruned. None if it is not known.
    """

    def __init__(self, run: Run, saved: TrialSaves, epochs: int | None) -> None:
        self._run, self._saved, self._epochs = run, saved, epochs
        self._is_first = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def report(self, report: Any, *, is_last: bool = False) -> bool:
        """See `TrialRun.report`."""
        if self._is_first:
            self._is_first = False
            self._begin(report.epoch)
        self._saved.add_reports([report])
        return self._run.report(report, is_last=is_last or is_last_epoch(report, self._epochs))

    def keep_saved(self) -> None:
        """See `TrialRun.keep_saved`."""
        self._begin(self._saved.epoch + 1)

    def _begin(self, epoch: int) -> None:
        newest = self._saved.newest
        if not self._run.is_resumed or newest is None:
            return
        if not self._saved.is_resumed:
            self._run.forget_reports()
            return
        self._run.forget_reports(epoch)
        earlier = [one for one in newest.reports if one.epoch < epoch]
        self._saved.add_reports(earlier)
        self._run.keep(earlier)


def is_pruned(error: BaseException) -> bool:
    """Return whether an error is tuner's or Optuna's `TrialPruned`."""
    optuna = sys.modules.get("optuna")
    return isinstance(error, TrialPruned) or (optuna is not None and isinstance(error, optuna.TrialPruned))
