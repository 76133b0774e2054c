"""Training that is interrupted and goes on: to the bit what it would have been, or an error."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tuner import Space, choice, log_uniform, uniform
from tuner.errors import CheckpointError, NonFinite, TrialPruned
from tuner.training import (
    ArrayDataset,
    Checkpoints,
    Dropout,
    Layout,
    OptimizerSpec,
    Splits,
    StreamDataset,
    TrainerModule,
    load_from_checkpoint,
)
from tuner.training.loop import modes
from tuner.training.loop.training import Training
from tuner.training.optim.named import OPTIMIZERS, SCHEDULE_FREE, arguments_of
from tuner.training.saved.checkpoints import read
from tuner.training.saved.files import newest_first

ROOT, RNG = Path(__file__).parents[3], np.random.default_rng(0)
EPOCHS, STEPS = 3, 4  # 25 examples in batches of 8, the last padded
CHUNKS = 2  # programs in an epoch of a scan


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1.0)
    dropout_rate: float = uniform(0.0, 0.6)
    width: int = choice(6, 8)


HPARAMS = HParams(learning_rate=0.1, dropout_rate=0.4, width=6)


class MLP(nn.Module):
    width: int
    rate: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(3)(Dropout(self.rate)(nn.relu(nn.Dense(self.width)(x)), train=train))


class Normed(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(self.width, use_bias=False)(x))
        return nn.Dense(3)(nn.relu(x))


class Trainer(TrainerModule):
    """Dropout and Adam; with `is_normed` batch statistics, momentum and smoothed weights."""

    def __init__(self, loop: Any = "step", is_normed: bool = False) -> None:
        self.loop, self.is_normed = loop, is_normed

    def init_model(self, hparams: Any) -> nn.Module:
        return Normed(hparams.width) if self.is_normed else MLP(hparams.width, hparams.dropout_rate)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
        return losses, {"accuracy": outputs.argmax(-1) == batch["labels"]}

    def batch_size(self, hparams: Any) -> int:
        return 8

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        if self.is_normed:
            return OptimizerSpec("sgd", hparams.learning_rate, options={"momentum": 0.9})
        return super().init_optimizer(hparams, total_steps)

    def ema_decay(self, hparams: Any) -> float | None:
        return 0.8 if self.is_normed else None


class Scripted(Trainer):
    """Its validation metric `value` is what the script says of each epoch."""

    def __init__(self, *script: float) -> None:
        super().__init__()
        self.script = script

    # Its compiled programs do not depend on the script.
    def __eq__(self, other: object) -> bool:
        return type(other) is Scripted

    def __hash__(self) -> int:
        return hash(Scripted)

    def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> dict[str, float]:
        return {"value": self.script[epoch - 1]}


# Trainers hold nothing that changes, so tests share them, and with them what they compiled.
MLP_STEP, MLP_SCAN = Trainer("step"), Trainer("scan")
TRAINERS = {
    "mlp-step": MLP_STEP,
    "mlp-scan": MLP_SCAN,
    "normed-step": Trainer("step", is_normed=True),
    "normed-scan": Trainer("scan", is_normed=True),
}
INPUTS, LABELS = RNG.normal(size=(60, 4)).astype(np.float32), RNG.integers(0, 3, 60)
ALL = ArrayDataset(inputs=INPUTS, labels=LABELS)
SPLITS = Splits(ALL.take(range(25)), ALL.take(range(25, 45)), ALL.take(range(45, 60)))


class Rows:
    """The same examples one by one."""

    def __len__(self) -> int:
        return 25

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": INPUTS[index], "labels": LABELS[index]}


@pytest.fixture(autouse=True)
def several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan of four steps as two programs, so that it can be stopped between them."""
    monkeypatch.setattr(modes, "_CHUNK", STEPS // CHUNKS)


def train(
    trainer: TrainerModule, splits: Any = SPLITS, stop_at: int | None = None, hparams: Any = HPARAMS, **options: Any
) -> Training:
    """Train to the end, or until after as many programs."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == stop_at

    training = Training(
        trainer, hparams, splits, **{"epochs": EPOCHS, "seed": 7, "objective": "loss", "stop": stop, **options}
    )
    for _ in training:
        pass
    return training


def often(folder: Path) -> Checkpoints:
    return Checkpoints(folder, every_s=0.0)


def never(folder: Path) -> Checkpoints:
    return Checkpoints(folder, every_s=math.inf)


def plain_keys(tree: Any) -> Any:
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree)


def assert_bit_equal(found: Any, expected: Any) -> None:
    found, expected = plain_keys(found), plain_keys(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, one), other in pairs:
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), path


def assert_same_training(found: Training, expected: Training) -> None:
    """Fail unless state (with optimizer, statistics, average and key), reports and best are the same to the bit."""
    assert_bit_equal(found.state, expected.state)
    assert repr(found.reports) == repr(expected.reports)  # the same floats, NaN included
    assert found.best is not None
    assert expected.best is not None
    assert (found.best.epoch, found.best.metrics) == (expected.best.epoch, expected.best.metrics)
    assert_bit_equal(found.best.state, expected.best.state)


@cache
def uninterrupted(name: str) -> Training:
    return train(TRAINERS[name])


# Interrupted anywhere.


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mlp-scan", "normed-step", *(pytest.param(name, marks=pytest.mark.long) for name in ("mlp-step", "normed-scan"))],
)
def test_stopped_after_any_program_and_resumed_is_as_if_never_stopped(name: str, tmp_path: Path) -> None:
    expected, trainer = uninterrupted(name), TRAINERS[name]
    assert expected.state.opt_state is not None
    assert (expected.state.average is not None) == trainer.is_normed
    in_epoch = STEPS if trainer.loop == "step" else CHUNKS
    steps = []
    # After the last program of the last epoch there is nothing left to be stopped.
    for count in range(1, EPOCHS * in_epoch):
        folder = tmp_path / str(count)
        stopped = train(trainer, stop_at=count, checkpoints=never(folder))
        assert len(stopped.reports) == stopped.step // STEPS
        steps.append(stopped.step)
        resumed = train(trainer, checkpoints=never(folder))
        assert_same_training(resumed, expected)
        assert resumed.mode == trainer.loop
    assert steps == list(range(STEPS // in_epoch, EPOCHS * STEPS, STEPS // in_epoch))


@pytest.mark.slow
def test_stopped_after_every_program_it_still_arrives(tmp_path: Path) -> None:
    starts = [train(MLP_STEP, stop_at=1, checkpoints=often(tmp_path)) for _ in range(EPOCHS * STEPS)]
    assert [training.step for training in starts] == list(range(1, EPOCHS * STEPS + 1))
    training = starts[-1]
    assert_same_training(training, uninterrupted("mlp-step"))


@pytest.mark.slow
def test_a_training_resumed_at_an_epoch_yields_its_last_report_again_and_no_other(tmp_path: Path) -> None:
    train(MLP_STEP, stop_at=STEPS, checkpoints=never(tmp_path))
    training = Training(MLP_STEP, HPARAMS, SPLITS, epochs=EPOCHS, seed=7, checkpoints=never(tmp_path))
    assert [report.epoch for report in training] == [1, 2, 3]
    train(MLP_STEP, stop_at=STEPS + 1, checkpoints=never(tmp_path / "mid"))
    training = Training(MLP_STEP, HPARAMS, SPLITS, epochs=EPOCHS, seed=7, checkpoints=never(tmp_path / "mid"))
    assert [report.epoch for report in training] == [2, 3]


def test_a_training_that_saves_is_the_same_and_saves_only_when_due(tmp_path: Path) -> None:
    assert_same_training(train(MLP_STEP, checkpoints=often(tmp_path / "often")), uninterrupted("mlp-step"))
    # Not after the last epoch, which leaves nothing to be resumed.
    saved = [path.name for path in newest_first(tmp_path / "often" / "latest")]
    assert saved == [str(EPOCHS * STEPS - 1), str(EPOCHS * STEPS - 2)]
    train(MLP_STEP, checkpoints=never(tmp_path / "never"))
    assert not (tmp_path / "never" / "latest").exists()


@pytest.mark.slow
def test_the_measured_mode_is_kept(tmp_path: Path) -> None:
    trainer, asked = Trainer("auto"), []

    def choose(mode: Any, name: str, measure: Callable[[], Any]) -> Any:
        asked.append(name)
        return mode

    train(trainer, stop_at=1, checkpoints=never(tmp_path), choose=partial(choose, "scan"))
    resumed = train(trainer, checkpoints=never(tmp_path), choose=partial(choose, "step"))
    assert resumed.mode == "scan"
    assert len(asked) == 1
    assert_same_training(resumed, uninterrupted("mlp-scan"))


@pytest.mark.slow
def test_a_stream_goes_on_in_mid_epoch_with_the_same_examples(tmp_path: Path) -> None:
    def streamed() -> Any:
        return Splits(StreamDataset(Rows()), SPLITS.validation, SPLITS.test)

    expected = train(MLP_STEP, streamed())
    assert_bit_equal(expected.state, uninterrupted("mlp-step").state)
    train(MLP_STEP, streamed(), stop_at=STEPS + 1, checkpoints=never(tmp_path))
    assert_same_training(train(MLP_STEP, streamed(), checkpoints=never(tmp_path)), expected)


@pytest.mark.slow
def test_a_stream_is_read_for_its_epochs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal begun
        begun += 1
        return batches(*args, **kwargs)

    batches = StreamDataset.batches
    monkeypatch.setattr(StreamDataset, "batches", counted)
    data = Splits(StreamDataset(Rows()), SPLITS.validation)
    train(MLP_STEP, data, checkpoints=often(tmp_path), log=tmp_path / "log")
    assert begun == EPOCHS + 1  # and once for the shapes


class Line(TrainerModule):
    """Logistic regression with any optimizer of the table."""

    loop = "step"

    def __init__(self, optimizer: str) -> None:
        self.optimizer = optimizer

    def init_model(self, hparams: Any) -> nn.Module:
        return nn.Dense(3)

    def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
        has_rate = "learning_rate" in arguments_of(self.optimizer)
        return OptimizerSpec(self.optimizer, 0.01 if has_rate else None)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"]), {}

    def batch_size(self, hparams: Any) -> int:
        return 13


# Of each kind one: evaluated at an average, by matrices, along a line, and the most used.
_QUICK = ("adamw", "lbfgs", "muon", *SCHEDULE_FREE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.long]) for name in OPTIMIZERS]
)
def test_every_optimizer_resumes_and_its_checkpoints_load(name: str, tmp_path: Path) -> None:
    trainer = Line(name)
    whole = train(trainer, hparams={}, checkpoints=never(tmp_path / "whole"))
    assert whole.best is not None
    best = load_from_checkpoint(tmp_path / "whole", trainer=trainer, hparams={})
    assert_bit_equal(best.state, whole.best.state)
    # Its validation loss, computed here from the parameters that were loaded, is the one that was reported.
    params, rows = plain_keys(best.state.params), np.arange(25, 45)
    logits = np.asarray(INPUTS[rows] @ params["kernel"] + params["bias"], np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(rows)), LABELS[rows]]
    assert math.isclose(losses.mean(), whole.best.metrics["loss"], rel_tol=1e-5)

    folder = tmp_path / "stopped"
    stopped = train(trainer, hparams={}, stop_at=3, checkpoints=never(folder))  # in the second epoch
    latest = load_from_checkpoint(folder, trainer=trainer, hparams={})
    assert_bit_equal(latest.state, stopped.state)
    assert_same_training(train(trainer, hparams={}, checkpoints=never(folder)), whole)


@pytest.mark.parametrize("name", ["mlp-step", "mlp-scan"])
@pytest.mark.slow
def test_a_resumed_training_runs_the_programs_that_a_new_one_does(name: str, tmp_path: Path) -> None:
    expected = train(TRAINERS[name])  # here, because programs of an earlier test may have been dropped
    train(TRAINERS[name], stop_at=1, checkpoints=never(tmp_path))
    compiled: list[str] = []

    def note(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(kwargs.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        resumed = train(TRAINERS[name], checkpoints=never(tmp_path))
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert compiled == []
    assert_same_training(resumed, expected)


@pytest.mark.parametrize("end", ["close", "prune"])
@pytest.mark.slow
def test_the_best_is_written_however_a_training_ends(end: str, tmp_path: Path) -> None:
    trainer = Pruning() if end == "prune" else MLP_STEP
    training = Training(trainer, HPARAMS, SPLITS, epochs=EPOCHS, seed=7, checkpoints=never(tmp_path))
    assert [next(training).epoch, next(training).epoch] == [1, 2]
    if end == "prune":
        with pytest.raises(TrialPruned):
            next(training)
    else:
        training.close()
    assert training.best is not None
    found = load_from_checkpoint(tmp_path, trainer=trainer)
    assert found.record["best"]["epoch"] == training.best.epoch
    assert_bit_equal(found.state.params, training.best.state.params)


@pytest.mark.parametrize("is_closed", [False, True])
def test_an_abandoned_training_does_not_wait_for_its_checkpoints_in_another_thread(
    is_closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector may close it in the thread that the writing waits for."""
    waiting: list[threading.Thread] = []
    monkeypatch.setattr(Checkpoints, "wait", lambda self: waiting.append(threading.current_thread()))
    checkpoints = often(tmp_path)
    training = Training(MLP_STEP, HPARAMS, SPLITS, epochs=EPOCHS, seed=7, checkpoints=checkpoints)
    next(training)
    waiting.clear()
    generator: Any = training._generator  # pyright: ignore[reportPrivateUsage]
    thread = threading.Thread(target=training.close if is_closed else generator.close)
    thread.start()
    thread.join()
    assert waiting == [thread] * is_closed
    assert generator.gi_frame is None, "it has ended"


class Pruning(Trainer):
    def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> None:
        if epoch == 2:
            raise TrialPruned


class Growing(TrainerModule):
    """Doubles a number until it is infinite, in the second epoch."""

    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return lambda key, x: jnp.float32(2.0**110), lambda params, x: params * x[:, 0] ** 0

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return -outputs, {}

    def batch_size(self, hparams: Any) -> int:
        return 5

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.stateless(lambda updates, params: jax.tree.map(lambda leaf: 2 * leaf, params))


@pytest.mark.slow
def test_debugging_a_resumed_scan_looks_at_each_step(tmp_path: Path) -> None:
    splits = Splits(ALL.take(range(40)), ALL.take([0]))
    with pytest.raises(NonFinite, match=r"step 1\d ") as anew:
        list(Growing().train_model({}, splits, epochs=3, seed=0, debug=True))
    asked = iter([False, False, False, True])  # two steps a program: in the first epoch's end
    list(Growing().train_model({}, splits, epochs=3, seed=0, checkpoints=never(tmp_path), stop=lambda: next(asked)))
    with pytest.raises(NonFinite) as resumed:
        list(Growing().train_model({}, splits, epochs=3, seed=0, checkpoints=never(tmp_path), debug=True))
    assert str(resumed.value) == str(anew.value)


# Refused.


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seed": 8}, "have seed=7, this training has seed=8"),
        ({"epochs": 4}, "have epochs=3, this training has epochs=4"),
        ({"splits": Splits(ALL.take(range(26)), SPLITS.validation)}, "have examples=25, this training has examples=26"),
        ({"hparams": HParams(learning_rate=0.2, dropout_rate=0.4, width=6)}, "have hparams={'learning_rate': 0.1,"),
        ({"hparams": HParams(learning_rate=0.1, dropout_rate=0.4, width=8)}, "have hparams={'learning_rate': 0.1,"),
    ],
)
def test_checkpoints_of_another_training_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    train(MLP_STEP, stop_at=1, checkpoints=never(tmp_path))
    with pytest.raises(CheckpointError, match="are from another training: they have ") as caught:
        train(MLP_STEP, **changes, checkpoints=never(tmp_path))
    assert text in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).endswith("; use another folder")


@pytest.mark.parametrize("spoilt", [1, 2])
@pytest.mark.slow
def test_of_torn_checkpoints_the_one_before_is_used_and_without_any_it_starts_anew(
    spoilt: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(MLP_STEP, stop_at=STEPS + 2, checkpoints=often(tmp_path))
    for path in newest_first(tmp_path / "latest")[:spoilt]:
        files = [file for file in (path / "arrays").rglob("*") if file.is_file()]
        largest = max(files, key=lambda file: file.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)
    resumed = train(MLP_STEP, checkpoints=never(tmp_path))
    assert_same_training(resumed, uninterrupted("mlp-step"))
    told = capfd.readouterr().err.splitlines()
    assert len(told) == spoilt
    assert told[0].endswith("; trying the one before it")
    assert told[-1].endswith("; trying the one before it" if spoilt == 1 else "; there is no older one")


def test_a_disk_that_takes_no_checkpoint_fails_no_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    checkpoints = often(tmp_path / "file")
    assert_same_training(train(MLP_STEP, checkpoints=checkpoints), uninterrupted("mlp-step"))
    assert checkpoints.write_best() is None
    assert capfd.readouterr().err.count("; training continues\n") == 1  # said once


# On other devices.


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_it_goes_on_on_another_number_of_devices(before: int, after: int, tmp_path: Path) -> None:
    layouts = {1: Layout(), 8: Layout(jax.devices())}
    trainer = TRAINERS["normed-step"]
    stopped = train(trainer, stop_at=STEPS + 1, checkpoints=never(tmp_path), layout=layouts[before])
    kept = plain_keys(stopped.state)
    restored = Training(
        trainer, HPARAMS, SPLITS, epochs=EPOCHS, seed=7, checkpoints=never(tmp_path), layout=layouts[after]
    )
    restored._begin()
    assert_bit_equal(restored.state, kept)
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(restored.state)} == {after}
    resumed = train(trainer, checkpoints=never(tmp_path), layout=layouts[after])
    expected = uninterrupted("normed-step")
    for one, other in zip(jax.tree.leaves(resumed.state.params), jax.tree.leaves(expected.state.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert len(resumed.reports) == EPOCHS


# The best.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "direction", "epoch"),
    [
        ((3.0, 1.0, 2.0), "minimize", 2),
        ((math.nan, 2.0, math.nan), "maximize", 2),
        ((2.0, 2.0, 2.0), "minimize", 1),
        pytest.param((3.0, 1.0, 2.0), "maximize", 1, marks=pytest.mark.long),
        pytest.param((1.0, 2.0, 2.0), "maximize", 2, marks=pytest.mark.long),
        pytest.param((-math.inf, math.inf, 0.0), "maximize", 2, marks=pytest.mark.long),
    ],
)
def test_the_best_epoch_is_kept_also_when_resumed(
    script: tuple[float, ...], direction: Any, epoch: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"objective": "value", "direction": direction}
    trainer, checkpoints = Scripted(*script), never(tmp_path)
    train(trainer, stop_at=STEPS + 1, checkpoints=never(tmp_path), **options)
    training = train(trainer, checkpoints=checkpoints, **options)
    assert training.best is not None
    assert training.best.epoch == epoch
    assert training.best.metrics["value"] == script[epoch - 1]
    assert training.best.state.step is not None
    assert int(training.best.state.step) == epoch * STEPS
    at_its_time = train(Scripted(*script), stop_at=STEPS * epoch, checkpoints=never(tmp_path / "2"), **options)
    assert_bit_equal(training.best.state, at_its_time.state.for_evaluation())
    # What is written is that, and the test was of that.
    path = checkpoints.write_best()
    assert path is not None
    loaded = load_from_checkpoint(path, trainer=trainer)
    assert_bit_equal(loaded.state, training.best.state)
    assert loaded.record["best"]["epoch"] == epoch
    test: Any = SPLITS.test
    tested = trainer.eval_model(loaded.state, test, HPARAMS)
    assert {f"test_{name}": value for name, value in tested.items()}.items() <= training.reports[-1].metrics.items()
    assert not any(name.startswith("test_") for report in training.reports[:-1] for name in report.metrics)


@pytest.mark.parametrize("stop_at", [None, STEPS + 1, 3 * STEPS - 1])
@pytest.mark.slow
def test_the_last_epoch_is_kept_if_asked_for_also_when_resumed(stop_at: int | None, tmp_path: Path) -> None:
    options: dict[str, Any] = {"objective": "value", "keep": "last"}
    trainer, checkpoints = Scripted(1.0, 2.0, 3.0), never(tmp_path)
    if stop_at is not None:
        stopped = train(trainer, stop_at=stop_at, checkpoints=never(tmp_path), **options)
        assert stopped.best is None
    training = train(trainer, checkpoints=checkpoints, **options)
    assert training.best is not None
    assert (training.best.epoch, training.best.metrics["value"]) == (3, 3.0)
    assert_bit_equal(training.best.state, training.state.for_evaluation())
    path = checkpoints.write_best()
    assert path is not None
    loaded = load_from_checkpoint(path, trainer=trainer)
    assert_bit_equal(loaded.state, training.state.for_evaluation())
    test: Any = SPLITS.test
    tested = trainer.eval_model(loaded.state, test, HPARAMS)
    assert {f"test_{name}": value for name, value in tested.items()}.items() <= training.reports[-1].metrics.items()


@pytest.mark.slow
def test_no_epoch_is_best_where_all_are_nan(tmp_path: Path) -> None:
    checkpoints = often(tmp_path)
    training = train(Scripted(math.nan, math.nan, math.nan), objective="value", checkpoints=checkpoints)
    assert training.best is None
    assert checkpoints.write_best() is None
    assert not any(name.startswith("test_") for name in training.reports[-1].metrics)
    resumed = train(Scripted(math.nan, math.nan, math.nan), objective="value", checkpoints=often(tmp_path))
    assert resumed.best is None
    assert repr(resumed.reports) == repr(training.reports)


# Loaded elsewhere.


def test_the_record_says_what_it_is(tmp_path: Path) -> None:
    checkpoints = often(tmp_path)
    about = {"study": "resume", "file": "/x.py", "trial": 3}
    training = train(Scripted(math.nan, 2.0, math.inf), objective="value", checkpoints=checkpoints, about=about)
    checkpoints.write_best()
    for path, kind in ((tmp_path / "best", "best"), (tmp_path / "latest", "latest")):
        record = read(path)[1]
        assert {name: record[name] for name in about} == about
        assert record["kind"] == kind
        assert record["versions"]["jax"] == jax.__version__
        assert record["versions"]["python"] == sys.version.split()[0]
        assert {"flax", "optax", "numpy", "orbax-checkpoint", "jaxlib"} <= set(record["versions"])
        assert record["hparams"] == {"learning_rate": 0.1, "dropout_rate": 0.4, "width": 6}
        assert (record["seed"], record["epochs"], record["batch_size"], record["examples"]) == (7, EPOCHS, 8, 25)
        assert (record["objective"], record["direction"]) == ("value", "minimize")
        assert record["class"] == {"file": str(Path(__file__).resolve()), "module": __name__, "name": "Scripted"}
        assert record["space"]["name"] == "HParams"
        assert math.isnan(record["reports"][0]["metrics"]["value"])
    assert [report["epoch"] for report in read(tmp_path / "latest")[1]["reports"]] == [1, 2]
    assert repr(read(tmp_path / "latest")[1]["reports"][1]["metrics"]) == repr(dict(training.reports[1].metrics))


_OWN_FILE = """
import flax.linen as nn
import optax
from tuner import Space, log_uniform
from tuner.training import TrainerModule

class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1.0)

class Trainer(TrainerModule):
    def init_model(self, hparams):
        return nn.Sequential([nn.Dense(5), nn.BatchNorm(use_running_average=True), nn.Dense(3)])

    def loss(self, outputs, batch, hparams):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"]), {}

    def ema_decay(self, hparams):
        return 0.5
"""

_LOAD = """
import sys
import numpy as np
from tuner.errors import TunerError
from tuner.training import load_from_checkpoint

try:
    loaded = load_from_checkpoint(sys.argv[1], trust=True)
except TunerError as error:
    sys.exit(f"{type(error).__name__}: {error}")
np.save(sys.argv[3], np.asarray(loaded(np.load(sys.argv[2]))))
"""


def load_elsewhere(path: Path, folder: Path) -> np.ndarray | str:
    """Return what the model of a checkpoint predicts in a new process, or what that process says instead."""
    np.save(folder / "inputs.npy", INPUTS)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path), "inputs.npy", "outputs.npy"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return np.load(folder / "outputs.npy") if done.returncode == 0 else done.stderr


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    """A trainer in a file of its own."""
    path = tmp_path / "code" / "own.py"
    path.parent.mkdir()
    path.write_text(_OWN_FILE)
    return path


@pytest.mark.slow
def test_a_trainer_in_a_file_of_its_own_predicts_the_same_in_a_new_process(own_file: Path, tmp_path: Path) -> None:
    from tuner.study.source import import_file

    module = import_file(own_file)
    trainer, hparams, checkpoints = module.Trainer(), module.HParams(learning_rate=0.1), often(tmp_path / "trial")
    training = train(trainer, hparams=hparams, checkpoints=checkpoints)
    assert training.best is not None
    checkpoints.write_best()
    predicted = load_elsewhere(tmp_path / "trial", tmp_path)
    assert isinstance(predicted, np.ndarray), predicted
    bound = trainer.bind_model(training.best.state, hparams)
    assert predicted.tobytes() == np.asarray(bound(INPUTS)).tobytes()
    # A latest checkpoint holds all of the state; the newest is that before the last step.
    latest = load_from_checkpoint(tmp_path / "trial" / "latest", trainer=trainer)
    assert latest.state.opt_state is not None
    assert latest.record["kind"] == "latest"
    assert latest(INPUTS).shape == (60, 3)

    own_file.write_text(_OWN_FILE.replace("class Trainer", "class Renamed"))
    said = load_elsewhere(tmp_path / "trial", tmp_path)
    assert said == (f"CheckpointError: {own_file} no longer defines Trainer of {tmp_path / 'trial'}; pass trainer=\n")
    own_file.rename(own_file.with_name("moved.py"))
    sys.modules.pop(module.__name__)
    with pytest.raises(CheckpointError) as refused:
        load_from_checkpoint(tmp_path / "trial", trust=True)
    assert "\n" not in str(refused.value)
    wanted = f"the file of Trainer in {tmp_path / 'trial'} does not exist: '{own_file}';"
    assert str(refused.value).startswith(wanted)
    # Given by hand, nothing has to be found but the space.
    with pytest.raises(CheckpointError, match=r"the file of HParams in .* does not exist"):
        load_from_checkpoint(tmp_path / "trial", trainer=trainer)
    assert_bit_equal(
        load_from_checkpoint(tmp_path / "trial", trainer=trainer, hparams=hparams).state, training.best.state
    )


def test_an_empty_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=f"no checkpoint in {tmp_path}: pass a checkpoint or a folder of checkpoints$"
    ):
        load_from_checkpoint(tmp_path)


_EVALUATE = """
import json, sys
import numpy as np
from tuner.training import load_from_checkpoint

loaded = load_from_checkpoint(sys.argv[1], trust=True)
splits = sys.modules[type(loaded.trainer).__module__].study.data(0)
found = loaded.trainer.eval_model(loaded.state, splits.validation, loaded.hparams)
best = loaded.record["best"]["metrics"]
outputs = np.asarray(loaded(splits.validation.host()["inputs"]))
labels = splits.validation.host()["labels"]
print(json.dumps({"found": found, "best": best, "bound": float((outputs.argmax(-1) == labels).mean())}))
"""


@pytest.mark.slow
def test_the_best_trial_of_a_study_is_loaded_by_its_path(tuner_on_sqlite: Any) -> None:
    tuner, file = tuner_on_sqlite, tuner_on_sqlite.folder / "digits_mlp.py"
    text = (ROOT / "studies" / "digits_mlp.py").read_text()
    for one, other in (("choice(1, 2, 3)", "choice(1)"), ("epochs=20", "epochs=3"), ("trials=30", "trials=2")):
        text = text.replace(one, other)
    file.write_text(text)
    done = tuner.run("launch", "digits_mlp.py", "--workers", "1")
    assert done.returncode == 0, done.stderr
    best = tuner.rows("best", "digits_mlp")[0]
    path = Path(tuner.rows("show", "digits_mlp", str(best["number"]))["checkpoint"])
    assert path.is_relative_to(tuner.folder / "tuner-artifacts")
    assert sorted(os.listdir(path.parent)) == ["best"]

    done = subprocess.run(
        [sys.executable, "-c", _EVALUATE, str(path)],
        cwd="/",
        env={**tuner.env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["found"]["accuracy"] == values["best"]["accuracy"] == pytest.approx(values["bound"])
    reported = [report["value"] for report in tuner.rows("show", "digits_mlp", str(best["number"]))["reports"]]
    assert values["best"]["accuracy"] == max(reported)

    file.write_text(file.read_text().replace('name="digits_mlp"', 'name="other"'))
    with pytest.raises(CheckpointError, match=r"digits_mlp.py no longer defines the study 'digits_mlp' of "):
        load_from_checkpoint(path, trust=True)
    file.rename(file.with_name("moved.py"))
    said = load_elsewhere(path, tuner.folder)
    assert isinstance(said, str)
    assert said.count("\n") == 1, said
    assert str(file) in said
