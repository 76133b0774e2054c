"""A learned optimizer of the VeLO kind (Metz et al., 2022, arXiv 2211.09760): a small network takes every step.

This package does not contain or load VeLO's weights; you train the weights yourself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tuner.errors import StudyError
from tuner.training.optim.schedules import check_steps
from tuner.training.pytree import PyTree

# Momenta over about 2, 10 and 100 steps, as in the per-parameter networks on which VeLO is based.
_TIME_SCALES = (0.5, 0.9, 0.99)
_RMS_DECAY = 0.99
_HIDDEN = 16
_FEATURES = 5 + len(_TIME_SCALES)
# Outputs are small numbers: without these factors an untrained network would take steps of order 1.
_STEP, _EXPONENT = 0.1, 0.5


class LearnedState(NamedTuple):
    """The number of updates; moving averages of the gradient, one tree per time scale, and of its square."""

    made: jax.Array
    momenta: tuple[Any, ...]
    squares: Any


def init_weights(key: jax.Array) -> dict[str, jax.Array]:
    """Return an untrained network of two layers, the same for every parameter.

    Args:
        key: Draws the weights.

    Returns:
        A tree of arrays to be meta-trained, by gradient or by evolution.
    """
    first, second = jax.random.split(key)
    return {
        "hidden": jax.random.normal(first, (_FEATURES, _HIDDEN)) / _FEATURES**0.5,
        "hidden_bias": jnp.zeros(_HIDDEN),
        "out": jax.random.normal(second, (_HIDDEN, 2)) / _HIDDEN**0.5,
        "out_bias": jnp.zeros(2),
    }


def learned(weights: dict[str, jax.Array], *, total_steps: int) -> optax.GradientTransformation:
    """Return an optimizer whose steps a network computes.

    For each parameter, the network gets the gradient and its momenta divided by their RMS, the RMS, the parameter and
    the progress of training. It returns a direction and the logarithm of a magnitude.

    Args:
        weights: The network, from `init_weights` and meta-training.
        total_steps: Updates of the whole training. The horizon is a hyperparameter of such optimizers (arXiv
            2310.18191): weights trained for another horizon are a different optimizer.

    Returns:
        A transformation that needs the parameters; differentiable in the weights.

    Raises:
        StudyError: total_steps is not a whole number above zero, or the weights have other shapes.
    """
    check_steps(total_steps)
    expected = jax.tree.map(jnp.shape, jax.eval_shape(init_weights, jax.random.key(0)))
    found = jax.tree.map(jnp.shape, weights)
    if found != expected:
        raise StudyError(f"weights must have the same shapes as those of init_weights, {expected}: got {found}")

    def init(params: PyTree) -> LearnedState:
        zeros = optax.tree.zeros_like(params)
        return LearnedState(jnp.zeros((), jnp.int32), (zeros,) * len(_TIME_SCALES), zeros)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> Any:
        if params is None:
            raise StudyError(
                "a learned optimizer needs the parameters: got params=None; call update(grads, state, params)"
            )
        made = state.made + 1
        momenta = tuple(_average(updates, old, rate) for old, rate in zip(state.momenta, _TIME_SCALES, strict=True))
        squares = _average(jax.tree.map(jnp.square, updates), state.squares, _RMS_DECAY)
        progress = jnp.minimum(state.made.astype(jnp.float32) / total_steps, 1.0)
        bias = 1 - jnp.float32(_RMS_DECAY) ** made.astype(jnp.float32)

        def step(grad: jax.Array, square: jax.Array, param: jax.Array, *slow: jax.Array) -> jax.Array:
            features = _features(grad, square / bias.astype(square.dtype), param, slow, progress)
            return _apply(weights, features).astype(grad.dtype)

        steps = jax.tree.map(step, updates, squares, params, *momenta)
        return steps, LearnedState(made, momenta, squares)

    return optax.GradientTransformation(init, update)


def _average(new: PyTree, old: PyTree, rate: float) -> Any:
    return jax.tree.map(lambda n, o: rate * o + (1 - rate) * n, new, old)


def _features(
    grad: jax.Array, square: jax.Array, param: jax.Array, slow: tuple[jax.Array, ...], progress: jax.Array
) -> jax.Array:
    """Return the inputs of the network: Float[Array, "... features"]."""
    # Added inside the root, so that the derivative is finite if a gradient is 0.
    rms = jnp.sqrt(square + 1e-16)
    scaled = [value / rms for value in (grad, *slow)]
    late = progress.astype(grad.dtype)
    flat = [jnp.broadcast_to(value, grad.shape) for value in (late, (1 - late) ** 2)]
    # The logarithm of the RMS shows how near a minimum is; divided by 10 it is of order 1.
    return jnp.stack([*scaled, jnp.log(rms) / 10, param, *flat], axis=-1).astype(jnp.float32)


def _apply(weights: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """Return the steps: Float[Array, "..."]."""
    with jax.numpy_rank_promotion("allow"):
        hidden = jnp.tanh(features @ weights["hidden"] + weights["hidden_bias"])
        direction, magnitude = jnp.moveaxis(hidden @ weights["out"] + weights["out_bias"], -1, 0)
    return -_STEP * direction * jnp.exp(_EXPONENT * magnitude)
