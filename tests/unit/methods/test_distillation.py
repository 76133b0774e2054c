"""Distillation: the loss by its limits and SciPy's entropies, the teacher asked once, a student that learns from it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from tuner.errors import StudyError
from tuner.methods import Classifier, DistilledClassifier, soft_losses, with_teacher
from tuner.models import linear
from tuner.study.source import import_file
from tuner.training import ArrayDataset, Loaded, Splits, StreamDataset, TrainState
from tuner.training.hparams import register

STUDY: Any = import_file(Path(__file__).parents[3] / "studies" / "digits_distillation.py")
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
STUDENT, TEACHER = (jnp.asarray(3.0 * RNG.normal(size=(4, 3)), jnp.float32) for _ in range(2))
FORMS = ("divergence", "cross_entropy")
BATCH: Any = {"labels": jnp.array([0, 2, 1, 1]), "weight": jnp.ones(4), "teacher_logits": TEACHER}


def slope(form: Any, student: Any, teacher: Any, temperature: float) -> np.ndarray:
    total = jax.grad(lambda student: soft_losses(student, teacher, temperature, form).sum())
    return np.asarray(total(student))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_soft_loss_is_that_of_scipy(temperature: float) -> None:
    student, teacher = (special.softmax(np.float64(logits) / temperature, axis=1) for logits in (STUDENT, TEACHER))
    divergence = temperature**2 * stats.entropy(teacher, student, axis=1)
    np.testing.assert_allclose(soft_losses(STUDENT, TEACHER, temperature), divergence, rtol=1e-5)
    entropy = temperature**2 * stats.entropy(teacher, axis=1)
    found = soft_losses(STUDENT, TEACHER, temperature, "cross_entropy")
    np.testing.assert_allclose(found, divergence + entropy, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_hot_gradients_are_differences_of_logits(form: Any) -> None:
    student, teacher = jnp.array([[1.0, 0.3, -1.3]]), jnp.array([[1.3, -0.3, -1.0]])
    np.testing.assert_allclose(slope(form, student, teacher, 300.0), [[-0.1, 0.2, -0.1]], atol=2e-3)
    others = slope("divergence", STUDENT, TEACHER, 2.0)
    np.testing.assert_allclose(slope(form, STUDENT, TEACHER, 2.0), others, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_agreement_costs_nothing_but_in_the_paper_s_form_the_teacher_s_entropy(temperature: float) -> None:
    for form in FORMS:
        np.testing.assert_allclose(slope(form, TEACHER, TEACHER, temperature), 0.0, atol=1e-6)
    np.testing.assert_allclose(soft_losses(TEACHER, TEACHER, temperature), 0.0, atol=1e-6)
    entropy = stats.entropy(special.softmax(np.asarray(TEACHER) / temperature, axis=1), axis=1)
    found = soft_losses(TEACHER, TEACHER, temperature, "cross_entropy")
    np.testing.assert_allclose(found, temperature**2 * entropy, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_alpha_is_the_share_of_the_hard_labels(form: Any) -> None:
    hard, plain = Classifier(3).loss(STUDENT, BATCH, {"label_smoothing": 0.1})
    soft = soft_losses(STUDENT, TEACHER, 4.0, form)
    compiled = []

    def losses(hparams: Any) -> Any:
        compiled.append(1)
        return DistilledClassifier(3, form).loss(STUDENT, BATCH, hparams)

    loss = jit(losses)
    for alpha, expected in ((1.0, hard), (0.0, soft), (0.3, 0.3 * hard + 0.7 * soft)):
        found, metrics = loss({"alpha": alpha, "temperature": 4.0, "label_smoothing": 0.1})
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["nll"], plain["nll"], rtol=1e-5)
        np.testing.assert_allclose(metrics["divergence"], soft_losses(STUDENT, TEACHER, 1.0), rtol=1e-5)
    agreement = np.argmax(STUDENT, 1) == np.argmax(TEACHER, 1)
    np.testing.assert_array_equal(metrics["agreement"], agreement)
    assert 0 < agreement.sum() < 4
    assert len(compiled) == 1


def test_the_teacher_sees_every_example_once_and_its_logits_stay_with_it() -> None:
    inputs = np.arange(46, dtype=np.float32).reshape(23, 2)
    splits = ArrayDataset(inputs=inputs, labels=np.arange(23)).split(0.3, 0, test=0.2)
    seen = []

    def teacher(inputs: Any) -> Any:
        seen.append(len(inputs))
        return jnp.stack([inputs[:, 0], -inputs[:, 1], inputs[:, 0] * 0.0], axis=1)

    taught = with_teacher(splits, teacher, batch_size=4)
    for name in ("train", "validation", "test"):
        before, after = (getattr(found, name).host() for found in (splits, taught))
        np.testing.assert_array_equal(after["inputs"], before["inputs"])
        np.testing.assert_array_equal(after["labels"], before["labels"])
        expected = np.stack([before["inputs"][:, 0], -before["inputs"][:, 1], np.zeros(len(before["inputs"]))], 1)
        np.testing.assert_array_equal(after["teacher_logits"], expected)
    sizes = [len(getattr(splits, name)) for name in ("train", "validation", "test")]
    assert seen == [4] * sum(-(-size // 4) for size in sizes)
    assert with_teacher(Splits(splits.train, splits.validation), teacher).test is None


class Rows:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return {"inputs": np.zeros(2)}


FOUR = ArrayDataset(inputs=np.zeros((4, 2)))


@pytest.mark.parametrize(
    ("dataset", "teacher", "message"),
    [
        (FOUR, lambda inputs: inputs[:, 0], r"\[batch, classes\]: got shape \[4\] for 4 examples"),
        (FOUR, lambda inputs: inputs * np.nan, r"got shape \[4, 2\] for 4 examples, with NaN or infinity"),
        (FOUR, lambda inputs: inputs[:1], r"got shape \[1, 2\] for 4 examples"),
        (FOUR, lambda inputs: np.tile(inputs, (2, 1)), r"got shape \[8, 2\] for 4 examples"),
        (StreamDataset(Rows()), lambda inputs: inputs, "with_teacher needs an ArrayDataset: got StreamDataset"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(dataset: Any, teacher: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        with_teacher(Splits(dataset, dataset), teacher)


def test_what_a_student_cannot_learn_from_is_refused() -> None:
    with pytest.raises(StudyError, match="the data have no 'teacher_logits', only labels, weight: add them"):
        DistilledClassifier(3).loss(STUDENT, {"labels": BATCH["labels"], "weight": BATCH["weight"]}, {})
    with pytest.raises(StudyError, match=r"same classes: got logits \[4, 2\] of the teacher, \[4, 3\] of the student"):
        DistilledClassifier(3).loss(STUDENT, {**BATCH, "teacher_logits": TEACHER[:, :2]}, {})
    with pytest.raises(StudyError, match="'divergence' or 'cross_entropy': got 'kl'"):
        DistilledClassifier(3, "kl")  # pyright: ignore[reportArgumentType]


class Linear(DistilledClassifier):
    loop = "scan"  # so that nothing is compiled to be measured

    def init_model(self, hparams: Any) -> Any:
        return linear(self.classes)


@pytest.mark.slow
def test_a_student_of_the_teachers_kind_becomes_the_teacher_whatever_the_labels_say() -> None:
    rng = np.random.default_rng(4)  # of which the teacher says 0 of 27 in 100
    weights = rng.normal(size=(4, 3)).astype(np.float32)
    dataset = ArrayDataset(inputs=rng.normal(size=(256, 4)), labels=np.zeros(256, int))
    splits = with_teacher(Splits(dataset, dataset), lambda inputs: inputs @ weights)
    hparams = {"learning_rate": 0.1, "alpha": 0.0, "temperature": 3.0}
    *_, last = Linear(3).train_model(hparams, splits, epochs=20, seed=0)
    assert last.metrics["agreement"] > 0.97
    assert last.metrics["divergence"] < 1e-3
    assert last.metrics["accuracy"] < 0.6


# The study.


@pytest.mark.long
@pytest.mark.slow
def test_soft_labels_help_where_examples_are_few() -> None:
    scores: dict[float, list[float]] = {0.1: [], 1.0: []}
    for seed in range(2):
        splits = STUDY.data(seed)
        for alpha, found in scores.items():
            hparams = STUDY.HParams(learning_rate=0.02, weight_decay=1e-3, temperature=4.0, alpha=alpha)
            register(hparams)
            *_, last = STUDY.study.trainer.train_model(hparams, splits, epochs=60, seed=seed)
            found.append(last.metrics["accuracy"])
    assert np.mean(scores[0.1]) > np.mean(scores[1.0]) + 0.01


@pytest.mark.slow
def test_the_picture_is_drawn() -> None:
    splits = STUDY.data(0)
    assert len(splits.train) == 100
    hparams = STUDY.HParams(learning_rate=0.02, weight_decay=1e-3, temperature=4.0, alpha=0.5)
    register(hparams)
    figure = STUDY.picture(Loaded(STUDY.study.trainer, hparams, TrainState(), {}), splits)
    for axes in figure.axes[6:]:
        np.testing.assert_allclose(sum(bar.get_height() for bar in axes.patches), 1.0, rtol=1e-5)
    assert len(figure.axes) == 12
