"""A study of a Flax classifier.

    tuner launch study.py

Made by `tuner init`; change it as you like.
"""

import flax.linen as nn
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from tuner import Space, Study, choice, log_uniform, uniform
from tuner.training import ArrayDataset, Dropout, Splits, TrainerModule


# 1. What is searched. Floats are traced: trials that differ only in them share a compiled program.
#    Other fields are static: each combination of their values is compiled once.
class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1e-1)
    weight_decay: float = log_uniform(1e-6, 1e-2)
    dropout_rate: float = uniform(0.0, 0.6)
    width: int = choice(32, 64, 128)


# 2. The model.
class MLP(nn.Module):
    width: int
    dropout_rate: float

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.relu(nn.Dense(self.width)(x))
        x = Dropout(self.dropout_rate)(x, train=train)  # takes a traced rate, unlike nn.Dropout
        return nn.Dense(10)(x)


# 3. The trainer: how hyperparameters become a model, and the loss. The optimizer is AdamW with `learning_rate` and
#    `weight_decay`; define `init_optimizer` for another one.
class Trainer(TrainerModule):
    def init_model(self, hparams: HParams):
        return MLP(hparams.width, hparams.dropout_rate)

    def loss(self, outputs, batch, hparams: HParams):
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
        return losses, {"accuracy": jnp.argmax(outputs, axis=-1) == batch["labels"]}  # one number for each example


# 4. The data: the model gets `inputs`, the loss gets all arrays. A fifth of the examples is for validation.
def data(seed: int) -> Splits:
    images, labels = load_digits(return_X_y=True)
    return ArrayDataset(inputs=images / 16.0, labels=labels).split(0.2, seed)


# 5. The search.
study = Study(
    name="study",
    space=HParams,
    trainer=Trainer(),
    data=data,
    objective="accuracy",
    direction="maximize",
    epochs=20,
    trials=20,
)
