"""Datasets that do not fit on the device: Grain reads them example by example, ahead of the training."""

from __future__ import annotations

import atexit
import importlib
import importlib.machinery
import multiprocessing.util
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from tuner.errors import StudyError, how_to_install
from tuner.study import modules as study_files
from tuner.training.data.arrays import View, narrow

HostBatch = dict[str, np.ndarray]
"""A `Batch` that is still on the host."""


class Source(Protocol):
    """A random-access source of examples, such as files, a memory map or an ArrayRecord; several threads read it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class StreamDataset(View):
    """Examples that are read when they are needed: `StreamDataset(Photos("/data/photos"))`.

    Args:
        source: Returns example i as a dict of arrays, with `weight` if weights differ; all examples have the
            same keys, shapes and types.
        workers: Processes that read; 0 reads in threads of this one, which is enough unless Python itself is the
            bottleneck. Worker processes need a source that can be pickled: one that opens files when first read.
        prefetch: Number of batches that are read at the same time, in all workers together, each by its own thread.

    Raises:
        ValueError: the source is empty or invalid, or a number is out of range.
    """

    def __init__(self, source: Source, *, workers: int = 0, prefetch: int = 4) -> None:
        if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
            raise ValueError(f"a source needs __len__ and __getitem__: got {type(source).__name__}")
        if len(source) < 1:
            raise ValueError(f"a source needs at least 1 example: got {len(source)} in {type(source).__name__}")
        if workers < 0 or prefetch < 1:
            raise ValueError(f"workers must be at least 0 and prefetch at least 1: got {workers=}, {prefetch=}")
        super().__init__(_Reading(source, workers, prefetch), np.arange(len(source)))

    def batches(self, indices: np.ndarray, weights: np.ndarray, start: int = 0) -> Generator[HostBatch]:
        """Yield the batches of an order of examples, as `gather` returns them for an `ArrayDataset`.

        Threads and processes start with the first batch. They end with the last batch, or when the generator is closed
        or deleted, which waits for batches that are being read. Processes take seconds to start: pass the order of
        several epochs at once.

        Args:
            indices: Which examples of this view, batch by batch. Int[np.ndarray, "steps batch"].
            weights: 0 for padding; multiplied with the source's own `weight`. Float[np.ndarray, "steps batch"].
            start: The first step to yield, to resume within an epoch.

        Yields:
            Arrays by name, with `weight`; 64-bit numbers are converted to 32 bits.

        Raises:
            ValueError: shapes differ, `start` is after the last step, or an example differs from the view's first one.
            RuntimeError: the source raised an error; the message names it and the example.
            StudyError: Grain is not installed, or the source cannot be sent to worker processes.
        """
        if np.ndim(indices) != 2 or np.shape(indices) != np.shape(weights):
            raise ValueError(
                f"indices and weights must have the same shape [steps, batch]: {np.shape(indices)}, {np.shape(weights)}"
            )
        if not 0 <= start <= len(indices):
            raise ValueError(f"start must be from 0 to {len(indices)}, the number of steps: got {start}")
        rows, weights = self._rows[np.asarray(indices)[start:]], np.asarray(weights, np.float32)[start:]
        batches = self._shared.read(rows, weights, first=int(self._rows[0]))
        _unfinished.add(batches)
        return batches

    def _column(self, name: str) -> np.ndarray:
        raise ValueError(
            f"a StreamDataset cannot be stratified by an array's name: got {name!r}; pass an array of the classes"
        )


@dataclass(frozen=True, eq=False)
class _Reading:
    """A source and its reading options, which views share."""

    source: Source
    workers: int
    prefetch: int

    def held_arrays(self) -> list[np.ndarray]:
        """Return the arrays of the source in memory; those that it maps from a file are not."""
        held = getattr(self.source, "__dict__", {}).values()
        return [array for array in held if isinstance(array, np.ndarray) and not isinstance(array, np.memmap)]

    def read(self, rows: np.ndarray, weights: np.ndarray, first: int) -> Generator[HostBatch]:
        """Yield the batches of rows of the source."""
        if not len(rows):
            return
        grain = _import_grain()
        workers = min(self.workers, len(rows))
        source = _Pickled(self.source) if workers else self.source
        threads = -(-self.prefetch // max(workers, 1))
        dataset = grain.MapDataset.source(_Batches(source, rows, weights, first)).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        )
        if workers:
            # Sent through a pipe. Shared memory takes half the time, but /dev/shm is small in containers, and Python's
            # resource tracker complains if a program ends within an epoch.
            through_pipe = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, through_pipe)
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _start_worker)
        with closing(iter(dataset)) as batches:
            yield from batches


@dataclass(frozen=True, eq=False)
class _Batches:
    """The source that Grain reads: the batch of a step, by its number."""

    source: Any
    rows: np.ndarray
    weights: np.ndarray
    first: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, step: int) -> HostBatch:
        examples = [self._checked(int(row)) for row in self.rows[step]]
        batch = {name: narrow(np.stack([example[name] for example in examples])) for name in examples[0]}
        weights = self.weights[step]
        return {**batch, "weight": batch["weight"].astype(np.float32) * weights if "weight" in batch else weights}

    @cached_property
    def _like(self) -> HostBatch:
        """The view's first example; read in the process that uses it, because reading may open files."""
        return self._example(self.first)

    def _checked(self, row: int) -> HostBatch:
        example, like = self._example(row), self._like
        if example.keys() != like.keys():
            raise ValueError(
                f"all examples must have the same keys: example {row} has {sorted(example)}, "
                f"example {self.first} has {sorted(like)}"
            )
        for name, array in example.items():
            if (array.shape, array.dtype) != (like[name].shape, like[name].dtype):
                raise ValueError(
                    f"all examples must have the same shapes and types: {name!r} has {array.shape} {array.dtype} in "
                    f"example {row}, but {like[name].shape} {like[name].dtype} in example {self.first}"
                )
        return example

    def _example(self, row: int) -> HostBatch:
        try:
            example = self.source[row]
        except Exception as error:
            # A plain RuntimeError, because the source's own type of error may not be picklable.
            raise RuntimeError(f"the source failed to read example {row}: {type(error).__name__}: {error}") from error
        if not isinstance(example, dict) or not example:
            raise ValueError(f"an example must be a dict of arrays: got {type(example).__name__} (example {row})")
        return {name: np.asarray(array) for name, array in example.items()}


class _Pickled:
    """A source in pickled form; another process gets the source back."""

    def __init__(self, source: Source) -> None:
        import cloudpickle

        # Other processes may be unable to import the module by name, and would have to run a study file again.
        module = sys.modules[type(source).__module__]
        found = importlib.machinery.PathFinder.find_spec(module.__name__.partition(".")[0])
        is_study_file = module.__name__.startswith(f"{study_files.__name__}.")
        by_value = (found is None and hasattr(module, "__file__")) or is_study_file
        if by_value:
            cloudpickle.register_pickle_by_value(module)
        try:
            self._bytes = cloudpickle.dumps(source)
        except Exception as error:
            raise StudyError(
                f"cannot send the source {type(source).__name__} to worker processes, because it cannot be pickled: "
                f"{type(error).__name__}: {error}; open its files when first read, or use workers=0"
            ) from error
        finally:
            if by_value:
                cloudpickle.unregister_pickle_by_value(module)

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._bytes,)


_unfinished: weakref.WeakSet[Generator[HostBatch]] = weakref.WeakSet()


# At the interpreter's exit, Grain would look for modules that no longer exist.
@atexit.register
def _close_unfinished() -> None:
    for batches in list(_unfinished):
        batches.close()


def _start_worker(index: int, count: int) -> None:
    """Make this process end with its parent, however that ends, and ignore Ctrl-C until then."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _import_grain() -> Any:
    try:
        grain = importlib.import_module("grain")
    except ImportError:
        raise StudyError(f"a StreamDataset needs Grain, which is not installed: {how_to_install('stream')}") from None
    from absl import flags

    # Grain reads its settings from command line flags, which must be parsed first; there are none.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain
