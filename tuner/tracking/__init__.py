"""Where a study's numbers are sent as well: one interface, and MLflow, TensorBoard and W&B behind it."""

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
