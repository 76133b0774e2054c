"""Products with the Hessian, its extreme eigenvalues and its trace, beside the matrix itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tuner.methods import Classifier, Sharpness, extreme_eigenvalues, hessian_product, hessian_trace
from tuner.training import ArrayDataset, Splits
from tuner.training.metrics import to_floats
from tuner.training.state import TrainState

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(0)


def symmetric(eigenvalues: Any, seed: int = 0) -> np.ndarray:
    """A matrix with these eigenvalues and directions of no special kind."""
    turned = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues))))[0]
    return ((turned * np.asarray(eigenvalues)) @ turned.T).astype(np.float32)


def quadratic(matrix: np.ndarray) -> Any:
    """Half x^T A x + b x of a pytree of two arrays, whose Hessian is A."""

    def loss(params: Any) -> Any:
        x = jnp.concatenate([params["a"].reshape(-1), params["b"]])
        return 0.5 * x @ (matrix @ x) + jnp.sum(x)

    return loss


def params_of(size: int) -> Any:
    return {"a": jnp.ones((2, 2)), "b": jnp.arange(size - 4, dtype=jnp.float32)}


@pytest.mark.slow
def test_a_product_with_the_hessian_of_a_quadratic_is_one_with_its_matrix() -> None:
    matrix = symmetric([3.0, 1.0, -2.0, 0.5, 4.0, 0.0])
    vector = {"a": jnp.array([[1.0, -1.0], [2.0, 0.5]]), "b": jnp.array([3.0, -2.0])}
    found = hessian_product(quadratic(matrix), params_of(6), vector)
    expected = matrix @ np.array([1.0, -1.0, 2.0, 0.5, 3.0, -2.0])
    np.testing.assert_allclose(np.concatenate([found["a"].ravel(), found["b"]]), expected, atol=1e-5)
    # All of it, column by column.
    columns = [
        ravel_pytree(hessian_product(quadratic(matrix), params_of(6), one))[0]
        for one in map(ravel_pytree(params_of(6))[1], jnp.eye(6))
    ]
    np.testing.assert_allclose(columns, matrix, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "eigenvalues",
    [
        [-7.0, -1.0, 0.0, 2.0, 3.0, 5.0],  # that of greatest size is the least
        [3.0] * 6,  # the first product ends the search
        [0.0] * 6,
        [5.0, 5.0, 5.0, -1.0, -1.0, -1.0],  # the second does
        [-3.0, -3.0, -3.0, -1.0, -1.0, -1.0],  # zeros would be greater
        [1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 1e3],
    ],
)
def test_extreme_eigenvalues_are_those_of_the_matrix(eigenvalues: list[float]) -> None:
    loss = quadratic(symmetric(eigenvalues))
    least, greatest = jit(lambda params: extreme_eigenvalues(loss, params, KEY, steps=6))(params_of(6))
    scale = max(map(abs, eigenvalues))
    np.testing.assert_allclose([least, greatest], [min(eigenvalues), max(eigenvalues)], atol=2e-5 * scale + 1e-12)


@pytest.mark.slow
def test_few_products_never_say_more_than_there_is() -> None:
    eigenvalues = np.linspace(-3.0, 10.0, 40)
    loss, params = quadratic(symmetric(eigenvalues)), params_of(40)
    found = [
        [float(part) for part in jit(lambda key, n=n: extreme_eigenvalues(loss, params, key, n))(KEY)]
        for n in (1, 4, 12)
    ]
    leasts, greatests = zip(*found, strict=True)
    assert -3.0 - 1e-4 < leasts[2] < leasts[1] < leasts[0]
    assert greatests[0] < greatests[1] < greatests[2] < 10.0 + 1e-4
    assert greatests[2] > 9.5


def test_one_probe_gives_the_trace_of_a_diagonal_exactly() -> None:
    diagonal = np.array([1.0, -2.0, 3.0, 4.0, 0.5], np.float32)
    for seed in range(3):
        found = hessian_trace(quadratic(np.diag(diagonal)), params_of(5), jax.random.key(seed), probes=1)
        np.testing.assert_allclose(found, 6.5, rtol=1e-6)


@pytest.mark.slow
def test_probes_are_unbiased_with_the_variance_that_theory_says() -> None:
    matrix, probes = symmetric([3.0, 1.0, -2.0, 0.5, 4.0, 0.0]), 50
    keys = jax.random.split(KEY, 400)
    found = jit(jax.vmap(lambda key: hessian_trace(quadratic(matrix), params_of(6), key, probes)))(keys)
    variance = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / probes
    np.testing.assert_allclose(found.mean(), 6.5, atol=4 * np.sqrt(variance / 400))
    np.testing.assert_allclose(found.var(), variance, rtol=0.35)


# A trainer's.


class Logistic(Sharpness, Classifier):
    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return nn.Dense(2, use_bias=False)


def logistic_hessian(inputs: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The Hessian of the mean cross-entropy in the kernel (features, classes): (diag p - p p^T) (x) x x^T."""
    logits = inputs @ kernel
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    blocks = p[:, :, None] * np.eye(2) - p[:, :, None] * p[:, None, :]
    return np.einsum("nij,na,nb->aibj", blocks, inputs, inputs).reshape(6, 6) / len(inputs)


def test_sharpness_is_the_greatest_eigenvalue_of_the_hessian_by_hand() -> None:
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(12, 3)), rng.normal(size=(3, 2))
    state = TrainState(jnp.int32(0), {"kernel": jnp.asarray(kernel, jnp.float32)}, None, {}, KEY)
    batch = {
        "inputs": jnp.asarray(np.concatenate([inputs, rng.normal(size=(4, 3)) * 50]), jnp.float32),
        "labels": jnp.asarray(rng.integers(0, 2, 16)),
        "weight": jnp.asarray([1.0] * 12 + [0.0] * 4),
    }
    found = to_floats(jit(Logistic(2).eval_step)(state, batch, {}))
    expected = np.linalg.eigvalsh(logistic_hessian(inputs, kernel))[-1]
    np.testing.assert_allclose(found["sharpness"], expected, rtol=1e-4)
    assert {"loss", "accuracy", "nll"} <= set(found)


@pytest.mark.slow
def test_it_is_reported_for_the_weights_that_are_evaluated() -> None:
    rng = np.random.default_rng(0)
    dataset = ArrayDataset(inputs=rng.normal(size=(40, 3)), labels=rng.integers(0, 2, 40))
    hparams = {"learning_rate": 0.3, "ema_decay": 1.0}  # those of the start, for ever
    reports = list(Logistic(2).train_model(hparams, Splits(dataset, dataset), epochs=2, seed=0))
    assert reports[0].metrics["sharpness"] == reports[1].metrics["sharpness"] > 0
