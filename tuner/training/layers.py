"""Layers whose hyperparameters may be traced, where Flax's own need Python numbers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


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
        keep = 1.0 - jnp.asarray(self.rate, inputs.dtype)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, inputs.shape)
        return jnp.where(kept, inputs / keep, jnp.zeros_like(inputs))
