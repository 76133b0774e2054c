"""The flow: invertible, with the determinant that automatic differentiation finds; its density and its samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding
from scipy.stats import multivariate_normal

from tuner.methods import Flow, FlowTrainer
from tuner.training import ArrayDataset, OptimizerSpec, Splits, WarmupCosine
from tuner.training.metrics import to_floats
from tuner.training.state import TrainState

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(0)
MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[2.0, -0.9], [-0.9, 0.7]])
GAUSSIAN: Any = multivariate_normal(MEAN, COVARIANCE)  # pyright: ignore[reportArgumentType]


class Trainer(FlowTrainer):
    loop = "scan"

    def __init__(self, couplings: int) -> None:
        self.couplings = couplings

    def init_model(self, hparams: Any) -> Any:
        return Flow(self.couplings, width=8)

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return OptimizerSpec("adam", hparams["learning_rate"], schedule=WarmupCosine())


def perturbed(flow: Flow, features: int, by: float = 0.4) -> Any:
    """Parameters of no special kind."""
    params: Any = jit(flow.init)(KEY, jnp.zeros((1, features)))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return tree.unflatten([leaf + by * rng.normal(size=leaf.shape).astype("f") for leaf in leaves])


def gaussian_params(mean: np.ndarray, covariance: np.ndarray) -> Any:
    """Those with which the flow without couplings is this Gaussian: L of L^T L = covariance^-1."""
    # A lower triangular L with z = L (x - mean): the inverse of the covariance's Cholesky factor.
    matrix = np.linalg.inv(np.linalg.cholesky(covariance))
    values = {"shift": mean, "log_diagonal": np.log(np.diag(matrix)), "lower": np.tril(matrix, -1)}
    return {"Affine_0": {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}}


@pytest.mark.slow
@pytest.mark.parametrize("features", [pytest.param(2, marks=pytest.mark.long), 3])
def test_the_inverse_is_exact_and_the_determinant_is_that_of_the_jacobian(features: int) -> None:
    flow = Flow(couplings=3, width=8)
    params = perturbed(flow, features, by=0.3)
    x = jax.random.normal(KEY, (6, features))
    # In float64, so that rounding (1e-16 times the Jacobian's condition, below 1e3 here) is far below the tolerance on
    # any processor; in float32 the two orders of operations differ by some 1e-5.
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), (params, x))
        forth, back = jit(partial(flow.apply, params)), jit(lambda z: flow.apply(params, z, True))
        z, log_det = forth(x)
        again, log_det_back = back(z)
        assert again.dtype == jnp.float64
        np.testing.assert_allclose(again, x, atol=1e-11)
        np.testing.assert_allclose(log_det_back, -log_det, atol=1e-11)
        jacobians = jit(jax.vmap(jax.jacobian(lambda row: flow.apply(params, row[None])[0][0])))(x)
        assert np.linalg.cond(jacobians).max() < 1e3
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobians)[1], atol=1e-11)
        x, z, log_det = np.asarray(x), np.asarray(z), np.asarray(log_det)
    assert np.std(log_det) > 0.01  # it does depend on the point
    every_coordinate_moves = np.abs(z - x).min(axis=0) > 1e-3
    assert every_coordinate_moves.all()


@pytest.mark.slow
def test_every_coordinate_depends_on_every_other() -> None:
    flow = Flow(couplings=2, width=8)
    params = perturbed(flow, 2)
    params["params"]["Affine_0"]["lower"] *= 0.0
    jacobian = jit(jax.jacobian(lambda row: flow.apply(params, row[None])[0][0]))(jnp.array([0.3, -0.2]))
    assert (np.abs(jacobian) > 1e-3).all()


def test_at_first_it_is_the_identity() -> None:
    flow, x = Flow(couplings=2, width=8), jax.random.normal(KEY, (4, 2))
    z, log_det = jit(lambda x: flow.apply(flow.init(KEY, x), x))(x)
    np.testing.assert_array_equal(z, x)
    np.testing.assert_array_equal(log_det, 0.0)


@pytest.mark.slow
def test_the_density_of_couplings_integrates_to_one() -> None:
    trainer, side = Trainer(4), np.linspace(-16, 16, 600, dtype=np.float32)
    x, y = np.meshgrid(side, side)
    points = jnp.asarray(np.stack([x.ravel(), y.ravel()], axis=1))
    outputs = jit(partial(Flow(4, 8).apply, perturbed(Flow(4, 8), 2, by=0.2)))(points)
    losses, _ = trainer.loss(outputs, {}, {})
    total = np.exp(-np.asarray(losses, np.float64)).sum() * float(side[1] - side[0]) ** 2
    np.testing.assert_allclose(total, 1.0, atol=0.01)


@pytest.mark.slow
def test_without_couplings_it_is_a_gaussian_with_any_covariance() -> None:
    trainer, x = Trainer(0), np.random.default_rng(0).normal(size=(5, 2)).astype("f")
    state = TrainState(jnp.int32(0), gaussian_params(MEAN, COVARIANCE), None, {}, KEY)
    outputs, _ = trainer.apply_model(state.params, {}, {"inputs": jnp.asarray(x)}, {}, train=False)
    np.testing.assert_allclose(trainer.loss(outputs, {}, {})[0], -GAUSSIAN.logpdf(x), rtol=1e-5)

    samples, log_density = trainer.sample(state, {}, KEY, (20_000, 2))
    np.testing.assert_allclose(log_density, GAUSSIAN.logpdf(samples), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=0.03)
    np.testing.assert_allclose(np.cov(np.asarray(samples).T), COVARIANCE, atol=0.06)


@pytest.mark.slow
def test_samples_are_those_of_their_key() -> None:
    trainer, state = Trainer(2), TrainState(jnp.int32(0), perturbed(Flow(2, 8), 2)["params"], None, {}, KEY)
    draw = jit(lambda key: trainer.sample(state, {}, key, (4, 2)))
    samples, log_density = draw(jax.random.key(1))
    np.testing.assert_array_equal(samples, draw(jax.random.key(1))[0])
    assert (samples != draw(jax.random.key(2))[0]).all()
    # The density that comes with them is that of the points.
    outputs, _ = trainer.apply_model(state.params, {}, {"inputs": samples}, {}, train=False)
    np.testing.assert_allclose(-trainer.loss(outputs, {}, {})[0], log_density, atol=1e-4)


@pytest.mark.slow
def test_entropy_is_the_models_own_and_is_drawn_with_the_states_key() -> None:
    trainer = Trainer(0)
    batch = {"inputs": jnp.zeros((4000, 2)), "weight": (jnp.arange(4000) < 3900).astype(jnp.float32)}

    def entropy(seed: int, step: int, **changes: Any) -> float:
        state = TrainState(jnp.int32(step), gaussian_params(MEAN, COVARIANCE), None, {}, jax.random.key(seed))
        return to_floats(trainer.eval_step(state, {**batch, **changes}, {}))["entropy"]

    expected = float(GAUSSIAN.entropy())
    np.testing.assert_allclose(entropy(0, 0), expected, atol=0.08)
    assert entropy(0, 0) == entropy(0, 0)
    assert len({entropy(0, 0), entropy(1, 0), entropy(0, 1)}) == 3
    # Padding draws, but counts for nothing.
    few = entropy(0, 0, weight=(jnp.arange(4000) < 2).astype(jnp.float32))
    state = TrainState(jnp.int32(0), gaussian_params(MEAN, COVARIANCE), None, {}, jax.random.key(0))
    _, log_density = trainer.sample(state, {}, trainer_key(state), (4000, 2))
    np.testing.assert_allclose(few, -log_density[:2].mean(), rtol=1e-5)


def trainer_key(state: Any) -> Any:
    from tuner.training.state import Stream

    return Stream.EVAL.key(state.key, state.step)


@pytest.mark.slow
def test_training_finds_the_gaussian_of_greatest_likelihood() -> None:
    dataset = ArrayDataset(inputs=np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 256))
    training = Trainer(0).train_model({"learning_rate": 0.1}, Splits(dataset, dataset), epochs=100, seed=0)
    *_, last = training
    # What was learned, in float64: no Gaussian is more likely than that of the greatest likelihood, whatever the
    # processor. There the mean of -log p is log(2 pi e) + log det / 2 of the biased covariance.
    x = dataset.host()["inputs"].astype(np.float64)
    best = np.log(2 * np.pi * np.e) + 0.5 * np.linalg.slogdet(np.cov(x.T, bias=True))[1]
    affine = {name: np.asarray(value, np.float64) for name, value in training.state.params["Affine_0"].items()}
    matrix = np.tril(affine["lower"], -1) + np.diag(np.exp(affine["log_diagonal"]))
    covariance: Any = np.linalg.inv(matrix.T @ matrix)
    found: Any = multivariate_normal(affine["shift"], covariance)
    terms = -found.logpdf(x)
    # Over 24 seeds of data and training it was 6.4e-7 above, with a standard deviation of 5.1e-7.
    assert best - 1e-12 <= terms.mean() < best + 1e-5
    # In float32 z takes a difference, exp, a product and a sum; its density a square, a sum, log, a product and two
    # sums; the loss a sum of two, another, and the mean of 256.
    away = np.abs(x - affine["shift"])
    z_sizes = np.abs((x - affine["shift"]) @ matrix.T) * (away @ np.abs(matrix.T))
    sizes = z_sizes.sum(1) / 2 + np.log(2 * np.pi) + np.abs(affine["log_diagonal"]).sum()
    off = rounding(11) * z_sizes.sum(1).mean() + rounding(15 + 257) * sizes.mean()
    np.testing.assert_allclose(last.metrics["loss"], terms.mean(), rtol=0, atol=off)
