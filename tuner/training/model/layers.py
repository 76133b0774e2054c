"""Layers that accept traced hyperparameters, where Flax's own need Python numbers; and layers stacked in a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tuner.training.optim.stacks import declare_stack
from tuner.training.pytree import PyTree


class Dropout(nn.Module):
    """Dropout with a rate that may be traced (Srivastava et al., 2014).

    `flax.linen.Dropout` branches on `rate == 0`, which needs a Python number and therefore a program for each rate.

    Attributes:
        rate: The share of values set to zero, in [0, 1); the others are divided by 1 - rate.
    """

    rate: float | jax.Array

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Return inputs with dropout applied in training, unchanged in evaluation; same shape and type."""
        if not train:
            return inputs
        return drop(inputs, self.make_rng("dropout"), self.rate)


def drop(inputs: jax.Array, key: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Set a share `rate` of the inputs to zero and divide the others by 1 - rate; same shape and type."""
    # In float32 for any inputs: half precision would round a small rate to zero.
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, inputs.shape)
    return jnp.where(kept, inputs / keep.astype(inputs.dtype), jnp.zeros_like(inputs))


class Stack(nn.Module):
    """Equal layers in sequence, as a loop inside the program: they compile as fast as one layer.

    Each layer has its own variables in all collections, stacked along a first axis of length `depth`. An
    `OptimizerSpec` of a trainer treats each layer separately, so that it trains like layers without `Stack`.

    Attributes:
        layer: Creates one layer: a module whose call takes activations (or a tuple of activations and, for example, a
            mask) and `train`, and returns the same with equal shapes and types.
        depth: The number of layers; static.
        remat: Recompute the activations inside each layer for the gradient instead of keeping them (Chen et al., 2016).
            This needs memory for the inside of one layer instead of all, and one more forward pass.
    """

    layer: Callable[..., nn.Module]
    depth: int
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: PyTree, *, train: bool) -> Any:
        """Return the last layer's output, with the shapes and types of the inputs."""

        def body(layer: nn.Module, carry: PyTree, _: None) -> tuple[Any, None]:
            return layer(carry, train=train), None  # pyright: ignore[reportCallIssue]

        step: Any = nn.remat(body, prevent_cse=False) if self.remat else body
        declare_stack((*self.path, "layers"), self.depth)
        looped = nn.scan(
            step,
            variable_axes={True: 0},  # all collections, including those that only the layer defines
            split_rngs={True: True},
            length=self.depth,
        )
        return looped(self.layer(name="layers"), inputs, None)[0]
