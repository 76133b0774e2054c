"""A study of a Flax NNX classifier.

    tuner launch study.py

Made by `tuner init`; change it as you like.
"""

from functools import partial

import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from tuner import Space, Study, choice, log_uniform, uniform
from tuner.training import ArrayDataset, Splits, TrainerModule
from tuner.training.nnx_layers import Dropout


# 1. What is searched. Floats are traced: trials that differ only in them share a compiled program.
#    Other fields are static: each combination of their values is compiled once.
class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1e-1)
    weight_decay: float = log_uniform(1e-6, 1e-2)
    dropout_rate: float = uniform(0.0, 0.6)
    width: int = choice(32, 64, 128)


# 2. The model.
class MLP(nnx.Module):
    def __init__(self, hparams: HParams, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, hparams.width, rngs=rngs)
        self.dropout = Dropout(hparams.dropout_rate, rngs=rngs)  # takes a traced rate, unlike nnx.Dropout
        self.out = nnx.Linear(hparams.width, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.hidden(x))))


# 3. The trainer: how hyperparameters become a model, and the loss. The optimizer is AdamW with `learning_rate` and
#    `weight_decay`; define `init_optimizer` for another one.
class Trainer(TrainerModule):
    def init_model(self, hparams: HParams):
        return partial(MLP, hparams)  # tuner calls it with `rngs`

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
