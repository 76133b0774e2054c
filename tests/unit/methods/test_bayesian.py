"""Ensembles beside their members alone; Langevin dynamics beside the posterior in closed form."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding
from scipy.special import softmax

from tuner import Space, log_uniform
from tuner.methods import EnsembleClassifier, LangevinClassifier, MapClassifier
from tuner.methods.bayesian import mixture, prior_penalty
from tuner.training import ArrayDataset, Dropout, Splits
from tuner.training.hparams import register
from tuner.training.metrics import to_floats

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(5)
RNG = np.random.default_rng(0)


class HParams(Space):
    learning_rate: float = log_uniform(1e-5, 1.0)
    prior_precision: float = log_uniform(1e-2, 1e2)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        # A bias before the normalisation has a gradient of rounding errors only, which Adam would magnify.
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4, use_bias=False)(x))
        return nn.Dense(3)(Dropout(0.3)(x, train=train))


PREDICT = jit(lambda variables, inputs: Net().apply(variables, inputs, train=False))


class Mixin:
    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return Net()

    def batch_size(self, hparams: Any) -> int:
        return 8


class Map(Mixin, MapClassifier): ...


class Ensemble(Mixin, EnsembleClassifier): ...


def hparams_of(rate: float, precision: float = 1.0) -> Any:
    made = HParams(learning_rate=rate, prior_precision=precision)
    register(made)
    return made


def batch_of(rows: int) -> Any:
    rng = np.random.default_rng(1)
    weight = (np.arange(rows) < rows - 2).astype("f")
    return {
        "inputs": jnp.asarray(rng.normal(size=(rows, 2)), jnp.float32),
        "labels": jnp.asarray(rng.integers(0, 3, rows)),
        "weight": jnp.asarray(weight),
    }


def close(left: Any, right: Any, rtol: float, atol: float) -> None:
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def test_the_penalty_is_minus_the_log_density_of_the_prior_over_the_examples() -> None:
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
    np.testing.assert_allclose(prior_penalty(params, 0.5, 20), 0.5 / 40 * 14, rtol=rounding(3))  # the sum is exact


@pytest.mark.slow
def test_a_mixture_is_the_mean_of_probabilities() -> None:
    p = np.array([[[0.9, 0.1]], [[0.2, 0.8]], [[0.5, 0.5]]])
    # Of seven exponentials and logarithms, and of numbers up to 3, whose absolute errors exp makes relative.
    rtol = rounding(64)
    np.testing.assert_allclose(jnp.exp(mixture(jnp.log(p) + 3.0)), [[1.6 / 3, 1.4 / 3]], rtol=rtol)
    counted = jnp.array([True, True, False])
    poisoned = jnp.log(p).at[2].set(jnp.nan)
    np.testing.assert_allclose(jnp.exp(mixture(poisoned, counted)), [[0.55, 0.45]], rtol=rtol)


@pytest.mark.slow
def test_members_are_trained_as_each_would_be_alone() -> None:
    alone, together, batch = Map(20), Ensemble(20, members=3), batch_of(8)
    hparams = hparams_of(0.1)
    state = jit(together.init_state, static_argnums=3)(hparams, batch, KEY, 10)
    after, metrics = state, None
    for _ in range(2):
        after, metrics = jit(together.train_step)(after, batch, hparams, KEY)
    assert int(after.step) == 2
    assert metrics is not None
    solo_step, losses = jit(alone.train_step), []
    for member, own in enumerate(jax.random.split(KEY, 3)):
        seen, solo = None, jit(alone.init_state, static_argnums=3)(hparams, batch, own, 10)
        step_key = jax.random.split(KEY, 3)[member]
        for _ in range(2):
            solo, seen = solo_step(solo, batch, hparams, step_key)
        for name in ("params", "collections", "opt_state"):
            mine = jax.tree.map(lambda leaf, member=member: leaf[member], getattr(after, name))
            close(mine, getattr(solo, name), rtol=2e-4, atol=1e-6)
        assert seen is not None
        losses.append(to_floats(seen))
    found = to_floats(metrics)
    for name in ("loss", "brier", "accuracy", "penalty", "grad_norm"):
        np.testing.assert_allclose(found[name], np.mean([one[name] for one in losses]), rtol=1e-3)
    kernels = after.params["Dense_0"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


@pytest.mark.slow
def test_an_ensemble_predicts_the_mean_of_its_members() -> None:
    together, batch = Ensemble(20, members=3), batch_of(8)
    hparams = hparams_of(0.1)
    state = jit(together.init_state, static_argnums=3)(hparams, batch, KEY, 10)
    variables = {"params": state.params, **state.collections}
    members = [jax.tree.map(lambda leaf, at=at: leaf[at], variables) for at in range(3)]
    single = [np.asarray(jax.nn.softmax(PREDICT(member, batch["inputs"]))) for member in members]
    mean = np.mean(single, axis=0)
    found, _ = jit(partial(together.apply_model, train=False))(state.params, state.collections, batch, hparams)
    np.testing.assert_allclose(np.exp(found), mean, rtol=1e-5)
    kept = np.asarray(batch["weight"]) > 0
    nll = -np.log(mean[np.arange(8), batch["labels"]])[kept].mean()
    np.testing.assert_allclose(to_floats(jit(together.eval_step)(state, batch, hparams))["nll"], nll, rtol=1e-5)
    # Jensen: never worse than the members on average.
    singles = [-np.log(one[np.arange(8), batch["labels"]])[kept].mean() for one in single]
    assert nll < np.mean(singles)


# Langevin dynamics.

N, NOISE, PRECISION = 24, 0.5, 1.5
X = RNG.normal(size=(N, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])
Y = X @ [0.8, -0.5] + np.sqrt(NOISE) * RNG.normal(size=N)
HESSIAN = X.T @ X / NOISE + PRECISION * np.eye(2)
POSTERIOR = np.linalg.inv(HESSIAN)
MODE = POSTERIOR @ X.T @ Y / NOISE
DATA: Any = {
    "inputs": jnp.asarray(X, jnp.float32), "labels": jnp.asarray(Y, jnp.float32), "weight": jnp.ones(N)
}  # fmt: skip


class Linear(LangevinClassifier):
    """Linear regression, whose posterior is known."""

    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return nn.Dense(1, use_bias=False)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (batch["labels"] - outputs[:, 0]) ** 2 / (2 * NOISE), {}


def linear_hparams(eps: float) -> Any:
    return hparams_of(eps * N / 2, PRECISION)


def with_kernel(state: Any, weights: Any) -> Any:
    return dataclasses.replace(state, params={"kernel": jnp.asarray(weights, jnp.float32)[:, None]})


def test_a_temperature_scales_the_variance_of_the_noise() -> None:
    hparams = SimpleNamespace(learning_rate=0.3, prior_precision=1.0)
    noise = Linear(N).init_optimizer(hparams, 10).noise
    assert noise is not None
    np.testing.assert_allclose(noise.eta * 0.3**2, 2 * 0.3 / N)  # eps = 2 r / N
    assert noise.gamma == 0.0
    hparams.temperature = 0.25
    cold = Linear(N).init_optimizer(hparams, 10).noise
    assert cold is not None
    assert cold.eta == noise.eta / 4


@pytest.mark.slow
def test_a_step_is_half_eps_of_the_gradient_and_noise_of_variance_eps() -> None:
    eps, start = 0.01, np.array([0.3, 0.2])
    trainer = Linear(N, samples=2)

    def moved(seed: Any) -> Any:
        state = trainer.init_state(linear_hparams(eps), DATA, jax.random.key(seed), 10)
        state = with_kernel(state, start)
        return trainer.train_step(state, DATA, linear_hparams(eps), KEY)[0].params["kernel"][:, 0] - start

    steps = np.asarray(jit(jax.vmap(moved))(jnp.arange(20_000)), np.float64)
    drift = eps / 2 * (-HESSIAN @ (start - MODE))  # the gradient of log p(w | data)
    np.testing.assert_allclose(steps.mean(0), drift, atol=4 * np.sqrt(eps / 20_000))
    np.testing.assert_allclose(np.cov(steps.T), eps * np.eye(2), atol=0.04 * eps)
    # Of a part of the data the gradient is weighed by N/n: a mean.
    half = {name: array[: N // 2] for name, array in DATA.items()}
    state = with_kernel(jit(trainer.init_state, static_argnums=3)(linear_hparams(eps), half, KEY, 10), start)
    step = jit(trainer.train_step)
    grads = [step(state, batch, linear_hparams(eps), KEY)[0].params["kernel"][:, 0] for batch in (half, DATA)]
    gradient = (X[: N // 2].T @ (Y[: N // 2] - X[: N // 2] @ start) * 2 - X.T @ (Y - X @ start)) / NOISE
    np.testing.assert_allclose(grads[0] - grads[1], eps / 2 * gradient, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.005])
def test_samples_are_those_of_the_posterior(eps: float) -> None:
    count, every = 4000, 20
    trainer, hparams = Linear(N, samples=count, burn_in=0.2), linear_hparams(eps)
    steps = count * every * 5 // 4

    @jit
    def run(key: Any) -> Any:
        state = with_kernel(trainer.init_state(hparams, DATA, key, steps), MODE)
        keys = jax.random.split(key, steps)
        return jax.lax.scan(lambda one, key: (trainer.train_step(one, DATA, hparams, key)[0], None), state, keys)[0]

    collections = run(KEY).collections
    assert int(collections["taken"]) == count
    samples = np.asarray(collections["samples"]["kernel"][:, :, 0], np.float64)
    # A finite step has a stationary covariance of its own, P (I - eps H / 4)^-1; here it is one or two percent off.
    exact = POSTERIOR @ np.linalg.inv(np.eye(2) - eps * HESSIAN / 4)
    deviations = np.sqrt(np.diag(POSTERIOR))
    np.testing.assert_allclose(samples.mean(0), MODE, atol=0.15 * deviations.min())
    np.testing.assert_allclose(np.cov(samples.T), exact, atol=0.1 * np.diag(exact).max())
    np.testing.assert_allclose(exact, POSTERIOR, rtol=0.2, atol=0.02)


@pytest.mark.slow
def test_after_the_burn_in_every_so_many_steps_the_weights_are_a_sample() -> None:
    trainer, hparams = Linear(N, samples=3, burn_in=0.4), linear_hparams(0.01)
    state, seen, step = jit(trainer.init_state, static_argnums=3)(hparams, DATA, KEY, 10), [], jit(trainer.train_step)
    for at in range(10):
        state, _ = step(state, DATA, hparams, jax.random.fold_in(KEY, at))
        seen.append(np.asarray(state.params["kernel"]))
        taken = int(state.collections["taken"])
        assert taken == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3][at]  # 4 of 10 burnt, then every second step
        if taken == 0:
            np.testing.assert_array_equal(state.collections["samples"]["kernel"][0], seen[-1])
    np.testing.assert_array_equal(state.collections["samples"]["kernel"], [seen[5], seen[7], seen[9]])


@pytest.mark.slow
def test_a_classifier_predicts_the_mixture_of_its_samples_only() -> None:
    class Chain(Mixin, LangevinClassifier):
        def init_model(self, hparams: Any) -> Any:
            return nn.Dense(3)

    trainer, hparams, batch = (
        Chain(16, samples=3, burn_in=0.5),
        hparams_of(0.05),
        batch_of(16),
    )
    dataset = ArrayDataset(**{name: np.asarray(batch[name]) for name in ("inputs", "labels")})
    training = trainer.train_model(hparams, Splits(dataset, dataset), epochs=6, seed=0)
    taken = []
    for report in training:
        state = training.state
        taken.append(int(state.collections["taken"]))
        samples = state.collections["samples"]
        used = [jax.tree.map(lambda leaf, at=at: leaf[at], samples) for at in range(max(taken[-1], 1))]
        single = [np.asarray(batch["inputs"]) @ np.asarray(one["kernel"]) + np.asarray(one["bias"]) for one in used]
        expected = np.mean([softmax(one, axis=1) for one in single], axis=0)
        np.testing.assert_allclose(np.exp(trainer.bind_model(state, hparams)(batch["inputs"])), expected, rtol=1e-4)
        nll = -np.log(expected[np.arange(16), batch["labels"]]).mean()
        np.testing.assert_allclose(report.metrics["nll"], nll, rtol=1e-4)
    assert taken == [0, 0, 0, 1, 2, 3]
