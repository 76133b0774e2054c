"""The contrastive loss by hand and against optax; what SimCLR trains, and what it must leave alone."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression

from tuner.errors import StudyError
from tuner.methods import SimCLR, augment, noise, nt_xent
from tuner.study.source import import_file
from tuner.training import Loaded, Splits
from tuner.training.hparams import register
from tuner.training.metrics import to_floats

STUDY: Any = import_file(Path(__file__).parents[3] / "studies" / "digits_simclr.py")
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(0)
LOSS = jit(nt_xent)
RNG = np.random.default_rng(0)


def views(count: int, dimensions: int = 5) -> tuple[jax.Array, jax.Array, jax.Array]:
    first, second = np.random.default_rng(count).normal(size=(2, count, dimensions)).astype(np.float32)
    return jnp.asarray(first), jnp.asarray(second), jnp.ones(count)


# The loss.


def test_the_loss_by_hand() -> None:
    np.testing.assert_allclose(LOSS(*views(1), 0.5), [0.0], atol=1e-6)
    pairs = jnp.eye(2)
    np.testing.assert_allclose(LOSS(pairs, pairs, jnp.ones(2), 0.5), [0.239545, 0.239545], rtol=1e-5)
    equal = jnp.ones((4, 3))
    np.testing.assert_allclose(LOSS(equal, equal, jnp.ones(4), 0.5), np.full(4, 1.94591), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_the_loss_is_that_of_optax(temperature: float) -> None:
    first, second, ones = views(6)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        labels = jnp.tile(jnp.arange(6), 2)
        expected = optax.losses.ntxent(jnp.concatenate([first, second]), labels, temperature)
    np.testing.assert_allclose(LOSS(first, second, ones, temperature).mean(), expected, rtol=1e-5)


@pytest.mark.slow
def test_the_loss_does_not_know_which_view_is_first_nor_how_long_embeddings_are() -> None:
    first, second, ones = views(6)
    expected = LOSS(first, second, ones, 0.5)
    np.testing.assert_allclose(LOSS(second, first, ones, 0.5), expected, rtol=1e-5)
    np.testing.assert_allclose(LOSS(100.0 * first, 0.01 * second, ones, 0.5), expected, rtol=1e-5)


def test_an_embedding_of_zeros_makes_no_nan_of_the_loss_or_its_gradient() -> None:
    first, second, ones = views(4)
    first = first.at[1].set(0.0)
    mean = jit(jax.value_and_grad(lambda first: nt_xent(first, second, ones, 0.5).mean()))
    loss, gradient = mean(first)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[1]).max() < 10.0
    # All of them: each has cosine similarity 0 with all others.
    zeros = jnp.zeros((4, 5))
    np.testing.assert_allclose(LOSS(zeros, zeros, ones, 0.5), np.full(4, np.log(7)), rtol=1e-5)


@pytest.mark.slow
def test_padding_is_seen_by_nobody() -> None:
    first, second, _ = views(6)
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])

    def mean(first: Any, second: Any, weights: Any) -> Any:
        return jnp.sum(nt_xent(first, second, weights, 0.5) * weights) / 4

    slope = jit(jax.value_and_grad(mean, argnums=(0, 1)))
    found, gradients = slope(first, second, weights)
    expected, rights = slope(first[:4], second[:4], jnp.ones(4))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for gradient, right in zip(gradients, rights, strict=True):
        np.testing.assert_allclose(gradient[:4], right, atol=1e-6)
        np.testing.assert_array_equal(gradient[4:], 0.0)
    assert np.isfinite(LOSS(first, second, jnp.zeros(6), 0.5)).all()


# The trainer.


class Encoder(nn.Module):
    is_normed: bool

    @nn.compact
    def __call__(self, images: Any, *, train: bool) -> Any:
        hidden = nn.Conv(4, (3, 3))(images).mean((1, 2))
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden) if self.is_normed else nn.relu(hidden)


class Tiny(SimCLR):
    def __init__(self, is_normed: bool = False) -> None:
        super().__init__(3, dimensions=2)
        self.is_normed = is_normed

    def init_model(self, hparams: Any) -> Any:
        return Encoder(self.is_normed)

    def view(self, images: Any, hparams: Any, key: Any) -> Any:
        return augment(key, images, 0.3, (noise,), (-99.0, 99.0))


HPARAMS = {"learning_rate": 0.01, "temperature": 0.5, "weight_decay": 0.1}
BATCH: Any = {
    "inputs": jnp.asarray(RNG.normal(size=(6, 4, 4, 1)), jnp.float32),
    "labels": jnp.array([0, 1, 2, -1, -1, 1]),
    "weight": jnp.ones(6),
}


PLAIN, NORMED = Tiny(), Tiny(is_normed=True)


class Fixed(Tiny):
    """Without contrastive updates: a setting in a closure, as a dict of hyperparameters has numbers only."""

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return super().init_optimizer({**hparams, "contrastive": False}, total_steps)


@cache
def programs(trainer: SimCLR) -> Any:
    return jit(trainer.init_state, static_argnums=3), jit(trainer.train_step), jit(trainer.eval_step)


def stepped(trainer: SimCLR, batch: Any = BATCH) -> tuple[Any, Any, dict[str, float]]:
    init, step, _ = programs(trainer)
    state = init(HPARAMS, BATCH, KEY, 10)
    # The first step of the warm-up has a rate of 0.
    after, metrics = step(step(state, batch, HPARAMS, KEY)[0], batch, HPARAMS, KEY)
    return state, after, to_floats(metrics)


def is_same(left: Any, right: Any) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in pairs)


@pytest.mark.slow
def test_each_loss_has_its_parameters() -> None:
    before, after, _ = stepped(PLAIN)
    for part in ("encoder", "head", "probe"):
        assert not is_same(before.params[part], after.params[part])
    _, others, _ = stepped(PLAIN, {**BATCH, "labels": jnp.array([2, 0, 0, 1, -1, 2])})
    assert is_same(others.params["encoder"], after.params["encoder"])
    assert is_same(others.params["head"], after.params["head"])
    assert not is_same(others.params["probe"], after.params["probe"])


@pytest.mark.slow
def test_both_losses_fall() -> None:
    init, step, evaluate = programs(PLAIN)
    state = first = init(HPARAMS, BATCH, KEY, 200)
    for at in range(200):
        state, _ = step(state, BATCH, HPARAMS, jax.random.key(at))
    before, after = (to_floats(evaluate(one, BATCH, HPARAMS)) for one in (first, state))
    for name in ("contrastive", "probe_loss"):
        assert after[name] < before[name] - 0.1


@pytest.mark.slow
def test_an_encoder_at_random_stays_so_while_probe_and_statistics_move() -> None:
    before, after, _ = stepped(Fixed(is_normed=True))
    assert is_same(before.params["encoder"], after.params["encoder"])  # no decay either
    assert is_same(before.params["head"], after.params["head"])
    assert not is_same(before.params["probe"], after.params["probe"])
    assert not is_same(before.collections, after.collections)


@pytest.mark.slow
def test_batch_statistics_are_those_of_both_views() -> None:
    trainer = NORMED
    state = programs(trainer)[0](HPARAMS, BATCH, KEY, 10)
    batch = trainer.augment(BATCH, HPARAMS, KEY)
    _, after = jit(partial(trainer.apply_model, train=True))(state.params, state.collections, batch, HPARAMS, key=KEY)
    both = jnp.concatenate([batch["first"], batch["second"]])
    conv = {"params": {"Conv_0": state.params["encoder"]["Conv_0"]}}
    hidden: Any = Encoder(False).apply(conv, both, train=False, capture_intermediates=True)[1]
    seen = hidden["intermediates"]["Conv_0"]["__call__"][0].mean((1, 2))
    found = after["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], 0.1 * seen.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * seen.var(0), atol=1e-6)


@pytest.mark.slow
def test_the_probe_reads_the_encoders_output_of_the_image_as_it_is() -> None:
    trainer = NORMED
    _, after, _ = stepped(trainer)
    encoder = {"params": after.params["encoder"], **after.collections}
    encode: Any = jit(partial(Encoder(True).apply, train=False))
    features = encode(encoder, BATCH["inputs"])
    expected = features @ after.params["probe"]["kernel"] + after.params["probe"]["bias"][None]
    outputs = jit(trainer.bind_model(after, HPARAMS))(BATCH["inputs"])
    np.testing.assert_allclose(outputs["features"], features, atol=1e-6)
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-6)
    # In training, too; and the metrics are those of the examples with a label.
    found = to_floats(programs(trainer)[2](after, BATCH, HPARAMS))
    log = np.asarray(jax.nn.log_softmax(expected))
    labels = np.array([0, 1, 2, 1])
    known = log[[0, 1, 2, 5]]
    assert found["probe_loss"] == pytest.approx(-known[range(4), labels].mean(), rel=1e-5)
    assert found["probe_accuracy"] == pytest.approx((known.argmax(1) == labels).mean())
    # The probe is not trained on what has none: four of six have one.
    assert found["loss"] == pytest.approx(found["contrastive"] + found["probe_loss"] * 4 / 6, rel=1e-5)
    batch = trainer.augment(BATCH, HPARAMS, KEY)
    apply = jit(partial(trainer.apply_model, train=True))
    trained, statistics = apply(after.params, after.collections, batch, HPARAMS, key=KEY)
    now = encode({"params": after.params["encoder"], **statistics}, BATCH["inputs"])
    np.testing.assert_allclose(trained["features"], now, atol=1e-6)


@pytest.mark.slow
def test_padding_changes_neither_metrics_nor_gradients() -> None:
    padded = {
        "inputs": jnp.concatenate([BATCH["inputs"], 9.0 * BATCH["inputs"][:2]]),
        "labels": jnp.append(BATCH["labels"], jnp.array([1, 2])),
        "weight": jnp.append(jnp.ones(6), jnp.zeros(2)),
    }
    metrics, others = (stepped(PLAIN, batch)[2] for batch in (BATCH, padded))
    assert others == pytest.approx(metrics, rel=1e-4)
    assert metrics["grad_norm"] > 0.1


@pytest.mark.slow
def test_every_validation_has_the_same_views() -> None:
    state, _, _ = stepped(NORMED)
    evaluate = programs(NORMED)[2]
    found = [to_floats(evaluate(dataclasses.replace(state, step=jnp.int32(step)), BATCH, HPARAMS)) for step in (0, 1)]
    assert found[0] == found[1]
    first, second = (NORMED.augment(BATCH, HPARAMS, KEY)[name] for name in ("first", "second"))
    assert np.abs(first - second).min() > 0
    assert np.abs(first - BATCH["inputs"]).min() > 0


def test_a_trainer_without_views_is_told_so() -> None:
    with pytest.raises(StudyError, match=r"SimCLR must define view\(images, hparams, key\)"):
        SimCLR(3).augment(BATCH, HPARAMS, KEY)


# The study.


def made(**changes: Any) -> Any:
    hparams = STUDY.HParams(
        **{
            "learning_rate": 0.01,
            "probe_learning_rate": 0.1,
            "temperature": 0.2,
            "strength": 0.4,
            "contrastive": True,
            **changes,
        }
    )
    register(hparams)
    return hparams


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 11])
def test_the_encoder_takes_images_of_any_size(size: int) -> None:
    images = jnp.ones((2, size, size, 1))
    shapes = jax.eval_shape(lambda: STUDY.Encoder().init_with_output(KEY, images, train=False))
    assert shapes[0].shape == (2, 64)


def test_the_probe_knows_five_labels_of_each_class() -> None:
    train = STUDY.data(0).train.host()
    assert np.unique(train["labels"], return_counts=True)[1].tolist() == [len(train["labels"]) - 50] + [5] * 10


@pytest.mark.long
@pytest.mark.slow
def test_learned_features_beat_those_of_a_random_encoder() -> None:
    gains = []
    for seed in range(2):
        splits = STUDY.data(seed)
        train, validation = splits.train.host(), splits.validation.host()
        is_known = train["labels"] >= 0
        scores = {}
        # An encoder at random only needs its batch statistics.
        for contrastive, epochs in ((True, 20), (False, 5)):
            hparams = made(contrastive=contrastive)
            training = STUDY.study.trainer.train_model(hparams, splits, epochs=epochs, seed=seed)
            *_, last = training
            predict = STUDY.study.trainer.bind_model(training.state, hparams)
            features = [np.asarray(predict(found["inputs"])["features"]) for found in (train, validation)]
            scale = features[0].std()
            # An independent probe, of features that are frozen.
            judge = LogisticRegression(max_iter=2000).fit(features[0][is_known] / scale, train["labels"][is_known])
            scores[contrastive] = judge.score(features[1] / scale, validation["labels"])
            if contrastive:
                assert abs(scores[contrastive] - last.metrics["probe_accuracy"]) < 0.08
        gains.append(scores[True] - scores[False])
    assert min(gains) > 0.05


@pytest.mark.slow
@pytest.mark.long
def test_the_picture_is_drawn() -> None:
    splits, hparams = STUDY.data(0), made()
    small = Splits(splits.train.take(range(80)), splits.validation.take(range(40)))
    images = {"inputs": jnp.asarray(small.validation.host()["inputs"])}
    state = jit(STUDY.study.trainer.init_state, static_argnums=3)(hparams, images, jax.random.key(1), 1)
    figure = STUDY.picture(Loaded(STUDY.study.trainer, hparams, state, {}), small)
    assert [axes.get_title() for axes in figure.axes] == ["at random", "SimCLR", ""]
    clouds = [axes.collections[0].get_offsets() for axes in figure.axes[:2]]
    assert clouds[0].shape == clouds[1].shape == (40, 2)
    assert not np.allclose(*clouds)
