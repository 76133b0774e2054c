"""Trains Flax models as pure functions of hyperparameters, with or without a study. Imports JAX."""

from tuner.training.data.arrays import ArrayDataset, Splits
from tuner.training.data.labels import check_labels
from tuner.training.data.stream import StreamDataset
from tuner.training.functions import FunctionTrainer, vmappable
from tuner.training.loop.diagnosis import Profile
from tuner.training.loop.evaluation import memory
from tuner.training.loop.training import Training
from tuner.training.mesh import Layout
from tuner.training.metrics import ConfusionMatrix, Mean, Metric
from tuner.training.model.adapters import Model
from tuner.training.model.layers import Dropout, Stack
from tuner.training.optim.build import OptimizerGroups, OptimizerSpec, adamw, warmup_cosine
from tuner.training.optim.learned import init_weights, learned
from tuner.training.optim.rules import decay_all, decay_matrices
from tuner.training.optim.schedules import Constant, Exponential, OneCycle, Piecewise, WarmupCosine
from tuner.training.optim.transforms import GradientNoise
from tuner.training.pytree import PyTree
from tuner.training.restore import Loaded, Run, load_from_checkpoint, load_run
from tuner.training.saved.checkpoints import Checkpoints, is_new_model_better
from tuner.training.saved.pictures import save_picture, tile
from tuner.training.state import TrainState
from tuner.training.trainer import TrainerModule

__all__ = [
    "ArrayDataset",
    "Checkpoints",
    "ConfusionMatrix",
    "Constant",
    "Dropout",
    "Exponential",
    "FunctionTrainer",
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
    "PyTree",
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
    "vmappable",
    "warmup_cosine",
]
