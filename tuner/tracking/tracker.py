"""The interface of a tracker, what it is told, and making those that were asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuner.errors import UsageError, how_to_install
from tuner.trial import Outcome

MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow's own; a command that takes `--mlflow` takes it from here as well."""


@dataclass(frozen=True)
class TrackedStudy:
    """A study; `identity` tells it from others of its name, `settings` are texts by name."""

    name: str
    identity: str
    settings: Mapping[str, str]


@dataclass(frozen=True)
class TrackedTrial:
    """A trial as it stands.

    Attributes:
        number: Its number in the study.
        outcome: How it stands or has ended.
        hparams: Its hyperparameters, as Optuna has them.
        began_s: When it began, seconds since 1970.
        ended_s: When it ended, None before.
        step: Optimizer updates at its last report, 0 before the first.
        results: Numbers that it came to, by name; empty before its end.
        tags: What else is known of it, texts by name.
    """

    number: int
    outcome: Outcome
    hparams: Mapping[str, Any]
    began_s: float
    ended_s: float | None
    step: int
    results: Mapping[str, float]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class TrackedReport:
    """The metrics of an epoch; `at_s`, seconds since 1970, is the same however often the report is sent."""

    epoch: int
    step: int
    at_s: float
    metrics: Mapping[str, float]


class Tracker(Protocol):
    """Takes a study, trial by trial, from one process at a time.

    Every method may be called again with the same arguments, by another process after a crash too, and changes nothing
    then. Every method but `close` raises `TrackerLost` if the tracker does not answer, and `TrackerRefused` if it does
    not take what it was given.
    """

    target: str
    """What it is, without passwords: equal for all processes that send to the same place."""

    def open_study(self, study: TrackedStudy, place: str | None, known: Collection[str]) -> str:
        """Begin, or go on with, a study.

        Args:
            study: The study.
            place: What this returned the last time, in whichever process.
            known: What `open_trial` has returned there. Runs that it has not were begun by requests that were given up.

        Returns:
            What the tracker calls the study: another text than `place` if it has nothing of it.
        """
        ...

    def open_trial(self, trial: TrackedTrial, run: str | None) -> str:
        """Begin a trial, or bring up to date what is said of the one called `run`; return what it is called."""
        ...

    def log(self, run: str, reports: Sequence[TrackedReport]) -> None:
        """Add reports, which follow those before."""
        ...

    def end_trial(self, run: str, trial: TrackedTrial, reports: Sequence[TrackedReport]) -> None:
        """Add the last reports, and say how a trial ended."""
        ...

    def drop_trial(self, run: str) -> None:
        """Remove a trial: its reports are others now, and are sent anew."""
        ...

    def end_study(self) -> None:
        """Say that the study is finished."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...


def check_trackers(mlflow: str | None, tensorboard: str | None, wandb: str | None) -> None:
    """Find out whether `make_trackers` could make these, without importing what takes seconds.

    Raises:
        UsageError: an address is wrong, or the tracker's library is not installed.
    """
    packages = (mlflow, "mlflow", "MLflow"), (tensorboard, "tensorboard", "TensorBoard"), (wandb, "wandb", "W&B")
    for asked, package, name in packages:
        if asked and importlib.util.find_spec(package) is None:
            raise UsageError(f"{name} must be installed to be sent a study: {how_to_install(package)}")
    if mlflow:
        from tuner.tracking.mlflow import address

        address(mlflow)
    if tensorboard:
        from tuner.tracking.tensorboard import identity

        identity(Path(tensorboard))


def make_trackers(mlflow: str | None, tensorboard: str | None, wandb: str | None) -> list[Tracker]:
    """Return the trackers that are asked for, their libraries imported.

    Args:
        mlflow: The URI of an MLflow server.
        tensorboard: A folder for TensorBoard's files.
        wandb: A project of W&B; its other settings are W&B's own environment variables.

    Raises:
        UsageError: as in `check_trackers`.
    """
    check_trackers(mlflow, tensorboard, wandb)
    made: list[Tracker] = []
    if mlflow:
        from tuner.tracking.mlflow import MlflowTracker

        made.append(MlflowTracker(mlflow))
    if tensorboard:
        from tuner.tracking.tensorboard import TensorboardTracker

        made.append(TensorboardTracker(tensorboard))
    if wandb:
        from tuner.tracking.wandb import WandbTracker

        made.append(WandbTracker(wandb))
    return made
