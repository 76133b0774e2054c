"""Misspelt settings and methods of a trainer are refused; what is its own is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

from tuner.errors import StudyError
from tuner.methods import Classifier, GANTrainer
from tuner.training import ArrayDataset, Splits, TrainerModule
from tuner.training.loop.spelling import check_spelling


class Base(Classifier):
    def init_model(self, hparams: Any) -> nn.Module:
        return nn.Dense(self.classes)


def trainer(name: str, value: Any, base: Any = Base) -> Any:
    made = type("Trainer", (base,), {name: value, "__module__": "study"})
    return made(2) if issubclass(base, Classifier) else made()


def method(self: Any, *arguments: Any) -> None:
    """A method."""


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("validate_evry", 2, "validate_every"),
        ("validation_every", 2, "validate_every"),
        ("check_val_every_n_nepoch", 3, "validate_every"),
        ("precison", "bfloat16", "precision"),  # codespell:ignore precison
        ("Loop", "scan", "loop"),
        ("init_optimiser", method, "init_optimizer"),
        ("configure_optimizers", method, "init_optimizer"),
        ("on_train_epoch_end", method, "on_training_epoch_end"),
        ("on_validation_epoch_ends", method, "on_validation_epoch_end"),
        ("batchsize", method, "batch_size"),
        ("ema_decays", property(method), "ema_decay"),
        ("augmnet", staticmethod(method), "augment"),  # codespell:ignore augmnet
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(name: str, value: Any, meant: str) -> None:
    message = f"Trainer defines '{name}', which .* reads; did you mean '{meant}'"
    with pytest.raises(StudyError, match=message):
        check_spelling(trainer(name, value))
    assigned = Base(2)
    setattr(assigned, name, value)
    with pytest.raises(StudyError, match=f"Base defines '{name}', which .* reads; did you mean '{meant}'"):
        check_spelling(assigned)


def test_a_method_of_a_method_is_known_too() -> None:
    with pytest.raises(StudyError, match="did you mean 'init_networks'"):
        check_spelling(trainer("init_network", method, GANTrainer))
    with pytest.raises(StudyError, match="did you mean 'classes'"):
        check_spelling(trainer("clases", 3))  # codespell:ignore clases


def test_training_refuses_it() -> None:
    data = ArrayDataset(inputs=np.ones((4, 3)), labels=np.zeros(4, int))
    with pytest.raises(StudyError, match="did you mean 'validate_every'"):
        trainer("validate_evry", 2).train_model({"learning_rate": 0.1}, Splits(data, data), epochs=2, seed=0)


class Own(Base):
    """Names of its own, nearly all like known ones, that its code reads."""

    batch_sizes = (32, 64)
    unrelated = 3
    _validate_evry = 2

    def __init__(self) -> None:
        super().__init__(2)
        self.precisions = 3
        self.augmentation = 1

    def losses(self, outputs: Any) -> Any:
        return outputs * getattr(self, "augmentation") * self.precisions  # noqa: B009

    def batch_size(self, hparams: Any) -> int:
        return self.batch_sizes[0]

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return super().loss((lambda: self.losses(outputs))(), batch, hparams)


@dataclass(eq=False)
class Dataclass(TrainerModule):
    epochs_of_warmup: int = 3
    input_size: int = 3

    def init_model(self, hparams: Any) -> nn.Module:
        return nn.Dense(self.input_size)


class Recursive(Base):
    """A name that only its own body reads is not used."""

    def init_optimiser(self, hparams: Any, total_steps: int) -> Any:
        return self.init_optimiser(hparams, total_steps)


def test_names_of_its_own_are_taken() -> None:
    for each in (Own(), Dataclass(), Base(2), TrainerModule()):
        check_spelling(each)
    with pytest.raises(StudyError, match="did you mean 'init_optimizer'"):
        check_spelling(Recursive(2))
