"""Models by name, so that a search space can choose one and a stored trial can rebuild its own."""

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
