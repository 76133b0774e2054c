"""Gradient transformations around an optimizer. Numbers may be traced, and extra arguments are passed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tuner.training.optim.schedules import Number
from tuner.training.pytree import PyTree


@dataclass(frozen=True)
class GradientNoise:
    """Gaussian noise of variance eta / (1 + t)^gamma at update t (Neelakantan et al., 2015).

    Args:
        eta: The variance in the first update.
        gamma: The rate at which the variance decreases.
    """

    eta: Number
    gamma: Number = 0.55


class CountState(NamedTuple):
    """Updates made."""

    made: jax.Array


class AccumulateState(NamedTuple):
    """Weighted sums of gradients and losses since the last real update, and of the weights."""

    made: jax.Array
    grads: PyTree
    value: jax.Array
    inner: Any
    accumulated_weight: jax.Array

    def plus(self, grads: PyTree, value: Number, weight: Number, every: int) -> AccumulateState:
        """Return the sums with one more gradient and loss, which are means over examples with this weight.

        Checkpoints of earlier versions have the weight -1 and means instead of sums: all gradients had the same weight,
        which is assumed to be the current one.
        """
        weight = jnp.asarray(weight, jnp.float32)
        is_old = self.accumulated_weight < 0
        factor = jnp.where(is_old, every * weight, 1.0)
        so_far = jnp.where(is_old, self.made.astype(jnp.float32) * weight, self.accumulated_weight)

        def add(total: jax.Array, new: PyTree) -> jax.Array:
            return total * factor.astype(total.dtype) + jnp.asarray(new, total.dtype) * weight.astype(total.dtype)

        return AccumulateState(
            self.made, jax.tree.map(add, self.grads, grads), add(self.value, value), self.inner, so_far + weight
        )

    def means(self) -> tuple[Any, jax.Array]:
        """Return the means of gradients and losses; 0 if the weight is 0."""
        share = 1.0 / jnp.where(self.accumulated_weight > 0, self.accumulated_weight, 1.0)
        return jax.tree.map(lambda total: total * share.astype(total.dtype), (self.grads, self.value))


class SkipState(NamedTuple):
    """The number of skipped updates, and the state of the inner optimizer."""

    skipped: jax.Array
    inner: Any


def _zero() -> jax.Array:
    return jnp.zeros((), jnp.int32)


def like(new: PyTree, old: PyTree) -> Any:
    """Return a tree with another's dtypes: a traced number is not weakly typed and would widen results."""

    def match(n: PyTree, o: PyTree) -> Any:
        is_as_before = not hasattr(o, "dtype") or getattr(n, "dtype", None) == o.dtype
        return n if is_as_before else jnp.asarray(n, o.dtype)

    return jax.tree.map(match, new, old)


def lenient(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Disable strict promotion for optax, whose Adam raises a float to a whole power, and keep the state's dtypes."""
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return inner.init(params)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: object) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            steps, after = inner.update(updates, state, params, **extra)
            return like(steps, updates), like(after, state)

    return optax.GradientTransformationExtraArgs(init, update)


def clip(limit: Number) -> optax.GradientTransformation:
    """Clip to a global norm; unlike optax's, with a traced limit and any dtype."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> Any:
        norm = optax.tree.norm(updates)
        scale = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def add_noise(noise: GradientNoise, key: jax.Array) -> optax.GradientTransformation:
    """Add noise drawn from the key and the count, so that the state needs no key."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> Any:
        deviation = jnp.sqrt(noise.eta / (1.0 + state.made) ** noise.gamma)
        drawn = optax.tree.random_like(jax.random.fold_in(key, state.made), updates, jax.random.normal)
        noisy = jax.tree.map(lambda grad, normal: grad + (deviation * normal).astype(grad.dtype), updates, drawn)
        return noisy, CountState(state.made + 1)

    return optax.GradientTransformation(lambda params: CountState(_zero()), update)


def shrink(rate: Number | optax.Schedule, decay: Number) -> optax.GradientTransformation:
    """Subtract rate * decay * parameter from the step."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> Any:
        share = jnp.asarray(rate(state.made) if callable(rate) else rate) * decay
        return jax.tree.map(lambda step, w: step - share * w, updates, params), CountState(state.made + 1)

    return optax.GradientTransformation(lambda params: CountState(_zero()), update)


def rename_value_fn(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Pass the loss function on under the name that Sophia uses."""
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree = None,
        *,
        value_fn: Callable[..., jax.Array] | None = None,
        **extra: object,
    ) -> Any:
        return inner.update(updates, state, params, obj_fn=value_fn)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def accumulate(inner: optax.GradientTransformationExtraArgs, every: int) -> optax.GradientTransformationExtraArgs:
    """Pass on the mean of the last gradients and losses, each weighted by the extra argument `weight`.

    `weight` is the total weight of the examples of a gradient (1 by default), so that the result is the mean over all
    these examples. Optax's own version gives a short batch the weight of a full one, and passes on only the last loss.
    """

    def init(params: PyTree) -> AccumulateState:
        wide = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), params)
        return AccumulateState(_zero(), wide, jnp.zeros(()), inner.init(params), jnp.zeros(()))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, weight: Number = 1.0, **extra: object) -> Any:
        state = state.plus(updates, extra.get("value", 0.0), weight, every)
        mean, value = state.means()
        means = {"value": value, "grad": like(mean, updates)}
        handed = {name: means.get(name, given) for name, given in extra.items()}

        def emit() -> Any:
            steps, after = inner.update(like(mean, updates), state.inner, params, **handed)
            return like(steps, updates), like(after, state.inner)

        is_last = state.made == every - 1
        steps, after = jax.lax.cond(is_last, emit, lambda: (optax.tree.zeros_like(updates), state.inner))
        sums = (state.grads, state.value, state.accumulated_weight)
        grads, value, whole = jax.tree.map(lambda total: jnp.where(is_last, 0, total), sums)
        return steps, AccumulateState((state.made + 1) % every, grads, value, after, whole)

    return optax.GradientTransformationExtraArgs(init, update)


def accumulates(opt_state: PyTree) -> bool:
    """Return whether an optimizer accumulates and therefore uses the argument `weight`, from its state."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda leaf: isinstance(leaf, AccumulateState))
    return any(isinstance(leaf, AccumulateState) for leaf in leaves)


def without_weight(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Drop the extra argument `weight`, because a line search passes unknown arguments to the loss."""

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, weight: Number | None = None, **extra: object
    ) -> Any:
        return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def skip_nonfinite(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Skip updates whose gradient, loss or result is not finite; optax's own version checks only the gradient."""

    def init(params: PyTree) -> SkipState:
        return SkipState(_zero(), inner.init(params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: object) -> Any:
        steps, after = inner.update(updates, state.inner, params, **extra)
        seen = jax.tree.leaves((updates, steps, extra.get("value")))
        is_finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in seen]).all()
        steps = jax.tree.map(lambda step: jnp.where(is_finite, step, 0), steps)
        kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), like(after, state.inner), state.inner)
        return steps, SkipState(state.skipped + ~is_finite, kept)

    return optax.GradientTransformationExtraArgs(init, update)
