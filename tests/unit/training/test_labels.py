"""Labels that are no class end in one line before anything is trained, whatever the loss makes of them."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuner.errors import StudyError
from tuner.methods import (
    ArchitectureSearch,
    Classifier,
    DistilledClassifier,
    LaplaceClassifier,
    MapClassifier,
    SimCLR,
    paired_halves,
)
from tuner.models import linear
from tuner.training import ArrayDataset, Splits, StreamDataset, check_labels
from tuner.training.loop.checks import check_examples, check_trainer, parts


def dataset(labels: Any, **more: Any) -> ArrayDataset:
    inputs = np.random.default_rng(0).normal(size=(len(labels), 4))
    return ArrayDataset(inputs=inputs, labels=np.asarray(labels), **more)


class Linear(Classifier):
    loop = "step"

    def init_model(self, hparams: Any) -> Any:
        return linear(self.classes)


GOOD = dataset([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 1, 3, 2], r"got 3 for example 2 of the training data; change"),
        ([0, -1, 3, 2], r"got -1 for example 1 of the training data and 1 more"),
        ([0, 1, 2, 255], "got 255 for example 3"),
        ([0.0, 1.5, 2.0, 0.0], "got 1.5 for example 1"),
        ([0.0, math.nan, 2.0, 0.0], "got nan for example 1"),
    ],
)
@pytest.mark.parametrize("hparams", [{"learning_rate": 0.1}, {"learning_rate": 0.1, "label_smoothing": 0.1}])
def test_a_label_outside_the_classes_is_refused_before_training(hparams: Any, labels: Any, found: str) -> None:
    message = f"labels must be whole numbers from 0 to 2, for 3 classes: {found}"
    for refused in (
        lambda: Linear(3).train_model(hparams, Splits(dataset(labels), GOOD), epochs=1, seed=0),
        lambda: check_trainer(Linear(3), hparams, Splits(dataset(labels), GOOD), ["loss"], 1),
    ):
        with pytest.raises(StudyError, match=message):
            refused()


def test_each_part_of_the_data_is_checked_and_named() -> None:
    bad = dataset([0, 3])
    for part, splits in {
        "validation": Splits(GOOD, bad),
        "test": Splits(GOOD, GOOD, bad),
    }.items():
        with pytest.raises(StudyError, match=f"example 1 of the {part} data"):
            Linear(3).train_model({"learning_rate": 0.1}, splits, epochs=1, seed=0)


def test_of_a_view_only_its_own_examples_count_and_their_place_in_the_data_is_told() -> None:
    whole = dataset([0, 3, 1, 2, 9])
    check_labels(whole.take([3, 0, 2]), 3, "training")
    with pytest.raises(StudyError, match="got 9 for example 4 of"):
        check_labels(whole.take([3, 4, 2]), 3, "training")


def test_what_is_no_label_is_not_checked() -> None:
    check_labels(dataset([0, 7], weight=np.array([1.0, 0.0])), 3, "training")  # it counts nowhere
    check_labels(dataset([0, -1]), 3, "training", lowest=-1)
    check_labels(dataset([True, False]), 2, "training")
    check_labels(ArrayDataset(inputs=np.ones((2, 1)), labels=np.full((2, 5), 9)), 3, "training")
    check_labels(ArrayDataset(inputs=np.ones((2, 1))), 3, "training")


def test_a_dataset_is_checked_once() -> None:
    asked: list[str] = []

    class Asking(Linear):
        def check_data(self, dataset: Any, hparams: Any, part: str) -> None:
            asked.append(part)

    splits = Splits(dataset([0, 1]), dataset([1, 0]))
    for _ in range(3):
        check_examples(Asking(3), {}, parts(splits))
    assert asked == ["training", "validation"]
    check_examples(Asking(4), {}, parts(splits))
    assert len(asked) == 4


class Halves(ArchitectureSearch):
    def __init__(self) -> None:
        super().__init__(3, cells=("normal",), channels=2, nodes=1)


class Views(SimCLR):
    def init_model(self, hparams: Any) -> nn.Module:
        return nn.Dense(3)

    def view(self, images: jax.Array, hparams: Any, key: jax.Array) -> jax.Array:
        return images


class Map(MapClassifier):
    def init_model(self, hparams: Any) -> nn.Module:
        return nn.Dense(3)


class Features(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        return nn.Dense(3)(x), x


class Bayesian(LaplaceClassifier):
    def init_model(self, hparams: Any) -> nn.Module:
        return Features()


PRIOR = {"learning_rate": 0.1, "prior_precision": 1.0}


@pytest.mark.parametrize(
    ("trainer", "bad", "lowest"),
    [
        (DistilledClassifier(3), dataset([0, 3]), 0),
        (Views(3), dataset([0, -2]), -1),
        (Map(2), dataset([0, 3]), 0),
        (Bayesian(2), dataset([0, -1]), 0),
    ],
)
def test_methods_that_know_classes_refuse_other_labels(trainer: Any, bad: Any, lowest: int) -> None:
    with pytest.raises(StudyError, match=f"labels must be whole numbers from {lowest} "):
        check_examples(trainer, PRIOR, {"training": bad})


def test_both_halves_of_a_search_are_checked() -> None:
    pairs = paired_halves(dataset([0, 0, 0, 0]), seed=0)
    arrays = {name: array for name, array in pairs.host().items() if name != "weight"}
    check_examples(Halves(), {}, {"training": ArrayDataset(**arrays)})
    arrays["held_out_labels"] = np.array([0, 5])
    with pytest.raises(StudyError, match=r"held_out_labels must be whole numbers .* got 5 for example 1"):
        check_examples(Halves(), {}, {"training": ArrayDataset(**arrays)})


class Examples:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": np.ones(4, np.float32), "labels": np.int32([0, 1, 2, -1][index])}


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [None, 0.1])
def test_of_a_stream_a_wrong_label_makes_the_loss_nan_and_no_other(smoothing: float | None) -> None:
    hparams = {} if smoothing is None else {"label_smoothing": smoothing}
    batch: Any = {"labels": jnp.array([0, 3, -1, 2]), "weight": jnp.ones(4)}
    losses, metrics = Classifier(3).loss(jnp.zeros((4, 3)), batch, hparams)
    for values in (losses, metrics["nll"]):
        np.testing.assert_allclose(values, [math.log(3), math.nan, math.nan, math.log(3)], rtol=1e-6)
    stream = StreamDataset(Examples())
    check_examples(Linear(3), {}, {"training": stream})  # not read for it
    training = Linear(3).train_model({"learning_rate": 0.1, **hparams}, Splits(stream, GOOD), epochs=1, seed=0)
    assert math.isnan(next(training).metrics["train_loss"])
    training.close()
