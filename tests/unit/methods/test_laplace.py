"""The Gaussian around the mode: for linear regression the posterior, for classes the Hessian by autodiff and probit."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding

from tuner import Space, log_uniform
from tuner.errors import StudyError
from tuner.methods import LaplaceClassifier, LaplaceRegressor
from tuner.methods.laplace import covariance, gauss_newton, softmax_hessian, weight_samples, with_bias
from tuner.training import ArrayDataset, OptimizerSpec, Splits, WarmupCosine
from tuner.training.hparams import register

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, NOISE, PRECISION = RNG.normal(size=(40, 2)) * [1.0, 2.0] + 0.5, 0.3, 2.0
Y = X @ [0.7, -0.4] + 0.2 + np.sqrt(NOISE) * RNG.normal(size=40)
PHI = np.concatenate([X, np.ones((40, 1))], axis=1)
POSTERIOR = np.linalg.inv(PHI.T @ PHI / NOISE + PRECISION * np.eye(3))
MEAN = POSTERIOR @ PHI.T @ Y / NOISE


class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1.0)
    prior_precision: float = log_uniform(1e-8, 1e8)
    noise_variance: float = log_uniform(1e-3, 1.0)


class Affine(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(self.outputs)(x), x


class Deep(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.tanh(nn.Dense(4)(x))
        return nn.Dense(3)(x), x


class Regressor(LaplaceRegressor):
    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return Affine(1)

    def batch_size(self, hparams: Any) -> int:
        return self.size

    def __init__(self, size: int) -> None:
        super().__init__(examples=40)
        self.size = size

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return OptimizerSpec("adam", hparams.learning_rate, schedule=WarmupCosine())


class Classes(LaplaceClassifier):
    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return Deep()

    def batch_size(self, hparams: Any) -> int:
        return 16


def hparams_of(**changes: Any) -> Any:
    made = HParams(**{"learning_rate": 0.1, "prior_precision": PRECISION, "noise_variance": NOISE, **changes})
    register(made)
    return made


DATASET = ArrayDataset(inputs=X, labels=Y)


@pytest.mark.slow
def test_the_covariance_of_linear_regression_is_the_posteriors_after_each_epoch() -> None:
    training = Regressor(16).train_model(hparams_of(), Splits(DATASET, DATASET), epochs=2, seed=0)
    for _ in training:  # three batches, the last padded
        found = training.state.collections["curvature"]
        np.testing.assert_allclose(found, PHI.T @ PHI / NOISE, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(covariance(found, PRECISION), POSTERIOR, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_linear_regression_has_its_posterior_exactly() -> None:
    trainer, hparams = Regressor(64), hparams_of()  # one batch, padded: no noise where it comes to rest
    training = trainer.train_model(hparams, Splits(DATASET, DATASET), epochs=200, seed=0)
    reports = list(training)
    dense = training.state.params["Dense_0"]
    weights = np.append(dense["kernel"], dense["bias"]).astype(float)
    # Adam rests within a step of the last rate, a hundredth of the peak.
    np.testing.assert_allclose(weights, MEAN, atol=0.1 * 0.01)

    new = np.random.default_rng(1).normal(size=(7, 2)).astype("f") * 3
    phi = np.concatenate([new, np.ones((7, 1))], axis=1)
    mean, variance = np.asarray(trainer.bind_model(training.state, hparams)(new)).T
    np.testing.assert_allclose(mean, phi @ weights, atol=rounding(8) * (np.abs(phi) @ np.abs(weights)).max())
    np.testing.assert_allclose(variance, NOISE + np.einsum("na,ab,nb->n", phi, POSTERIOR, phi), rtol=1e-4)
    # What is reported is the density of the labels under it.
    spread = NOISE + np.einsum("na,ab,nb->n", PHI, POSTERIOR, PHI)
    expected = 0.5 * np.mean((Y - PHI @ MEAN) ** 2 / spread + np.log(2 * np.pi * spread))
    np.testing.assert_allclose(reports[-1].metrics["loss"], expected, rtol=1e-3)


def test_the_matrix_is_the_hessian_of_the_last_layer() -> None:
    rng = np.random.default_rng(1)
    features, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((9, 4), (5, 3)))
    labels, weights = jnp.asarray(rng.integers(0, 3, 9)), jnp.asarray([1.0, 2.0, *[1.0] * 5, 0.0, 0.0])
    phi = with_bias(features)

    def loss(kernel: Any) -> Any:  # (outputs, features), as the matrix is ordered
        logs = jax.nn.log_softmax(phi @ kernel.T)
        return -jnp.sum(weights * jnp.take_along_axis(logs, labels[:, None], axis=1)[:, 0])

    expected = jit(jax.hessian(loss))(kernel.T).reshape(15, 15)
    found = gauss_newton(softmax_hessian(phi @ kernel), phi, weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_draws_have_the_covariance_and_come_with_their_opposites() -> None:
    curvature = PHI.T @ PHI / 50  # of the precision's size
    expected = np.linalg.inv(curvature + PRECISION * np.eye(3))
    drawn = np.asarray(weight_samples(jnp.asarray(curvature, jnp.float32), PRECISION, KEY, 200_000), np.float64)
    np.testing.assert_allclose(drawn[:100_000], -drawn[100_000:])
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=0.02 * np.abs(expected).max())


INPUTS = RNG.normal(size=(50, 2)).astype("f")
LABELS = (INPUTS[:, 0] > 0).astype(int) + (INPUTS[:, 1] > 1).astype(int)
CLASSES = Classes(50)  # one for all, so that its programs are compiled once
MODE = jit(lambda state: Deep().apply({"params": state.params}, jnp.asarray(INPUTS)))


def trained(hparams: Any) -> Any:
    dataset = ArrayDataset(inputs=INPUTS, labels=LABELS)
    training = CLASSES.train_model(hparams, Splits(dataset, dataset), epochs=20, seed=0)
    reports = list(training)
    return training.state, reports[-1].metrics


@pytest.mark.slow
def test_predictions_are_less_sure_the_less_is_known() -> None:
    state, _ = trained(hparams_of(prior_precision=0.1))

    def probabilities(**changes: Any) -> Any:
        return np.exp(CLASSES.bind_model(state, hparams_of(**changes))(INPUTS))

    found = probabilities(prior_precision=0.1)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)
    certain = jax.nn.softmax(MODE(state)[0])
    # A prior so narrow that nothing is uncertain leaves the mode's.
    np.testing.assert_allclose(probabilities(prior_precision=1e8), certain, atol=1e-4)
    # A wider one is less sure of everything that is far from a half.
    wide = probabilities(prior_precision=1e-3)
    assert found.max(1).mean() < np.asarray(certain).max(1).mean() - 0.005
    assert wide.max(1).mean() < found.max(1).mean() - 0.005


@pytest.mark.slow
def test_of_two_classes_the_mixture_is_about_what_probit_gives() -> None:
    trainer = LaplaceClassifier(40, draws=4096)
    curvature = gauss_newton(softmax_hessian(jnp.zeros((40, 2))), jnp.asarray(PHI, jnp.float32), jnp.ones(40))
    outputs = jnp.stack([jnp.zeros(5), jnp.array([-3.0, -1.0, 0.0, 0.5, 2.0])], axis=1)
    phi = with_bias(jnp.asarray(np.random.default_rng(2).normal(size=(5, 2)) * 3, jnp.float32))
    found = np.exp(jit(trainer.predict)(outputs, phi, curvature, hparams_of(prior_precision=0.5)))[:, 1]
    # Of f_1 - f_0 the variance is d^T Sigma d, d the features at class 1 and their negatives at class 0.
    contrast = np.concatenate([-phi, phi], axis=1)
    sigma = np.linalg.inv(np.asarray(curvature, np.float64) + 0.5 * np.eye(6))
    variance = np.einsum("na,ab,nb->n", contrast, sigma, contrast)
    scaled = np.asarray(outputs[:, 1]) / np.sqrt(1 + np.pi / 8 * variance)
    # Probit is off by 0.004 here, by quadrature, and the mean of 4096 draws has a standard deviation of 0.0044.
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-scaled)), atol=0.02)
    assert variance.max() > 0.5  # else there would be nothing to see
    assert np.abs(found - 1 / (1 + np.exp(-np.asarray(outputs[:, 1])))).max() > 0.02


@pytest.mark.slow
def test_the_curvature_is_that_of_one_epoch_and_predictions_do_not_change_from_call_to_call() -> None:
    hparams = hparams_of(learning_rate=1e-4)
    state, metrics = trained(hparams)
    made = MODE(state)
    # The weights hardly moved, so that the batches' matrices are those at the last weights.
    expected = gauss_newton(softmax_hessian(made[0]), with_bias(made[1]), jnp.ones(50))
    np.testing.assert_allclose(state.collections["curvature"], expected, rtol=0.02, atol=0.02)
    bound = CLASSES.bind_model(state, hparams)
    np.testing.assert_array_equal(bound(INPUTS), bound(INPUTS))
    assert {"nll", "brier", "accuracy", "ece", "train_penalty"} <= set(metrics)
    np.testing.assert_allclose(metrics["nll"], -bound(INPUTS)[np.arange(50), LABELS].mean(), rtol=1e-5)


def test_a_model_that_keeps_its_features_to_itself_is_refused() -> None:
    class Mute(LaplaceClassifier):
        def init_model(self, hparams: Any) -> Any:
            return nn.Dense(3)

    dataset = ArrayDataset(inputs=X, labels=np.zeros(40, int))
    with pytest.raises(StudyError, match=r"must return its outputs .* and the last layer's inputs"):
        next(Mute(40).train_model(hparams_of(), Splits(dataset, dataset), epochs=1, seed=0))


class Cold(HParams):
    temperature: float = log_uniform(1e-3, 1.0)


def cold_hparams(temperature: float) -> Any:
    made = Cold(learning_rate=0.1, prior_precision=PRECISION, noise_variance=NOISE, temperature=temperature)
    register(made)
    return made


def test_a_temperature_scales_the_posterior_covariance() -> None:
    curvature, phi = jnp.asarray(PHI.T @ PHI / NOISE, jnp.float32), jnp.asarray(PHI[:5], jnp.float32)
    outputs, spread = jnp.zeros((5, 1)), np.einsum("na,ab,nb->n", PHI[:5], POSTERIOR, PHI[:5])
    for temperature in (1.0, 0.25):
        found = jit(Regressor(64).predict)(outputs, phi, curvature, cold_hparams(temperature))
        np.testing.assert_allclose(found[:, 1], NOISE + temperature * spread, rtol=1e-4)
    # Of classes too: at a quarter the draws are half as far away, as with all precisions four times as great.
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)), jnp.float32)
    wide = jnp.kron(jnp.eye(2), curvature)
    predict = jit(LaplaceClassifier(40, draws=4).predict)
    cold = predict(logits, phi, wide, cold_hparams(0.25))
    sharp = predict(logits, phi, 4 * wide, hparams_of(prior_precision=4 * PRECISION))
    np.testing.assert_allclose(cold, sharp, atol=1e-5)
