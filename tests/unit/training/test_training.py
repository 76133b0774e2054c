"""The training loop against computations by hand, its compiled programs, and what a trainer may look like."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale
from rounding import rounding

from tuner import Space, choice, log_uniform, uniform
from tuner.errors import MissingHParam, StudyError
from tuner.study import load_study
from tuner.training import (
    ArrayDataset,
    Dropout,
    Layout,
    Mean,
    Splits,
    TrainerModule,
    Training,
    TrainState,
    adamw,
    warmup_cosine,
)
from tuner.training.data.arrays import batch_order, gather
from tuner.training.data.feed import Feed
from tuner.training.hparams import register
from tuner.training.loop import evaluation
from tuner.training.loop.checks import check_trainer
from tuner.training.loop.programs import Carry, programs
from tuner.training.state import Average, Stream
from tuner.trial import Report

ROOT, RNG = Path(__file__).parents[3], np.random.default_rng(0)
EPOCHS, STEPS = 3, 12  # 23 examples in batches of 7 are 4 steps


class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1.0)
    weight_decay: float = log_uniform(1e-6, 1e-1)
    dropout_rate: float = uniform(0.0, 0.6)
    label_smoothing: float = uniform(0.0, 0.2)
    width: int = choice(4, 8)
    number: int = choice(5, 7, traced=True)


VALUES = {"learning_rate": 0.05, "weight_decay": 1e-3, "dropout_rate": 0.3, "label_smoothing": 0.1, "width": 4}


def hparams(**changes: Any) -> HParams:
    return HParams(**{**VALUES, "number": 7, **changes})


class MLP(nn.Module):
    width: int
    rate: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(3)(Dropout(self.rate)(nn.relu(nn.Dense(self.width)(x)), train=train))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        # A bias before the normalisation has a gradient of rounding errors only, which Adam would magnify.
        x = nn.Conv(3, (3, 3), use_bias=False)(x.reshape(-1, 2, 2, 1))
        return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)).mean((1, 2)))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))


def lenient(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam raises a float to an integer power, which strict promotion refuses; the rest of a program stays strict."""
    promote: Any = jax.numpy_dtype_promotion("standard")
    return optax.GradientTransformation(optimizer.init, promote(optimizer.update))


class Classifier(TrainerModule):
    def __init__(self, model: nn.Module | None = None, loop: Any = "scan") -> None:
        self.model, self.loop = model, loop

    def init_model(self, hparams: Any) -> nn.Module:
        return self.model or MLP(hparams.width, hparams.dropout_rate)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        targets = optax.smooth_labels(jax.nn.one_hot(batch["labels"], 3), hparams.label_smoothing)
        return optax.softmax_cross_entropy(outputs, targets), {"accuracy": outputs.argmax(-1) == batch["labels"]}

    def batch_size(self, hparams: Any) -> int:
        return 7

    def init_optimizer(self, hparams: Any, total_steps: int) -> optax.GradientTransformation:
        return lenient(adamw(hparams.learning_rate, hparams.weight_decay, total_steps))


class Linear(TrainerModule):
    """Least squares by gradient descent; its module takes no `train`."""

    def __init__(self, batch_size: Any = 7, model: Any = None, loop: Any = "scan") -> None:
        self.size, self.model, self.loop = batch_size, model or nn.Dense(1), loop

    def init_model(self, hparams: Any) -> nn.Module:
        return self.model

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        error = outputs[:, 0] - batch["labels"].astype(jnp.float32)
        return error**2, {"label": batch["labels"], "positive": error > 0}

    def batch_size(self, hparams: Any) -> int:
        return self.size if isinstance(self.size, int) else self.size(hparams)

    def init_optimizer(self, hparams: Any, total_steps: int) -> optax.GradientTransformation:
        return optax.sgd(hparams.learning_rate * total_steps / STEPS)  # in training the same as without the quotient


# Trainers hold nothing that changes, so tests share them, and with them what they compiled.
MLP_SCAN, MLP_STEP, CNN_SCAN, LINEAR = Classifier(), Classifier(loop="step"), Classifier(CNN()), Linear()
INPUTS, LABELS = RNG.normal(size=(34, 4)) + 1.0, RNG.integers(0, 3, 34)
ALL = ArrayDataset(inputs=INPUTS, labels=LABELS)
SPLITS = Splits(train=ALL.take(np.arange(23)), validation=ALL.take(np.arange(23, 34)))


def run(trainer: TrainerModule, hparams: Any, *, seed: int = 0, splits: Any = SPLITS) -> tuple[list[Report], Any]:
    reports, found = trainer.train_model(hparams, splits, epochs=EPOCHS, seed=seed), []
    while True:
        try:
            found.append(next(reports))
        except StopIteration as end:
            return found, end.value


def first_state(trainer: TrainerModule, hparams: Any, seed: int = 0) -> Any:
    register(hparams)
    return first_carry(trainer, hparams, seed).state


def first_carry(trainer: TrainerModule, hparams: Any, seed: int = 0) -> Carry:
    register(hparams)
    made, placed = programs(trainer, hparams, Layout()), jax.device_put(hparams)
    return made.init(Feed(SPLITS.train, Layout(), 7).first(), placed, jnp.uint32(seed), total_steps=STEPS)


def batches_of(seed: int, epoch: int) -> list[tuple[Any, ...]]:
    """The indices and weights of the batches that the loop makes of the training data."""
    order = jax.random.permutation(Stream.ORDER.key(jax.random.key(seed), jnp.int32(4 * (epoch - 1))), 23)
    return list(zip(*map(np.asarray, batch_order(order, 7)), strict=True))


def assert_close(left: Any, right: Any, rtol: float = 0.0) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize(("batch", "mode"), [(4, "scan"), (4, "step"), (512, "scan")])
def test_eval_model_gives_the_mean_over_all_examples(batch: int, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "EVAL_BATCH", batch)
    state = first_state(LINEAR, hparams())
    found = Linear(loop=mode).eval_model(state, SPLITS.validation, hparams())
    dense = jax.device_get(state.params)
    error = (INPUTS @ dense["kernel"])[23:, 0] + dense["bias"] - LABELS[23:]
    expected = {"loss": (error**2).mean(), "label": LABELS[23:].mean(), "positive": (error > 0).mean()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(type(value) is float for value in found.values())


@pytest.mark.slow
def test_training_metrics_are_means_over_examples() -> None:
    # Without a step, every batch sees the first parameters: the last batch of 2 must not weigh as much as one of 7.
    reports, state = run(LINEAR, hparams(learning_rate=0.0))
    whole = LINEAR.eval_model(state, SPLITS.train, hparams())
    for report in reports:
        trained = {name: value for name, value in report.metrics.items() if name.startswith("train_")}
        assert trained.pop("train_grad_norm") > 0
        assert trained == pytest.approx({f"train_{name}": value for name, value in whole.items()}, rel=1e-5)


@pytest.mark.slow
def test_weights_of_examples_count_in_training_and_evaluation() -> None:
    weight = np.random.default_rng(1).integers(1, 4, 34).astype(float)
    data = ArrayDataset(inputs=INPUTS, labels=LABELS, weight=weight)
    splits = Splits(data.take(np.arange(23)), data.take(np.arange(23, 34)))
    metrics = run(LINEAR, hparams(learning_rate=0.0), splits=splits)[0][0].metrics
    assert metrics["train_label"] == pytest.approx(np.average(LABELS[:23], weights=weight[:23]), rel=1e-6)
    assert metrics["label"] == pytest.approx(np.average(LABELS[23:], weights=weight[23:]), rel=1e-6)


def test_training_by_hand() -> None:
    reports, state = run(LINEAR, hparams(), seed=5)
    dense = jax.device_get(first_state(LINEAR, hparams(), seed=5).params)
    w, b = dense["kernel"][:, 0].astype(float), float(dense["bias"][0])
    for epoch, report in enumerate(reports, 1):
        squares = []
        for indices, weights in batches_of(5, epoch):
            real = indices[weights == 1]
            error = INPUTS[real] @ w + b - LABELS[real]
            squares += list(error**2)
            w, b = w - 0.05 * 2 * (INPUTS[real].T @ error) / len(real), b - 0.05 * 2 * error.mean()
        validation = ((INPUTS[23:] @ w + b - LABELS[23:]) ** 2).mean()
        assert report.metrics["train_loss"] == pytest.approx(np.mean(squares), rel=1e-4)
        assert report.metrics["loss"] == pytest.approx(validation, rel=1e-4)
    np.testing.assert_allclose(state.params["kernel"][:, 0], w, rtol=1e-4)


@pytest.mark.parametrize("schedule", [warmup_cosine(100), warmup_cosine(100, warmup_steps=10)])
def test_warmup_cosine_at_its_corners(schedule: Any) -> None:
    with jax.numpy_dtype_promotion("standard"):
        found = [float(schedule(jnp.int32(step))) for step in (0, 5, 10, 55, 100, 1000)]
        assert float(warmup_cosine(9)(jnp.int32(0))) == 1  # a tenth of 9 steps is no warm-up
    # At the end 1 + cos(pi) is a difference of ones, so that what is left has their errors.
    assert found == pytest.approx([0, 0.5, 1, 0.505, 0.01, 0.01], rel=0, abs=rounding(16))


@pytest.mark.parametrize("warmup", [100, 101, -1])
def test_a_warmup_that_does_not_end_is_refused(warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"must end before training does: got warmup_steps={warmup}, total_steps=100"):
        warmup_cosine(100, warmup_steps=warmup)


def test_first_steps_of_adamw_by_hand() -> None:
    w, g = np.array([[1.0, -2.0], [3.0, 0.5]], np.float32), np.array([[0.1, -5.0], [1e-3, 2.0]], np.float32)
    params = {"kernel": jnp.asarray(w), "bias": jnp.array([1.0, -1.0])}
    grads = {"kernel": jnp.asarray(g), "bias": jnp.array([-0.5, 0.25])}

    @jax.jit
    def updates(learning_rate: jax.Array, weight_decay: jax.Array) -> Any:
        optimizer = lenient(adamw(learning_rate, weight_decay, 9))
        first, state = optimizer.update(grads, optimizer.init(params), params)
        return first, optimizer.update(grads, state, params)[0]

    with jax.numpy_dtype_promotion("standard"):
        factors = [float(warmup_cosine(9)(jnp.int32(step))) for step in (0, 1)]
    # Adam divides by the root of 1 - 0.999^t, at first a thousandth with the errors of a power of about 1.
    rtol = rounding(8) / 0.001 / 2
    for rate, decay in ((0.1, 0.01), (0.03, 0.5)):
        for factor, update in zip(factors, updates(jnp.float32(rate), jnp.float32(decay)), strict=True):
            expected = -rate * factor * (g / (np.abs(g) + 1e-8) + decay * w)
            np.testing.assert_allclose(update["kernel"], expected, rtol=rtol)
            np.testing.assert_allclose(update["bias"], [rate * factor, -rate * factor], rtol=rtol)
    assert updates._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    # The default is this one, without decay where the space has none.
    made: Any = TrainerModule().build_optimizer(SimpleNamespace(learning_rate=0.1), 9)
    default = made.update(grads, made.init(params), params)[0]
    np.testing.assert_allclose(default["kernel"], -0.1 * np.sign(g), rtol=rtol)


def drop(rate: Any, inputs: Any, seed: int = 0, train: bool = True) -> Any:
    return Dropout(rate).apply({}, inputs, train=train, rngs={"dropout": jax.random.key(seed)} if train else None)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_keeps_the_mean_and_drops_its_share(rate: float) -> None:
    inputs, rngs = jnp.ones((20, 20_000)), {"dropout": jax.random.key(0)}
    out = np.asarray(drop(rate, inputs))
    assert out.mean() == pytest.approx(1, abs=0.015)
    assert (out == 0).mean() == pytest.approx(rate, abs=0.004)
    theirs: Any = nn.Dropout(rate, deterministic=False).apply({}, inputs, rngs=rngs)
    np.testing.assert_allclose(out, theirs, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dropout_keeps_shape_and_type_and_is_the_identity_at_rate_zero(dtype: str) -> None:
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(30, 5, 2)), dtype)
    for out in (drop(jnp.float32(0.0), inputs), drop(jnp.float32(0.5), inputs, train=False)):
        np.testing.assert_array_equal(out, inputs)
    half = drop(jnp.float32(0.5), inputs)
    assert (half.shape, half.dtype) == (inputs.shape, inputs.dtype)
    assert drop(0.5, inputs, seed=1).tolist() == drop(0.5, inputs, seed=1).tolist() != half.tolist()


@pytest.mark.slow
def test_the_rate_of_dropout_may_be_traced() -> None:
    rates, inputs = [0.0, 0.25, 0.75], jnp.ones(4_000)
    program: Any = jax.jit(drop)
    expected = jnp.stack([drop(rate, inputs) for rate in rates])
    np.testing.assert_allclose(jnp.stack([program(jnp.float32(rate), inputs) for rate in rates]), expected, rtol=1e-6)
    assert program._cache_size() == 1
    np.testing.assert_allclose(jax.vmap(drop, (0, None))(jnp.array(rates), inputs), expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.2])
def test_the_digits_study_smooths_labels(alpha: float) -> None:
    study = load_study(str(ROOT / "studies" / "digits_mlp.py"))
    values = {"learning_rate": 0.1, "weight_decay": 0.1, "dropout_rate": 0.0, "width": 32, "depth": 1}
    logits, labels = np.random.default_rng(1).normal(size=(4, 10)), np.array([0, 3, 9, 3])
    batch = {"labels": jnp.asarray(labels, jnp.int32)}
    space: Any = study.space
    made = space(**values, label_smoothing=alpha)
    losses, metrics = study.trainer.loss(jnp.asarray(logits, jnp.float32), batch, made)
    targets = (1 - alpha) * np.eye(10)[labels] + alpha / 10
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(losses, -(targets * log_probabilities).sum(-1), rtol=1e-5)
    assert metrics["accuracy"].tolist() == (logits.argmax(-1) == labels).tolist()


@pytest.fixture(scope="module")
def compiled() -> Iterator[list[str]]:
    """The programs that XLA has compiled since the list was last cleared."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(str(kwargs.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("mode", ["scan", "step"])
def test_trials_that_differ_in_numbers_compile_once(mode: Any, compiled: list[str]) -> None:
    trainer, epoch = Classifier(loop=mode), {"scan": "train_steps", "step": "train_step"}[mode]
    first, _ = run(trainer, hparams())
    assert epoch in " ".join(compiled)  # the listener listens
    compiled.clear()
    for name, value in (("learning_rate", 1), ("weight_decay", 0.1), ("dropout_rate", 0), ("label_smoothing", 0)):
        reports, _ = run(trainer, hparams(**{name: value}))
        assert reports[-1].metrics["loss"] != first[-1].metrics["loss"]  # the number has an effect
    run(trainer, hparams(dropout_rate=0.6), seed=2**31 - 1)
    assert compiled == []
    made: Any = programs(trainer, hparams(), Layout())
    assert [program._cache_size() for program in (made.init, made.step, made.steps)].count(1) == 2
    run(trainer, hparams(width=8))
    assert sum(epoch in name for name in compiled) == 1
    other = programs(trainer, hparams(width=8), Layout())
    assert made is programs(trainer, hparams(learning_rate=1), Layout()) is not other


@pytest.mark.parametrize(("scan", "step"), [(MLP_SCAN, MLP_STEP), (CNN_SCAN, Classifier(CNN(), "step"))])
@pytest.mark.slow
def test_scan_and_step_loops_agree(scan: Classifier, step: Classifier) -> None:
    (scanned, one), (stepped, other) = run(scan, hparams()), run(step, hparams())
    for left, right in zip(scanned, stepped, strict=True):
        assert (left.epoch, left.step) == (right.epoch, right.step)
        assert left.metrics == pytest.approx(right.metrics, rel=1e-5)
    assert_close(one, other, rtol=1e-4)


def fingerprint(seed: int) -> str:
    reports, state = run(MLP_SCAN, hparams(), seed=seed)
    metrics = [{name: value.hex() for name, value in report.metrics.items()} for report in reports]
    return json.dumps([metrics, [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(state.params)]])


@pytest.mark.slow
def test_a_seed_gives_the_same_bits_here_and_in_a_new_process() -> None:
    assert fingerprint(3) == fingerprint(3) != fingerprint(4)
    command = [sys.executable, __file__]  # see the end of this file
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    assert subprocess.check_output(command, cwd=ROOT, env=env, text=True).strip() == fingerprint(3)


@pytest.mark.slow
def test_every_stream_step_and_seed_draws_its_own_numbers() -> None:
    keys = [s.key(jax.random.key(seed), jnp.int32(at)) for s in Stream for at in (0, 1) for seed in (0, 1)]
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for key in keys}) == 4 * len(Stream)
    state, batch = first_state(MLP_SCAN, hparams()), gather(SPLITS.train.arrays, jnp.arange(7), jnp.ones(7))
    losses = [jax.jit(MLP_SCAN.train_step)(state, batch, hparams(), key)[1]["loss"].total for key in keys[:2]]
    assert float(losses[0]) != float(losses[1])  # dropout


@pytest.mark.slow
def test_batch_statistics_follow_the_recursion() -> None:
    _, state = run(Linear(model=Normed()), hparams(), seed=1)
    mean, var = np.zeros(4), np.ones(4)
    for epoch in range(1, EPOCHS + 1):
        for indices, _ in batches_of(1, epoch):  # padding is made of real examples, and counts here
            batch = INPUTS[indices]
            mean, var = 0.9 * mean + 0.1 * batch.mean(0), 0.9 * var + 0.1 * batch.var(0)
    found = state.collections["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(found["var"], var, rtol=1e-4)


@pytest.mark.slow
def test_evaluation_uses_batch_statistics_and_leaves_them_alone() -> None:
    _, state = run(CNN_SCAN, hparams())
    kept = jax.tree.map(np.asarray, state.collections)
    apply: Any = jax.jit(partial(CNN_SCAN.apply_model, train=False))
    both, after = apply(state.params, state.collections, SPLITS.validation.arrays, hparams())
    alone, _ = apply(state.params, state.collections, {"inputs": SPLITS.validation.arrays["inputs"][:1]}, hparams())
    np.testing.assert_allclose(alone, both[:1], rtol=1e-5)  # other examples in the batch make no difference
    assert_close(after, kept)


@pytest.mark.slow
def test_an_overridden_train_step_is_used_with_a_key_for_each_step() -> None:
    class Watched(Linear):
        def train_step(self, state: Any, batch: Any, hparams: Any, key: jax.Array) -> Any:
            after, metrics = super().train_step(state, batch, hparams, key)
            draw = Mean.of(jnp.broadcast_to(jax.random.uniform(key), (7,)), jnp.ones(7))
            return dataclasses.replace(after, params=state.params), {"draw": draw, "first": metrics["loss"]}

    reports, state = run(Watched(), hparams())
    assert sorted(reports[0].metrics) == ["label", "loss", "positive", "train_draw", "train_first"]
    keys = [Stream.STEP.key(jax.random.key(0), jnp.int32(step)) for step in range(STEPS)]
    for at, report in enumerate(reports):
        draws = [float(jax.random.uniform(key)) for key in keys[4 * at : 4 * at + 4]]
        assert report.metrics["train_draw"] == pytest.approx(np.mean(draws), rel=1e-5)
    assert_close(state.params, first_state(LINEAR, hparams()).params)


@pytest.mark.parametrize("trainer", [MLP_SCAN, MLP_STEP])
@pytest.mark.slow
def test_reports_come_one_an_epoch_when_asked_for(trainer: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs, run_epoch = [], Training._train_epoch
    monkeypatch.setattr(Training, "_train_epoch", lambda *args: epochs.append(1) or run_epoch(*args))
    reports: Any = trainer.train_model(hparams(), SPLITS, epochs=EPOCHS, seed=0)
    assert epochs == []
    first = next(reports)
    assert (first.epoch, first.step, len(epochs)) == (1, 4, 1)
    with jax.transfer_guard("disallow"):
        second = next(reports)
    assert (second.epoch, second.step, len(epochs)) == (2, 8, 2)
    assert sorted(second.metrics) == ["accuracy", "loss", "train_accuracy", "train_grad_norm", "train_loss"]
    reports.close()
    assert next(reports, "closed") == "closed"
    assert len(epochs) == 2


def test_the_final_state_is_the_generators_value() -> None:
    reports, state = run(MLP_SCAN, hparams())
    assert (int(state.step), state.total_steps) == (STEPS, STEPS)
    last = {name: value for name, value in reports[-1].metrics.items() if not name.startswith("train_")}
    assert MLP_SCAN.eval_model(state, SPLITS.validation, hparams()) == last


def test_an_epoch_takes_over_the_memory_of_the_state_before() -> None:
    carry, feed = first_carry(LINEAR, hparams()), Feed(SPLITS.train, Layout(), 7)
    source = feed.resident(feed.in_order())
    programs(LINEAR, hparams(), Layout()).steps(source, jax.device_put(hparams()), *carry, count=4)
    assert carry.state.params["kernel"].is_deleted()
    assert not carry.position.is_deleted()  # it starts every epoch


@pytest.mark.slow
def test_a_batch_is_at_most_the_data() -> None:
    reports, _ = run(Linear(1000), hparams())
    assert [report.step for report in reports] == [1, 2, 3]


@pytest.mark.slow
def test_a_state_survives_flattening_jit_and_vmap() -> None:
    state, batch = first_state(CNN_SCAN, hparams()), gather(SPLITS.train.arrays, jnp.arange(7), jnp.ones(7))
    leaves, structure = jax.tree.flatten(state)
    for same in (jax.tree.unflatten(structure, leaves), jax.jit(lambda x: x)(state)):
        assert_close(same, state)
    assert structure != jax.tree.structure(dataclasses.replace(state, total_steps=9))
    pairs = [(state, hparams()), (first_state(CNN_SCAN, hparams(), seed=1), hparams(learning_rate=0.5))]
    assert (pairs[0][0].params["Dense_0"]["kernel"] != pairs[1][0].params["Dense_0"]["kernel"]).all()
    states, many = jax.tree.map(lambda *parts: jnp.stack(parts), *pairs)
    step: Any = lambda state, hparams: CNN_SCAN.train_step(state, batch, hparams, jax.random.key(1))  # noqa: E731
    trained = jax.jit(jax.vmap(step))(states, many)
    alone = [jax.jit(step)(*pair) for pair in pairs]
    assert_close(trained, jax.tree.map(lambda *parts: jnp.stack(parts), *alone), rtol=1e-3)


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(TrainState) if field.default is None])
def test_every_part_of_a_state_may_be_none(part: str) -> None:
    params, stats = jnp.ones(2), {"stats": jnp.ones(1)}
    full = TrainState(
        jnp.int32(3), params, {}, stats, jax.random.key(0), Average(params, stats), DynamicScale(), total_steps=5
    )
    state = dataclasses.replace(full, **{part: None})
    assert getattr(jax.jit(lambda x: x)(state), part) is None
    assert len(jax.tree.leaves(state)) == 8 - len(jax.tree.leaves(getattr(full, part)))


def test_an_update_needs_no_step_and_keeps_the_rest() -> None:
    optimizer, params = optax.sgd(0.5), jnp.array([1.0, 2.0])
    state = TrainState(params=params, opt_state=optimizer.init(params), key=jax.random.key(0), total_steps=5)
    after = state.apply_gradients(optimizer, jnp.array([2.0, -2.0]), {"new": 1})
    assert (after.params.tolist(), params.tolist()) == ([0, 3], [1, 2])
    assert (after.step, after.collections, after.key, after.total_steps) == (None, {"new": 1}, state.key, 5)


class Keyless(Linear):
    def init_state(self, hparams: Any, batch: Any, key: Any, total_steps: int) -> TrainState:
        return dataclasses.replace(super().init_state(hparams, batch, key, total_steps), key=None)


NoLoss = type("NoLoss", (TrainerModule,), {"init_model": lambda self, hparams: nn.Dense(1)})
SIZE = r"batch_size\(hparams\) must return a static integer of at least 1: got"


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (object(), "trainer must be a TrainerModule: got <object"),
        (Linear, "trainer must be a TrainerModule: got <class .*Linear"),
        (
            MLP_SCAN,
            "objective 'acuracy': it reports accuracy, loss, train_accuracy, .*; did you mean 'accuracy'",
        ),
        (Linear(0), f"{SIZE} 0"),
        (Linear(True), f"{SIZE} True"),
        (Linear(lambda hparams: hparams.number), f"{SIZE} .*Tracer"),
        (Linear(model="dense"), "init_model must return a Linen module, .* got 'dense'"),
        (TrainerModule(), r"^TrainerModule must define init_model\(hparams\)"),
        (NoLoss(), r"^NoLoss must define loss\(outputs, batch, hparams\)"),
        (Keyless(), "must return a state with key and step: got None"),
    ],
)
def test_a_trainer_that_would_fail_in_every_trial_is_refused_first(trainer: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        check_trainer(trainer, hparams(), SPLITS, ["acuracy"], EPOCHS)  # codespell:ignore acuracy


def test_a_missing_hyperparameter_is_named() -> None:
    with pytest.raises(
        MissingHParam, match=r"HParams has no hyperparameter 'learning_rat' \(it has learning_rate, .*'learning_rate'"
    ):
        check_trainer(Linear(lambda hparams: hparams.learning_rat), hparams(), SPLITS, ["loss"], EPOCHS)


def test_a_warmup_is_measured_by_the_whole_training() -> None:
    class Warm(Linear):
        def init_optimizer(self, hparams: Any, total_steps: int) -> optax.GradientTransformation:
            return lenient(optax.sgd(warmup_cosine(total_steps, warmup_steps=11)))

    check_trainer(Warm(), hparams(), SPLITS, ["loss"], EPOCHS)
    with pytest.raises(ValueError, match="got warmup_steps=11, total_steps=4"):
        check_trainer(Warm(), hparams(), SPLITS, ["loss"], 1)


def test_no_metric_takes_the_place_of_the_loss() -> None:
    class Shadowed(Linear):
        def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
            losses, metrics = super().loss(outputs, batch, hparams)
            return losses, {**metrics, "loss": jnp.zeros_like(losses)}

    with pytest.raises(StudyError, match="the metric name 'loss' is reserved"):
        check_trainer(Shadowed(), hparams(), SPLITS, ["loss"], EPOCHS)


def test_data_must_be_splits() -> None:
    with pytest.raises(
        StudyError, match=r"data must be a tuner\.training\.Splits .*: got ArrayDataset; see ArrayDataset.split"
    ):
        check_trainer(LINEAR, hparams(), ALL, ["loss"], EPOCHS)


@pytest.mark.slow
def test_a_trainer_that_works_passes_and_nothing_is_compiled(compiled: list[str]) -> None:
    compiled.clear()
    for objectives in (["accuracy"], ["loss", "train_loss"], []):
        check_trainer(Classifier(CNN(), "step"), hparams(), SPLITS, objectives, EPOCHS)
    assert compiled == []


if __name__ == "__main__":
    print(fingerprint(3))
