"""Training a Flax model as pure functions of hyperparameters, with the tuner or alone. Imports JAX."""

from tuner.training.data import ArrayDataset, Splits
from tuner.training.layers import Dropout
from tuner.training.metrics import Mean
from tuner.training.optimizer import adamw, warmup_cosine
from tuner.training.state import TrainState
from tuner.training.trainer import TrainerModule

__all__ = ["ArrayDataset", "Dropout", "Mean", "Splits", "TrainState", "TrainerModule", "adamw", "warmup_cosine"]
