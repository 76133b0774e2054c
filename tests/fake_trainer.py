"""A trainer that reports values without training, for tests of what a worker does with reports."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import numpy as np

from tuner.training import ArrayDataset, TrainerModule
from tuner.trial import Report


class FakeTrainer(TrainerModule):
    """Reports for each epoch what `values` returns. The model and the loss only pass a worker's check of the study."""

    def values(self, hparams: Any, epoch: int) -> dict[str, float]:
        raise NotImplementedError

    def init_model(self, hparams: Any) -> nn.Module:
        return nn.Dense(1)

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs[:, 0] - batch["targets"]) ** 2, {}

    def train_model(self, hparams: Any, splits: Any, *, epochs: int, **options: Any) -> Any:
        for epoch in range(1, epochs + 1):
            yield Report(epoch, epoch, self.values(hparams, epoch))


def small_data(seed: int) -> Any:
    inputs = np.random.default_rng(seed).normal(size=(20, 2))
    return ArrayDataset(inputs=inputs, targets=inputs.sum(1)).split(0.2, seed)
