"""Hyperparameter tuning for JAX and Flax: studies on Optuna, workers that share one database. No JAX behind this."""

from tuner import errors
from tuner.storage import open_storage
from tuner.study import Study
from tuner.study.space import Space, choice, int_uniform, log_uniform, uniform

__all__ = [
    "Space",
    "Study",
    "choice",
    "errors",
    "int_uniform",
    "log_uniform",
    "open_storage",
    "uniform",
]
