"""Layers stacked in a loop against the same layers one by one, and the memory that a step takes."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tuner import Space, uniform
from tuner.training import ArrayDataset, Dropout, Splits, TrainerModule, memory
from tuner.training.model.layers import Stack

RNG = np.random.default_rng(0)
DEPTH, WIDTH = 4, 16
X = jnp.asarray(RNG.normal(size=(32, WIDTH)), jnp.float32)


class Block(nn.Module):
    rate: Any = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        y = nn.tanh(nn.Dense(8 * WIDTH)(y))
        return x + nn.Dense(WIDTH)(Dropout(self.rate)(y, train=train))


class Loop(nn.Module):
    rate: Any = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for index in range(DEPTH):
            x = Block(self.rate, name=f"layer_{index}")(x, train=train)
        return x


class Counting(nn.Module):
    """A layer with a collection and a random stream that only it knows."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        count = self.variable("counts", "n", lambda: jnp.zeros((), jnp.int32))
        if train:
            count.value += 1
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return x + nn.Dense(WIDTH)(x)


def variables_of(module: nn.Module) -> Any:
    return jax.jit(partial(module.init, train=False))({"params": jax.random.key(0)}, X)


@pytest.fixture(scope="module")
def weights() -> tuple[Any, Any]:
    """Variables of a stack, and the same for the layers one by one."""
    stacked = variables_of(Stack(Block, DEPTH))
    one_by_one = {
        kind: {
            f"layer_{index}": jax.tree.map(lambda leaf, index=index: leaf[index], tree["layers"])
            for index in range(DEPTH)
        }
        for kind, tree in stacked.items()
    }
    return stacked, one_by_one


@jax.jit(static_argnames=("kind",))
def trained(variables: Any, rate: Any, *, kind: str) -> Any:
    """Output, batch statistics and gradient of a training step."""

    def loss(params: Any) -> Any:
        module = Loop(rate) if kind == "loop" else Stack(partial(Block, rate), DEPTH, remat=kind == "remat")
        outputs, changed = module.apply(
            {**variables, "params": params}, X, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        return (outputs**2).mean(), (outputs, changed["batch_stats"])

    gradient, (outputs, stats) = jax.grad(loss, has_aux=True)(variables["params"])
    return outputs, stats, gradient


@pytest.mark.slow
def test_a_stack_is_its_layers_one_after_another(weights: tuple[Any, Any]) -> None:
    stacked, one_by_one = weights
    outputs, stats, gradient = trained(stacked, 0.0, kind="stack")
    theirs, their_stats, their_gradient = trained(one_by_one, 0.0, kind="loop")
    np.testing.assert_allclose(outputs, theirs, atol=1e-5)
    for index in range(DEPTH):
        for ours, expected in ((stats, their_stats), (gradient, their_gradient)):
            one = jax.tree.map(lambda leaf, index=index: leaf[index], ours["layers"])
            close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
            jax.tree.map(close, one, expected[f"layer_{index}"])
            assert all((leaf != 0).any() for leaf in jax.tree.leaves(one))
    evaluated = jax.jit(partial(Stack(Block, DEPTH).apply, train=False))(stacked, X)
    np.testing.assert_allclose(evaluated, jax.jit(partial(Loop().apply, train=False))(one_by_one, X), atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.slow
def test_forgetting_activations_gives_the_same_gradient(rate: float, weights: tuple[Any, Any]) -> None:
    plain, remat = (trained(weights[0], rate, kind=kind) for kind in ("stack", "remat"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), plain, remat)


def test_each_layer_has_parameters_of_its_own(weights: tuple[Any, Any]) -> None:
    single = jax.eval_shape(partial(Block().init, train=False), {"params": jax.random.key(0)}, X)
    for kind in ("params", "batch_stats"):
        ours = weights[0][kind]["layers"]
        jax.tree.map(lambda leaf, one: np.testing.assert_equal(leaf.shape, (DEPTH, *one.shape)), ours, single[kind])
    kernels = np.asarray(weights[0]["params"]["layers"]["Dense_0"]["kernel"])
    assert len({kernel.tobytes() for kernel in kernels}) == DEPTH
    # As wide as those of a layer alone, not as if the stack's axis were an input.
    assert kernels.std(axis=(1, 2)) == pytest.approx([WIDTH**-0.5] * DEPTH, rel=0.2)


class Masked(nn.Module):
    """Writes a layer's dropout mask as a further decimal digit."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return 10 * x + Dropout(0.5)(jnp.ones_like(x), train=train) / 2


@pytest.mark.parametrize("remat", [False, True])
def test_each_layer_draws_its_own_dropout(remat: bool) -> None:
    run: Any = jax.jit(
        lambda seed: Stack(Masked, 4, remat).apply(
            {}, jnp.zeros(200), train=True, rngs={"dropout": jax.random.key(seed)}
        )
    )
    digits = np.asarray(run(0)).astype(int)
    masks = [digits // 10**place % 10 for place in range(4)]
    assert {tuple(np.unique(mask)) for mask in masks} == {(0, 1)}
    for one in range(4):
        assert 70 < masks[one].sum() < 130
        for other in range(one):
            assert 60 < (masks[one] == masks[other]).sum() < 140
    assert (run(0) == run(0)).all()
    assert (run(0) != run(1)).any()


class HParams(Space):
    learning_rate: float = uniform(0.0, 1.0)


class Regression(TrainerModule):
    loop = "step"

    def __init__(self, remat: bool) -> None:
        self.stack = Stack(partial(Block, 0.2), 3 * DEPTH, remat=remat)

    def init_model(self, hparams: Any) -> nn.Module:
        return self.stack

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs**2).mean(-1), {}

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(hparams.learning_rate)

    def batch_size(self, hparams: Any) -> int:
        return 256


H = HParams(learning_rate=0.5)
DATA = ArrayDataset(inputs=RNG.normal(size=(300, WIDTH)))
SPLITS = Splits(DATA, DATA)


@pytest.mark.slow
def test_memory_of_a_step_with_and_without_activations() -> None:
    trainer = Regression(remat=False)
    plain, remat = (memory(made, H, SPLITS) for made in (trainer, Regression(remat=True)))
    assert remat["temporary"] < plain["temporary"] / 2
    # Without: at least what the wide layer leaves behind, in every layer.
    assert plain["temporary"] > 3 * DEPTH * 256 * 8 * WIDTH * 4
    state: Any = jax.eval_shape(lambda: trainer.init_state(H, {"inputs": jnp.ones((256, WIDTH))}, jax.random.key(0), 2))
    state_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves((state.params, state.opt_state, state.collections)))
    data_bytes = 300 * (WIDTH + 1) * 4 + 2 * 512 * 4  # the arrays and their order
    for found in (plain, remat):
        assert found["arguments"] == pytest.approx(state_bytes + data_bytes, abs=500)
        assert 0 <= found["outputs"] < 1000  # the state takes over the memory of the one before


@pytest.mark.slow
def test_a_stack_carries_collections_that_only_its_layer_knows() -> None:
    stacked = Stack(Counting, DEPTH)
    variables = dict(stacked.init(jax.random.key(0), X, train=False))
    assert variables["counts"]["layers"]["n"].tolist() == [0] * DEPTH
    rngs = {"noise": jax.random.key(1)}
    for expected in (1, 2):
        _, changed = stacked.apply(variables, X, train=True, mutable=["counts"], rngs=rngs)
        variables |= dict(changed)
        assert variables["counts"]["layers"]["n"].tolist() == [expected] * DEPTH
    kernels = variables["params"]["layers"]["Dense_0"]["kernel"]
    assert len({float(kernel[0, 0]) for kernel in kernels}) == DEPTH  # each layer is drawn anew
    x: Any = X
    outputs: Any = stacked.apply(variables, X, train=False)
    for index in range(DEPTH):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], variables["params"]["layers"])
        x = Counting().apply({"params": one, "counts": {"n": jnp.int32(0)}}, x, train=False)
    np.testing.assert_allclose(outputs, x, rtol=1e-4, atol=1e-4)


class Counted(TrainerModule):
    """A stack of counting layers under the trainer, which knows nothing of their collection."""

    def init_model(self, hparams: Any) -> nn.Module:
        return Stack(Counting, DEPTH)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return jnp.mean(outputs**2, axis=-1), {}


@pytest.mark.slow
def test_a_trainer_follows_the_collections_of_a_stack() -> None:
    dataset = ArrayDataset(inputs=np.asarray(X))
    training = Counted().train_model({"learning_rate": 0.01}, Splits(dataset, dataset), epochs=3, seed=0)
    list(training)
    assert training.state.collections["counts"]["layers"]["n"].tolist() == [3] * DEPTH
