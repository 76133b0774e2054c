"""Creates the trackers that the user asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tuner.errors import UsageError, how_to_install
from tuner.tracking.tracker import Tracker

MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow's environment variable, the default of `mlflow`."""


def check_trackers(mlflow: str | None, tensorboard: str | None, wandb: str | None) -> None:
    """Check the arguments of `make_trackers` without importing the trackers' libraries, which takes seconds.

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
    """Import the libraries of trackers and create the trackers.

    Args:
        mlflow: The URI of an MLflow server, or None.
        tensorboard: A folder for TensorBoard's files.
        wandb: A project of W&B; W&B's own environment variables set the rest.

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
