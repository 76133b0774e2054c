"""Spirals with Equinox: a recurrent network tells whether a spiral turns to the left or to the right.

    pip install equinox && tuner launch examples/equinox_spirals.py

Devices: 2 CPU cores, one worker on each. Time: 22 s. Best validation loss: 0.008 (2026-11-30).

There is no trainer: `train` is a function, and `epoch` compiles once for all trials of one width. `filter_jit` compiles
again for each new Python float, so `train` makes arrays of the hyperparameters. The task is that of Equinox's own
example of a recurrent network.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tuner import Space, Study, choice, log_uniform, uniform

EPOCHS, BATCH_SIZE, COUNT, LENGTH = 10, 64, 2048, 16


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    decay: float = uniform(0.0, 0.9)  # of the first moment of the gradients
    noise: float = uniform(0.0, 0.3)  # added to the training data
    width: int = choice(8, 16, 32)


class Network(eqx.Module):
    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __init__(self, width, key):
        keys = jax.random.split(key)
        self.cell, self.out = eqx.nn.GRUCell(2, width, key=keys[0]), eqx.nn.Linear(width, 1, key=keys[1])

    def __call__(self, points):
        last, _ = jax.lax.scan(lambda state, x: (self.cell(x, state), None), jnp.zeros(self.cell.hidden_size), points)
        return self.out(last)[0]


def spirals(seed: int):
    rng = np.random.default_rng(seed)
    labels, start = rng.integers(2, size=COUNT), rng.uniform(0.0, 2 * np.pi, size=(COUNT, 1))
    angle = start + np.linspace(0.0, 3 * np.pi, LENGTH) * np.where(labels, 1.0, -1.0)[:, None]
    points = np.stack([np.cos(angle), np.sin(angle)], -1) * np.linspace(1.0, 0.2, LENGTH)[:, None]
    return jnp.asarray(points + rng.normal(scale=0.5, size=points.shape), jnp.float32), jnp.asarray(labels)


def loss(network, points, labels):
    return optax.sigmoid_binary_cross_entropy(jax.vmap(network)(points), labels).mean()


@eqx.filter_jit
def epoch(data, network, moments, hparams, key):
    def step(state, key):
        network, moments = eqx.combine(state[0], static), state[1]
        rows = jax.random.choice(key, len(data[0]), (BATCH_SIZE,))
        points = data[0][rows] + hparams.noise * jax.random.normal(key, (BATCH_SIZE, LENGTH, 2))
        grads = eqx.filter_grad(loss)(network, points, data[1][rows])
        changes, moments = optax.adam(hparams.learning_rate, hparams.decay).update(grads, moments)
        return (eqx.filter(eqx.apply_updates(network, changes), eqx.is_array), moments), None

    arrays, static = eqx.partition(network, eqx.is_array)
    (arrays, moments), _ = jax.lax.scan(step, (arrays, moments), jax.random.split(key, len(data[0]) // BATCH_SIZE))
    return eqx.combine(arrays, static), moments


def train(hparams: HParams, trial):
    network, hparams = Network(hparams.width, trial.key()), jax.tree.map(jnp.asarray, hparams)
    moments = optax.adam(0.0).init(eqx.filter(network, eqx.is_array))
    for key in jax.random.split(trial.key(), EPOCHS):
        network, moments = epoch(spirals(0), network, moments, hparams, key)
        yield {"loss": eqx.filter_jit(loss)(network, *spirals(1))}


study = Study(
    name="equinox_spirals", space=HParams, train=train, objective="loss", direction="minimize", epochs=EPOCHS, trials=30
)
