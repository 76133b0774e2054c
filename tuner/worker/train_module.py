"""Trains a trial with a `TrainerModule`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tuner.study import StudySpec
from tuner.study.launch_record import kept_epoch_of, optimizer_rules_of
from tuner.trial import Report
from tuner.worker.trainable import AsksOptuna, Choose, DataFor, End, Run

if TYPE_CHECKING:
    from tuner.training.saved.checkpoints import Checkpoints


class ModuleTrainable(AsksOptuna):
    """A study's `TrainerModule`.

    Args:
        study: The study.
        data_for: Returns the data of a trial.
        layout: The worker's devices.
        about: Information to save with checkpoints.
        record: The settings that the study's first launch recorded.
        choose: Looks up how a program runs, or measures it.
    """

    def __init__(
        self,
        study: StudySpec,
        data_for: DataFor,
        layout: Any,
        about: dict[str, Any],
        record: Mapping[str, Any],
        choose: Choose,
    ) -> None:
        self._study, self._data_for, self._about = study, data_for, about
        self._options = {
            "layout": layout,
            "optimizer_rules": optimizer_rules_of(record),
            "keep": kept_epoch_of(record),
            "choose": choose,
        }

    def saved(self, run: Run) -> Checkpoints:
        from tuner.training.saved.checkpoints import Checkpoints

        return Checkpoints(run.root, every_s=self._study.save_every_s, writes_best=False, restart=partial(run.restart))

    def run(self, run: Run, saved: Checkpoints) -> End:
        study = self._study
        assert study.epochs is not None

        def must_stop() -> bool:
            run.note_progress()
            return run.must_stop()

        reports = study.trainer.train_model(
            run.hparams,
            self._data_for(run.hparams),
            epochs=study.epochs,
            seed=run.seed,
            objective=study.objectives[0],
            direction=study.all_directions[0],
            checkpoints=saved if run.resumes_later else None,
            about={**self._about, "trial": run.number},
            stop=must_stop,
            **self._options,
        )
        epoch = 0
        with contextlib.closing(reports):
            for report in reports:
                if epoch == 0 and saved.restored is not None:
                    run.keep(Report(**earlier) for earlier in saved.restored["reports"])
                epoch = report.epoch
                if run.report(report, is_last=epoch >= study.epochs):
                    return End.PRUNED
        return End.FINISHED if epoch >= study.epochs else End.STOPPED
