"""A study for `tests/faults/chaos.py`: its metrics are a known function of hyperparameters and epoch, without training.

The epoch that a metric is computed from is part of the checkpoints' state. Each report also has the process that made
it. Environment variables: CHAOS_TRIALS, CHAOS_EPOCHS, CHAOS_PRUNER, CHAOS_LEASE_S, CHAOS_SAVE_S, the seconds between
two checkpoints, and CHAOS_PACE_S, the seconds that an epoch takes.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import numpy as np

import tuner.worker.opening
from tuner import Space, Study, log_uniform, uniform
from tuner.training import ArrayDataset, Checkpoints, Splits, TrainerModule
from tuner.trial import Report

STEPS = 7  # of an epoch
tuner.worker.opening.LEASE_S = float(os.environ.get("CHAOS_LEASE_S", tuner.worker.opening.LEASE_S))


def loss_at(learning_rate: float, noise: float, epoch: int) -> float:
    """Return the loss of a trial at an epoch, counted from 1."""
    return (math.log10(learning_rate) + 2.0) ** 2 + noise / epoch + 1.0 / epoch


class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1e-0)
    noise: float = uniform(0.0, 1.0)


class Trainer(TrainerModule):
    loop = "step"

    def init_model(self, hparams: HParams) -> Any:
        return nn.Sequential([nn.Dense(1), lambda x: x[:, 0] * hparams.learning_rate + hparams.noise])

    def loss(self, outputs: Any, batch: Any, hparams: HParams) -> Any:
        return (outputs - batch["targets"]) ** 2, {}

    # All that a worker needs of a training is that it yields reports.
    def train_model(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hparams: HParams, splits: Splits, *, epochs: int, stop: Any, checkpoints: Checkpoints, **options: Any
    ) -> Iterator[Report]:
        pace_s = float(os.environ.get("CHAOS_PACE_S", "0.05"))
        state, reports, writer = np.zeros(()), [], float(os.getpid())
        found = checkpoints.restore({"epochs": state})
        if found is not None:
            _, tree, record = found
            for one in record["reports"]:  # they are stored once more, by this process
                one["metrics"]["writer"] = writer
            state, reports = np.asarray(tree["epochs"]), list(record["reports"])
        while len(reports) < epochs:
            if reports and checkpoints.is_due():
                checkpoints.save(STEPS * len(reports), {"epochs": state}, {"reports": reports})
            for _ in range(STEPS):
                if stop():
                    return
                time.sleep(pace_s / STEPS)
            state, epoch = np.asarray(state + 1), len(reports) + 1
            loss = loss_at(float(hparams.learning_rate), float(hparams.noise), int(state))
            report = Report(epoch, STEPS * epoch, {"loss": loss, "train_loss": 2.0 * loss, "writer": writer})
            reports.append(dataclasses.asdict(report))
            yield report


def data(seed: int) -> Splits:
    inputs = np.zeros((20, 1))
    return ArrayDataset(inputs=inputs, targets=inputs[:, 0]).split(0.2, seed)


study = Study(
    name="chaos",
    space=HParams,
    trainer=Trainer(),
    data=data,
    objective="loss",
    direction="minimize",
    epochs=int(os.environ.get("CHAOS_EPOCHS", "6")),
    trials=int(os.environ.get("CHAOS_TRIALS", "10")),
    sampler="random",
    pruner=os.environ.get("CHAOS_PRUNER", "none"),
    keep_best=0,
    save_every_s=float(os.environ.get("CHAOS_SAVE_S", "60")),
)
