"""Creates the trackers that the user asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tuner.errors import UsageError, how_to_install
from tuner.tracking.tracker import Tracker

MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow's own; a command that takes `--mlflow` takes it from here as well."""


def check_trackers(mlflow: str | None, tensorboard: str | None, wandb: str | None) -> None:
    """Find out whether `make_trackers` could make these, without importing what takes seconds.

    Raises:
        UsageError: an address is wrong, or the tracker's library is not installed.
    """
    packages = (mlflow, "mlflow", "MLflow"), (tensorboard, "tensorboard", "TensorBoard"), (wandb, "wandb", "W&B")
    for asked, package, name in packages:
        if asked and importlib.util.find_spec(package) is None:
            raise UsageError(f"sending a study to {name} needs its package: {how_to_install(package)}")
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
