"""The study that wrote the files beside it: each of its trials can end in another way."""

import os
import time

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from tuner import Space, Study, choice, log_uniform, uniform
from tuner.training import ArrayDataset, OptimizerSpec, Splits, TrainerModule

PAUSE_S = float(os.environ.get("PAUSE_S", "0"))  # after each epoch


class SGD(Space):
    momentum: float = uniform(0.0, 0.9)


class Adam(Space):
    b1: float = uniform(0.5, 0.9)


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1.0)
    noise: float = uniform(0.0, 1.0)
    width: int = choice(2, 4)
    optimizer: SGD | Adam = choice(SGD, Adam)


class Model(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(self.width)(x)))[:, 0]


class Trainer(TrainerModule):
    loop = "step"

    def init_model(self, hparams):
        return Model(hparams.width)

    def init_optimizer(self, hparams, total_steps):
        if isinstance(hparams.optimizer, SGD):
            return OptimizerSpec("sgd", hparams.learning_rate, options={"momentum": hparams.optimizer.momentum})
        return OptimizerSpec("adam", hparams.learning_rate, options={"b1": hparams.optimizer.b1})

    def loss(self, outputs, batch, hparams):
        errors = (outputs - batch["targets"]) ** 2
        return jnp.where(hparams.learning_rate > 0.5, jnp.nan, errors), {"far": errors > 1.0}

    def on_validation_epoch_end(self, state, hparams, epoch, metrics):
        time.sleep(PAUSE_S)
        if hparams.noise > 0.9:
            raise RuntimeError("the noise is too loud")


def data(seed: int) -> Splits:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(200, 3))
    return ArrayDataset(inputs=inputs, targets=inputs @ [1.0, 2.0, 3.0]).split(0.2, seed)


study = Study(
    name="old",
    space=HParams,
    trainer=Trainer(),
    data=data,
    objective="loss",
    direction="minimize",
    epochs=6,
    trials=10,
    save_every_s=0.0,
    keep_best=1,
)
