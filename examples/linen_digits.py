"""A classifier of digits with Flax Linen."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

EPOCHS, BATCH_SIZE = 10, 64


@dataclass
class Config:
    learning_rate: float = 1e-3
    dropout_rate: float = 0.1
    width: int = 64


class MLP(nn.Module):
    width: int
    dropout_rate: float

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Dense(self.width)(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(10)(x)


def load_data():
    images, labels = load_digits(return_X_y=True)
    return train_test_split((images / 16).astype(np.float32), labels, test_size=0.2, random_state=0, stratify=labels)


@jax.jit
def train_step(state, images, labels, key):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images, train=True, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


@jax.jit
def accuracy(state, images, labels):
    logits = state.apply_fn({"params": state.params}, images, train=False)
    return jnp.mean(logits.argmax(-1) == labels)


def train(config: Config):
    train_images, test_images, train_labels, test_labels = load_data()
    model = MLP(config.width, config.dropout_rate)
    params = model.init(jax.random.key(0), train_images[:1], train=False)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(config.learning_rate))
    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(train_images))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            key = jax.random.fold_in(jax.random.key(1), state.step)
            state, loss = train_step(state, train_images[batch], train_labels[batch], key)
        print(f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {accuracy(state, test_images, test_labels):.4f}")


if __name__ == "__main__":
    train(Config())
