"""Datasets that fit on the device: they live there and are shuffled there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Batch = dict[str, jax.Array]
"""Arrays with one leading axis; `weight` (Float[Array, "batch"]) is 0 for padding."""


class ArrayDataset:
    """Arrays with one leading axis of examples, by name: `ArrayDataset(inputs=images, labels=labels)`.

    An array named `weight` weighs the examples in losses and metrics; without it all weigh 1.

    Raises:
        ValueError: no array, or lengths differ.
    """

    def __init__(self, **arrays: Any) -> None:
        lengths = {name: len(array) if np.ndim(array) else 0 for name, array in arrays.items()}
        if not lengths or len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"a dataset needs arrays of one length, at least 1: got {lengths or 'no array'}")
        self._host = {name: np.asarray(array) for name, array in arrays.items()}
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    @cached_property
    def arrays(self) -> Batch:
        """All examples, on the device; put there once."""
        weight = self._host.get("weight", np.ones(len(self))).astype(np.float32)
        return jax.device_put({**{name: _narrow(array) for name, array in self._host.items()}, "weight": weight})

    def take(self, indices: Any) -> ArrayDataset:
        """Return the examples at `indices` (Int[Array, "n"]) as a dataset."""
        return ArrayDataset(**{name: array[np.asarray(indices)] for name, array in self._host.items()})

    def split(self, fraction: float, seed: int) -> Splits:
        """Return the dataset split at random: `fraction` of it for validation, the rest for training.

        Args:
            fraction: In (0, 1); at least one example falls on each side.
            seed: The same seed gives the same split in every process.

        Raises:
            ValueError: one side would be empty.
        """
        count = round(fraction * len(self))
        if not 0 < count < len(self):
            raise ValueError(f"both sides of a split need examples: got fraction={fraction} of {len(self)}")
        order = np.random.default_rng(seed).permutation(len(self))
        return Splits(train=self.take(order[count:]), validation=self.take(order[:count]))


def _narrow(array: np.ndarray) -> np.ndarray:
    """Return 64-bit numbers as 32-bit ones, which is what JAX computes with."""
    narrow = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32}
    return array.astype(narrow.get(array.dtype.name, array.dtype))


@dataclass(frozen=True)
class Splits:
    """What a study trains and validates on."""

    train: ArrayDataset
    validation: ArrayDataset


def steps_per_epoch(length: int, batch_size: int) -> int:
    """Return the number of batches that cover `length` examples, the last padded."""
    return -(-length // batch_size)


def batch_order(order: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Cut an order of examples into batches of one size.

    The last batch is filled up with the first examples, at weight 0: real ones, so that batch statistics stay sane.

    Args:
        order: Int[Array, "examples"].
        batch_size: At most the number of examples.

    Returns:
        Indices Int[Array, "steps batch"] and weights Float[Array, "steps batch"].
    """
    steps = steps_per_epoch(order.shape[0], batch_size)
    padding = steps * batch_size - order.shape[0]
    indices = jnp.concatenate([order, order[:padding]]).reshape(steps, batch_size)
    weights = (jnp.arange(steps * batch_size) < order.shape[0]).astype(jnp.float32).reshape(steps, batch_size)
    return indices, weights


def gather(arrays: Batch, indices: jax.Array, weights: jax.Array) -> Batch:
    """Return the batch of the examples at `indices`, its `weight` multiplied by `weights`."""
    batch = {name: jnp.take(array, indices, axis=0) for name, array in arrays.items()}
    return {**batch, "weight": batch["weight"] * weights}
