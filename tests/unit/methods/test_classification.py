"""Smoothed labels and weights as hyperparameters of a classifier."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import rounding

from tuner.methods import Classifier
from tuner.models import linear
from tuner.training import ArrayDataset, Splits

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
BATCH: Any = {"labels": jnp.array([0, 2]), "weight": jnp.ones(2)}


class Linear(Classifier):
    def init_model(self, hparams: Any) -> Any:
        return linear(self.classes)


def log_softmax(logits: Any) -> Any:
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_targets_are_smoothed_and_nll_is_not(smoothing: float) -> None:
    losses, metrics = jax.jit(Classifier(3).loss)(LOGITS, BATCH, {"label_smoothing": smoothing})
    log = log_softmax(LOGITS)
    true = -log[[0, 1], [0, 2]]
    # Differences of logits up to 2 and the logarithm of a sum of exponentials: errors go by those, not by the rest.
    atol = 2.0 * rounding(32)
    np.testing.assert_allclose(losses, (1 - smoothing) * true - smoothing * log.mean(1), atol=atol)
    np.testing.assert_allclose(metrics["nll"], true, atol=atol)
    assert metrics["accuracy"].tolist() == [True, False]


def test_without_the_hyperparameter_it_is_plain_cross_entropy() -> None:
    losses, metrics = Classifier(3).loss(LOGITS, BATCH, {})
    np.testing.assert_array_equal(losses, metrics["nll"])


@pytest.mark.slow
def test_smoothed_weights_are_those_that_are_evaluated() -> None:
    rng = np.random.default_rng(0)
    dataset = ArrayDataset(inputs=rng.normal(size=(96, 4)), labels=rng.integers(0, 3, 96))
    splits = Splits(dataset, dataset)
    found = {}
    for name, more in {"raw": {}, "none": {"ema_decay": 0.0}, "slow": {"ema_decay": 1.0}}.items():
        training = Linear(3).train_model({"learning_rate": 0.1, **more}, splits, epochs=2, seed=0)
        found[name] = [report.metrics["nll"] for report in training]
    assert found["none"] == pytest.approx(found["raw"], rel=1e-6)
    assert found["slow"][0] == found["slow"][1]  # those of the first weights, for ever
    assert found["slow"][1] != found["raw"][1]


class Descending(Linear):
    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(1.0)  # so that a step is the gradient


@pytest.mark.parametrize("weight", [(1.0, 1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 1.0, 0.0, 0.0)], ids=["full", "padded"])
def test_gradients_of_single_examples_average_to_that_of_the_batch(weight: tuple[float, ...]) -> None:
    """One step on the batch, against `vmap` of the gradient of one example's loss."""
    rng = np.random.default_rng(1)
    batch: Any = {"inputs": rng.normal(size=(5, 4)).astype("f"), "labels": np.array([0, 2, 1, 1, 0], np.int32)}
    batch = jax.tree.map(jnp.asarray, {**batch, "weight": np.array(weight, np.float32)})
    trainer, hparams = Descending(3), {"label_smoothing": 0.2}
    state = trainer.init_state(hparams, batch, jax.random.key(0), 10)

    def loss(params: Any, example: Any) -> jax.Array:
        alone = jax.tree.map(lambda array: array[None], example)
        outputs, _ = trainer.apply_model(params, {}, alone, hparams, train=True, key=state.key)
        return trainer.loss(outputs, alone, hparams)[0][0]

    single = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(state.params, batch)
    after, metrics = jax.jit(trainer.train_step)(state, batch, hparams, jax.random.key(1))
    norms = []
    for one, before, now in zip(*map(jax.tree.leaves, (single, state.params, after.params)), strict=True):
        expected = np.average(one, axis=0, weights=weight)
        np.testing.assert_allclose(before - now, expected, atol=1e-6)
        norms.append(np.sum(expected**2))
    np.testing.assert_allclose(metrics["grad_norm"].compute(), np.sqrt(np.sum(norms)), rtol=1e-5)
