"""A classifier of digits with Equinox. It needs `pip install equinox`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tuner import Space, Study, choice, log_uniform

EPOCHS, BATCH_SIZE = 10, 64


class Config(Space):
    learning_rate: float = log_uniform(1e-4, 1e-1)
    weight_decay: float = log_uniform(1e-6, 1e-1)
    width: int = choice(32, 64, 128)


def load_data():
    images, labels = load_digits(return_X_y=True)
    return train_test_split((images / 16).astype(np.float32), labels, test_size=0.2, random_state=0, stratify=labels)


@eqx.filter_jit
def train_step(model, opt_state, optimizer, images, labels):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), labels).mean()

    loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
    updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), opt_state, loss


@eqx.filter_jit
def accuracy(model, images, labels):
    return jnp.mean(jax.vmap(model)(images).argmax(-1) == labels)


def train(config: Config, trial):
    train_images, test_images, train_labels, test_labels = load_data()
    model = eqx.nn.MLP(64, 10, config.width, depth=2, key=jax.random.key(0))
    optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(train_images))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            model, opt_state, loss = train_step(model, opt_state, optimizer, train_images[batch], train_labels[batch])
        yield epoch + 1, {"loss": loss, "accuracy": accuracy(model, test_images, test_labels)}


study = Study(
    name="equinox", space=Config, train=train, objective="accuracy", direction="maximize", epochs=EPOCHS, trials=20
)
