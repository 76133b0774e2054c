"""A multilayer perceptron on handwritten digits: the study to read first.

    tuner launch studies/digits_mlp.py

Devices: 2 CPU cores, one worker on each. Time: 15 s. Best validation accuracy: 0.992 (2026-11-22).

A study has five parts: a search space, a model, a loss, data, and a budget.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from tuner import Space, Study, choice, log_uniform, uniform
from tuner.training import ArrayDataset, Dropout, Splits, TrainerModule


# 1. The search space. Floats are inputs of the compiled program, so trials that differ only in floats share it.
#    `width` and `depth` change the program, so each worker compiles each of the nine combinations once.
class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1e-1)
    weight_decay: float = log_uniform(1e-6, 1e-2)
    dropout_rate: float = uniform(0.0, 0.6)
    label_smoothing: float = uniform(0.0, 0.2)
    width: int = choice(32, 64, 128)
    depth: int = choice(1, 2, 3)


# 2. The model, in plain Flax. `Dropout` comes from tuner, because Flax's own needs the rate at compile time.
class MLP(nn.Module):
    width: int
    depth: int
    dropout_rate: float

    @nn.compact
    def __call__(self, x, *, train: bool):
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width)(x))
            x = Dropout(self.dropout_rate)(x, train=train)
        return nn.Dense(10)(x)


# 3. The trainer creates the model from the hyperparameters, and returns one loss per example and other metrics.
#    The optimizer is the default, AdamW, with `learning_rate` and `weight_decay`.
class Trainer(TrainerModule):
    loop = "scan"  # fastest for small dense models; by default, tuner compiles and measures both forms

    def init_model(self, hparams):
        return MLP(hparams.width, hparams.depth, hparams.dropout_rate)

    def loss(self, outputs, batch, hparams):
        targets = optax.smooth_labels(jax.nn.one_hot(batch["labels"], 10), hparams.label_smoothing)
        hits = jnp.argmax(outputs, axis=-1) == batch["labels"]
        return optax.softmax_cross_entropy(outputs, targets), {"accuracy": hits}


# 4. The data: 1,797 images of 8x8 pixels from scikit-learn. A fifth of them are used for validation.
def data(seed: int) -> Splits:
    images, labels = load_digits(return_X_y=True)
    return ArrayDataset(inputs=images / 16.0, labels=labels).split(0.2, seed)


# 5. The search: 30 trials of at most 20 epochs. The sampler and the pruner are the defaults, "tpe" and "asha". They can
#    be given by name or as Optuna objects.
study = Study(
    name="digits_mlp",
    space=HParams,
    trainer=Trainer(),
    data=data,
    objective="accuracy",
    direction="maximize",
    epochs=20,
    trials=30,
)
