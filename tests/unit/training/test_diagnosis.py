"""Looking into a training: the first NaN is found where it was planted, and traces have the steps asked for."""

import gzip
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tuner import Space, uniform
from tuner.errors import NonFinite, StudyError
from tuner.training import ArrayDataset, Dropout, Mean, Profile, Splits, TrainerModule, TrainState
from tuner.training.data.arrays import batch_order
from tuner.training.state import Stream

RNG = np.random.default_rng(0)
BAD = 11
"""The example at which NaNs are made."""


class HParams(Space):
    learning_rate: float = uniform(0.0, 1.0)


H = HParams(learning_rate=0.1)
X = RNG.normal(size=(12, 2)).astype(np.float32)
MARK = (np.arange(12) == BAD)[:, None] * 1.0


def splits_of(**changes: Any) -> Splits:
    data = ArrayDataset(**{"inputs": np.concatenate([X, MARK], 1), "labels": X.sum(-1), **changes})
    return Splits(data, data.take(np.arange(4)))


SPLITS = splits_of()


def poison(x: jax.Array, mark: jax.Array) -> jax.Array:
    """Make NaN of the rows of the marked example."""
    return jnp.where(mark > 0, jnp.nan, x)


class Middle(nn.Module):
    where: str

    @nn.compact
    def __call__(self, x: jax.Array, mark: jax.Array) -> jax.Array:
        x = nn.Dense(3, name="inner")(x)
        return poison(x, mark) if self.where == "module" else x


class Net(nn.Module):
    where: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x, mark = x[:, :2], x[:, 2:]
        x = nn.tanh(Middle(self.where, name="middle")(nn.Dense(3, name="first")(x), mark))
        x = poison(x, mark) if self.where == "between" else x
        x = Dropout(0.2, name="drop")(x, train=train)
        x = nn.Dense(1, name="last")(x)
        return (poison(x, mark) if self.where == "end" else x)[:, 0]


class Float64Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.tanh(nn.Dense(3, param_dtype=jnp.float64)(x))
        x = Dropout(0.2)(x, train=train)
        return nn.Dense(1, param_dtype=jnp.float64)(x)[:, 0]


class NNXMiddle(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.inner = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x: jax.Array, mark: jax.Array) -> jax.Array:
        return poison(self.inner(x), mark)


class NNXNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.middle, self.last = nnx.Linear(2, 3, rngs=rngs), NNXMiddle(rngs), nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.middle(self.first(x[:, :2]), x[:, 2:]))[:, 0]


class Regression(TrainerModule):
    def __init__(self, model: Any = None, loop: Any = "step", where: str = "") -> None:
        self.model, self.loop, self.where = model or Net(where), loop, where

    def init_model(self, hparams: Any) -> Any:
        return self.model

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        error = outputs - batch["labels"]
        if self.where == "loss":
            error = poison(error, batch["inputs"][:, 2])
        if self.where == "gradient":  # the derivative of a root at zero
            error = error + jnp.sqrt(jnp.where(batch["inputs"][:, 2] > 0, outputs - outputs, 1.0))
        return error**2, {}

    def augment(self, batch: Any, hparams: Any, key: jax.Array) -> Any:
        if self.where != "augment":
            return batch
        return {**batch, "inputs": poison(batch["inputs"], batch["inputs"][:, 2:])}

    def batch_size(self, hparams: Any) -> int:
        return 3

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(hparams.learning_rate, momentum=0.9)


class Own(Regression):
    """Has a step of its own, and no one model."""

    def init_model(self, hparams: Any) -> Any:
        raise StudyError("no model")

    def init_state(self, hparams: Any, batch: Any, key: jax.Array, total_steps: int) -> TrainState:
        return TrainState(jnp.int32(0), {"w": jnp.ones(2)}, optax.sgd(0.1).init({}), {}, key, total_steps=total_steps)

    def train_step(self, state: Any, batch: Any, hparams: Any, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return (poison(jnp.ones(3), batch["inputs"][:, 2]) * (batch["inputs"][:, :2] @ params["w"])).mean()

        after = state.apply_gradients(optax.sgd(0.1), jax.grad(loss)(state.params))
        return after, {"one": Mean.of_steps(jnp.ones(()))}

    def eval_step(self, state: Any, batch: Any, hparams: Any) -> Any:
        return {"loss": Mean.of(batch["labels"], batch["weight"])}


class Composite(Own):
    """Runs a model that it has not made, and has no one loss."""

    def apply_inputs(self, params: Any, collections: Any, inputs: Any, hparams: Any, **options: Any) -> Any:
        return inputs[0][:, 0], collections

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        raise StudyError("no loss")


def step_of(example: int, seed: int) -> int:
    """The number, from 1, of the first step whose batch has an example."""
    order = jax.random.permutation(Stream.ORDER.key(jax.random.key(seed), 0), 12)
    return 1 + int(np.nonzero((np.asarray(batch_order(order, 3)[0]) == example).any(1))[0][0])


SEEDS = {step_of(BAD, seed): seed for seed in range(20)}
"""A seed for each step at which the bad example may come."""


CASES = {
    "a module": (Regression(where="module"), "in the output of middle", 3),
    "between": (Regression(where="between"), "in the input of drop", 2),
    "behind all modules": (Regression(where="end"), "in the output of Net", 4),
    "the loss": (Regression(where="loss"), "in the loss; the model's outputs were finite", 1),
    "augmentation": (Regression(where="augment"), "in inputs of the batch, before the model", 2),
    "the gradient": (Regression(where="gradient"), "in metrics/grad_norm/total; the model's outputs were finite", 3),
    "nnx": (Regression(NNXNet), "in the output of middle", 3),
    "an own step": (Own(), "in params/w; the model's outputs were finite", 3),
    "an own step around a model": (Composite(), "in params/w; the model's outputs were finite", 3),
}


_QUICK = ("a module", "the loss", "the gradient", "nnx", "an own step")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in _QUICK else [pytest.mark.long]) for case in CASES]
)
def test_a_planted_nan_is_found_at_its_step_and_place(case: str) -> None:
    trainer, where, step = CASES[case]
    training = trainer.train_model(H, SPLITS, epochs=2, seed=SEEDS[step], debug=True)
    with pytest.raises(NonFinite) as found:
        next(training)
    assert str(found.value).partition("\n")[0] == (f"step {step} produced the first NaN or infinity {where}")
    assert not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
    assert "__call__" in vars(NNXMiddle)
    assert NNXMiddle.__call__.__name__ == "__call__"
    assert not hasattr(NNXMiddle.__call__, "__wrapped__")  # as it was


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.slow
def test_a_nan_in_the_data_is_found_at_the_step_of_its_example(bad: float) -> None:
    splits = splits_of(labels=np.where(np.arange(12) == BAD, bad, 0.0))
    trainer, step = Regression(), 3
    message = f"step {step} produced the first NaN or infinity in labels of the batch, before the model"
    with pytest.raises(NonFinite, match=message):
        next(trainer.train_model(H, splits, epochs=1, seed=SEEDS[step], debug=True))


@pytest.mark.slow
def test_without_debug_nobody_looks() -> None:
    report = next(Own().train_model(H, SPLITS, epochs=1, seed=0))
    assert report.metrics["train_one"] == 1


@pytest.mark.slow
def test_debugging_gives_the_numbers_of_the_compiled_programs() -> None:
    trainer, splits = Regression(Float64Net()), splits_of(inputs=X.astype(float), labels=X.sum(-1, dtype=float))
    # In float32, the roundings of programs that fuse other products add up to 4e-6.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        debugged = trainer.train_model(H, splits, epochs=2, seed=0, debug=True)
        compiled = trainer.train_model(H, splits, epochs=2, seed=0)
        for one, other in zip(list(debugged), list(compiled), strict=True):
            assert one.metrics == pytest.approx(other.metrics, rel=1e-6, abs=1e-6)
        assert {leaf.dtype for leaf in jax.tree.leaves(debugged.state.params)} == {np.dtype(float)}
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12),
            (debugged.state.params, debugged.state.opt_state),
            (compiled.state.params, compiled.state.opt_state),
        )
    assert debugged.mode == "step"
    assert not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_debugging_ends_with_the_training_and_pauses_between_reports() -> None:
    training = Own().train_model(H, splits_of(inputs=np.zeros((12, 3))), epochs=2, seed=0, debug=True)
    next(training)
    is_disabled = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
    training.close()
    assert not is_disabled
    assert not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_debugging_steps_also_a_trainer_that_scans() -> None:
    training = Own(loop="scan").train_model(H, SPLITS, epochs=1, seed=SEEDS[2], debug=True)
    with pytest.raises(NonFinite, match="step 2 produced"):
        next(training)


def calls(folder: Path, program: str) -> int:
    """How often a trace has seen a program called; what is nested in a call is part of it."""
    files = list(folder.rglob("*.trace.json.gz"))
    assert len(files) == 1
    with gzip.open(files[0], "rt") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("name") == f"PjitFunction({program})"]
    count, end = 0, 0.0
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] >= end:
            count, end = count + 1, event["ts"] + event["dur"]
    return count


TRACED: dict[str, Regression] = {mode: Regression(loop=mode) for mode in ("step", "scan")}


def profile(mode: str, folder: Path, first: int, last: int, reports: int = 3) -> None:
    training = TRACED[mode].train_model(H, SPLITS, epochs=3, seed=0, profile=Profile(folder, first, last))
    for _ in range(reports):
        next(training)
    training.close()


@pytest.mark.parametrize(("first", "last", "traced"), [(5, 6, 2), (0, 0, 1)])
@pytest.mark.slow
def test_a_profile_has_the_steps_asked_for(first: int, last: int, traced: int, tmp_path: Path) -> None:
    profile("step", tmp_path, first, last)  # 12 steps
    assert calls(tmp_path, "train_step") == traced


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (4, 3), (1.0, 3), (1, "3"), (True, 3), (1, None)])
def test_the_steps_of_a_profile_are_whole_numbers_in_order(first: Any, last: Any, tmp_path: Path) -> None:
    message = f"must be whole numbers with 0 <= first <= last: got first={first!r}, last={last!r}"
    with pytest.raises(StudyError, match=message):
        Profile(tmp_path, first, last)


@pytest.mark.slow
def test_a_profile_of_scanned_epochs_has_them_whole(tmp_path: Path) -> None:
    profile("scan", tmp_path, 5, 6)
    assert (calls(tmp_path, "train_steps"), calls(tmp_path, "train_step")) == (1, 0)


@pytest.mark.parametrize("mode", ["step", "scan"])
@pytest.mark.slow
def test_steps_that_are_not_reached_are_not_traced(mode: str, tmp_path: Path) -> None:
    profile(mode, tmp_path, 12, 20)
    profile(mode, tmp_path, 4, 5, reports=1)  # ends before
    assert list(tmp_path.rglob("*")) == []


def test_a_profile_is_written_also_if_the_training_ends_within(tmp_path: Path) -> None:
    profile("step", tmp_path, 3, 30, reports=1)
    assert calls(tmp_path, "train_step") == 1
