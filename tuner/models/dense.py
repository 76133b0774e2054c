"""A multilayer perceptron and a small convolutional network."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tuner.models.precision import mixes_precisions
from tuner.training import Dropout


class MLP(nn.Module):
    """Dense layers with ReLU and dropout, followed by a linear layer.

    Attributes:
        classes: The number of outputs.
        width: The width of each hidden layer.
        depth: The number of hidden layers.
        dropout_rate: The dropout rate; may be traced.
        dtype: The type of the activations; if None that of parameters and inputs, which the trainer's `precision` sets.
            Outputs are float32.
    """

    classes: int
    width: int = 64
    depth: int = 2
    dropout_rate: float | jax.Array = 0.0
    dtype: Any = None

    @nn.compact
    @mixes_precisions
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Return outputs [batch, classes] for inputs [batch, ...]; all axes but the first are flattened."""
        hidden = inputs.reshape(inputs.shape[0], -1)
        for _ in range(self.depth):
            hidden = nn.relu(nn.Dense(self.width, dtype=self.dtype)(hidden))
            hidden = Dropout(self.dropout_rate)(hidden, train=train)
        return nn.Dense(self.classes, dtype=self.dtype)(hidden).astype(jnp.float32)


class CNN(nn.Module):
    """3x3 convolutions, each with batch normalisation, ReLU and pooling by two; then global mean and a linear layer.

    Attributes:
        classes: The number of outputs.
        channels: Channels of the first convolution; each next one has twice as many.
        depth: The number of convolutions.
        dropout_rate: The dropout rate before the last layer; may be traced.
        bn_momentum: The momentum of the running statistics.
        dtype: The type of the activations; if None that of parameters and inputs, which the trainer's `precision` sets.
            Outputs are float32.
    """

    classes: int
    channels: int = 16
    depth: int = 2
    dropout_rate: float | jax.Array = 0.0
    bn_momentum: float = 0.9
    dtype: Any = None

    @nn.compact
    @mixes_precisions
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Return outputs [batch, classes] for images [batch, height, width, channels] or [batch, height, width]."""
        hidden = images if images.ndim == 4 else images[..., None]
        for at in range(self.depth):
            hidden = nn.Conv(self.channels * 2**at, (3, 3), use_bias=False, dtype=self.dtype)(hidden)
            hidden = nn.BatchNorm(use_running_average=not train, momentum=self.bn_momentum, dtype=self.dtype)(hidden)
            hidden = nn.relu(hidden)
            if min(hidden.shape[1:3]) > 1:
                hidden = nn.max_pool(hidden, (2, 2), (2, 2))
        hidden = Dropout(self.dropout_rate)(hidden.mean((1, 2)), train=train)
        return nn.Dense(self.classes, dtype=self.dtype)(hidden).astype(jnp.float32)
