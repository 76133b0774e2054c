"""Autoencoders, and pictures of their reconstructions (Hinton & Salakhutdinov, 2006)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuner.errors import StudyError
from tuner.training import TrainerModule, TrainState, save_picture, tile
from tuner.training.data.arrays import Batch
from tuner.training.definition import H


def squared_error(reconstructions: jax.Array, inputs: jax.Array) -> jax.Array:
    """Return each example's mean squared error over its features: Float[Array, "batch"].

    Args:
        reconstructions: Float[Array, "batch *features"].
        inputs: The same shape.

    Raises:
        ValueError: the shapes differ; broadcasting would compare each example with all others.
    """
    if reconstructions.shape != inputs.shape:
        raise ValueError(
            f"reconstructions and inputs must have the same shape: got {reconstructions.shape} and {inputs.shape}"
        )
    return jnp.mean((reconstructions - inputs) ** 2, axis=tuple(range(1, inputs.ndim)))


def pairs(originals: np.ndarray, reconstructions: np.ndarray | jax.Array) -> np.ndarray:
    """Return a picture with the originals in the upper row and their reconstructions below.

    Args:
        originals: Float[Array, "count height width"], from 0 to 1.
        reconstructions: The same number of values, in any shape that starts with the count.

    Returns:
        Float[Array, "2*height+1 count*(width+1)-1"].
    """
    below = np.asarray(reconstructions).reshape(originals.shape)
    return tile(np.concatenate([originals, below]), columns=len(originals))


class Autoencoder(TrainerModule[H]):
    """Reconstructs `inputs` with a model that has a bottleneck; subclasses define `init_model`.

    The model's outputs are the reconstructions. With only linear layers, the optimum is the projection on the first
    principal components (Baldi & Hornik, 1989).

    Args:
        shown: Images to reconstruct in a picture, Float[Array, "count height width"] from 0 to 1; flattened, they are
            inputs of the model. None for no pictures.
        every: Epochs between two pictures; > 0.
    """

    def __init__(self, shown: np.ndarray | None = None, every: int = 10) -> None:
        if every < 1:
            raise StudyError(f"every, the epochs between two pictures, must be at least 1: got {every}")
        self._shown, self._every = shown, every

    def loss(self, outputs: jax.Array, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        """Return the mean squared error of each reconstruction.

        Args:
            outputs: Reconstructions, Float[Array, "batch *features"].
            batch: The batch, with `inputs` of the same shape.
            hparams: The hyperparameters.
        """
        return squared_error(outputs, batch["inputs"]), {}

    def on_validation_epoch_end(self, state: TrainState, hparams: H, epoch: int, metrics: Mapping[str, float]) -> None:
        """Save a picture of originals and reconstructions, `reconstructions-EPOCH`, every few epochs."""
        if self._shown is not None and epoch % self._every == 0:
            save_picture(f"reconstructions-{epoch:04d}", self.draw(state, hparams))

    def draw(self, state: TrainState, hparams: H) -> np.ndarray:
        """Return a picture of `shown` and its reconstructions with this state; see `pairs`."""
        assert self._shown is not None
        flat = self._shown.reshape(len(self._shown), -1).astype(np.float32)
        return pairs(self._shown, self.bind_model(state, hparams)(flat))
