"""A study whose training takes no time or only sleeps, to measure the overhead of tuner."""

from __future__ import annotations

import os
import time
from typing import Any

import flax.linen as nn
import numpy as np

from tuner import Space, Study, uniform
from tuner.training import ArrayDataset, Splits, TrainerModule
from tuner.trial import Report

EPOCHS = 10
SLEEP_S = float(os.environ.get("SLEEPY_S", "0"))


def curve(number: int, epoch: int) -> float:
    """Return a loss that improves from trial to trial, so no trial is pruned and each reports ten times."""
    return 1.0 / (1 + number) + 1e-9 / epoch


class HParams(Space):
    """Six hyperparameters that are searched, and the learning rate for the optimizer."""

    learning_rate: float = 0.1
    x0: float = uniform(0.0, 1.0)
    x1: float = uniform(0.0, 1.0)
    x2: float = uniform(0.0, 1.0)
    x3: float = uniform(0.0, 1.0)
    x4: float = uniform(0.0, 1.0)
    x5: float = uniform(0.0, 1.0)


class Trainer(TrainerModule):
    """Reports an artificial curve."""

    def init_model(self, hparams: HParams) -> nn.Module:
        """Return a model, which is never trained."""
        return nn.Dense(1)

    def loss(self, outputs: Any, batch: Any, hparams: HParams) -> Any:
        """Return the squared error."""
        return (outputs[:, 0] - batch["targets"]) ** 2, {}

    def train_model(self, hparams: Any, splits: Any, *, epochs: int, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Yield a report for each epoch."""
        time.sleep(SLEEP_S)
        for epoch in range(1, epochs + 1):
            loss = curve(options["about"]["trial"], epoch)
            yield Report(epoch, 10 * epoch, {"loss": loss, "train_loss": loss})


def data(seed: int) -> Splits:
    """Return a small data set."""
    inputs = np.random.default_rng(seed).normal(size=(20, 2))
    return ArrayDataset(inputs=inputs, targets=inputs.sum(1)).split(0.2, seed)


def sleepy_study(**changes: Any) -> Study:
    """Return the study with the given settings."""
    settings: dict[str, Any] = {
        "space": HParams, "trainer": Trainer(), "data": data,
        "epochs": EPOCHS, "trials": 300, "sampler": "random", "pruner": "asha", "keep_best": 0, **changes
    }  # fmt: skip
    return Study(name="sleepy", objective="loss", direction="minimize", **settings)


study = sleepy_study(epochs=1 if SLEEP_S else EPOCHS, pruner="none" if SLEEP_S else "asha")
