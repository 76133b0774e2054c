"""Creates models by name from hyperparameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tuner.errors import StudyError, nearest
from tuner.models.dense import CNN, MLP
from tuner.models.flavours import NnxMLP, linear
from tuner.models.resnet import cifar_resnet, resnet
from tuner.models.transformer import Transformer


def _nnx_mlp(features: int, classes: int, width: int = 64, depth: int = 2) -> Callable[..., NnxMLP]:
    return lambda rngs: NnxMLP(features, classes, width, depth, rngs=rngs)


MODELS: dict[str, Callable[..., Any]] = {
    "cifar_resnet": cifar_resnet,
    "cnn": CNN,
    "decoder": partial(Transformer, is_causal=True),
    "encoder": Transformer,
    "linear": linear,
    "mlp": MLP,
    "nnx_mlp": _nnx_mlp,
    "resnet": resnet,
}
"""Name -> the function that creates the model; its arguments are the model's hyperparameters."""

_OF_FLAX = ("parent", "name")


def make_model(name: str, hparams: object = None, **given: object) -> Any:
    """Create a model by name; use it in a trainer's `init_model`.

    With `model: str = choice("mlp", "cnn")` in the space, you can rebuild the model of any stored trial:
    `make_model(hparams.model, hparams, classes=10)` with `hparams = tuner.study.from_params(HParams, row["hparams"])`.

    Args:
        name: One of `MODELS`.
        hparams: A `Space` or a mapping. Fields that are arguments of the model are used; other fields, for example of
            the optimizer, are ignored.
        given: Arguments of the model that are not searched; they override those of `hparams`.

    Raises:
        StudyError: the name is unknown, the model does not have an argument of `given`, or an argument is missing.
    """
    if name not in MODELS:
        raise StudyError(f"a model must be one of {', '.join(MODELS)}: got {name!r}{nearest(name, MODELS)}")
    arguments = {key: found for key, found in _arguments(MODELS[name]).items() if key not in _OF_FLAX}
    for key in given:
        if key not in arguments:
            raise StudyError(
                f"the model {name!r} has no argument {key!r}: it has {', '.join(arguments)}{nearest(key, arguments)}"
            )
    taken = {key: _field(hparams, key) for key in arguments if key not in given and _has(hparams, key)}
    missing = [
        key for key, found in arguments.items() if found.default is found.empty and key not in {**taken, **given}
    ]
    if missing:
        raise StudyError(
            f"the model {name!r} needs {', '.join(missing)}: pass a value, or add a field to the search space"
        )
    return MODELS[name](**taken, **given)


def _arguments(make: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(make).parameters


def _has(hparams: object, key: str) -> bool:
    return key in hparams if isinstance(hparams, Mapping) else hasattr(hparams, key)


def _field(hparams: object, key: str) -> Any:
    return hparams[key] if isinstance(hparams, Mapping) else getattr(hparams, key)
