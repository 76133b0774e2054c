"""Half precision: what stays float32, how close the numbers stay, and what an overflow does in float16."""

import dataclasses
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.dtypes import TypePromotionError

from tuner import Space, uniform
from tuner.training import ArrayDataset, Dropout, OptimizerSpec, Splits, TrainerModule, Training
from tuner.training.loop.checks import check_trainer

RNG = np.random.default_rng(0)
HALF = ("bfloat16", "float16")


class HParams(Space):
    learning_rate: float = uniform(0.0, 1.0)


H = HParams(learning_rate=0.01)
SEEN: set[tuple[str, str]] = set()


class Seen(nn.Module):
    """The identity, which writes down the types it sees while it is compiled."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        SEEN.add((self.name or "", x.dtype.name))
        return x


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, number: jax.Array, *, train: bool) -> jax.Array:
        SEEN.add(("number", number.dtype.name))
        x = Seen(name="first")(nn.Dense(8, use_bias=False)(Seen(name="input")(x)))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = Dropout(0.1)(nn.relu(x), train=train)
        return Seen(name="last")(nn.Dense(3)(Seen(name="hidden")(x)))


class Classifier(TrainerModule):
    loop = "step"

    def __init__(self, precision: Any) -> None:
        self.precision = precision

    def init_model(self, hparams: Any) -> nn.Module:
        return Net()

    def inputs(self, batch: Any) -> Any:
        return batch["inputs"], batch["labels"]

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        assert outputs.dtype == jnp.float32
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
        return losses, {"accuracy": outputs.argmax(-1) == batch["labels"]}

    def batch_size(self, hparams: Any) -> int:
        return 20

    def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
        return OptimizerSpec("adamw", hparams.learning_rate)

    def ema_decay(self, hparams: Any) -> float:
        return 0.5


INPUTS = RNG.normal(size=(120, 4)).astype(np.float32)
ALL = ArrayDataset(inputs=INPUTS, labels=(INPUTS @ RNG.normal(size=(4, 3))).argmax(-1))
SPLITS = Splits(ALL.take(np.arange(100)), ALL.take(np.arange(100, 120)))
TRAINERS = {precision: Classifier(precision) for precision in ("float32", *HALF)}


@lru_cache
def trained(precision: str) -> tuple[Training, frozenset[tuple[str, str]]]:
    """A training of 30 steps, and the types seen inside."""
    SEEN.clear()
    training = TRAINERS[precision].train_model(H, SPLITS, epochs=6, seed=0)
    for _ in training:
        pass
    return training, frozenset(SEEN)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", *HALF])
def test_activations_are_half_and_what_lasts_is_float32(precision: str) -> None:
    training, seen = trained(precision)
    # The first call of all, which makes the parameters, is in float32.
    kinds = {name: {kind for seen_name, kind in seen if seen_name == name} for name, _ in seen}
    activations = {name: {"float32", precision} for name in ("input", "first", "hidden", "last")}
    assert kinds == {**activations, "number": {"int32"}}
    state: Any = training.state
    lasting = jax.tree.leaves((state.params, state.opt_state, state.collections, state.average))
    assert {leaf.dtype.name for leaf in lasting} == {"float32", "int32"}  # the optimizer counts
    assert (state.scale is not None) == (precision == "float16")
    outputs = TRAINERS[precision].bind_model(state, H)(INPUTS[:5], np.zeros(5, np.int32))
    assert outputs.dtype == jnp.float32


# Three standard deviations, which over eight seeds were 5.8e-4 and 1.4e-4.
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 2e-3), ("float16", 5e-4)])
@pytest.mark.slow
def test_half_precision_ends_close_to_float32(precision: str, tolerance: float) -> None:
    (half, _), (full, _) = trained(precision), trained("float32")
    first, last = full.reports[0].metrics["train_loss"], full.reports[-1].metrics["train_loss"]
    assert last < 0.7 * first
    for name in ("loss", "train_loss"):
        found, expected = (run.reports[-1].metrics[name] for run in (half, full))
        assert found == pytest.approx(expected, abs=tolerance)
        assert found != expected


class Plain(Classifier):
    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(1.0, momentum=0.9)  # the first update is the gradient


FLOAT16 = Plain("float16")
STEP: Any = jax.jit(lambda state, batch: FLOAT16.train_step(state, batch, H, jax.random.key(1)))


def batch_of(factor: float = 1.0) -> Any:
    arrays = {name: array[:20] for name, array in SPLITS.train.arrays.items()}
    return {**arrays, "inputs": arrays["inputs"].at[3].multiply(factor)}


@lru_cache
def first_state(scale: float = 2.0**15) -> Any:
    state: Any = jax.jit(lambda: FLOAT16.init_state(H, batch_of(), jax.random.key(0), 30))()
    assert float(state.scale.scale) == 2.0**15
    return dataclasses.replace(state, scale=state.scale.replace(growth_interval=2, scale=jnp.float32(scale)))


@pytest.mark.slow
def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    state, _ = STEP(first_state(2.0**10), batch_of())
    assert (float(state.scale.scale), int(state.scale.fin_steps)) == (2.0**10, 1)
    after, metrics = STEP(state, batch_of(1e6))
    for name in ("params", "opt_state", "collections", "average"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    assert (float(after.scale.scale), int(after.scale.fin_steps), int(after.step)) == (2.0**9, 0, 2)
    assert float(metrics["loss_scale"].value) == 2.0**9
    assert (float(metrics["overflow"].value), float(metrics["grad_norm"].weight)) == (1.0, 0.0)
    again, _ = STEP(after, batch_of())
    for name in ("params", "opt_state", "collections", "average"):
        pairs = zip(*map(jax.tree.leaves, (getattr(again, name), getattr(after, name))), strict=True)
        assert any((one != other).any() for one, other in pairs), name
    assert STEP._cache_size() == 1


class Steep(Plain):
    """A line, which is not long to run op by op."""

    def init_model(self, hparams: Any) -> nn.Module:
        return nn.Dense(3)

    def inputs(self, batch: Any) -> Any:
        return batch["inputs"]

    def ema_decay(self, hparams: Any) -> Any:
        return None

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        losses, metrics = super().loss(outputs, batch, hparams)
        return 10.0 * losses, metrics


@pytest.mark.slow
def test_an_overflow_is_counted_and_no_cause_for_alarm() -> None:
    splits = Splits(ALL.take(np.arange(40)), ALL.take([0]))  # two steps
    first = next(Steep("float16").train_model(H, splits, epochs=2, seed=0))
    assert 0 < first.metrics["train_overflow"] < 1
    assert np.isfinite(list(first.metrics.values())).all()
    found = next(Steep("float16").train_model(H, splits, epochs=2, seed=0, debug=True))
    assert found.metrics["train_overflow"] == first.metrics["train_overflow"]


@pytest.mark.slow
def test_the_scale_grows_after_steps_without_overflow_and_has_a_floor() -> None:
    state, scales = first_state(64.0), []
    for _ in range(6):
        state, _ = STEP(state, batch_of())
        scales.append(float(state.scale.scale))
    assert scales == [64, 64, 128, 128, 128, 256]
    state = first_state(2.0)
    for _ in range(3):
        state, _ = STEP(state, batch_of(1e6))
    assert float(state.scale.scale) == 1.0


@pytest.mark.slow
def test_scaling_the_loss_leaves_gradients_as_they_are() -> None:
    def gradients(scale: float) -> Any:
        state = first_state(scale)
        after, metrics = STEP(state, batch_of())
        found = jax.tree.map(lambda old, new: np.asarray(old - new), state.params, after.params)
        assert float(metrics["grad_norm"].value) == pytest.approx(float(optax.tree.norm(found)), rel=1e-3)
        return found

    scaled, unscaled = gradients(2.0**10), gradients(1.0)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-3), scaled, unscaled)
    assert max(abs(leaf).max() for leaf in jax.tree.leaves(scaled)) > 0.05


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.slow
def test_dropout_draws_the_same_in_half_precision(precision: str) -> None:
    rngs, shape = {"dropout": jax.random.key(0)}, (20_000,)
    half = Dropout(0.001).apply({}, jnp.ones(shape, precision), train=True, rngs=rngs)
    full = Dropout(0.001).apply({}, jnp.ones(shape), train=True, rngs=rngs)
    assert 5 < int((jnp.asarray(full) == 0).sum()) < 40
    np.testing.assert_array_equal(jnp.asarray(half) == 0, jnp.asarray(full) == 0)


@pytest.mark.slow
def test_an_optimizer_may_search_along_a_line_in_float16() -> None:
    class Searching(Classifier):
        def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
            return OptimizerSpec("lbfgs")

    check_trainer(Searching("float16"), H, SPLITS, ["loss"], 1)


def test_strict_promotion_holds_for_the_trainer_and_not_inside_flax() -> None:
    class Sloppy(Classifier):
        def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
            return outputs.sum(-1) * batch["labels"], {}  # float32 by int32

    sloppy = Sloppy("bfloat16")
    with pytest.raises(TypePromotionError, match="strict"):
        jax.eval_shape(lambda state: sloppy.train_step(state, batch_of(), H, jax.random.key(0)), first_state())
