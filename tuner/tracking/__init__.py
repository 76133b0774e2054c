"""Sends the results of a study to MLflow, TensorBoard and W&B, through one interface."""

from tuner.tracking.choose import MLFLOW_VARIABLE, check_trackers, make_trackers
from tuner.tracking.tracker import TrackedReport, TrackedStudy, TrackedTrial, Tracker

__all__ = [
    "MLFLOW_VARIABLE",
    "TrackedReport",
    "TrackedStudy",
    "TrackedTrial",
    "Tracker",
    "check_trackers",
    "make_trackers",
]
