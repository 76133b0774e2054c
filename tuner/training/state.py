"""`TrainState`: everything that changes while a model is trained."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax.training.dynamic_scale import DynamicScale

from tuner.training.optim.build import evaluated_params, skipped_steps
from tuner.training.optim.transforms import accumulates
from tuner.training.pytree import PyTree


class Stream(enum.IntEnum):
    """Independent streams of random numbers derived from a trial's key."""

    INIT = 0
    ORDER = 1
    STEP = 2
    EVAL = 3
    NOISE = 4
    AUGMENT = 5

    def key(self, trial_key: jax.Array, step: jax.Array | int = 0) -> jax.Array:
        """Return this stream's key at a step."""
        return jax.random.fold_in(jax.random.fold_in(trial_key, int(self)), step)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Average:
    """Smoothed weights, for evaluation.

    Attributes:
        params: Exponential moving average of the parameters.
        collections: The same average of the model's other variables: batch statistics of the raw weights would not
            fit the smoothed ones. Integers are copied.
    """

    params: PyTree
    collections: PyTree

    def update(self, params: PyTree, collections: PyTree, decay: float | jax.Array) -> Average:
        """Return decay * average + (1 - decay) * new, leaf by leaf (Polyak & Juditsky, 1992).

        The average starts at the initial parameters, so it needs no bias correction. `decay` is per update: at another
        batch size the same horizon needs decay ** (new size / old size).
        """

        def smooth(old: jax.Array, new: jax.Array) -> jax.Array:
            if not jnp.issubdtype(new.dtype, jnp.floating):
                return new
            rate = jnp.asarray(decay, new.dtype)
            return rate * old + (1 - rate) * new

        return Average(*jax.tree.map(smooth, (self.params, self.collections), (params, collections)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state of a training, as a pytree; every part may be None.

    Attributes:
        step: Optimizer updates so far. Int[Array, ""].
        params: The parameters, nested dicts of arrays.
        opt_state: The optimizer's state.
        collections: Variables of the model other than parameters, such as batch statistics.
        key: The trial's key; never changes. A step's key is derived from it and the step's number, so that
            resumed training draws the same numbers.
        average: Smoothed weights; evaluation uses them if there are any.
        scale: The loss scale of float16 training.
        total_steps: Updates of the whole training, which schedules need; part of the structure, not an array.
    """

    step: jax.Array | None = None
    params: PyTree = None
    opt_state: PyTree = None
    collections: PyTree = None
    key: jax.Array | None = None
    average: Average | None = None
    scale: DynamicScale | None = None
    total_steps: int = field(default=0, metadata={"static": True})

    def apply_gradients(
        self,
        optimizer: optax.GradientTransformation,
        grads: PyTree,
        collections: PyTree = None,
        *,
        value: jax.Array | None = None,
        value_fn: Callable[[PyTree], jax.Array] | None = None,
        ema_decay: float | jax.Array | None = None,
        weight: jax.Array | None = None,
    ) -> TrainState:
        """Return the state after one update.

        Args:
            optimizer: Any optax transformation.
            grads: Gradients, shaped as the parameters.
            collections: The collections after the step; unchanged if None.
            value: The loss, for optimizers that use it (Polyak steps, reduction on a plateau).
            value_fn: params -> loss, for optimizers that search along a line.
            ema_decay: The share of the average that is kept, if the state has one.
            weight: The weight of all examples of the batch, by which accumulated gradients are averaged.
        """
        collections = self.collections if collections is None else collections
        extra = {"value": value, "grad": grads, "value_fn": value_fn} if value is not None else {}
        if weight is not None and accumulates(self.opt_state):
            extra["weight"] = weight
        # Optax's Adam raises a float to an integer power, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optax.with_extra_args_support(optimizer).update(
                grads, self.opt_state, self.params, **extra
            )
            params = optax.apply_updates(self.params, updates)
        average = self.average
        if average is not None and ema_decay is not None:
            average = average.update(params, collections, ema_decay)
        skipped = skipped_steps(opt_state)
        if skipped is not None:
            # The collections are as bad as the gradient was: one NaN would stay in batch statistics for ever.
            is_kept = skipped == skipped_steps(self.opt_state)
            collections, average = jax.tree.map(
                partial(jnp.where, is_kept), (collections, average), (self.collections, self.average)
            )
        return dataclasses.replace(
            self,
            step=None if self.step is None else self.step + jnp.ones_like(self.step),
            params=params,
            opt_state=opt_state,
            collections=collections,
            average=average,
        )

    def for_evaluation(self) -> TrainState:
        """Return the part of the state that predictions need: without optimizer, with smoothed weights if any."""
        params, collections = self.params, self.collections
        if self.average is not None:
            params, collections = self.average.params, self.average.collections
        elif self.opt_state is not None:
            params = evaluated_params(self.opt_state, params)
        return TrainState(self.step, params, None, collections, self.key, total_steps=self.total_steps)
