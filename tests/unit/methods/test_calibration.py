"""Scores of probabilities, by hand and beside scikit-learn's."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from tuner.methods import ExpectedCalibrationError, forecast_metrics

# Confidences .5 (the lower bin of two), .9, .8, .6; all but the first are hits.
PROBABILITIES = jnp.array([[0.5, 0.5], [0.1, 0.9], [0.8, 0.2], [0.6, 0.4]])
LABELS = jnp.array([1, 1, 0, 0])

# One small program for each shape, instead of one for each operation.
OF = jax.jit(ExpectedCalibrationError.of, static_argnums=3, compiler_options={"xla_backend_optimization_level": 0})


def error(probabilities: Any, labels: Any, weights: Any = None, bins: int = 15) -> Any:
    weights = jnp.ones(len(labels)) if weights is None else weights
    return jax.device_get(OF(probabilities, labels, weights, bins))


def test_the_error_by_hand() -> None:
    made = error(PROBABILITIES, LABELS, bins=2)
    np.testing.assert_allclose(made.weight, [1, 3])
    np.testing.assert_allclose(made.confidence, [0.5, 2.3], rtol=1e-6)
    np.testing.assert_allclose(made.hits, [0, 3])
    # 1/4 |0 - .5| + 3/4 |1 - 2.3/3|: too sure in one bin, not sure enough in the other
    np.testing.assert_allclose(made.compute(), 0.125 + 0.175, rtol=1e-6)
    confidence, accuracy, share = made.curve()
    np.testing.assert_allclose(confidence, [0.5, 2.3 / 3], rtol=1e-6)
    np.testing.assert_allclose(accuracy, [0, 1], rtol=1e-6)
    np.testing.assert_allclose(share, [0.25, 0.75])


@pytest.mark.slow
def test_batches_add_up_and_padding_counts_for_nothing() -> None:
    whole = error(PROBABILITIES, LABELS)
    parts = error(PROBABILITIES[:3], LABELS[:3]) + error(PROBABILITIES[3:], LABELS[3:])
    padding = jnp.array([[jnp.nan, jnp.nan], [0.0, 1.0]])
    padded = error(
        jnp.concatenate([PROBABILITIES, padding]),
        jnp.append(LABELS, jnp.array([0, 0])),
        jnp.array([1.0] * 4 + [0.0] * 2),
    )
    np.testing.assert_allclose(parts.compute(), whole.compute(), rtol=1e-6)
    np.testing.assert_allclose(padded.compute(), whole.compute(), rtol=1e-6)
    weighted = error(PROBABILITIES, LABELS, jnp.array([1.0, 2.0, 1.0, 1.0]))
    twice = error(jnp.concatenate([PROBABILITIES, PROBABILITIES[1:2]]), jnp.append(LABELS, LABELS[1]))
    np.testing.assert_allclose(weighted.compute(), twice.compute(), rtol=1e-6)


def test_what_is_no_probability_shows() -> None:
    assert math.isnan(error(PROBABILITIES.at[1, 0].set(jnp.nan), LABELS).compute())
    assert math.isnan(error(PROBABILITIES, LABELS, jnp.zeros(4)).compute())
    assert error(jnp.array([[0.0, 1.0]]), jnp.array([1])).compute() == 0.0  # 1 is in the last bin
    assert error(jnp.array([[0.0, 1.0]]), jnp.array([0])).compute() == 1.0


@pytest.mark.parametrize("classes", [2, 5])
def test_of_labels_that_are_drawn_from_the_probabilities_it_is_about_zero(classes: int) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(classes), 40_000).astype("f")
    labels = (rng.random((40_000, 1)) > np.cumsum(probabilities, axis=1)).sum(1).clip(0, classes - 1)
    assert error(jnp.asarray(probabilities), jnp.asarray(labels)).compute() < 0.01
    # Of a forecaster surer than it should be, the mean excess of confidence, where all bins are on one side.
    sharper = probabilities**4 / (probabilities**4).sum(1, keepdims=True)
    excess = (sharper.max(1) - probabilities.max(1)).mean()
    np.testing.assert_allclose(error(jnp.asarray(sharper), jnp.asarray(labels)).compute(), excess, atol=0.01)


@pytest.mark.slow
def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 2)).astype("f"), rng.integers(0, 2, 50)
    batch: Any = {"labels": jnp.asarray(labels), "weight": jnp.ones(50)}
    found = forecast_metrics(jnp.asarray(logits + 7.0), batch)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found["nll"].mean(), log_loss(labels, p), rtol=1e-5)
    np.testing.assert_allclose(found["brier"].mean() / 2, brier_score_loss(labels, p[:, 1]), rtol=1e-5)
    np.testing.assert_array_equal(found["accuracy"], p.argmax(1) == labels)
    np.testing.assert_allclose(
        jax.device_get(found["ece"]).compute(), error(jnp.asarray(p), batch["labels"]).compute(), rtol=1e-5
    )
    three = forecast_metrics(jnp.log(jnp.array([[0.7, 0.2, 0.1]])), {"labels": jnp.array([1]), "weight": jnp.ones(1)})
    np.testing.assert_allclose(three["brier"], [0.49 + 0.64 + 0.01], rtol=1e-5)
    np.testing.assert_allclose(three["nll"], [-math.log(0.2)], rtol=1e-5)
