"""The old name of `tuner.tracking.mlflow_models`; MLflow models registered by version 0.1 load through it."""

from tuner.tracking.mlflow_models import _load_pyfunc

__all__ = ["_load_pyfunc"]
