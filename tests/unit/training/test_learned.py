"""A learned optimizer behind the same interface as the others: it learns, and knows how long it will run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tuner.errors import StudyError
from tuner.training import OptimizerSpec
from tuner.training.optim.build import as_optimizer
from tuner.training.optim.learned import init_weights, learned

W, G = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.1])
KEY = jax.random.key(0)
HORIZON = 30


def last_loss(optimizer: Any, key: jax.Array) -> jax.Array:
    """Return the logarithm of the share of the loss left on a random quadratic of six parameters."""
    curvature, first = jax.random.split(key)
    scale, start = jnp.exp(jax.random.uniform(curvature, (6,), minval=-3.0, maxval=2.0)), jax.random.normal(first, (6,))

    def loss(x: Any) -> Any:
        return jnp.sum(scale * x**2)

    def step(carry: Any, _: None) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    x = jax.lax.scan(step, (start, optimizer.init(start)), None, length=HORIZON)[0][0]
    return jnp.log(loss(x) / loss(start) + 1e-9)


def mean_loss(optimizer: Any, key: jax.Array, problems: int) -> jax.Array:
    return jax.vmap(lambda one: last_loss(optimizer, one))(jax.random.split(key, problems)).mean()


@pytest.mark.slow
def test_a_meta_trained_optimizer_beats_tuned_sgd() -> None:
    meta: Any = as_optimizer(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)), 1)
    untrained = init_weights(KEY)

    def step(carry: Any, key: jax.Array) -> Any:
        grads = jax.grad(lambda weights: mean_loss(learned(weights, total_steps=HORIZON), key, 16))(carry[0])
        updates, state = meta.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    keys = jax.random.split(jax.random.key(1), 150)
    weights = jax.jit(lambda first: jax.lax.scan(step, (first, meta.init(first)), keys)[0][0])(untrained)

    held_out = jax.random.key(99)
    judge = jax.jit(lambda weights: mean_loss(learned(weights, total_steps=HORIZON), held_out, 64))
    rates = 0.005 * 1.2 ** jnp.arange(25.0)
    sgd = jax.jit(jax.vmap(lambda rate: mean_loss(OptimizerSpec("sgd", rate).build(HORIZON), held_out, 64)))(rates)
    assert judge(weights) < judge(untrained) - 2
    assert judge(weights) < jnp.nanmin(sgd) - 2


def after_three_steps(made: Any) -> Any:
    params, state = W, made.init(W)
    for _ in range(3):
        updates, state = made.update(G, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.slow
def test_progress_is_of_the_horizon_and_ends_with_it() -> None:
    weights = init_weights(KEY)
    short, long = (after_three_steps(learned(weights, total_steps=n)) for n in (3, 300))
    assert not np.allclose(short, long)
    optimizer: Any = learned(weights, total_steps=3000)
    state: Any = optimizer.init(W)
    ends = [optimizer.update(G, state._replace(made=jnp.int32(n)), W)[0] for n in (3000, 6000)]
    np.testing.assert_allclose(*ends, rtol=1e-5)
    with pytest.raises(TypeError, match="total_steps"):
        learned(weights)  # pyright: ignore[reportCallIssue]
    with pytest.raises(StudyError, match=r"weights must have the same shapes as those of init_weights, .*: got"):
        learned({**weights, "out": W}, total_steps=3)
    with pytest.raises(StudyError, match="needs the parameters: got params=None"):
        optimizer.update(G, state)
