"""A normalising flow of affine couplings, with exact density and sampling (Dinh, Sohl-Dickstein & Bengio, 2017).

With z = f(x) invertible and z ~ N(0, I): log p(x) = log N(f(x); 0, I) + log |det df/dx|. A coupling keeps the first
half of the coordinates and changes the rest, y_2 = x_2 exp(s(x_1)) + t(x_1). Its Jacobian is triangular, its
log-determinant is the sum of s(x_1), and its inverse does not need the inverse of s and t.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tuner.errors import StudyError
from tuner.training import TrainerModule, TrainState
from tuner.training.data.arrays import Batch
from tuner.training.definition import H
from tuner.training.metrics import Mean, Metrics
from tuner.training.pytree import PyTree
from tuner.training.state import Stream

LARGEST_SCALE = 2.0
"""The bound on |s|: a coupling stretches by at most e^2, so that none overflows early in training."""


def log_normal(z: jax.Array) -> jax.Array:
    """Return log N(z; 0, I): Float[Array, "batch"] for Float[Array, "batch features"]."""
    return -0.5 * (jnp.sum(z**2, axis=-1) + z.shape[-1] * jnp.log(2 * jnp.pi))


class Affine(nn.Module):
    """z = (x - b) L^T, with L lower triangular with a positive diagonal: by itself, a Gaussian with any covariance."""

    @nn.compact
    def __call__(self, x: jax.Array, inverse: bool) -> tuple[jax.Array, jax.Array]:
        """Return y and log |det dy/dx|: Float[Array, "batch features"] and Float[Array, "batch"]."""
        features = x.shape[-1]
        shift = self.param("shift", nn.initializers.zeros, (features,))
        log_diagonal = self.param("log_diagonal", nn.initializers.zeros, (features,))
        lower = jnp.tril(self.param("lower", nn.initializers.zeros, (features, features)), -1)
        matrix = lower + jnp.diag(jnp.exp(log_diagonal))
        log_det = jnp.full(len(x), jnp.sum(log_diagonal))
        if inverse:
            return jax.scipy.linalg.solve_triangular(matrix, x.T, lower=True).T + shift[None], -log_det
        return (x - shift[None]) @ matrix.T, log_det


class Coupling(nn.Module):
    """An affine coupling, initially the identity; s = c tanh(.) is bounded.

    Attributes:
        width: The width of the two hidden layers that compute s and t from the kept coordinates.
        is_swapped: Whether the last coordinates are kept instead of the first.
    """

    width: int
    is_swapped: bool

    @nn.compact
    def __call__(self, x: jax.Array, inverse: bool) -> tuple[jax.Array, jax.Array]:
        """Return y and log |det dy/dx|: Float[Array, "batch features"] and Float[Array, "batch"]."""
        order = slice(None, None, -1) if self.is_swapped else slice(None)
        kept, moved = jnp.split(x[:, order], [x.shape[-1] // 2], axis=-1)
        hidden = kept
        for _ in range(2):
            hidden = nn.silu(nn.Dense(self.width)(hidden))
        made = nn.Dense(2 * moved.shape[-1], kernel_init=nn.initializers.zeros)(hidden)
        scale, shift = jnp.split(made, 2, axis=-1)
        scale = LARGEST_SCALE * jnp.tanh(scale / LARGEST_SCALE)
        if inverse:
            moved, scale = (moved - shift) * jnp.exp(-scale), -scale
        else:
            moved = moved * jnp.exp(scale) + shift
        return jnp.concatenate([kept, moved], axis=-1)[:, order], jnp.sum(scale, axis=-1)


class Flow(nn.Module):
    """An affine layer followed by couplings, every second one swapped; without couplings a Gaussian.

    Attributes:
        couplings: The number of couplings.
        width: The width of their hidden layers.
    """

    couplings: int
    width: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, inverse: bool = False) -> tuple[jax.Array, jax.Array]:
        """Return y and log |det dy/dx| for y = f(x), or for y = f^-1(x).

        Args:
            x: Float[Array, "batch features"], with at least two features if there are couplings.
            inverse: Whether to map noise to data; static.
        """
        if self.couplings and x.shape[-1] < 2:
            raise StudyError(f"couplings need at least 2 features: got {x.shape[-1]}; use couplings=0")
        layers = [Affine(), *(Coupling(self.width, is_swapped=at % 2 == 1) for at in range(self.couplings))]
        total = jnp.zeros(len(x), x.dtype)
        for layer in reversed(layers) if inverse else layers:
            x, log_det = layer(x, inverse)
            total = total + log_det
        return x, total


class FlowTrainer(TrainerModule[H]):
    """Maximum-likelihood training of a flow on `inputs`; `init_model` returns the flow, such as `Flow`.

    The model is called as model(x, inverse) and returns y and the log-determinant. `loss` is the mean of -log p(x) in
    nats. Validation also reports `entropy`, the same for samples of the model itself: as many as a batch has examples,
    drawn with the state's key and equal for each batch. If the loss is much higher than the entropy, the model is
    overconfident.
    """

    def loss(self, outputs: PyTree, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        """Return -log p(x) for each example.

        Args:
            outputs: z, Float[Array, "batch features"], and log |det dz/dx|, Float[Array, "batch"].
            batch: The batch.
            hparams: The hyperparameters.
        """
        z, log_det = outputs
        return -(log_normal(z) + log_det), {}

    def eval_step(self, state: TrainState, batch: Batch, hparams: H) -> Metrics:
        metrics = super().eval_step(state, batch, hparams)
        assert state.key is not None
        assert state.step is not None
        key = Stream.EVAL.key(state.key, state.step)
        _, log_density = self.sample(state, hparams, key, batch["inputs"].shape)
        return {**metrics, "entropy": Mean.of(-log_density, batch["weight"])}

    def sample(
        self, state: TrainState, hparams: H, key: jax.Array, shape: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """Return samples of the model and their log-densities: Float[Array, "count features"], Float[Array, "count"].

        Args:
            state: The state, from a training or a checkpoint.
            hparams: The hyperparameters it was trained with.
            key: The key; the same key gives the same samples.
            shape: The count and the number of features; static.
        """
        weights = state.for_evaluation()
        noise = jax.random.normal(key, shape)
        (samples, log_det), _ = self.apply_inputs(
            weights.params, weights.collections, (noise, True), hparams, train=False
        )
        return samples, log_normal(noise) - log_det
