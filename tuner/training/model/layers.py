"""Layers that accept traced hyperparameters, where Flax's own need Python numbers; and layers stacked in a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tuner.training.optim.stacks import declare_stack


class Dropout(nn.Module):
    """Dropout whose rate may be a number inside the program (Srivastava et al., 2014).

    `flax.linen.Dropout` branches on `rate == 0`, which needs a Python number and so a program for each rate.

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
    # In float32 whatever the inputs are: of half precision's few numbers a small rate would round to zero.
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, inputs.shape)
    return jnp.where(kept, inputs / keep.astype(inputs.dtype), jnp.zeros_like(inputs))


class Stack(nn.Module):
    """Equal layers one after another as a loop inside the program: compiling takes as long as for one of them.

    Each layer has variables of its own in all collections, stacked along a first axis of length `depth`. An
    `OptimizerSpec` of a trainer treats each layer as if it stood alone: it trains as layers one after another do.

    Attributes:
        layer: Makes one layer: a module whose call takes activations (or a tuple with what goes along with them, a
            mask say) and `train`, and returns the same with shapes and types kept.
        depth: How many; static.
        remat: Forget activations inside each layer and compute them again for the gradient (Chen et al., 2016): memory
            for one layer's insides instead of all layers', at the price of one more forward pass.
    """

    layer: Callable[..., nn.Module]
    depth: int
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: Any, *, train: bool) -> Any:
        """Return the last layer's output; shapes and types of the inputs."""

        def body(layer: nn.Module, carry: Any, _: None) -> tuple[Any, None]:
            return layer(carry, train=train), None  # pyright: ignore[reportCallIssue]

        step: Any = nn.remat(body, prevent_cse=False) if self.remat else body
        declare_stack((*self.path, "layers"), self.depth)
        looped = nn.scan(
            step,
            variable_axes={True: 0},  # all collections: also those that only the layer knows
            split_rngs={True: True},
            length=self.depth,
        )
        return looped(self.layer(name="layers"), inputs, None)[0]
