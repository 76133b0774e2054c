"""Trains a trial with a `TrainerModule`."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from tuner.errors import StudyError
from tuner.study import StudySpec
from tuner.study.launch_record import kept_epoch_of, optimizer_rules_of
from tuner.trial import Report
from tuner.worker.group import Follower, Group, Leader
from tuner.worker.trainables.trainable import AsksOptuna, Choose, DataFor, End, Run

if TYPE_CHECKING:
    from tuner.training.loop.execution import Execute
    from tuner.training.loop.training import Training
    from tuner.training.saved.checkpoints import Checkpoints


T = TypeVar("T")


class Together(Protocol):
    """Makes calls, perhaps at the same time."""

    def __call__(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Return the results in order; raises the error of the first call that raised one."""
        ...


def one_by_one(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make calls one after another."""
    return [call() for call in calls]


class ModuleTrainable(AsksOptuna):
    """A study's `TrainerModule`.

    Args:
        study: The study.
        data_for: Returns the data of a trial.
        layout: The worker's devices.
        about: Information to save with checkpoints.
        record: The settings that the study's first launch recorded.
        choose: Looks up how a program runs, or measures it.
        group: The processes that train each trial together, if there are several.
    """

    def __init__(
        self,
        study: StudySpec,
        data_for: DataFor,
        layout: Any,
        about: dict[str, Any],
        record: Mapping[str, Any],
        choose: Choose,
        group: Leader | Follower | None = None,
    ) -> None:
        self._study, self._data_for, self._about, self._group = study, data_for, about, group
        self._together: Together = one_by_one
        self._options = {
            "layout": layout,
            "optimizer_rules": optimizer_rules_of(record),
            "keep": kept_epoch_of(record),
            "choose": choose if group is None else partial(_choose_together, group, choose),
            **({} if group is None else {"agree": group.agree}),
        }

    def in_lane(self, execute: Execute, together: Together) -> Self:
        """Return the same for a trial of a cohort.

        Args:
            execute: Another way to run programs, see `tuner.training.Training`.
            together: Makes calls that train, if the trial has several trainings.
        """
        other = copy.copy(self)
        other._options = {**self._options, "execute": execute}
        other._together = together
        return other

    def saved(self, run: Run) -> Checkpoints:
        from tuner.training.saved.checkpoints import Checkpoints
        from tuner.training.saved.shared import SharedCheckpoints

        make = Checkpoints if self._group is None else partial(SharedCheckpoints, self._group)
        every_s, keeps_last = self._study.save_every_s, run.keeps_last
        return make(run.root, every_s=every_s, writes_best=False, restart=partial(run.restart), keeps_last=keeps_last)

    def run(self, run: Run, saved: Checkpoints) -> End:
        if not isinstance(self._group, Leader):
            return self._train(run, saved)
        params = json.loads(json.dumps(run.trial.params))
        if self._study.hparams_of(params) != run.hparams:
            raise StudyError(
                f"the hyperparameters {params} cannot be sent to the other hosts, because JSON changes their values: "
                "use only texts, finite numbers, booleans and None"
            )
        with self._group.together({"number": run.number, "seed": run.seed, "params": params, "epochs": run.epochs}):
            return self._train(run, saved)

    def _train(self, run: Run, saved: Checkpoints) -> End:
        study, group, epochs = self._study, self._group, run.epochs
        assert epochs is not None
        data = self._data_for(run.hparams)
        if group is not None:
            _check_same_data(group, data)
        reports = self._training(run, data, run.seed, saved)
        epoch, others, compared = 0, run.others, 0
        with contextlib.closing(reports):
            for report in reports:
                if epoch == 0 and saved.restored is not None:
                    earlier = [Report(**one) for one in saved.restored["reports"]]
                    run.keep(earlier)
                    compared = max((one.epoch for one in earlier), default=0)
                epoch = report.epoch
                due = others if others is not None and epoch > compared and others.is_due(epoch) else None
                if due is not None:
                    due.offer(epoch, reports.host_hparams, reports.saved_state())
                end = partial(run.report, report, is_last=epoch >= epochs)
                if end() if group is None else group.agree(f"end after epoch {epoch}", end):
                    if due is not None:
                        due.withdraw(epoch)
                    return End.PRUNED
                if due is not None:
                    due.compare(epoch, report.metrics[study.objectives[0]], reports.continue_with)
        return End.FINISHED if epoch >= epochs else End.STOPPED

    def _training(self, run: Run, data: Any, seed: int, saved: Checkpoints) -> Training:
        from tuner.training.loop.costs import costs

        study = self._study
        return study.trainer.train_model(
            run.hparams,
            data,
            epochs=run.epochs,
            seed=seed,
            objective=study.objectives[0],
            direction=study.all_directions[0],
            checkpoints=saved if run.resumes_later else None,
            about={**self._about, "trial": run.number},
            stop=partial(_must_stop, run, saved),
            costs=costs(study.trainer, run.hparams, data, study.measure),
            **self._options,
        )


def _must_stop(run: Run, saved: Checkpoints) -> bool:
    from tuner.training.saved.shared import SharedCheckpoints

    run.note_progress()
    return saved.agree_to_stop(run.must_stop) if isinstance(saved, SharedCheckpoints) else run.must_stop()


def _check_same_data(group: Group, splits: Any) -> None:
    """Check that all processes have the same data; of streams, which are not read for this, only the lengths."""
    from tuner.training.saved.run_record import digest

    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    group.check_same("data", [[digest(part), len(part)] for part in parts])


def _choose_together(group: Group, choose: Choose, program: str, measure: Callable[[], str]) -> str:
    """Choose how a program runs: if rank 0 does not know it, all processes run the measurement."""
    if group.is_leader:
        measured = False

        def announced() -> str:
            nonlocal measured
            measured = True
            group.agree("measurement", lambda: True)
            return measure()

        mode = choose(program, announced)
        if not measured:
            group.agree("measurement", lambda: False)
        return group.agree("mode", lambda: mode)
    if group.agree("measurement", bool):
        measure()
    return group.agree("mode", str)
