"""Hyperparameter tuning for JAX and Flax: Optuna studies whose workers share one database. Does not import JAX."""

from tuner.api import Space, Study, choice, errors, int_uniform, log_uniform, open_storage, uniform

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
