"""Attacks on linear models, where they are known; training against them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tuner import Space, choice, log_uniform, uniform
from tuner.errors import StudyError
from tuner.methods import AdversarialClassifier, Classifier, fgsm, pgd
from tuner.study.source import import_file
from tuner.training import Loaded, Splits
from tuner.training.hparams import register
from tuner.training.metrics import to_floats

STUDY: Any = import_file(Path(__file__).parents[3] / "studies" / "digits_adversarial.py")
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
WEIGHTS = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
INPUTS = jnp.asarray(RNG.uniform(0.3, 0.7, size=(5, 6)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 0, 1])


def losses(inputs: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(inputs @ WEIGHTS, LABELS)


# The attacks.


def test_fgsm_of_a_linear_model_by_hand() -> None:
    probabilities = np.asarray(jax.nn.softmax(INPUTS @ WEIGHTS))
    uphill = np.sign((probabilities - np.eye(3)[LABELS]) @ np.asarray(WEIGHTS).T)
    attacked = jit(lambda inputs, epsilon: fgsm(losses, inputs, epsilon))(INPUTS, 0.1)
    np.testing.assert_allclose(attacked - INPUTS, 0.1 * uphill, atol=1e-6)
    assert (losses(attacked) > losses(INPUTS)).all()


@pytest.mark.slow
@pytest.mark.parametrize("attack", [fgsm, partial(pgd, steps=5, key=KEY)])
def test_what_holds_for_every_attack(attack: Any) -> None:
    run = jit(partial(attack, losses))
    np.testing.assert_array_equal(run(INPUTS, 0.0), INPUTS)  # to the bit
    for epsilon in (0.05, 0.8):
        attacked = np.asarray(run(INPUTS, epsilon))
        away = np.abs(attacked - INPUTS)
        assert away.max() <= epsilon + 1e-6
        assert attacked.min() >= 0.0
        assert attacked.max() <= 1.0
        is_free = (attacked > 0.0) & (attacked < 1.0)
        np.testing.assert_allclose(away[is_free], epsilon, atol=1e-6)
        assert is_free.any() == (epsilon == 0.05)
        assert (losses(attacked) >= losses(INPUTS)).all()
    # Each example is attacked as if it were alone.
    alone = attack(lambda inputs: losses(jnp.concatenate([inputs, INPUTS[1:]]))[:1], INPUTS[:1], 0.05)
    np.testing.assert_allclose(alone[0], attack(losses, INPUTS, 0.05)[0], atol=1e-6)


@pytest.mark.parametrize("attack", [fgsm, partial(pgd, steps=5, key=KEY)])
@pytest.mark.slow
def test_standardised_inputs_have_bounds_and_an_epsilon_for_each_channel(attack: Any) -> None:
    mean, std = np.array([0.5, 0.2, 0.4]), np.array([0.2, 0.1, 0.25])
    rng = np.random.default_rng(1)
    raw = rng.uniform(0.0, 1.0, size=(4, 2, 2, 3))
    inputs = jnp.asarray((raw - mean) / std, jnp.float32)
    bounds = (tuple(-mean / std), tuple((1 - mean) / std))
    slopes = jnp.asarray(rng.normal(size=(2, 2, 3)), jnp.float32)

    def loss(inputs: Any) -> Any:
        return jnp.einsum("bhwc,hwc->b", inputs, slopes)

    attacked = np.asarray(attack(loss, inputs, tuple(0.1 / std), bounds=bounds))
    expected = np.clip(raw + 0.1 * np.sign(np.asarray(slopes)), 0.0, 1.0)
    np.testing.assert_allclose(attacked * std + mean, expected, atol=1e-6)


@pytest.mark.slow
def test_a_step_of_pgd_from_the_inputs_is_fgsm() -> None:
    expected = fgsm(losses, INPUTS, 0.1)
    np.testing.assert_array_equal(pgd(losses, INPUTS, 0.1, 1, None, step_size=0.1), expected)
    np.testing.assert_array_equal(pgd(losses, INPUTS, 0.1, 1, None), expected)  # projected back


def test_pgd_starts_at_random_and_takes_its_steps() -> None:
    def flat(inputs: Any) -> Any:
        return jnp.sum(inputs * 0.0, axis=-1)

    starts = [np.asarray(pgd(flat, INPUTS, 0.1, 1, jax.random.key(seed)) - INPUTS) for seed in (0, 1)]
    assert np.abs(starts[0] - starts[1]).min() > 0.0
    for start in starts:
        # Drawn from -0.1 to 0.1, and moved by no gradient: a quarter of the numbers is beyond each of these bounds.
        assert start.min() < -0.05
        assert start.max() > 0.05
        assert np.abs(start).max() <= 0.1 + 1e-6
    taken = pgd(losses, INPUTS, 0.2, 3, None, step_size=0.01)
    np.testing.assert_allclose(np.abs(taken - INPUTS), 0.03, atol=1e-6)


@pytest.mark.slow
def test_pgd_finds_what_one_step_overlooks() -> None:
    # Uphill at first, downhill far beyond: the summit is at 0.55.
    def hill(inputs: Any) -> Any:
        return -jnp.sum((inputs - 0.55) ** 2, axis=-1)

    inputs = jnp.full((1, 2), 0.5)
    np.testing.assert_allclose(fgsm(hill, inputs, 0.3), 0.8, atol=1e-6)
    found = pgd(hill, inputs, 0.3, 40, KEY, step_size=0.02)
    assert np.abs(found - 0.55).max() <= 0.02 + 1e-6


# The trainer.


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))


class Plain(Classifier):
    def init_model(self, hparams: Any) -> Any:
        return Normed()


class Robust(AdversarialClassifier):
    def __init__(self, **settings: Any) -> None:
        super().__init__(3, **{"epsilon": 0.1, **settings})

    def init_model(self, hparams: Any) -> Any:
        return Normed()


class Dimmed(Robust):
    """Inputs are darker in training, and metrics tell where the attack began."""

    def augment(self, batch: Any, hparams: Any, key: Any) -> Any:
        return {**batch, "inputs": batch["inputs"] - 0.2}

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        losses, metrics = super().loss(outputs, batch, hparams)
        if "attacked" in batch:
            metrics["away"] = jnp.max(jnp.abs(batch["attacked"] - batch["inputs"]), axis=-1)
        return losses, {**metrics, "mean": jnp.mean(batch["inputs"], axis=-1)}


HPARAMS = {"learning_rate": 0.05}
BATCH: Any = {"inputs": INPUTS, "labels": LABELS, "weight": jnp.ones(5)}


def started(trainer: Any, hparams: Any = HPARAMS) -> Any:
    return jit(trainer.init_state, static_argnums=3)(hparams, BATCH, KEY, 10)


@pytest.mark.slow
def test_training_descends_the_mean_of_the_clean_and_the_attacked_loss() -> None:
    trainer = Robust()
    state = started(trainer)
    after, metrics = jit(trainer.train_step)(state, BATCH, HPARAMS, KEY)
    variables = {"params": state.params, **state.collections}

    def evaluated(inputs: Any) -> Any:
        logits: Any = Normed().apply(variables, inputs, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)

    attacked = jit(partial(fgsm, evaluated))(INPUTS, 0.1)
    both = jnp.concatenate([INPUTS, attacked])

    def objective(params: Any) -> Any:
        logits: Any = Normed().apply({**variables, "params": params}, both, train=True, mutable="batch_stats")[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.tile(LABELS, 2)).mean()

    loss, gradient = jit(jax.value_and_grad(objective))(state.params)
    found = to_floats(metrics)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)
    mean = after.collections["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * both.mean(0), atol=1e-6)


@pytest.mark.slow
def test_without_an_epsilon_it_is_plain_training() -> None:
    hparams = {**HPARAMS, "epsilon_train": 0.0, "label_smoothing": 0.1}
    after = []
    for trainer in (Plain(3), Robust()):
        step, state = jit(trainer.train_step), started(trainer, hparams)
        state, _ = step(state, BATCH, hparams, KEY)
        state, metrics = step(state, BATCH, hparams, KEY)
        after.append((state.params, to_floats(metrics)))
    for one, other in zip(*(jax.tree.leaves(params) for params, _ in after), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert after[1][1]["loss"] == pytest.approx(after[0][1]["loss"], rel=1e-5)
    assert after[1][1]["attacked_accuracy"] == after[1][1]["accuracy"] == after[0][1]["accuracy"]


@pytest.mark.slow
def test_the_augmented_batch_is_attacked_and_augmented_once() -> None:
    trainer = Dimmed()
    found = to_floats(jit(trainer.train_step)(started(trainer), BATCH, HPARAMS, KEY)[1])
    assert found["away"] == pytest.approx(0.1, rel=1e-5)
    assert found["mean"] == pytest.approx(float(INPUTS.mean()) - 0.2, rel=1e-5)


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1.0)
    epsilon_train: float = uniform(0.0, 1.0)
    attack_steps: int = choice(1, 5)


class Recorded(Dimmed):
    _asked: Any = None

    def attack(self, weights: Any, batch: Any, hparams: Any, epsilon: Any, steps: Any, key: Any) -> Any:
        self._asked = steps
        return super().attack(weights, batch, hparams, epsilon, steps, key)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "taken"), [(1, None), (5, 5)])
def test_how_training_attacks_are_hyperparameters(steps: int, taken: Any) -> None:
    trainer, hparams = Recorded(), HParams(learning_rate=0.05, epsilon_train=0.02, attack_steps=steps)
    register(hparams)
    found = to_floats(jit(trainer.train_step)(started(trainer, hparams), BATCH, hparams, KEY)[1])
    assert trainer._asked == taken
    assert found["away"] == pytest.approx(0.02, rel=1e-4)


@pytest.mark.slow
def test_an_attack_may_lead_away_from_the_prediction() -> None:
    state = started(Robust())
    predicted = jnp.argmax(Robust().bind_model(state, HPARAMS)(INPUTS), axis=-1)
    wrong = {**BATCH, "labels": (predicted + 1) % 3}
    right = {**BATCH, "labels": predicted}
    attacked = {
        (target, name): np.asarray(Robust(target=target).attack(state, batch, HPARAMS, 0.1, None, KEY))
        for target in ("label", "prediction")
        for name, batch in (("wrong", wrong), ("right", right))
    }
    # The labels are not looked at.
    np.testing.assert_array_equal(attacked["prediction", "wrong"], attacked["prediction", "right"])
    np.testing.assert_array_equal(attacked["prediction", "right"], attacked["label", "right"])
    assert not np.array_equal(attacked["label", "wrong"], attacked["label", "right"])
    with pytest.raises(StudyError, match="target must be 'label' or 'prediction': got 'labels'"):
        Robust(target="labels")


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1e-3, 0.3])
def test_validation_counts_hits_under_attack_and_no_padding(epsilon: float) -> None:
    trainer, state = Robust(epsilon=epsilon, pgd_steps=7), started(Robust())
    predict = trainer.bind_model(state, HPARAMS)
    predicted = jnp.argmax(predict(INPUTS), axis=-1)
    # Padding would be missed, with and without an attack.
    labels = jnp.where(jnp.arange(5) < 3, predicted, (predicted + 1) % 3)
    batch = {**BATCH, "labels": labels, "weight": jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])}
    found = to_floats(jit(trainer.eval_step)(state, batch, HPARAMS))
    assert found["accuracy"] == 1.0
    for name, steps in (("fgsm_accuracy", None), ("pgd_accuracy", 7)):
        attacked = trainer.attack(state, batch, HPARAMS, epsilon, steps, jax.random.key(0))
        hits = jnp.argmax(predict(attacked), axis=-1) == labels
        assert found[name] == pytest.approx(float(hits[:3].mean()))
        assert (found[name] == 1.0) == (epsilon == 1e-3)


# The study.


def made(**changes: Any) -> Any:
    hparams = STUDY.HParams(
        **{"learning_rate": 0.01, "weight_decay": 1e-3, "epsilon_train": 0.15, "attack_steps": 1, **changes}
    )
    register(hparams)
    return hparams


@pytest.mark.long
@pytest.mark.slow
def test_training_against_attacks_makes_robust_and_masks_no_gradients() -> None:
    trainer = STUDY.study.trainer
    for seed in range(3):
        splits = STUDY.data(seed)
        last = {}
        for name, changes in {"plain": {"epsilon_train": 0.0}, "fgsm": {}, "pgd": {"attack_steps": 5}}.items():
            *_, report = trainer.train_model(made(**changes), splits, epochs=40, seed=seed)
            last[name] = report.metrics
        for name in ("fgsm", "pgd"):
            assert last[name]["pgd_accuracy"] > last["plain"]["pgd_accuracy"] + 0.2
        for metrics in last.values():
            assert metrics["pgd_accuracy"] <= metrics["fgsm_accuracy"] + 0.01
            assert metrics["fgsm_accuracy"] < metrics["accuracy"]


@pytest.mark.slow
def test_the_picture_is_drawn() -> None:
    splits, hparams = STUDY.data(0), made()
    small = Splits(splits.train.take(range(80)), splits.validation.take(range(40)))
    training = STUDY.study.trainer.train_model(hparams, small, epochs=2, seed=0)
    list(training)
    figure = STUDY.picture(Loaded(STUDY.study.trainer, hparams, training.state, {}), small)
    clean, attacked = np.split(np.stack([axes.images[0].get_array() for axes in figure.axes]), 2)
    np.testing.assert_array_equal(clean.reshape(10, 64), small.validation.host()["inputs"][:10])
    assert np.abs(attacked - clean).max() == pytest.approx(STUDY.EPSILON, rel=1e-5)
