"""A study of seconds for tests: linear regression on made-up data. `tiny_environment` makes it slow or wrong.

TINY_LOOP, TINY_SAVE_S: how it trains, and how often it saves.
TINY_STEP_S: a pause after each program but the last.
"""

import os
import time

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from tiny_environment import EPOCHS, MODE, PRUNER, TRIALS, fail_if_told, note, pause, wait_for_others

from tuner import Space, Study, log_uniform, uniform
from tuner.training import ArrayDataset, Splits, TrainerModule

STEP_S = float(os.environ.get("TINY_STEP_S", "0"))


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    noise: float = uniform(0.0, 1.0)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)[:, 0]


class Trainer(TrainerModule):
    loop = os.environ.get("TINY_LOOP", "auto")  # pyright: ignore[reportAssignmentType]

    def init_model(self, hparams):
        return Model()

    def loss(self, outputs, batch, hparams):
        errors = (outputs - batch["targets"]) ** 2
        if MODE == "nan":
            errors = jnp.where(hparams.noise > 0.5, jnp.nan, errors)
        return errors, {}

    # All that a worker needs of a training is that it yields reports.
    def train_model(self, hparams, splits, *, epochs, seed, stop=lambda: False, **options):  # pyright: ignore[reportIncompatibleMethodOverride]
        fail_if_told(hparams.noise)

        def slow_stop():
            note(options.get("about", {}).get("trial"), training.step)
            time.sleep(STEP_S)
            return stop()

        training = super().train_model(hparams, splits, epochs=epochs, seed=seed, stop=slow_stop, **options)
        for report in training:
            pause()
            yield report


def data(seed: int) -> Splits:
    wait_for_others()
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(200, 3))
    return ArrayDataset(inputs=inputs, targets=inputs @ [1.0, 2.0, 3.0]).split(0.2, seed)


study = Study(
    name="tiny",
    space=HParams,
    trainer=Trainer(),
    data=data,
    objective="loss",
    direction="minimize",
    epochs=EPOCHS,
    trials=TRIALS,
    sampler="random",
    pruner=PRUNER,
    save_every_s=float(os.environ.get("TINY_SAVE_S", "60")),
)
