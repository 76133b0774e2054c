"""Where a study's numbers are sent as well: one interface, and MLflow, TensorBoard and W&B behind it."""

from tuner.tracking.tracker import (
    MLFLOW_VARIABLE,
    TrackedReport,
    TrackedStudy,
    TrackedTrial,
    Tracker,
    check_trackers,
    make_trackers,
)

__all__ = [
    "MLFLOW_VARIABLE",
    "TrackedReport",
    "TrackedStudy",
    "TrackedTrial",
    "Tracker",
    "check_trackers",
    "make_trackers",
]
