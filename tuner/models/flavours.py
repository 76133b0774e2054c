"""Models other than Linen modules: one in NNX, one as two pure functions. A trainer handles them in the same way."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class NnxMLP(nnx.Module):
    """A multilayer perceptron in NNX.

    Args:
        features: The number of inputs per example.
        classes: The number of outputs.
        width: The width of each hidden layer.
        depth: The number of hidden layers.
        rngs: The random streams of the initial weights.
    """

    def __init__(self, features: int, classes: int, width: int = 64, depth: int = 2, *, rngs: nnx.Rngs) -> None:
        sizes = [features, *[width] * depth, classes]
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in itertools.pairwise(sizes)])

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Return outputs [batch, classes] for inputs [batch, ...]; all axes but the first are flattened."""
        hidden = inputs.reshape(inputs.shape[0], -1)
        for layer in self.layers[:-1]:
            hidden = nnx.relu(layer(hidden))
        return self.layers[-1](hidden)


def linear(classes: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return a linear model as `init(key, inputs)` and `apply(params, inputs)`: softmax or linear regression."""

    def init(key: jax.Array, inputs: jax.Array) -> dict[str, jax.Array]:
        features = inputs.reshape(inputs.shape[0], -1).shape[1]
        weights = jax.random.normal(key, (features, classes)) / jnp.sqrt(features)
        return {"weights": weights, "bias": jnp.zeros(classes)}

    def apply(params: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
        return inputs.reshape(inputs.shape[0], -1) @ params["weights"] + params["bias"][None]

    return init, apply
