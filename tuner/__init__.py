"""Hyperparameter tuning for JAX and Flax: Optuna studies whose workers share one database. Does not import JAX."""

from tuner.api import (
    Command,
    OptunaObjective,
    Space,
    Study,
    Trial,
    choice,
    errors,
    int_uniform,
    load_state,
    log_uniform,
    open_storage,
    open_study,
    optimize,
    uniform,
)

__all__ = [
    "Command",
    "OptunaObjective",
    "Space",
    "Study",
    "Trial",
    "choice",
    "errors",
    "int_uniform",
    "load_state",
    "log_uniform",
    "open_storage",
    "open_study",
    "optimize",
    "uniform",
]
