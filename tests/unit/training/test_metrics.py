"""Metrics that are more than a mean, where the numbers they are made of are wrong or missing."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuner.training import ConfusionMatrix
from tuner.training.metrics import to_floats

NAMES = ["cm_accuracy", "cm_f1", "cm_iou"]


def counted(predicted: Any, labels: Any, weights: Any = None, classes: int = 3) -> ConfusionMatrix:
    weights = np.ones(len(labels)) if weights is None else weights
    arrays = jnp.asarray(predicted), jnp.asarray(labels), jnp.asarray(weights, jnp.float32)
    return jax.jit(ConfusionMatrix.of, static_argnames="classes")(*arrays, classes=classes)


@pytest.mark.parametrize("wrong", [3, 5, -1, 2**31 - 1])
def test_a_prediction_that_is_no_class_makes_the_metrics_nan(wrong: int) -> None:
    found = counted([0, wrong, 1, 2], [0, 1, 1, 2])
    assert np.isnan(found.counts).any(axis=1).tolist() == [False, True, False]  # in the row of its class
    found = found + counted([0, 1, 2], [0, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [math.isnan(value) for value in to_floats({"cm": found}).values()] == [True] * 3


def test_a_prediction_for_what_is_not_counted_may_be_anything() -> None:
    # Padding, and labels that are no class.
    found = counted([0, 7, -7, 9, 1], [0, 1, 255, -1, 2], [1, 0, 1, 1, 2])
    np.testing.assert_array_equal(found.counts, [[1, 0, 0], [0, 0, 0], [0, 2, 0]])
    assert to_floats({"cm": found})["cm_accuracy"] == pytest.approx(1 / 3)


def test_metrics_of_nothing_are_nan_and_nothing_is_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = to_floats({"cm": counted([0, 1], [0, 1], [0, 0])})
    assert list(found) == NAMES
    assert all(map(math.isnan, found.values()))
