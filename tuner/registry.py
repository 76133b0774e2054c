"""The old name of `tuner.tracking.mlflow_models`, which models that version 0.1 registered in MLflow are loaded by."""

from tuner.tracking.mlflow_models import _load_pyfunc

__all__ = ["_load_pyfunc"]
