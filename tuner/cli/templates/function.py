"""A study of a training function. It may use any library; this one uses JAX and Optax.

    tuner launch study.py

Made by `tuner init`; change it as you like.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tuner import Space, Study, Trial, choice, log_uniform

EPOCHS, BATCH_SIZE = 20, 64


# 1. What is searched. A jitted function may take the hyperparameters as an argument: floats are traced, and other
#    fields are static.
class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1e-1)
    weight_decay: float = log_uniform(1e-6, 1e-2)
    width: int = choice(32, 64, 128)


# 2. The data.
images, labels = load_digits(return_X_y=True)
split = train_test_split(jnp.asarray(images / 16.0), jnp.asarray(labels), test_size=0.2, random_state=0)
train_images, test_images, train_labels, test_labels = split


# 3. The training, compiled once for each width.
def optimizer(hparams: HParams):
    return optax.adamw(hparams.learning_rate, weight_decay=hparams.weight_decay)


def logits(params, images):
    return jnp.maximum(images @ params["hidden"], 0.0) @ params["out"]


@jax.jit
def train_step(hparams: HParams, params, opt_state, images, labels):
    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()

    updates, opt_state = optimizer(hparams).update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


# 4. A trial: yield the metrics after each epoch. A trial that is pruned ends at a `yield`.
def train(hparams: HParams, trial: Trial):
    keys = jax.random.split(trial.key(), 2)
    params = {
        "hidden": jax.random.normal(keys[0], (64, hparams.width)) / 8.0,
        "out": jax.random.normal(keys[1], (hparams.width, 10)) / hparams.width**0.5,
    }
    state = trial.restore(like=(params, optimizer(hparams).init(params)))  # None unless the trial was interrupted
    params, opt_state = (params, optimizer(hparams).init(params)) if state is None else state
    for epoch in range(trial.epoch, EPOCHS):
        order = jax.random.permutation(jax.random.fold_in(trial.key(), epoch), len(train_images))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            params, opt_state = train_step(hparams, params, opt_state, train_images[batch], train_labels[batch])
        yield {"accuracy": jnp.mean(logits(params, test_images).argmax(axis=1) == test_labels)}
        trial.save((params, opt_state))


# 5. The search.
study = Study(
    name="study",
    space=HParams,
    train=train,
    objective="accuracy",
    direction="maximize",
    epochs=EPOCHS,
    trials=20,
)
