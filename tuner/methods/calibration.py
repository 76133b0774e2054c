"""Measures the quality of a classifier's probabilities: proper scores per example, and calibration over all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuner.training import ArrayDataset, Metric, TrainerModule
from tuner.training.data.arrays import Batch
from tuner.training.data.feed import Dataset
from tuner.training.data.labels import check_labels, only_classes

BINS = 15


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExpectedCalibrationError(Metric):
    """The mean gap between confidence and accuracy, over bins of equal width (Guo et al., 2017, section 2).

    sum_b n_b / n |accuracy_b - confidence_b|. The confidence is the probability of the most likely class; bin b
    contains the confidences in (b / bins, (b + 1) / bins]. The parts are sums, so that batches add up to the result of
    the whole set.

    Attributes:
        weight: The weight of the examples in each bin. Float[Array, "bins"].
        confidence: Weighted sums of confidences. Float[Array, "bins"].
        hits: The weight of correctly classified examples. Float[Array, "bins"].
    """

    weight: jax.Array
    confidence: jax.Array
    hits: jax.Array

    @classmethod
    def of(
        cls, probabilities: jax.Array, labels: jax.Array, weights: jax.Array, bins: int = BINS
    ) -> ExpectedCalibrationError:
        """Return the parts of a batch; a probability that is NaN makes the error NaN.

        Args:
            probabilities: Float[Array, "batch classes"].
            labels: Int[Array, "batch"].
            weights: Zero for padding. Float[Array, "batch"].
            bins: The number of bins; static.
        """
        is_counted = weights > 0
        confidence = jnp.where(is_counted, jnp.max(probabilities, axis=-1), 1.0).astype(jnp.float32)
        hits = (jnp.argmax(probabilities, axis=-1) == labels).astype(jnp.float32)
        at = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)

        def binned(values: jax.Array) -> jax.Array:
            return jnp.zeros(bins, jnp.float32).at[at].add(values * weights)

        return cls(binned(jnp.ones_like(confidence)), binned(confidence), binned(hits))

    def compute(self) -> float:
        """Return the error, in [0, 1]; NaN if there were no examples."""
        total = float(np.sum(self.weight))
        return float(np.sum(np.abs(self.hits - self.confidence))) / total if total else math.nan

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return confidence, accuracy and share of examples for each bin that is not empty: Float[Array, "used"]."""
        weight, confidence, hits = (np.asarray(part, np.float64) for part in (self.weight, self.confidence, self.hits))
        used = weight > 0
        return confidence[used] / weight[used], hits[used] / weight[used], weight[used] / weight.sum()


def forecast_metrics(logits: jax.Array, batch: Batch) -> dict[str, Any]:
    """Return metrics of a probabilistic forecast of classes.

    `nll`, -log p(label); `brier`, sum_c (p_c - [c = label])^2 (Brier, 1950), in [0, 2]; `accuracy`; and `ece`. The
    first two are proper scores: on average, only the true probabilities minimise them.

    Args:
        logits: Unnormalised log-probabilities, Float[Array, "batch classes"].
        batch: The batch, with `labels`, Int[Array, "batch"], and `weight`.
    """
    labels = batch["labels"].astype(jnp.int32)
    logs = jax.nn.log_softmax(logits)
    probabilities, truth = jnp.exp(logs), jax.nn.one_hot(labels, logits.shape[-1], dtype=logs.dtype)
    return {
        "nll": only_classes(-jnp.take_along_axis(logs, labels[:, None], axis=-1)[:, 0], labels, logits.shape[-1]),
        "brier": jnp.sum((probabilities - truth) ** 2, axis=-1),
        "accuracy": jnp.argmax(logs, axis=-1) == labels,
        "ece": ExpectedCalibrationError.of(probabilities, labels, batch["weight"]),
    }


def check_forecast_labels(trainer: TrainerModule, dataset: Dataset, hparams: object, part: str) -> None:
    """Check labels against the number of the model's outputs; see `TrainerModule.check_data`.

    Args:
        trainer: A trainer whose outputs are log-probabilities in evaluation mode.
        dataset: The dataset.
        hparams: The hyperparameters.
        part: The purpose of the dataset.

    Raises:
        StudyError: a label is not a class.
    """
    if not isinstance(dataset, ArrayDataset):
        return

    def outputs(batch: Batch, key: jax.Array) -> jax.Array:
        state = trainer.init_state(hparams, batch, key, 1)
        return trainer.apply_model(state.params, state.collections, batch, hparams, train=False, key=key)[0]

    check_labels(dataset, jax.eval_shape(outputs, dataset.take([0]).host(), jax.random.key(0)).shape[-1], part)
