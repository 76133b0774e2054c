"""The training loop's order of events, what it reports, and what a step computes beside the update, all by hand."""

import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rounding import rounding
from sklearn import metrics as sklearn_metrics

from tuner import Space, uniform
from tuner.errors import StudyError, TrialPruned
from tuner.training import (
    ArrayDataset,
    ConfusionMatrix,
    GradientNoise,
    Layout,
    Model,
    OptimizerSpec,
    Splits,
    TrainerModule,
    Training,
)
from tuner.training import metrics as metrics_
from tuner.training.data.arrays import batch_order
from tuner.training.definition import settings_of
from tuner.training.loop.programs import programs
from tuner.training.state import Average, Stream

RNG = np.random.default_rng(0)


class HParams(Space):
    learning_rate: float = uniform(0.0, 10.0)
    decay: float = uniform(0.0, 1.0)


H = HParams(learning_rate=0.1, decay=0.9)


def start(key: jax.Array, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    return jnp.asarray([0.5, -1.0]), {"mean": jnp.zeros(()), "count": jnp.int32(0)}


def run_line(params: Any, collections: Any, inputs: tuple[Any, ...], *, train: bool, key: Any) -> tuple[Any, Any]:
    mean, count = collections["mean"], collections["count"]
    after = {"mean": 0.5 * mean + 0.5 * inputs[0].mean(), "count": count + 1} if train else collections
    return inputs[0] @ params + mean, after


class Line(TrainerModule):
    """A line with two weights, and a smoothed mean of its inputs as an offset."""

    loop = "step"

    def init_model(self, hparams: Any) -> Model:
        return Model(start, run_line)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["labels"]) ** 2, {"input": batch["inputs"][:, 0]}

    def batch_size(self, hparams: Any) -> int:
        return 4

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return optax.sgd(hparams.learning_rate)


X, Y = RNG.normal(size=(14, 2)).astype(np.float32), RNG.normal(size=14).astype(np.float32)
ALL = ArrayDataset(inputs=X, labels=Y)
SPLITS = Splits(ALL.take(np.arange(8)), ALL.take(np.arange(8, 11)), ALL.take(np.arange(11, 14)))
WHOLE = Splits(ALL.take(np.arange(4)), SPLITS.validation)  # one step an epoch, so its batch is known


def train(trainer: TrainerModule, hparams: Any = H, splits: Any = SPLITS, **options: Any) -> Training:
    return trainer.train_model(hparams, splits, **{"epochs": 4, "seed": 3, **options})


def gradient(w: np.ndarray, mean: float, rows: Any, **_: Any) -> np.ndarray:
    return 2 * X[rows].T @ (X[rows] @ w + mean - Y[rows]) / len(rows)


class Logged(Line):
    validate_every = 2

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.prune_in: str | None = None

    def log(self, name: str, state: Any, hparams: Any, epoch: int, metrics: Any) -> dict[str, float]:
        assert hparams is H
        self.events.append((name, epoch, int(state.step), " ".join(sorted(metrics))))
        if self.prune_in == f"{name} {epoch}":
            raise TrialPruned(f"{name} {epoch}")
        return {f"from_{name}": epoch + 0.5}

    def on_training_start(self, state: Any, hparams: Any) -> None:
        self.log("start", state, hparams, 0, {})

    def on_training_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
        return self.log("epoch", state, hparams, epoch, metrics)

    def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
        return self.log("validation", state, hparams, epoch, metrics)


LOGGED, LINE = Logged(), Line()
TRAINED = "train_grad_norm train_input train_loss"
HOOKED = f"from_epoch input loss {TRAINED}"
REPORTED = f"from_epoch from_validation input loss {TRAINED}"


def logged(**options: Any) -> tuple[list[Any], Training]:
    LOGGED.events, LOGGED.prune_in = [], options.pop("prune_in", None)
    training = train(LOGGED, **options)
    for report in training:
        LOGGED.events.append(("report", report.epoch, report.step, " ".join(sorted(report.metrics))))
    return LOGGED.events, training


@pytest.mark.slow
def test_the_events_of_a_training_in_their_order() -> None:
    events, training = logged()
    assert events == [
        ("start", 0, 0, ""),
        ("epoch", 1, 2, TRAINED),
        ("epoch", 2, 4, TRAINED),
        ("validation", 2, 4, HOOKED),
        ("report", 2, 4, REPORTED),
        ("epoch", 3, 6, TRAINED),
        ("epoch", 4, 8, TRAINED),
        ("validation", 4, 8, HOOKED),
        ("report", 4, 8, "from_epoch from_validation input loss test_input test_loss " + TRAINED),
    ]
    added = [(report.metrics["from_epoch"], report.metrics["from_validation"]) for report in training.reports]
    assert added == [(2.5, 2.5), (4.5, 4.5)]


@pytest.mark.slow
def test_the_last_epoch_is_validated_also_off_the_beat() -> None:
    assert [event[:2] for event in logged(epochs=3)[0] if event[0] == "report"] == [("report", 2), ("report", 3)]


@pytest.mark.parametrize(
    ("hook", "reported"), [("epoch 1", f"from_validation input loss {TRAINED}"), ("validation 2", HOOKED)]
)
def test_a_pruned_trial_reports_its_epoch_first(hook: str, reported: str) -> None:
    with pytest.raises(TrialPruned, match=hook):
        logged(prune_in=hook)
    epoch = int(hook[-1])
    assert LOGGED.events[-2:] == [
        ("validation", epoch, 2 * epoch, HOOKED.replace("from_epoch ", "") if epoch == 1 else HOOKED),
        ("report", epoch, 2 * epoch, reported),
    ]


def test_closing_ends_a_training() -> None:
    LOGGED.events, LOGGED.prune_in = [], None
    training = train(LOGGED)
    assert next(training).epoch == 2
    training.close()
    assert next(training, "closed") == "closed"
    assert [event[:2] for event in LOGGED.events] == [("start", 0), ("epoch", 1), ("epoch", 2), ("validation", 2)]


@pytest.mark.parametrize(("direction", "expected"), [("minimize", 1), ("maximize", 4)])
def test_the_test_metrics_are_those_of_the_best_state(direction: Any, expected: int) -> None:
    steep = HParams(learning_rate=3.0, decay=0.9)  # diverges: each epoch is worse than the one before
    states, training = [], train(LINE, steep, direction=direction)
    for _ in training:
        states.append(jax.tree.map(jnp.copy, training.state.for_evaluation()))
    assert training.best is not None
    assert training.best.epoch == expected
    test: Any = SPLITS.test
    losses = [LINE.eval_model(state, test, steep)["loss"] for state in states]
    assert losses == sorted(set(losses))
    assert training.reports[-1].metrics["test_loss"] == pytest.approx(losses[expected - 1], rel=1e-6)
    np.testing.assert_array_equal(training.best.state.params, states[expected - 1].params)
    assert not any(name.startswith("test_") for report in training.reports[:-1] for name in report.metrics)


@pytest.mark.slow
def test_a_penalty_is_in_the_gradient_and_apart_from_the_loss() -> None:
    class Penalised(Line):
        def penalty(self, params: Any, hparams: Any) -> jax.Array:
            return 0.5 * hparams.decay * (params**2).sum()

    training = train(Penalised(), splits=WHOLE, epochs=1)
    metrics, w = next(training).metrics, np.array([0.5, -1.0])
    assert metrics["train_loss"] == pytest.approx(((X[:4] @ w - Y[:4]) ** 2).mean(), rel=1e-5)
    assert metrics["train_penalty"] == pytest.approx(0.5 * 0.9 * (w @ w), rel=1e-6)
    full = gradient(w, 0.0, np.arange(4)) + 0.9 * w
    assert metrics["train_grad_norm"] == pytest.approx(np.linalg.norm(full), rel=1e-5)
    np.testing.assert_allclose(training.state.params, w - 0.1 * full, rtol=1e-5)
    assert "penalty" not in metrics


@pytest.mark.slow
def test_augmentation_is_for_training_only_and_drawn_anew_each_step() -> None:
    class Augmented(Line):
        def augment(self, batch: Any, hparams: Any, key: jax.Array) -> Any:
            return {**batch, "inputs": jnp.zeros_like(batch["inputs"]) + hparams.decay * jax.random.uniform(key)}

    reports = list(train(Augmented(), epochs=2))
    steps = [Stream.STEP.key(jax.random.key(3), step) for step in range(4)]
    draws = [0.9 * float(jax.random.uniform(Stream.AUGMENT.key(key))) for key in steps]
    found = [report.metrics["train_input"] for report in reports]
    assert found == pytest.approx([np.mean(draws[:2]), np.mean(draws[2:])], rel=1e-5)
    assert [report.metrics["input"] for report in reports] == pytest.approx([X[8:11, 0].mean()] * 2, rel=1e-5)


class Smooth(Line):
    def ema_decay(self, hparams: Any) -> Any:
        return hparams.decay


SMOOTH = Smooth()


@pytest.mark.parametrize("decay", [0.9, 0.0, 1.0])
def test_smoothed_weights_follow_the_recursion_and_are_evaluated(decay: float) -> None:
    training = train(SMOOTH, HParams(learning_rate=0.1, decay=decay), WHOLE)
    w, mean, rows = np.array([0.5, -1.0]), 0.0, np.arange(4)
    smooth_w, smooth_mean, inputs, labels = w, mean, X[8:11], Y[8:11]
    for epoch, report in enumerate(training, 1):
        w, mean = w - 0.1 * gradient(w, mean, rows), 0.5 * mean + 0.5 * float(X[:4].mean())
        smooth_w = decay * smooth_w + (1 - decay) * w
        smooth_mean = decay * smooth_mean + (1 - decay) * mean
        state = training.state
        assert state.average is not None
        np.testing.assert_allclose(state.params, w, rtol=1e-5)
        np.testing.assert_allclose(state.average.params, smooth_w, rtol=1e-5)
        assert float(state.average.collections["mean"]) == pytest.approx(smooth_mean, rel=1e-5)
        assert int(state.average.collections["count"]) == int(state.collections["count"]) == epoch
        expected = ((inputs @ smooth_w + smooth_mean - labels) ** 2).mean()
        assert report.metrics["loss"] == pytest.approx(expected, rel=1e-4)
    outputs = SMOOTH.bind_model(training.state, H)(inputs)
    np.testing.assert_allclose(outputs, inputs @ smooth_w + smooth_mean, rtol=1e-4, atol=1e-6)
    made: Any = programs(SMOOTH, jax.device_put(H), Layout())
    assert made.step._cache_size() == 1  # for all decays


def test_an_average_from_zero_is_that_of_optax() -> None:
    average, peer, found = Average(jnp.zeros(()), {}), optax.ema(0.9, debias=False), []
    rtol = rounding(20)  # 1 - 0.9 has nine times the error of 0.9; then three steps of two products and a sum
    state = peer.init(jnp.zeros(()))
    for value in (1.0, 2.0, 3.0):
        average = average.update(jnp.asarray(value), {}, 0.9)
        theirs, state = peer.update(jnp.asarray(value), state)
        assert float(average.params) == pytest.approx(float(jnp.asarray(theirs)), rel=rtol)
        found.append(float(average.params))
    assert found == pytest.approx([0.1, 0.29, 0.561], rel=rtol)


class Specified(Line):
    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
        return OptimizerSpec("sgd", hparams.learning_rate, **self.settings)


def test_the_gradients_norm_is_that_before_clipping() -> None:
    training = train(Specified(clip_norm=1e-2), splits=WHOLE, epochs=1)
    full = gradient(np.array([0.5, -1.0]), 0.0, np.arange(4))
    assert next(training).metrics["train_grad_norm"] == pytest.approx(np.linalg.norm(full), rel=1e-5)
    step = np.asarray(training.state.params) - [0.5, -1.0]
    np.testing.assert_allclose(step, -0.1 * 1e-2 * full / np.linalg.norm(full), rtol=1e-3)


@pytest.mark.slow
def test_gradient_noise_is_drawn_from_the_trials_seed() -> None:
    noisy = Specified(noise=GradientNoise(0.1))
    losses = [next(train(noisy, seed=seed)).metrics["loss"] for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] != next(train(LINE, seed=3)).metrics["loss"]


@pytest.mark.slow
def test_steps_of_nan_gradients_are_skipped_and_counted() -> None:
    poisoned = ArrayDataset(inputs=X, labels=np.where(np.arange(14) == 5, np.nan, Y))
    splits = Splits(poisoned.take(np.arange(8)), poisoned.take(np.arange(8, 11)))
    training = train(Specified(skip_nonfinite=True), splits=splits, epochs=3)
    assert [report.metrics["train_skipped_steps"] for report in training] == [1, 2, 3]
    w, mean = np.array([0.5, -1.0]), 0.0
    for epoch in range(3):
        rows = jax.random.permutation(Stream.ORDER.key(jax.random.key(3), 2 * epoch), 8)
        for batch in np.asarray(batch_order(rows, 4)[0]):
            if 5 not in batch:  # else nothing changes
                w, mean = w - 0.1 * gradient(w, mean, batch), 0.5 * mean + 0.5 * float(X[batch].mean())
    np.testing.assert_allclose(training.state.params, w, rtol=1e-4)
    assert "train_skipped_steps" not in next(train(LINE)).metrics


def test_a_progress_bar_changes_nothing_and_off_is_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    silent = list(train(LINE))
    assert capsys.readouterr() == ("", "")
    assert list(train(LINE, progress=True)) == silent
    out, err = capsys.readouterr()
    assert (out, "4/4" in err, "input" in err) == ("", True, True)
    training = train(LINE, progress=True)
    for _ in range(4):
        next(training)
    with pytest.raises(StopIteration) as end:
        next(training)
    assert end.value.value is training.state


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(1)(x))[:, 0]


class NNXNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return self.dropout(x)[:, 0]


class Made(Line):
    def __init__(self, model: Any) -> None:
        self.model = model

    def init_model(self, hparams: Any) -> Any:
        return self.model


@pytest.mark.slow
@pytest.mark.parametrize("model", [Net(), NNXNet])
def test_a_table_of_parameters_has_all_and_a_bound_model_evaluates(
    model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Made(model)
    trainer.print_tabulate(H, SPLITS)
    table = capsys.readouterr().out
    total = re.search(r"total\D+([\d,]+)", table)
    assert total is not None
    batch = jax.tree.map(lambda array: array[:4], SPLITS.train.arrays)
    state = jax.jit(lambda: trainer.init_state(H, batch, jax.random.key(0), 8))()
    assert int(total[1].replace(",", "")) == sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 19
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
    assert all(jax.tree_util.keystr(path, simple=True, separator="/") in table for path in paths)
    state = dataclasses.replace(state, collections=jax.tree.map(lambda leaf: leaf + 0.5, state.collections))
    bound = trainer.bind_model(state, H)(X)
    np.testing.assert_array_equal(bound, trainer.bind_model(state, H)(X))
    if isinstance(model, nn.Module):
        expected: Any = model.apply({"params": state.params, **state.collections}, jnp.asarray(X), train=False)
    else:
        module = NNXNet(nnx.Rngs(0))
        for at, name in ((0, "0"), (1, "1"), (2, "2")):
            variables = {**state.params["layers"].get(name, {}), **state.collections["layers"].get(name, {})}
            for key, value in variables.items():
                getattr(module.layers[at], key).set_value(value)
        module.eval()
        expected = module(jnp.asarray(X))
    np.testing.assert_allclose(bound, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "classes"), [(np.int32, 5), (np.uint8, 20)])
@pytest.mark.parametrize("shape", [(60,), (60, 3, 2)])
def test_a_confusion_matrix_summed_over_batches_is_that_of_the_whole_set(
    shape: tuple[int, ...], dtype: Any, classes: int
) -> None:
    rng = np.random.default_rng(1)
    # The last class never occurs; 255 (and -1, where the type has it) is not to be counted.
    labels = rng.integers(0, classes - 1, shape)
    labels[rng.uniform(size=shape) < 0.2] = 255
    if dtype is np.int32:
        labels[rng.uniform(size=shape) < 0.1] = -1
    right = rng.uniform(size=shape) < 0.5
    predicted = np.where(right & (labels >= 0) & (labels < classes), labels, rng.integers(0, classes - 1, shape))
    weights = rng.integers(0, 4, 60).astype(np.float32)
    whole: Any = None
    of = jax.jit(ConfusionMatrix.of, static_argnames="classes")
    for start in range(0, 60, 20):
        part = slice(start, start + 20)
        batch = {"cm": of(predicted[part].astype(np.int32), labels[part].astype(dtype), weights[part], classes=classes)}
        whole = batch if whole is None else metrics_.add(whole, batch)
    spread = np.broadcast_to(weights.reshape(60, *[1] * (len(shape) - 1)), shape)
    counted = (labels >= 0) & (labels < classes) & (spread > 0)
    true, guess, weight = labels[counted], predicted[counted], spread[counted]
    peer: Any = sklearn_metrics
    options = {"average": "macro", "sample_weight": weight, "zero_division": 0}
    expected = {
        "cm_accuracy": peer.accuracy_score(true, guess, sample_weight=weight),
        "cm_f1": peer.f1_score(true, guess, **options),
        "cm_iou": peer.jaccard_score(true, guess, **options),
    }
    assert metrics_.to_floats(whole) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(
        whole["cm"].counts, peer.confusion_matrix(true, guess, labels=range(classes), sample_weight=weight)
    )


@pytest.mark.parametrize("option", ["check_val_every_n_nepoch", "progres", "layuot"])  # codespell:ignore progres
def test_a_misspelled_option_is_refused(option: str) -> None:
    with pytest.raises(StudyError, match=f"train_model has no option '{option}'"):
        Line().train_model(H, SPLITS, epochs=1, seed=0, **{option: 1})


class Normed(Line):
    """Batch statistics and a running mean beside a model that some examples make NaN."""

    def ema_decay(self, hparams: Any) -> float:
        return 0.5

    def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
        return OptimizerSpec("sgd", hparams.learning_rate, skip_nonfinite=True)


def test_a_skipped_step_leaves_no_nan_in_what_the_model_carries() -> None:
    poisoned = ArrayDataset(inputs=np.where(np.arange(14)[:, None] == 5, np.nan, X), labels=Y)
    splits = Splits(poisoned.take(np.arange(8)), poisoned.take(np.arange(8, 11)))
    training = train(Normed(), splits=splits, epochs=2)
    assert [report.metrics["train_skipped_steps"] for report in training] == [1, 2]
    assert training.state.average is not None
    for leaf in jax.tree.leaves((training.state.collections, training.state.average)):
        assert np.isfinite(leaf).all()
    assert training.state.collections["count"] == 2  # one of two steps an epoch
    assert math.isfinite(training.reports[-1].metrics["loss"])


def test_an_objective_that_is_never_reported_ends_the_first_epoch() -> None:
    with pytest.raises(
        StudyError, match=r"does not report the objective 'los': it reports input, loss, .*; did you mean 'loss'\?"
    ):
        next(train(LINE, objective="los"))

    class Late(Line):
        def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
            return {"late": 1.0} if epoch == 3 else None

    training = train(Late(), objective="late")
    assert len(list(training)) == 4
    assert training.best is not None
    assert training.best.epoch == 3
    with pytest.raises(StudyError, match="does not report the objective 'never'"):
        list(train(Late(), objective="never"))


@pytest.mark.parametrize(
    ("hook", "added", "message"),
    [
        ("on_validation_epoch_end", 0.5, "must return a mapping of names to numbers, or None: got 0.5"),
        (
            "on_validation_epoch_end",
            {"loss": 1.0},
            "must not return 'loss': tuner reports a metric of that name itself; rename yours",
        ),
        (
            "on_training_epoch_end",
            {"loss": 1.0},
            "must not return 'loss': tuner reports a metric of that name itself; rename yours",
        ),
        ("on_training_epoch_end", {"train_loss": 1.0}, "must not return 'train_loss'"),
        ("on_training_epoch_end", {"note": "good"}, "must return a mapping of names to numbers: got {'note': 'good'}"),
    ],
)
def test_what_hooks_must_not_return(hook: str, added: Any, message: str) -> None:
    hooked = type("Hooked", (Line,), {hook: lambda self, state, hparams, epoch, metrics: added})()
    with pytest.raises(StudyError, match=f"{hook} {re.escape(message)}"):
        next(train(hooked))


def test_numbers_of_hooks_become_floats() -> None:
    class Hooked(Line):
        def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
            return {"array": jnp.float32(0.5), "whole": np.int64(2)}

    found = next(train(Hooked())).metrics
    assert (type(found["array"]), found["array"], type(found["whole"]), found["whole"]) == (float, 0.5, float, 2.0)


@pytest.mark.slow
def test_a_trainer_whose_settings_change_is_another() -> None:
    class Scaled(Line):
        scale = 1.0

        def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
            return self.scale * super().loss(outputs, batch, hparams)[0], {}

    trainer = Scaled()
    before = next(train(trainer)).metrics["loss"]
    trainer.scale, trainer._seen = 3.0, 1  # pyright: ignore[reportAttributeAccessIssue]
    assert next(train(trainer, hparams=HParams(learning_rate=0.0, decay=0.9))).metrics["loss"] > 2 * before
    assert [name for name, _ in settings_of(trainer)] == ["precision", "scale"]
