"""Training a Flax model as pure functions of hyperparameters, with the tuner or alone. Imports JAX."""

from tuner.training.checkpoints import Checkpoints, is_new_model_better
from tuner.training.data import ArrayDataset, Splits
from tuner.training.diagnosis import Profile
from tuner.training.evaluation import memory
from tuner.training.labels import check_labels
from tuner.training.layers import Dropout, Stack
from tuner.training.learned_optimizer import init_weights, learned
from tuner.training.loop import Training
from tuner.training.mesh import Layout
from tuner.training.metrics import ConfusionMatrix, Mean, Metric
from tuner.training.models import Model
from tuner.training.optimizer import OptimizerGroups, OptimizerSpec, adamw, warmup_cosine
from tuner.training.optimizer_rules import decay_all, decay_matrices
from tuner.training.pictures import save_picture, tile
from tuner.training.restore import Loaded, Run, load_from_checkpoint, load_run
from tuner.training.schedules import Constant, Exponential, OneCycle, Piecewise, WarmupCosine
from tuner.training.state import TrainState
from tuner.training.stream import StreamDataset
from tuner.training.trainer import TrainerModule
from tuner.training.transforms import GradientNoise

__all__ = [
    "ArrayDataset",
    "Checkpoints",
    "ConfusionMatrix",
    "Constant",
    "Dropout",
    "Exponential",
    "GradientNoise",
    "Layout",
    "Loaded",
    "Mean",
    "Metric",
    "Model",
    "OneCycle",
    "OptimizerGroups",
    "OptimizerSpec",
    "Piecewise",
    "Profile",
    "Run",
    "Splits",
    "Stack",
    "StreamDataset",
    "TrainState",
    "TrainerModule",
    "Training",
    "WarmupCosine",
    "adamw",
    "check_labels",
    "decay_all",
    "decay_matrices",
    "init_weights",
    "is_new_model_better",
    "learned",
    "load_from_checkpoint",
    "load_run",
    "memory",
    "save_picture",
    "tile",
    "warmup_cosine",
]
