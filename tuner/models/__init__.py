"""Models by name, so that a search space can choose one, and the model of a stored trial can be rebuilt."""

from tuner.models.dense import CNN, MLP
from tuner.models.factory import MODELS, make_model
from tuner.models.flavours import NnxMLP, linear
from tuner.models.resnet import ResNet, cifar_resnet, resnet
from tuner.models.transformer import Transformer

__all__ = [
    "CNN",
    "MLP",
    "MODELS",
    "NnxMLP",
    "ResNet",
    "Transformer",
    "cifar_resnet",
    "linear",
    "make_model",
    "resnet",
]
