"""Feeds batches to a training, from arrays on the device or one by one from the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from tuner.errors import StudyError
from tuner.training.data.arrays import ArrayDataset, Batch, steps_per_epoch
from tuner.training.data.batches import Order, Source, epoch_order, eval_order
from tuner.training.data.stream import StreamDataset
from tuner.training.mesh import Layout, local

Dataset = ArrayDataset | StreamDataset


_arrays: WeakKeyDictionary[Any, dict[Layout, Batch]] = WeakKeyDictionary()
_rows: WeakKeyDictionary[Dataset, dict[Layout, jax.Array]] = WeakKeyDictionary()
"""What is on a trial's devices, for as long as the dataset exists: trials of one study may have different data."""


def _placed_arrays(shared: Any, layout: Layout) -> Batch:
    """Return the arrays that all views of a dataset share, on a trial's devices; they are put there once."""
    placed = _arrays.setdefault(shared, {})
    if layout not in placed:
        placed[layout] = layout.put(shared.on_device)
    return placed[layout]


def _placed_rows(dataset: Dataset, layout: Layout) -> jax.Array:
    """Return the rows of a view, on a trial's devices; they are put there once for all trials."""
    placed = _rows.setdefault(dataset, {})
    if layout not in placed:
        rows = dataset.rows if isinstance(dataset, ArrayDataset) else jnp.arange(len(dataset), dtype=jnp.int32)
        placed[layout] = layout.put(rows)
    return placed[layout]


@lru_cache(maxsize=1024)
def _placed_number(number: int, layout: Layout) -> jax.Array:
    """Return a number on a trial's devices; cached, because putting it there costs more than an epoch's other calls."""
    return layout.put(np.int32(number))


class Feed:
    """A dataset cut into batches of equal size.

    Attributes:
        steps: Batches in an epoch, including the padded last one.
        is_resident: Whether the data are on the device, so that a program may take many steps.
        rows: The rows of the dataset, on the device.
    """

    def __init__(self, dataset: Dataset, layout: Layout, batch_size: int) -> None:
        if not isinstance(dataset, ArrayDataset | StreamDataset):
            raise StudyError(f"data must be an ArrayDataset or a StreamDataset: got {type(dataset).__name__}")
        self.dataset, self.layout = dataset, layout
        self.batch_size = layout.batch_size(batch_size, len(dataset))
        self.steps = steps_per_epoch(len(dataset), self.batch_size)
        self.is_resident = isinstance(dataset, ArrayDataset)
        self._arrays = _placed_arrays(dataset._shared, layout) if isinstance(dataset, ArrayDataset) else {}
        self.rows = _placed_rows(dataset, layout)

    def shuffled(self, key: jax.Array, first_step: int, order: Callable[..., Order] = epoch_order) -> Order:
        """Return an epoch's batches. The same key gives the same batches in every process, also for streamed data.

        Args:
            key: The trial's key.
            first_step: The first step of the epoch.
            order: `TrainerModule.order` with its hyperparameters bound.

        Raises:
            StudyError: `order` returned batches of another size or number.
        """
        made = order(key, _placed_number(first_step, self.layout), self.rows, batch_size=self.batch_size)
        expected = (self.steps, self.batch_size)
        if any(part.shape != expected for part in made):
            raise StudyError(
                f"order(...) must return indices and weights of shape {expected} (steps, batch size): got "
                f"{' and '.join(str(part.shape) for part in made)}"
            )
        return made

    def in_order(self) -> Order:
        """Return the batches of an evaluation."""
        return eval_order(self.rows, batch_size=self.batch_size)

    def resident(self, order: Order) -> Source:
        """Return the source of all batches of an order, for data on the device."""
        return Source(self._arrays, order)

    def sources(self, order: Order, start: int = 0) -> Generator[Source]:
        """Yield the source of each batch from `start` on; close the generator to stop reading ahead."""
        if isinstance(self.dataset, ArrayDataset):
            source = self.resident(order)
            while True:
                yield source
        indices, weights = jax.device_get(local(order))
        share = None
        if self.layout.spans_hosts:  # each process reads what its own devices compute
            share = self.layout.share(self.batch_size)
            indices, weights = indices[:, share], weights[:, share]
        with contextlib.closing(self.dataset.batches(indices, weights, start=start)) as batches:
            for batch in batches:
                put = self.layout.put(batch) if share is None else self.layout.put_share(batch, self.batch_size)
                yield Source(put)

    def shapes(self) -> Source:
        """Return the shapes of what `first` returns. For data on the device no program is compiled or run."""
        return Source(self._arrays, jax.eval_shape(self.in_order)) if self.is_resident else self.first()

    def first(self) -> Source:
        """Return the source of an arbitrary batch; only its shapes are used."""
        if self.is_resident:
            return self.resident(self.in_order())
        indices = np.resize(np.arange(len(self.dataset)), (1, self.batch_size))
        order = (jnp.asarray(indices, jnp.int32), jnp.ones(indices.shape, jnp.float32))
        with contextlib.closing(self.sources(order)) as sources:
            return next(sources)
