"""A study for tests that searches the length of windows, which `data` makes. Environment variables hold a training."""

import os
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from tuner import Space, Study, choice, uniform
from tuner.training import ArrayDataset, OptimizerSpec, TrainerModule

HOLD_FILE = os.environ.get("WINDOWS_HOLD_FILE")
"""While it exists, a training waits in its third epoch; its process and trial are added to it."""
SERIES = np.sin(np.arange(48))
CALLS = []


class HParams(Space):
    rate: float = uniform(0.01, 0.1)
    length: int = choice(2, 4, 3)


class Mean(TrainerModule):
    """Predicts a constant; the loss of a window is its mean squared distance to it."""

    loop = "step"

    def init_model(self, hparams):
        return lambda key, x: jnp.zeros(()), lambda params, x: params + 0 * x

    def loss(self, outputs, batch, hparams):
        assert outputs.shape[1] == hparams.length
        losses = jnp.mean((outputs - batch["inputs"]) ** 2, axis=1)
        return losses, {"length": jnp.full(losses.shape, float(outputs.shape[1]))}

    def batch_size(self, hparams):
        return 4

    def init_optimizer(self, hparams, total_steps):
        return OptimizerSpec("sgd", hparams.rate)

    def on_training_epoch_end(self, state, hparams, epoch, metrics):
        if epoch == 3 and HOLD_FILE and Path(HOLD_FILE).exists():
            with Path(HOLD_FILE).open("a") as file:
                file.write(f"{os.getpid()} {hparams.length}\n")
            while Path(HOLD_FILE).exists():
                time.sleep(0.05)


def data(seed, hparams):
    CALLS.append((seed, hparams.length))
    return ArrayDataset(inputs=SERIES.reshape(-1, hparams.length)).split(0.25, seed)


def picture(loaded, splits):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    figure.subplots().set_title(f"length {splits.train.host()['inputs'].shape[1]}")
    return figure


study = Study(
    name="windows",
    space=HParams,
    trainer=Mean(),
    data=data,
    objective="loss",
    direction="minimize",
    epochs=3,
    trials=4,
    seed=5,
    sampler={"name": "grid", "values": {"rate": [0.01, 0.05]}},
    pruner="none",
    picture=picture,
    save_every_s=0,
    keep_best=4,
)
