"""A classifier of digits with Flax NNX."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

EPOCHS, BATCH_SIZE = 10, 64


@dataclass
class Config:
    learning_rate: float = 1e-3
    dropout_rate: float = 0.1
    width: int = 64


class MLP(nnx.Module):
    def __init__(self, config, *, rngs):
        self.hidden = nnx.Linear(64, config.width, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate, rngs=rngs)
        self.out = nnx.Linear(config.width, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.hidden(x))))


def load_data():
    images, labels = load_digits(return_X_y=True)
    return train_test_split((images / 16).astype(np.float32), labels, test_size=0.2, random_state=0, stratify=labels)


@nnx.jit
def train_step(model, optimizer, images, labels):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def accuracy(model, images, labels):
    return jnp.mean(model(images).argmax(-1) == labels)


def train(config: Config):
    train_images, test_images, train_labels, test_labels = load_data()
    model = MLP(config, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(config.learning_rate), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        model.train()
        order = rng.permutation(len(train_images))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            loss = train_step(model, optimizer, train_images[batch], train_labels[batch])
        model.eval()
        print(f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {accuracy(model, test_images, test_labels):.4f}")


if __name__ == "__main__":
    train(Config())
