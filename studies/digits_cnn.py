"""A small convolutional network with batch normalisation on handwritten digits.

    tuner launch studies/digits_cnn.py

Devices: 2 CPU cores, one worker on each. Time: 21 s. Best validation accuracy: 0.994 (2026-11-22).

New compared with `digits_mlp.py`: a nested space (only SGD has a momentum), a custom optimizer, and a model with batch
statistics, which the trainer updates automatically.
"""

import flax.linen as nn
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from tuner import Space, Study, choice, log_uniform, uniform
from tuner.training import ArrayDataset, Splits, TrainerModule, warmup_cosine


# 1. The search space. Conditional hyperparameters are nested spaces. Both options have a learning rate, with different
#    ranges: Optuna sees `optimizer.SGD.learning_rate` and `optimizer.AdamW.learning_rate`.
class SGD(Space):
    learning_rate: float = log_uniform(1e-2, 1.0)
    momentum: float = uniform(0.5, 0.95)


class AdamW(Space):
    learning_rate: float = log_uniform(1e-4, 3e-2)
    weight_decay: float = log_uniform(1e-6, 1e-2)


class HParams(Space):
    optimizer: SGD | AdamW = choice(SGD, AdamW)
    bn_momentum: float = uniform(0.8, 0.99)
    channels: int = choice(8, 16)


# 2. The model: two convolutions, each followed by batch normalisation and pooling, then a dense layer. The trainer
#    passes `train` because `__call__` has this parameter.
class CNN(nn.Module):
    channels: int
    bn_momentum: float

    @nn.compact
    def __call__(self, x, *, train: bool):
        for channels in (self.channels, 2 * self.channels):
            x = nn.Conv(channels, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=self.bn_momentum)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


# 3. The trainer. The optimizer depends on which space was chosen. The schedule is a fixed shape multiplied by the
#    learning rate, so the rate can be an input of the compiled program.
class Trainer(TrainerModule):
    loop = "step"  # on CPUs, XLA's convolutions are slow inside loops

    def init_model(self, hparams):
        return CNN(hparams.channels, hparams.bn_momentum)

    def init_optimizer(self, hparams, total_steps):
        chosen, shape = hparams.optimizer, warmup_cosine(total_steps)

        def rate(step):
            return chosen.learning_rate * shape(step)

        if isinstance(chosen, SGD):
            return optax.sgd(rate, momentum=chosen.momentum, nesterov=True)
        return optax.adamw(rate, weight_decay=chosen.weight_decay)

    def loss(self, outputs, batch, hparams):
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
        return losses, {"accuracy": jnp.argmax(outputs, axis=-1) == batch["labels"]}


# 4. The data. The images keep their two axes and get a channel axis of size 1.
def data(seed: int) -> Splits:
    images, labels = load_digits(return_X_y=True)
    return ArrayDataset(inputs=images.reshape(-1, 8, 8, 1) / 16.0, labels=labels).split(0.2, seed)


study = Study(
    name="digits_cnn",
    space=HParams,
    trainer=Trainer(),
    data=data,
    objective="accuracy",
    direction="maximize",
    epochs=15,
    trials=20,
)
