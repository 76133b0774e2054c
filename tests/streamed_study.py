"""A study of seconds for tests: streamed examples, and hooks that report a metric. Notes which examples each reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from tuner import Space, Study, log_uniform
from tuner.training import Splits, StreamDataset, TrainerModule, save_picture


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-2)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(1)(x)[:, 0]


class Examples:
    """Examples in memory that note in a file of each process which were read."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.inputs = rng.normal(size=(72, 3))
        self.targets = self.inputs @ [1.0, 2.0, 3.0]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        with Path("read", str(os.getpid())).open("a") as file:
            file.write(f"{index}\n")
        return {"inputs": self.inputs[index], "targets": self.targets[index]}


class Trainer(TrainerModule[HParams]):
    def batch_size(self, hparams: HParams) -> int:
        return 16

    def init_model(self, hparams: HParams) -> Model:
        return Model()

    def loss(self, outputs: Any, batch: Any, hparams: HParams) -> Any:
        return (outputs - batch["targets"]) ** 2, {}

    def on_training_start(self, state: Any, hparams: HParams) -> None:
        assert all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state.params))

    def on_validation_epoch_end(
        self, state: Any, hparams: HParams, epoch: int, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        save_picture("picture", np.zeros((2, 2)))
        norm = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(state.params))
        return {"norm": norm, "process": float(os.getpid())}


def data(seed: int) -> Splits:
    return StreamDataset(Examples(), prefetch=1).split(1 / 9, seed)


study = Study(
    name="streamed",
    space=HParams,
    trainer=Trainer(),
    data=data,
    objective="loss",
    direction="minimize",
    epochs=2,
    trials=1,
    sampler="random",
    pruner="none",
)
