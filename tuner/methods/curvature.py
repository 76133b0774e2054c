"""Hessian-vector products, extreme eigenvalues and the trace of a loss's Hessian, without building the matrix.

A product costs about as much as two gradients and needs no more memory (Pearlmutter, 1994). Methods that use only
products therefore work for any model: Lanczos' method for eigenvalues and Hutchinson's for the trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from tuner.training import PyTree, TrainerModule, TrainState
from tuner.training.data.arrays import Batch
from tuner.training.definition import H
from tuner.training.metrics import Mean, Metrics
from tuner.training.state import Stream

Loss = Callable[[Any], jax.Array]
"""Params -> Float[Array, ""], twice differentiable."""


def hessian_product(loss: Loss, params: PyTree, vector: PyTree) -> Any:
    """Return H v, H the Hessian of the loss at these parameters: the gradient's derivative along v.

    Args:
        loss: The loss.
        params: The parameters.
        vector: A vector v, as a pytree like `params`.

    Returns:
        A pytree like `params`, computed forward over reverse, which keeps no activations for the outer derivative.
    """
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


def flat_product(loss: Loss, params: PyTree) -> tuple[Callable[[jax.Array], jax.Array], int]:
    """Return the function v -> H v for flat vectors (Float[Array, "params"]), and their length."""
    flat, unravel = ravel_pytree(params)

    def product(vector: jax.Array) -> jax.Array:
        return ravel_pytree(hessian_product(loss, params, unravel(vector)))[0]

    return product, flat.size


def extreme_eigenvalues(loss: Loss, params: PyTree, key: jax.Array, steps: int = 20) -> tuple[jax.Array, jax.Array]:
    """Return the smallest and the largest eigenvalue of the Hessian, with Lanczos' method from a random vector.

    After k steps, they are the extremes of v^T H v over the unit vectors of the Krylov space of k products. They are
    never outside of the true range, and exact once k reaches the number of different eigenvalues. Unlike power
    iteration, the method distinguishes the largest eigenvalue from that of the largest magnitude, and needs fewer
    products. The vectors are kept and orthogonalised again, because they lose orthogonality in float32.

    Args:
        loss: The loss.
        params: The parameters.
        key: The key of the first vector.
        steps: The number of products, at most the number of parameters; static.

    Returns:
        Two numbers, Float[Array, ""].
    """
    product, size = flat_product(loss, params)
    steps = min(steps, size)
    first = jax.random.normal(key, (size,))
    basis = jnp.zeros((steps, size)).at[0].set(first / jnp.linalg.norm(first))

    def step(basis: jax.Array, at: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        image = product(basis[at])
        diagonal, scale = image @ basis[at], jnp.linalg.norm(image)
        for _ in range(2):  # the second pass removes rounding errors
            image = image - basis.T @ (basis @ image)
        norm = jnp.linalg.norm(image)
        # If only rounding errors remain, the space is exhausted: use zeros.
        norm = jnp.where(norm > 1e-5 * scale, norm, 0.0)
        following = jnp.where(norm > 0, image / jnp.where(norm > 0, norm, 1.0), 0.0)
        return basis.at[at + 1].set(following, mode="drop"), (diagonal, norm)

    _, (diagonal, beside) = jax.lax.scan(step, basis, jnp.arange(steps))
    # Zeros after an exhausted space would add eigenvalues 0; with v^T H v they are between the extremes.
    is_alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(beside[:-1] > 0) > 0])
    diagonal = jnp.where(is_alive, diagonal, diagonal[0])
    eigenvalues = jnp.linalg.eigvalsh(jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1))
    return eigenvalues[0], eigenvalues[-1]


def hessian_trace(loss: Loss, params: PyTree, key: jax.Array, probes: int = 20) -> jax.Array:
    """Return Hutchinson's estimate of the Hessian's trace, the mean of v^T H v over random signs v (1990).

    It is unbiased. Its variance is 2/probes times the sum of the squared off-diagonal elements, so that a single probe
    is exact for a diagonal matrix.

    Args:
        loss: The loss.
        params: The parameters.
        key: The key of the signs.
        probes: The number of products; static.

    Returns:
        Float[Array, ""].
    """
    product, size = flat_product(loss, params)

    def probe(key: jax.Array) -> jax.Array:
        signs = jax.random.rademacher(key, (size,), jnp.float32)
        return signs @ product(signs)

    return jnp.mean(jax.lax.map(probe, jax.random.split(key, probes)))


class Sharpness(TrainerModule[H]):
    """Adds `sharpness` to a trainer's validation: `class Mine(Sharpness, Classifier)`.

    That is the largest eigenvalue of the Hessian of the mean loss, in evaluation mode and at the evaluated weights.
    Gradient descent with rate r is unstable if it exceeds 2/r, and settles near that value (Cohen et al., 2021). If the
    validation set has several batches, the metric is the mean over batches.
    """

    lanczos_steps = 12

    def eval_step(self, state: TrainState, batch: Batch, hparams: H) -> Metrics:
        metrics = super().eval_step(state, batch, hparams)
        weights = state.for_evaluation()
        assert weights.key is not None

        def loss(params: PyTree) -> jax.Array:
            outputs, _ = self.apply_model(params, weights.collections, batch, hparams, train=False)
            return Mean.of(self.loss(outputs, batch, hparams)[0], batch["weight"]).value

        _, greatest = extreme_eigenvalues(loss, weights.params, Stream.EVAL.key(weights.key), self.lanczos_steps)
        return {**metrics, "sharpness": Mean.of_steps(greatest)}
