"""What a worker can run as a trial: the protocol of a `Trainable`."""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tuner.errors import StudyError, nearest
from tuner.storage.artifacts import FILES
from tuner.study.spec import StudySpec
from tuner.study.trial import TrialRun
from tuner.trial import Report
from tuner.trial.environment import DEVICES_VARIABLE
from tuner.trial.seed_values import SeedValues

if TYPE_CHECKING:
    import optuna

    from tuner.worker.population import Others


class End(enum.Enum):
    """How a trainable's run of a trial ended."""

    FINISHED = "it is complete"
    PRUNED = "a report ended it, or it raised TrialPruned itself"
    STOPPED = "the worker must give it back, or it has passed a limit"


class Run(TrialRun, Protocol):
    """A trial that is being run, as a `Trainable` sees it."""

    @property
    def hparams(self) -> Any:
        """The hyperparameters, a `Space` instance; None for an Optuna objective."""
        ...

    @property
    def trial(self) -> optuna.Trial | optuna.trial.FixedTrial:
        """The Optuna trial."""
        ...

    @property
    def root(self) -> Path:
        """The folder of the trial's checkpoints, files and log."""
        ...

    @property
    def is_resumed(self) -> bool:
        """Whether the trial was run before."""
        ...

    @property
    def seeded_as(self) -> int:
        """The number of the trial whose seeds the training has: its own, or that of the trial that it continues."""
        ...

    @property
    def keeps_last(self) -> bool:
        """Whether the last state may be kept, so that another trial can continue it."""
        ...

    @property
    def resumes_later(self) -> bool:
        """Whether the trial may be resumed from its checkpoints; if not, none are written."""
        ...

    @property
    def others(self) -> Others | None:
        """The trials that this one may copy; None without population-based training."""
        ...

    def restart(self, why: str) -> None:
        """Delete all reports, because the training starts again although it had a checkpoint."""
        ...

    def forget_reports(self, first: int = 0) -> None:
        """Delete stored reports from an epoch on; without an epoch also the trial's decisions in rungs."""
        ...

    def stored_reports(self) -> list[Report]:
        """Return the reports of earlier attempts, by epoch."""
        ...

    def keep(self, earlier: Iterable[Report]) -> None:
        """Store reports from before a restart with the next one."""
        ...

    def store(self, report: Report, *, may_prune: bool = True) -> bool:
        """Store a report; return whether the pruner would end the trial."""
        ...

    def set_values(self, values: Sequence[float]) -> None:
        """Set the values of the objectives, if they are not those of a report; NaN means that it has diverged."""
        ...

    def set_seeds(self, values: SeedValues) -> None:
        """Set the values of the trial's seeds so far; the values of the trial are their means."""
        ...

    def flush_later(self) -> None:
        """Store suggested hyperparameters soon."""
        ...

    def write_log(self, lines: Sequence[str]) -> None:
        """Store the last lines of the trial's log."""
        ...


class TrialData:
    """The part of `Run` that concerns the trial alone."""

    seed: int
    trial: optuna.Trial | optuna.trial.FixedTrial

    @property
    def user_attrs(self) -> Mapping[str, Any]:
        """The trial's attributes."""
        return self.trial.user_attrs

    def set_user_attr(self, name: str, value: object) -> None:
        """Store an attribute of the trial."""
        self.trial.set_user_attr(name, value)

    def key(self) -> Any:
        """Return a JAX key from the trial's seed."""
        from tuner.training.foreign import key

        return key(self.seed)

    def keep_saved(self) -> None:
        """Do nothing: only functions have saved reports, and `FunctionTrainable` keeps them."""


class UnstoredRun(TrialData):
    """The part of `Run` that all runs share which store nothing and are not stopped.

    Args:
        study: The study.
        number: The trial.
        params: Its stored hyperparameters.
        seed: The seed of the training.
        root: A folder for its files, which is removed afterwards.
    """

    def __init__(self, study: StudySpec, number: int, params: Mapping[str, object], seed: int, root: Path) -> None:
        self.study, self.number, self.seed, self.root = study, number, seed, root
        self.folder, self.devices = root / FILES, os.environ.get(DEVICES_VARIABLE, "")
        self.objectives, self.hparams = study.objectives, study.hparams_of(params)
        self.seeded_as = number

    others: Others | None = None
    keeps_last = False

    @property
    def epochs(self) -> int | None:
        return self.study.epochs

    def must_stop(self) -> bool:
        return False

    def note_progress(self) -> None:
        pass

    def restart(self, why: str) -> None:
        pass

    def set_constraint(self, name: str, value: float) -> None:
        pass

    def forget_reports(self, first: int = 0) -> None:
        pass

    def stored_reports(self) -> list[Report]:
        return []

    def keep(self, earlier: Iterable[Report]) -> None:
        pass

    def set_seeds(self, values: SeedValues) -> None:
        pass

    def flush_later(self) -> None:
        pass

    def write_log(self, lines: Sequence[str]) -> None:
        pass


class Saved(Protocol):
    """The checkpoints of a running trial."""

    @property
    def folder(self) -> Path: ...
    def write_best(self) -> Path | None:
        """Write the checkpoint that is kept if the trial is among the best; return its folder, or None."""
        ...

    def write_last(self, folder: Path) -> bool:
        """Write the last state to a folder that is laid out like the trial's; return whether there is one."""
        ...

    def delete_latest(self) -> None:
        """Remove the checkpoints to resume from."""
        ...

    def close(self) -> None:
        """Wait until all checkpoints are written."""
        ...


class Trainable(Protocol):
    """Something that trains a trial: a `TrainerModule`, a function, an Optuna objective or a command."""

    def make_trial(self, study: optuna.Study, trial_id: int, run: Run) -> optuna.Trial:
        """Return the Optuna trial, which asks the study's sampler."""
        ...

    def saved(self, run: Run) -> AbstractContextManager[Saved]:
        """Return the checkpoints of a trial."""
        ...

    def run(self, run: Run, saved: Any) -> End:
        """Train a trial and report its metrics.

        Args:
            run: The trial.
            saved: What `saved` returned.
        """
        ...


@dataclass(frozen=True)
class NoCheckpoints:
    """The checkpoints of a trial that only has its own files."""

    folder: Path

    def write_best(self) -> Path | None:
        """Return the folder of the trial's own files, if there are any."""
        files = self.folder / FILES
        return files if files.is_dir() and any(files.iterdir()) else None

    def write_last(self, folder: Path) -> bool:
        return False

    def delete_latest(self) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> NoCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def check_objectives(report: Report, names: Sequence[str], what: str = "objective") -> None:
    """Raise StudyError if the metrics of an epoch do not include an objective, or something else that is needed."""
    for name in names:
        if name not in report.metrics:
            raise StudyError(
                f"the {what} {name!r} is missing from the metrics of epoch {report.epoch}: the training reported "
                f"{', '.join(report.metrics) or 'none'}{nearest(name, report.metrics)}"
            )


def is_last_epoch(report: Report, epochs: int | None) -> bool:
    """Return whether a report is that of the last epoch, after which pruning would save nothing."""
    return epochs is not None and report.epoch >= epochs


def ranking_epoch(curve: Mapping[int, float], latest: int, study: StudySpec) -> int:
    """Return the epoch that gives a trial's value; of equal ones the first.

    Args:
        curve: The first objective of each epoch so far.
        latest: The latest epoch.
        study: The study.
    """
    finite = {epoch: value for epoch, value in curve.items() if math.isfinite(value)}
    if study.value == "last" or not finite:
        return latest
    return (max if study.all_directions[0] == "maximize" else min)(finite, key=lambda epoch: finite[epoch])


def ranking_values(curve: Mapping[int, float], values: list[float], study: StudySpec) -> list[float]:
    """Return the values of a trial: those of its last or of its best epoch, as the study says.

    Args:
        curve: The first objective of each epoch so far.
        values: The objectives of the latest epoch.
        study: The study.
    """
    finite = [value for value in curve.values() if math.isfinite(value)]
    if study.value == "last" or not finite:
        return values
    return [max(finite) if study.all_directions[0] == "maximize" else min(finite)]


class AsksOptuna:
    """A trainable whose trials are plain Optuna trials."""

    def make_trial(self, study: optuna.Study, trial_id: int, run: Run) -> optuna.Trial:
        from optuna.trial import Trial

        return Trial(study, trial_id)


DataFor = Callable[[Any], Any]
"""Returns the data of a trial, from its hyperparameters."""
Choose = Callable[[str, Callable[[], str]], str]
"""Looks up how a program runs, or calls the function and stores the result."""
