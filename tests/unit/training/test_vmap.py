"""Several trials in one program: `jax.vmap` of the training's programs gives each trial what it has alone."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tuner import Space, log_uniform, uniform
from tuner.training import ArrayDataset, Dropout, Layout, OptimizerSpec, TrainerModule, WarmupCosine
from tuner.training.data.arrays import batch_order
from tuner.training.data.batches import Source
from tuner.training.hparams import register
from tuner.training.loop.programs import Carry, eval_batch, first_carry, many_steps, one_step
from tuner.training.metrics import to_floats
from tuner.training.nnx_layers import Dropout as NNXDropout
from tuner.training.optim.build import skipped_steps

TOLERANCE = 5e-6
"""Largest difference in any array of the carry after 20 steps, as a share of its largest entry, or of 1 if that is
less: sums are taken in another order in the lanes. Measured: 8e-7, in the parameters of the NNX model."""

STEPS, LANES = 20, 4
RNG = np.random.default_rng(0)
DATA = ArrayDataset(inputs=RNG.normal(size=(40, 16)), labels=RNG.integers(0, 3, 40))
LAYOUT = Layout()
# Small programs, of which there are many here: compiling them well takes longer than running them.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1.0)
    weight_decay: float = log_uniform(1e-6, 1e-1)
    dropout_rate: float = uniform(0.0, 0.6)
    momentum: float = uniform(0.0, 0.95)
    bn_momentum: float = uniform(0.5, 0.99)
    clip_norm: float = log_uniform(1e-2, 1.0)
    ema_decay: float = uniform(0.5, 0.99)


class MLP(nn.Module):
    rate: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(3)(Dropout(self.rate)(nn.relu(nn.Dense(12)(x)), train=train))


class CNN(nn.Module):
    momentum: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        # A bias before the normalisation has a gradient of rounding errors only, which Adam would magnify.
        x = nn.Conv(4, (3, 3), use_bias=False)(x.reshape(-1, 4, 4, 1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x))
        return nn.Dense(3)(x.reshape(len(x), -1))


class NNX(nnx.Module):
    def __init__(self, rate: Any, momentum: Any, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(16, 12, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(12, momentum=momentum, rngs=rngs)
        self.dropout = NNXDropout(rate, rngs=rngs)
        self.last = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


MODELS = {
    "mlp": lambda hparams: MLP(hparams.dropout_rate),
    "cnn": lambda hparams: CNN(hparams.bn_momentum),
    "nnx": lambda hparams: partial(NNX, hparams.dropout_rate, hparams.bn_momentum),
}
OPTIMIZERS = {
    "adamw": lambda hparams: OptimizerSpec(
        "adamw", hparams.learning_rate / 10, schedule=WarmupCosine(), decay=hparams.weight_decay
    ),
    "sgd": lambda hparams: OptimizerSpec(
        "sgd",
        hparams.learning_rate,
        options={"momentum": hparams.momentum},
        decay=hparams.weight_decay,
        clip_norm=hparams.clip_norm,
        skip_nonfinite=True,
    ),
}


class Classifier(TrainerModule):
    def __init__(self, model: str, optimizer: str, *, is_smoothed: bool = False) -> None:
        self.names, self.is_smoothed = (model, optimizer), is_smoothed

    def init_model(self, hparams: Any) -> Any:
        return MODELS[self.names[0]](hparams)

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return OPTIMIZERS[self.names[1]](hparams)

    def ema_decay(self, hparams: Any) -> Any:
        return hparams.ema_decay if self.is_smoothed else None

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
        return losses, {"accuracy": jnp.argmax(outputs, axis=-1) == batch["labels"]}


def stacked(lanes: int = LANES) -> Any:
    """Return hyperparameters that differ in every number from lane to lane."""
    spread = np.linspace(0.0, 1.0, lanes, dtype=np.float32)
    ranges = {
        "learning_rate": (0.02, 0.2),
        "weight_decay": (1e-3, 1e-2),
        "dropout_rate": (0.0, 0.5),
        "momentum": (0.0, 0.9),
        "bn_momentum": (0.7, 0.9),
        "clip_norm": (0.1, 2.0),
        "ema_decay": (0.6, 0.9),
    }
    values: dict[str, Any] = {name: jnp.asarray(low + (high - low) * spread) for name, (low, high) in ranges.items()}
    hparams = HParams(**values)
    register(hparams)
    return hparams


SEEDS = jnp.arange(LANES, dtype=jnp.uint32)
ORDER = batch_order(jnp.asarray(RNG.integers(0, 40, STEPS * 8), jnp.int32), 8)
SOURCE = Source(DATA.arrays, ORDER)
BATCH = SOURCE.at(jnp.int32(0))


def train(trainer: TrainerModule, hparams: Any, seed: Any, source: Source = SOURCE, steps: int = STEPS) -> Carry:
    carry = first_carry(trainer, hparams, source.at(jnp.int32(0)), seed, steps)
    return many_steps(trainer, LAYOUT, hparams, source, carry, steps)


def judge(trainer: TrainerModule, hparams: Any, state: Any) -> Any:
    return eval_batch(trainer, LAYOUT, hparams, DATA.arrays, state)


def lane(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def keyless(tree: Any) -> Any:
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]


def difference(left: Any, right: Any) -> float:
    pairs = list(zip(keyless(left), keyless(right), strict=True))
    assert all(one.shape == other.shape and one.dtype == other.dtype for one, other in pairs)
    return max(
        float(np.max(np.abs(one.astype("f8") - other.astype("f8"))) / max(1.0, np.max(np.abs(other))))
        for one, other in pairs
    )


def bits(tree: Any) -> bytes:
    return b"".join(leaf.tobytes() for leaf in keyless(tree))


TRAINERS = {
    "mlp-adamw": Classifier("mlp", "adamw"),
    "mlp-sgd-ema": Classifier("mlp", "sgd", is_smoothed=True),
    "cnn-adamw-ema": Classifier("cnn", "adamw", is_smoothed=True),
    "nnx-sgd-ema": Classifier("nnx", "sgd", is_smoothed=True),
}


WEIGHTS = jnp.broadcast_to(ORDER[1], (LANES, *ORDER[1].shape))


@cache
def runs(name: str) -> tuple[Any, Any]:
    """Return a training and its evaluation as compiled programs, of all lanes and of one: tests share them."""

    def run(hparams: Any, seed: Any, weights: Any) -> Any:
        carry = train(TRAINERS[name], hparams, seed, Source(DATA.arrays, (ORDER[0], weights)))
        return carry, judge(TRAINERS[name], hparams, carry.state)

    return jit(jax.vmap(run)), jit(run)


# The networks that compile longest, or are there twice, in the slow part.
_QUICK = ("mlp-adamw", "mlp-sgd-ema")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "nnx-sgd-ema",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("mlp-adamw", "mlp-sgd-ema", "cnn-adamw-ema")),
    ],
)
def test_each_lane_is_the_trial_alone(name: str) -> None:
    vmapped, alone = runs(name)
    hparams = stacked()
    together = vmapped(hparams, SEEDS, WEIGHTS)
    trials = [alone(*lane((hparams, SEEDS, WEIGHTS), index)) for index in range(LANES)]
    for index, trial in enumerate(trials):
        assert difference(lane(together, index), trial) < TOLERANCE
    # Were the lanes alike, the above would say nothing.
    assert difference(trials[0], trials[-1]) > 1000 * TOLERANCE
    assert together[0].state.step.tolist() == [STEPS] * LANES


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [TRAINERS["mlp-sgd-ema"]], ids=["mlp"])
def test_many_steps_of_lanes_are_single_steps_one_after_the_other(trainer: TrainerModule) -> None:
    hparams = stacked()
    carry = jit(jax.vmap(lambda hparams, seed: first_carry(trainer, hparams, BATCH, seed, STEPS)))(hparams, SEEDS)
    step = jit(jax.vmap(lambda hparams, carry: one_step(trainer, LAYOUT, hparams, SOURCE, carry)))
    for _ in range(5):
        carry = step(hparams, carry)
    at_once = jit(jax.vmap(lambda hparams, seed: _some(trainer, hparams, seed, 5)))(hparams, SEEDS)
    assert difference(carry, at_once) < TOLERANCE


def _some(trainer: TrainerModule, hparams: Any, seed: Any, steps: int) -> Carry:
    carry = first_carry(trainer, hparams, BATCH, seed, STEPS)
    return many_steps(trainer, LAYOUT, hparams, SOURCE, carry, steps)


@pytest.mark.slow
def test_lanes_over_seeds_alone_share_their_hyperparameters() -> None:
    trainer, hparams = TRAINERS["mlp-adamw"], lane(stacked(), 1)
    together = jit(jax.vmap(partial(train, trainer), in_axes=(None, 0)))(hparams, SEEDS)
    alone = jit(partial(train, trainer))(hparams, SEEDS[2])
    assert difference(lane(together, 2), alone) < TOLERANCE
    assert difference(lane(together, 1), alone) > 1000 * TOLERANCE


@pytest.mark.parametrize("planted", ["learning_rate", "dropout_rate", "weight"])
@pytest.mark.parametrize(
    "name",
    [
        *_QUICK,
        pytest.param("nnx-sgd-ema", marks=pytest.mark.slow),
        pytest.param("cnn-adamw-ema", marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_a_lane_of_nan_leaves_its_neighbours_bit_for_bit(name: str, planted: str) -> None:
    hparams, weights, vmapped = stacked(), WEIGHTS, runs(name)[0]
    healthy = vmapped(hparams, SEEDS, weights)
    if planted == "weight":
        weights = weights.at[1, 3, 2].set(jnp.nan)
    else:
        hparams = dataclasses.replace(hparams, **{planted: getattr(hparams, planted).at[1].set(jnp.nan)})
    sick = vmapped(hparams, SEEDS, weights)
    changed = [bits(lane(healthy, index)) != bits(lane(sick, index)) for index in range(LANES)]
    has_dropout = "cnn" not in name
    assert changed == [False, planted != "dropout_rate" or has_dropout, False, False]


def test_a_lane_that_is_not_finite_is_skipped_and_counted_alone() -> None:
    weights = WEIGHTS.at[1, 3].set(jnp.nan)
    sick, _ = runs("mlp-sgd-ema")[0](stacked(), SEEDS, weights)
    assert skipped_steps(sick.state.opt_state).tolist() == [0, 1, 0, 0]  # pyright: ignore[reportOptionalMemberAccess]
    assert all(np.isfinite(leaf).all() for leaf in keyless(sick.state.params))


@pytest.mark.slow
def test_gradients_of_each_example_average_to_that_of_the_batch() -> None:
    trainer, hparams = Classifier("mlp", "sgd"), lane(stacked(), 0)
    state = jit(lambda hparams: first_carry(trainer, hparams, BATCH, jnp.uint32(0), STEPS).state)(hparams)
    weight = jnp.array([1.0, 2.0, 0.5, 0.0, 1.0, 1.0, 3.0, 1.0])
    batch = {**BATCH, "weight": weight}

    def loss(params: Any, batch: Any) -> Any:
        outputs, _ = trainer.apply_model(params, state.collections, batch, hparams, train=False)
        return trainer._metrics(outputs, batch, hparams)["loss"].value

    def one(params: Any, example: Any) -> Any:
        return loss(params, {name: array[None] for name, array in {**example, "weight": jnp.float32(1.0)}.items()})

    each = jit(jax.vmap(jax.grad(one), in_axes=(None, 0)))(state.params, batch)
    whole = jit(jax.grad(loss))(state.params, batch)
    for of_each, of_batch in zip(jax.tree.leaves(each), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(np.tensordot(weight, of_each, 1) / weight.sum(), of_batch, atol=1e-6)


@pytest.mark.slow
def test_metrics_of_lanes_are_those_of_each_trial() -> None:
    trainer, hparams = TRAINERS["cnn-adamw-ema"], stacked()
    states = jit(jax.vmap(lambda hparams, seed: _some(trainer, hparams, seed, 3).state))(hparams, SEEDS)
    together = jit(jax.vmap(partial(judge, trainer)))(hparams, states)
    alone = jit(partial(judge, trainer))(lane(hparams, 2), lane(states, 2))
    left, right = to_floats(lane(together, 2)), to_floats(alone)
    assert left.keys() == right.keys() == {"loss", "accuracy"}
    np.testing.assert_allclose(list(left.values()), list(right.values()), rtol=1e-5)
