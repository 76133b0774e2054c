"""Metrics as sums and weights, so that the mean over an epoch is the mean over its examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tuner.errors import StudyError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A weighted mean under way.

    The mean of batch means is not the mean over examples when a batch is short; sums and weights added up are.

    Attributes:
        total: Weighted sum. Float[Array, ""].
        weight: Sum of the weights. Float[Array, ""].
    """

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> Mean:
        """Return the mean of per-example values.

        Args:
            values: One per example; any number type. Num[Array, "batch"].
            weights: Zero for padding. Float[Array, "batch"].

        Raises:
            StudyError: there is not one value for each example; broadcasting would sum over the wrong ones.
        """
        if jnp.shape(values) != weights.shape:
            raise StudyError(
                f"losses and metrics must have one value for each example: got shape {jnp.shape(values)} for "
                f"{weights.shape[0]} examples"
            )
        # A padded example's value may be anything, NaN included: zero times NaN would poison the sum.
        kept = jnp.where(weights > 0, values.astype(jnp.float32), 0.0)
        return cls(jnp.sum(kept * weights), jnp.sum(weights))

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> jax.Array:
        """The mean. Float[Array, ""]."""
        return self.total / self.weight


Metrics = dict[str, Mean]


def add(left: Metrics, right: Metrics) -> Metrics:
    """Return the metrics of both batches together."""
    return {name: left[name] + right[name] for name in left}


def sum_steps(stacked: Metrics) -> Metrics:
    """Return the metrics of all steps together, from leaves with a leading axis of steps."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), stacked)


def to_floats(metrics: Mapping[str, Mean], prefix: str = "") -> dict[str, float]:
    """Fetch metrics to the host as Python floats; waits for the device."""
    fetched: dict[str, Mean] = jax.device_get(dict(metrics))
    return {f"{prefix}{name}": float(mean.total / mean.weight) for name, mean in fetched.items()}
