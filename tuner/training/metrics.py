"""Metrics as sums, so that the value over an epoch does not depend on the batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from tuner.errors import StudyError


class Metric:
    """A quantity that is summed over batches and converted to numbers at the end of an epoch.

    Subclasses are pytrees (`jax.tree_util.register_dataclass`) of arrays whose sums over batches are those of the
    whole set; all zeros means "no data yet".
    """

    def __add__(self, other: Self) -> Self:
        """Return the metric of both sets of batches together."""
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> float | Mapping[str, float]:
        """Return the metric's value, or several values by name; called on the host with NumPy arrays."""
        raise NotImplementedError(f"{type(self).__name__} must define compute()")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean(Metric):
    """A weighted mean that is being computed.

    If a batch is short, the mean of batch means is not the mean over examples; the ratio of the sums is.

    Attributes:
        total: Weighted sum. Float[Array, ""].
        weight: Sum of the weights. Float[Array, ""].
    """

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> Mean:
        """Return the mean of per-example values.

        Values with weight 0 may be NaN. But if a gradient is taken, the chain rule multiplies the 0 with the
        derivatives of earlier operations, and 0 * NaN is NaN: therefore an example with weight 0 must have finite
        inputs.

        Args:
            values: One per example; any number type. Num[Array, "batch"].
            weights: Zero for padding. Float[Array, "batch"].

        Raises:
            StudyError: there is not one value for each example; broadcasting would compute a wrong sum.
        """
        if jnp.shape(values) != weights.shape:
            raise StudyError(
                f"losses and metrics must have one value per example: got shape {jnp.shape(values)} for "
                f"{weights.shape[0]} examples"
            )
        # Selected instead of multiplied by zero, because zero times NaN is NaN.
        kept = jnp.where(weights > 0, values.astype(jnp.float32), 0.0)
        return cls(jnp.sum(kept * weights), jnp.sum(weights))

    @classmethod
    def of_steps(cls, value: jax.Array) -> Mean:
        """Return the mean over steps of a number per step, such as the norm of the gradient."""
        return cls(value.astype(jnp.float32), jnp.ones((), jnp.float32))

    @property
    def value(self) -> jax.Array:
        """The mean, for gradients: 0 with zero gradients if there is no weight. Float[Array, ""]."""
        return self.total / jnp.where(self.weight == 0, jnp.ones_like(self.weight), self.weight)

    def compute(self) -> float:
        """Return the mean; NaN if there is no weight."""
        return float(self.total / self.weight) if self.weight else math.nan


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConfusionMatrix(Metric):
    """Counts of true and predicted classes, and metrics computed from them over a whole set.

    Attributes:
        counts: Weight of the examples by true class (rows) and predicted class. Float[Array, "classes classes"].
    """

    counts: jax.Array

    @classmethod
    def of(cls, predicted: jax.Array, labels: jax.Array, weights: jax.Array, classes: int) -> ConfusionMatrix:
        """Return the counts of a batch.

        Args:
            predicted: Int or Bool[Array, "..."], in [0, classes). A prediction outside has no cell, and ignoring it
                would make the metrics too good: it sets the row of its true class, and so all metrics, to NaN.
            labels: The same shape; a label outside [0, classes) is not counted, whatever the prediction.
            weights: Float[Array, "batch"], for the first axis of `labels`; zero for padding.
            classes: The number of classes; static.
        """
        # First convert the type: in uint8, for example, the products below would overflow.
        labels, predicted = labels.astype(jnp.int32), predicted.astype(jnp.int32)
        spread = weights.reshape(weights.shape + (1,) * (labels.ndim - 1))
        is_counted = (labels >= 0) & (labels < classes) & (spread != 0)
        cell = jnp.clip(predicted, 0, classes - 1)
        seen = jnp.where(cell == predicted, jnp.broadcast_to(spread, labels.shape), jnp.nan)
        seen = jnp.where(is_counted, seen, 0.0)
        cells = jnp.where(is_counted, labels * classes + cell, 0)
        counts = jnp.zeros(classes * classes, jnp.float32).at[cells.reshape(-1)].add(seen.reshape(-1))
        return cls(counts.reshape(classes, classes))

    def compute(self) -> dict[str, float]:
        """Return accuracy, and F1 and intersection over union as means over the classes that occur.

        All are NaN if nothing was counted, or if a prediction was not a class.
        """
        counts = np.asarray(self.counts, np.float64)
        if not counts.any():
            return dict.fromkeys(("accuracy", "f1", "iou"), math.nan)
        hits, true, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
        occurs = (true + predicted) != 0  # also where it is NaN
        f1 = 2 * hits[occurs] / (true + predicted)[occurs]
        iou = hits[occurs] / (true + predicted - hits)[occurs]
        return {"accuracy": float(hits.sum() / counts.sum()), "f1": float(f1.mean()), "iou": float(iou.mean())}


Metrics = dict[str, Any]
"""Metrics by name: `Mean`, or any other `Metric`."""


def zeros(shapes: Metrics) -> Metrics:
    """Return empty metrics, from their shapes."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def add(left: Metrics, right: Metrics) -> Metrics:
    """Return the metrics of both sets of batches together."""
    return {name: left[name] + right[name] for name in left}


def to_floats(metrics: Mapping[str, Metric], prefix: str = "") -> dict[str, float]:
    """Fetch metrics to the host as Python floats; waits for the device."""
    return as_floats(jax.device_get(dict(metrics)), prefix)


def as_floats(metrics: Mapping[str, Metric], prefix: str = "") -> dict[str, float]:
    """Return fetched metrics as Python floats.

    A metric with several values prefixes each with its own name: `confusion_f1`.
    """
    floats: dict[str, float] = {}
    for name, metric in metrics.items():
        value = metric.compute()
        if isinstance(value, Mapping):
            floats.update({f"{prefix}{name}_{part}": float(number) for part, number in value.items()})
        else:
            floats[f"{prefix}{name}"] = float(value)
    return floats
