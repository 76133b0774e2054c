"""NNX layers that accept traced hyperparameters. In a separate module from `layers`, because few models need NNX."""

from __future__ import annotations

import jax
from flax import nnx

from tuner.training.model.layers import drop

__all__ = ["Dropout"]


class Dropout(nnx.Module):
    """Dropout whose rate may be a number inside the program (Srivastava et al., 2014).

    `flax.nnx.Dropout` branches on `rate == 0`, which needs a Python number and so a program for each rate. A module's
    `train()` and `eval()` switch this layer like Flax's.

    Args:
        rate: The share of values set to zero, in [0, 1); the others are divided by 1 - rate.
        deterministic: Return the inputs unchanged.
        rngs: The random streams; the masks use the stream `dropout`.
    """

    def __init__(self, rate: float | jax.Array, *, deterministic: bool = False, rngs: nnx.Rngs) -> None:
        self.rate = rate
        self.deterministic = deterministic
        self.rngs = rngs["dropout"].fork()

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Return inputs with dropout applied in training, unchanged in evaluation; same shape and type."""
        if self.deterministic:
            return inputs
        return drop(inputs, self.rngs(), self.rate)
