"""Digits with Haiku: a convolutional network, trained by a plain function.

    pip install dm-haiku && tuner launch examples/haiku_digits.py

Devices: 2 CPU cores, one worker on each. Time: 54 s. Best validation accuracy: 0.981 (2026-11-30).

There is no trainer: `train` is a function. `epoch` takes the hyperparameters as an argument, so trials of one width
compile once, with any learning rate, weight decay and dropout rate.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tuner import Space, Study, choice, log_uniform, uniform

EPOCHS, BATCH_SIZE = 12, 64
images, labels = load_digits(return_X_y=True)
split = train_test_split(images.reshape(-1, 8, 8, 1) / 16, labels, test_size=0.2, random_state=0, stratify=labels)
train_images, test_images, train_labels, test_labels = (jnp.asarray(part, jnp.float32) for part in split)


class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 3e-2)
    weight_decay: float = log_uniform(1e-6, 1e-1)
    dropout_rate: float = uniform(0.0, 0.6)
    width: int = choice(8, 16, 32)


def network(width, dropout_rate, images):
    x = jax.nn.relu(hk.Conv2D(width, 3)(images))
    x = jax.nn.relu(hk.Conv2D(2 * width, 3, stride=2)(x))
    return hk.Linear(10)(hk.dropout(hk.next_rng_key(), dropout_rate, x.reshape(len(x), -1)))


init, apply = hk.transform(network)


def optimizer(hparams):
    return optax.adamw(hparams.learning_rate, weight_decay=hparams.weight_decay)


@jax.jit
def epoch(hparams, params, moments, key):
    def loss(params, rows, key):
        logits = apply(params, key, hparams.width, hparams.dropout_rate, train_images[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, train_labels[rows].astype(int)).mean()

    def step(state, rows):
        params, moments = state
        grads = jax.grad(loss)(params, rows, jax.random.fold_in(key, rows[0]))
        changes, moments = optimizer(hparams).update(grads, moments, params)
        return (optax.apply_updates(params, changes), moments), None

    steps = len(train_images) // BATCH_SIZE
    order = jax.random.permutation(key, len(train_images))[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
    (params, moments), _ = jax.lax.scan(step, (params, moments), order)
    logits = apply(params, key, hparams.width, 0.0, test_images)
    return params, moments, jnp.mean(logits.argmax(1) == test_labels)


def train(hparams: HParams, trial):
    params = init(trial.key(), hparams.width, 0.0, train_images[:1])
    moments = optimizer(hparams).init(params)
    for key in jax.random.split(trial.key(), EPOCHS):
        params, moments, accuracy = epoch(hparams, params, moments, key)
        yield {"accuracy": accuracy}


study = Study(
    name="haiku_digits",
    space=HParams,
    train=train,
    objective="accuracy",
    direction="maximize",
    epochs=EPOCHS,
    trials=24,
)
