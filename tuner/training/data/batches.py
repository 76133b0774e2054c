"""The batches of an epoch: their order, and the source of each."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax

from tuner.training.data.arrays import Batch, batch_order, gather
from tuner.training.state import Stream

Order = tuple[jax.Array, jax.Array]
"""Indices and weights of all batches of an epoch, as returned by `batch_order`."""


class Source(NamedTuple):
    """The source of a program's batch: the one at `position` of an order over arrays on the device, or `batch`."""

    arrays: Batch
    order: Order | None = None

    def at(self, position: jax.Array) -> Batch:
        """Return the batch at a position (Int[Array, ""]) in the epoch."""
        if self.order is None:
            return self.arrays
        indices, weights = self.order
        return gather(self.arrays, indices[position], weights[position])


def batch_shapes(source: Source) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and types of a batch, without tracing."""
    if source.order is None:
        return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in source.arrays.items()}
    size = source.order[0].shape[1]
    return {name: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype) for name, leaf in source.arrays.items()}


@partial(jax.jit, static_argnames=("batch_size",))
def epoch_order(key: jax.Array, step: jax.Array, rows: jax.Array, *, batch_size: int) -> Order:
    """Return an epoch's batches in a random order, which depends only on the trial's key and the epoch's first step.

    It is a separate program, which models of all sizes share, because sorting takes long to compile.
    """
    return batch_order(jax.random.permutation(Stream.ORDER.key(key, step), rows), batch_size)


@partial(jax.jit, static_argnames=("batch_size",))
def eval_order(rows: jax.Array, *, batch_size: int) -> Order:
    """Return the batches of an evaluation, in the data's order."""
    return batch_order(rows, batch_size)
