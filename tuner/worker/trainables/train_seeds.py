"""Trains a trial with several seeds: ordinary trainings that advance in lock-step, whose means are the trial's reports.

The first seed is that of a trial with one seed, and so are its checkpoints; the trial's model is of this seed. Each
other seed has checkpoints in a folder of its own. The report of an epoch is made when all seeds have reached it, from
their reports alone, so it does not matter which of them a worker has trained and which come from a checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from tuner.errors import StudyError
from tuner.storage.artifacts import SEEDS
from tuner.study import StudySpec, trial_seed
from tuner.trial import Report
from tuner.trial.seed_values import STDERR, SeedValues, mean, standard_error
from tuner.worker.trainables.train_module import ModuleTrainable, Together
from tuner.worker.trainables.trainable import End, Run, check_objectives, ranking_values

if TYPE_CHECKING:
    from pathlib import Path

    from tuner.training.loop.training import Training
    from tuner.training.saved.checkpoints import Checkpoints


def seed_of(study_seed: int, number: int, at: int) -> int:
    """Return the seed of a trial's training `at`, from 0: the first has the seed of a trial with one seed."""
    return trial_seed(study_seed, number, "training" if at == 0 else f"training, seed {at + 1}")


class SeedsTrainable(ModuleTrainable):
    """A study's `TrainerModule`, trained with several seeds in each trial. Its arguments are those of its base."""

    def saved(self, run: Run) -> SeedCheckpoints:  # pyright: ignore[reportIncompatibleMethodOverride]
        return SeedCheckpoints(run, self._study.seed_plan.most, self._study.save_every_s)

    def _train(self, run: Run, saved: Any) -> End:
        data = self._data_for(run.hparams)

        def start(at: int) -> _Seed:
            seed = seed_of(self._study.seed, run.seeded_as, at)
            return _Seed(self._training(run, data, seed, saved.each[at]), saved.each[at])

        trainings = SeedTrainings(self._study, run, saved, start, self._together)
        with contextlib.closing(trainings):
            return trainings.run()


class SeedCheckpoints:
    """The checkpoints of each seed of a running trial; implements `Saved` with those of the first seed.

    Args:
        run: The trial.
        count: The number of seeds.
        every_s: Seconds between checkpoints of a seed.
    """

    def __init__(self, run: Run, count: int, every_s: float) -> None:
        from tuner.training.saved.checkpoints import Checkpoints

        self._others, self._run, self._has_restarted = run.root / SEEDS, run, False
        self.has_reported = False
        folders = [run.root, *(self._others / str(at) for at in range(2, count + 1))]
        make = partial(
            Checkpoints, every_s=every_s, writes_best=False, restart=self._restart, keeps_last=run.keeps_last
        )
        self.each: list[Checkpoints] = [make(folder) for folder in folders]

    def _restart(self, why: str) -> None:
        """Delete the reports of earlier attempts, once, and not those of this one, which other seeds have made."""
        if not self._has_restarted and not self.has_reported:
            self._run.restart(why)
        self._has_restarted = True

    @property
    def folder(self) -> Path:
        return self.each[0].folder

    def write_best(self) -> Path | None:
        return self.each[0].write_best()

    def write_last(self, folder: Path) -> bool:
        is_written = self.each[0].write_last(folder)
        for at, one in enumerate(self.each[1:], start=2):
            one.write_last(folder / SEEDS / str(at))
        return is_written

    def delete_latest(self) -> None:
        for one in reversed(self.each):
            if one is self.each[0]:
                with contextlib.suppress(OSError):  # it has pictures
                    self._others.rmdir()
            one.delete_latest()

    def close(self) -> None:
        for one in self.each:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Seed:
    """A training of a trial.

    Attributes:
        training: The training.
        reports: Its reports so far, including those from before it was resumed.
        has_begun: Whether it has been asked for a report.
        restored_epoch: The last epoch that its checkpoint has a report of; 0 without a checkpoint.
    """

    def __init__(self, training: Training, saved: Checkpoints) -> None:
        self.training, self._saved = training, saved
        self.reports: list[Report] = []
        self.has_begun, self.restored_epoch = False, 0

    def advance(self) -> bool:
        """Train to the next report; a resumed training repeats its last one. Return False if it has ended."""
        report = next(self.training, None)
        if not self.has_begun and self._saved.restored is not None:
            self.reports = [Report(**earlier) for earlier in self._saved.restored["reports"]]
            self.restored_epoch = self._last
        self.has_begun = True
        if report is not None and report.epoch > self._last:
            self.reports.append(report)
        return report is not None

    @property
    def _last(self) -> int:
        return self.reports[-1].epoch if self.reports else 0

    def first_after(self, epoch: int) -> Report | None:
        """Return the first report of a later epoch."""
        found = None
        for report in reversed(self.reports):
            if report.epoch <= epoch:
                break
            found = report
        return found


@dataclass(frozen=True)
class _Mean:
    """A report of means, and the number of seeds that they are of."""

    report: Report
    seeds: int


class SeedTrainings:
    """The trainings of one trial, one for each seed.

    Args:
        study: The study.
        run: The trial.
        saved: The checkpoints of the trainings.
        start: Makes the training of a seed, from 0.
        together: Makes calls that train.
    """

    def __init__(
        self,
        study: StudySpec,
        run: Run,
        saved: SeedCheckpoints,
        start: Callable[[int], _Seed],
        together: Together,
    ) -> None:
        assert run.epochs is not None
        self._study, self._epochs, self._plan = study, run.epochs, study.seed_plan
        self._run, self._saved, self._start, self._together = run, saved, start, together
        self._seeds: list[_Seed] = []
        self._earlier: list[_Mean] = []  # made by earlier attempts, and not stored by this one yet
        self._is_stopping = False

    def run(self) -> End:
        """Train all seeds to the last epoch, unless the trial ends before."""
        last = 0
        while last < self._epochs:
            self._start_up_to(self._plan.after(last))
            reports = [one.first_after(last) for one in self._seeds]
            # Only a training that raises TrialPruned reports an epoch that the others do not.
            epoch = max((report.epoch for report in reports if report is not None), default=0)
            reached = [report for report in reports if report is not None and report.epoch == epoch]
            if len(reached) == len(reports):
                if self._ends_after(reached):
                    return End.PRUNED
                last = epoch
                continue
            behind = [
                one for one, report in zip(self._seeds, reports, strict=True) if report is None or report.epoch < epoch
            ]
            if all(one.has_begun for one in behind) and self._ends_after_earlier():
                return End.PRUNED
            if not self._advance(behind):
                self._advance(self._seeds)  # the others save their state as well
                return End.STOPPED
        self._advance(self._seeds)  # to their ends
        return End.FINISHED

    def close(self) -> None:
        """End all trainings."""
        with contextlib.ExitStack() as stack:
            for one in self._seeds:
                stack.callback(one.training.close)

    def _start_up_to(self, count: int) -> None:
        new = range(len(self._seeds), count)
        self._seeds += self._together([partial(self._start, at) for at in new])

    def _advance(self, several: Sequence[_Seed]) -> bool:
        """Train to the next reports; return False if a training has ended, because the trial must stop."""
        return all(self._together([partial(self._goes_on, one) for one in several]))

    def _goes_on(self, one: _Seed) -> bool:
        if self._is_stopping and not one.has_begun:
            return False  # it has nothing to save
        goes_on = one.advance()
        self._is_stopping = self._is_stopping or not goes_on
        return goes_on

    # --- Reports

    def _ends_after(self, reports: Sequence[Report]) -> bool:
        """Report an epoch; return whether the trial must end. One that earlier attempts reported is put off."""
        made = _Mean(merge(reports, self._study.objectives), len(reports))
        check_objectives(made.report, self._study.objectives)
        if made.report.epoch <= min(one.restored_epoch for one in self._seeds[: made.seeds]):
            self._earlier.append(made)
            return False
        return self._ends_after_earlier() or self._tell(made)

    def _ends_after_earlier(self) -> bool:
        """Store the reports of earlier attempts, and ask the pruner about the last, whose answer may be lost."""
        if not self._earlier:
            return False
        earlier, self._earlier = self._earlier, []
        self._run.keep(made.report for made in earlier)
        return self._tell(earlier[-1])

    def _tell(self, made: _Mean) -> bool:
        self._saved.has_reported = True
        epoch = made.report.epoch
        is_over = self._run.report(made.report, is_last=epoch >= self._epochs)
        self._run.set_seeds(SeedValues([self._value(one, epoch) for one in self._seeds[: made.seeds]]))
        return is_over

    def _value(self, one: _Seed, epoch: int) -> list[float]:
        """Return the value of a seed as if it were a trial: that of this epoch, or of its own best until then."""
        report = one.first_after(epoch - 1)
        assert report is not None
        values = report.values(self._study.objectives)
        if self._study.value == "last":
            return values
        name = self._study.objectives[0]
        curve = {report.epoch: report.metrics[name] for report in one.reports if report.epoch <= epoch}
        return ranking_values(curve, values, self._study)


def merge(reports: Sequence[Report], objectives: Sequence[str]) -> Report:
    """Return the means of the metrics that all seeds have reported of an epoch, and the objectives' standard errors.

    Args:
        reports: The report of each seed.
        objectives: The objectives; their standard errors are the metrics `NAME_stderr`, if there are several seeds.

    Raises:
        StudyError: the trainer itself reports a metric with such a name.
    """
    first = reports[0]
    shared = [name for name in first.metrics if all(name in report.metrics for report in reports)]
    values = {name: [report.metrics[name] for report in reports] for name in shared}
    metrics = {name: mean(several) for name, several in values.items()}
    for name, message in reserved_metrics(objectives).items():
        if name in metrics:
            raise StudyError(message)
    if len(reports) > 1:
        metrics |= {f"{name}{STDERR}": standard_error(values[name]) for name in objectives if name in values}
    return Report(first.epoch, first.step, metrics)


def reserved_metrics(objectives: Sequence[str]) -> dict[str, str]:
    """Return the metrics that a trainer must not report if trials have several seeds, each with the message for it."""
    return {
        f"{name}{STDERR}": f"a trainer with several seeds must not report {f'{name}{STDERR}'!r}: tuner reports the "
        f"standard error of the mean of {name!r} under this name; rename the metric"
        for name in objectives
    }
