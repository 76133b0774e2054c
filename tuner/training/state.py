"""`TrainState`: everything that changes while a model is trained."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax


class Stream(enum.IntEnum):
    """Independent streams of random numbers derived from a trial's key."""

    INIT = 0
    ORDER = 1
    STEP = 2

    def key(self, trial_key: jax.Array, step: jax.Array | int = 0) -> jax.Array:
        """Return this stream's key at a step."""
        return jax.random.fold_in(jax.random.fold_in(trial_key, int(self)), step)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree of training; every part may be None.

    Attributes:
        step: Optimizer updates so far. Int[Array, ""].
        params: The Flax parameter tree.
        opt_state: The optimizer's state.
        collections: What the model carries beside parameters, such as batch statistics.
        key: The trial's key; never changes. A step's key is derived from it and the step's number, so that
            training resumed at a step draws what it would have drawn.
        total_steps: Updates of the whole training, which schedules need; part of the structure, not an array.
    """

    step: jax.Array | None = None
    params: Any = None
    opt_state: Any = None
    collections: Any = None
    key: jax.Array | None = None
    total_steps: int = field(default=0, metadata={"static": True})

    def apply_gradients(self, optimizer: optax.GradientTransformation, grads: Any, collections: Any) -> TrainState:
        """Return the state after one update."""
        # Optax's Adam raises a float to an integer power, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, self.opt_state, self.params)
        return dataclasses.replace(
            self,
            step=None if self.step is None else self.step + jnp.ones_like(self.step),
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            collections=collections,
        )
