"""Kernels, interpreted on CPUs, against the same in plain JAX: values, gradients, shapes that fill no block."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding

from tuner.models import Transformer, kernels

rms_norm: Any = kernels.rms_norm
RMSNorm: Any = kernels.RMSNorm
KEY = jax.random.key(0)
# Small programs: compiling them well takes longer than running them.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def reference(inputs: Any, scale: Any, epsilon: float = 1e-6) -> Any:
    spread = scale.reshape((1,) * (inputs.ndim - 1) + scale.shape)
    return inputs / jnp.sqrt((inputs**2).mean(-1, keepdims=True) + epsilon) * spread


def sizes_of_terms(x: np.ndarray, scale: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sizes of the terms of both gradients, of inputs and scale, where `weights` is that of the outputs.

    Rounding errors go by these: a row's gradient is a difference, of which little may be left.
    """
    factor = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    pull = np.abs(weights * scale)
    inputs = factor * (pull + np.abs(x) * factor**2 * (pull * np.abs(x)).mean(-1, keepdims=True))
    return inputs, np.abs(weights * x * factor).reshape(-1, x.shape[-1]).sum(0)


def test_by_hand() -> None:
    found = jit(partial(rms_norm, epsilon=3.5))(jnp.array([[3.0, 4.0]]), jnp.array([1.0, -2.0]))
    np.testing.assert_allclose(found, [[3 / 4, -8 / 4]], rtol=1e-6)  # sqrt(12.5 + 3.5) = 4


SHAPES = [(64, 32), (2, 33, 24), (130, 1), (7,)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_reference(shape: tuple[int, ...]) -> None:
    keys = jax.random.split(KEY, 3)
    inputs, weights = 2.0 * jax.random.normal(keys[0], shape), jax.random.normal(keys[1], shape)
    scale = jax.random.normal(keys[2], shape[-1:])

    def pulled(norm: Any, inputs: Any, scale: Any, weights: Any) -> Any:
        outputs, pull = jax.vjp(norm, inputs, scale)
        return outputs, *pull(weights)

    ours = jit(partial(pulled, rms_norm))(inputs, scale, weights)
    with jax.enable_x64(True):
        x, s, w = (np.asarray(array, np.float64) for array in (inputs, scale, weights))
        exact = [np.asarray(array) for array in jit(partial(pulled, reference))(x, s, w)]
    # Two sums over a row, and one over all rows; besides them a few products, quotients and a root.
    sizes = (np.abs(exact[0]), *sizes_of_terms(x, s, w))
    roundings = (shape[-1] + 16, 2 * shape[-1] + 16, inputs.size // shape[-1] + shape[-1] + 16)
    for found, expected, size, count in zip(ours, exact, sizes, roundings, strict=True):
        assert found.shape == expected.shape
        assert (np.abs(found - expected) <= rounding(count) * size).all()


def test_rows_of_zeros_have_a_gradient() -> None:
    grads = jit(jax.grad(lambda inputs: rms_norm(inputs, jnp.ones(8)).sum()))(jnp.zeros((3, 8)))
    np.testing.assert_allclose(grads, 1e3, rtol=1e-5)  # 1 / sqrt(epsilon)


@pytest.mark.slow
def test_it_may_be_vmapped_over_trials() -> None:
    inputs, scales = jax.random.normal(KEY, (3, 10, 6)), jax.random.normal(KEY, (3, 6))
    found = jit(jax.vmap(jax.grad(lambda x, s: (rms_norm(x, s) ** 2).sum(), argnums=(0, 1))))(inputs, scales)
    alone: Any = jit(jax.grad(lambda x, s: (reference(x, s) ** 2).sum(), argnums=(0, 1)))
    for at in range(3):
        with jax.enable_x64(True):
            x, s = (np.asarray(array[at], np.float64) for array in (inputs, scales))
            exact = [np.asarray(array) for array in alone(x, s)]
            weights = 2 * np.asarray(reference(x, s))
        # Three sums over six features, one over ten rows, and the products between them.
        for one, other, size in zip(found, exact, sizes_of_terms(x, s, weights), strict=True):
            assert (np.abs(one[at] - other) <= rounding(3 * 6 + 10 + 16) * size).all()


@pytest.mark.slow
def test_half_precision_is_kept_and_summed_in_float32() -> None:
    inputs = jax.random.normal(KEY, (4, 512)).astype(jnp.bfloat16)
    scale = jnp.ones(512, jnp.bfloat16)
    found, grads = jit(jax.value_and_grad(lambda x: rms_norm(x, scale).astype(jnp.float32).sum()))(inputs)
    outputs = jit(rms_norm)(inputs, scale)
    assert (outputs.dtype, grads.dtype) == (jnp.bfloat16, jnp.bfloat16)
    with jax.enable_x64(True):
        exact = np.asarray(reference(np.asarray(inputs, np.float64), np.ones(512)))
    # Half of the distance between two numbers of bfloat16, and what float32 adds by summing 512 squares.
    np.testing.assert_allclose(outputs.astype(jnp.float32), exact, rtol=rounding(1, jnp.bfloat16) + rounding(528))
    assert bool(jnp.isfinite(found))


@pytest.mark.slow
def test_a_transformer_with_it_is_one_with_flaxs_own() -> None:
    tokens = jax.random.randint(KEY, (3, 12), 0, 11)

    def made(norm: str) -> Any:
        return Transformer(11, width=8, heads=1, depth=1, longest=16, is_causal=True, is_scanned=False, norm=norm)

    def run(norm: str, variables: Any) -> Any:
        return jax.value_and_grad(lambda given: (made(norm).apply(given, tokens, train=False) ** 2).mean())(variables)

    variables = jit(lambda: made("rms_kernel").init(KEY, tokens, train=False))()
    ours, flaxs = (jit(partial(run, norm))(variables) for norm in ("rms_kernel", "rms"))
    np.testing.assert_allclose(ours[0], flaxs[0], rtol=1e-6)
    for one, other in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(flaxs[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert "pallas" in str(jax.make_jaxpr(partial(run, "rms_kernel"))(variables))


def test_the_module_has_the_parameters_of_flaxs_own() -> None:
    inputs = jnp.ones((2, 6))
    ours, flaxs = (jax.eval_shape(module.init, KEY, inputs) for module in (RMSNorm(), nn.RMSNorm()))
    assert jax.tree.structure(ours) == jax.tree.structure(flaxs)
    assert RMSNorm(dtype=jnp.bfloat16).apply({"params": {"scale": jnp.ones(6)}}, inputs).dtype == jnp.bfloat16
