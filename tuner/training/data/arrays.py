"""Datasets that fit on the device, and views of them: splits, folds, batches. They are shuffled on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from tuner.errors import is_int, nearest
from tuner.training.pytree import PyTree

Batch = dict[str, jax.Array]
"""Arrays with one leading axis; `weight` (Float[Array, "batch"]) is 0 for padding."""


def _put(tree: PyTree) -> Any:
    """Put arrays on the device, as real arrays even while a program is traced, because they outlive the trace."""
    with jax.ensure_compile_time_eval():
        return jax.device_put(tree)


class View:
    """A view: some rows of examples that all views share. Base class of all datasets."""

    def __init__(self, shared: Any, rows: np.ndarray) -> None:
        self._shared = shared
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: ArrayLike) -> Self:
        """Return a view of the examples of this view at `indices` (Int[Array, "n"]).

        Args:
            indices: In any order, repeats allowed; at least one.

        Raises:
            ValueError: `indices` is not a list of indices, or is empty.
            IndexError: no example has that index.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or not indices.size:
            raise ValueError(f"indices must be a non-empty list: got an array of shape {indices.shape}")
        view = type(self).__new__(type(self))
        View.__init__(view, self._shared, self._rows[indices])
        return view

    def split(
        self, fraction: float, seed: int, *, test: float | None = None, stratify: str | ArrayLike | None = None
    ) -> Splits[Self]:
        """Split the dataset at random: `fraction` of it for validation, the rest for training.

        Args:
            fraction: In (0, 1); each part must have at least one example.
            seed: The same seed gives the same split in every process.
            test: The fraction to hold out as a test set, if any. It does not change the validation set.
            stratify: An array's name, or one class per example (Array, "n"): each class is split in the same
                proportion, to within one example (two with `test`).

        Raises:
            ValueError: a part would be empty, the seed is invalid, or `stratify` has no class for each example.
        """
        # NaN, which cannot be rounded, is treated as 0.
        shares = [part if 0 < part < 1 else 0 for part in (fraction, test) if part is not None]
        counts = [round(share * len(self)) for share in shares]
        if min(counts) < 1 or sum(counts) >= len(self):
            sides, found = ("both", "") if test is None else ("all three", f" and test={test}")
            raise ValueError(
                f"{sides} parts of a split must have at least 1 example: got fraction={fraction}{found} for "
                f"{len(self)} examples"
            )
        rest = _shuffled(len(self), seed)
        classes, parts = self._classes(stratify), []
        for count in counts:
            # Evenly spaced among the examples sorted by class, so that each class contributes its share.
            spaced = np.arange(count) if classes is None else np.arange(count) * len(rest) // count
            chosen = np.zeros(len(rest), bool)
            chosen[_by_class(rest, classes)[spaced]] = True
            parts.append(self.take(rest[chosen]))
            rest = rest[~chosen]
        return Splits(self.take(rest), *parts)

    def folds(self, count: int, seed: int, *, stratify: str | ArrayLike | None = None) -> list[Splits[Self]]:
        """Return the splits of a k-fold cross-validation: each example is used for validation in exactly one of them.

        Args:
            count: From 2 to the number of examples; the sizes of the folds differ by at most one.
            seed: The same seed gives the same folds in every process.
            stratify: An array's name, or one class per example (Array, "n"): each class is divided evenly.

        Raises:
            ValueError: `count` is out of range, the seed is invalid, or `stratify` has no class for each example.
        """
        if not 2 <= count <= len(self):
            raise ValueError(f"the number of folds must be from 2 to the number of examples, {len(self)}: got {count}")
        order = _shuffled(len(self), seed)
        fold = np.empty(len(self), int)
        fold[_by_class(order, self._classes(stratify))] = np.arange(len(self)) % count
        return [Splits(self.take(order[fold != index]), self.take(order[fold == index])) for index in range(count)]

    def _classes(self, stratify: str | ArrayLike | None) -> np.ndarray | None:
        if stratify is None:
            return None
        classes = self._column(stratify) if isinstance(stratify, str) else np.asarray(stratify)
        if classes.shape != (len(self),):
            raise ValueError(
                f"stratify needs one class for each of the {len(self)} examples: got shape {classes.shape}"
            )
        return classes

    def _column(self, name: str) -> np.ndarray:
        """Return the array of a name for `stratify`."""
        raise NotImplementedError

    def held_arrays(self) -> list[np.ndarray]:
        """Return the arrays on the host that this view keeps in memory."""
        return [self._rows, *self._shared.held_arrays()]


def _shuffled(length: int, seed: object) -> np.ndarray:
    # NumPy would accept None as well, and shuffle differently each time.
    if not (is_int(seed) or isinstance(seed, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0: got {seed!r}")
    return np.random.default_rng(seed).permutation(length)


def _by_class(order: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Return the positions in an order of examples, sorted by class if there are classes."""
    return np.arange(len(order)) if classes is None else np.argsort(classes[order], kind="stable")


class ArrayDataset(View):
    """Arrays with one leading axis of examples, by name: `ArrayDataset(inputs=images, labels=labels)`.

    An array named `weight` sets the weights of the examples in losses and metrics; by default all are 1. Views (`take`,
    `split`, `folds`) copy nothing: they share the arrays and differ in `rows`. `arrays` and `host()` of a view return
    only its own examples.

    Raises:
        ValueError: there is no array, lengths differ, an array does not hold numbers, or a weight is invalid.
    """

    def __init__(self, **arrays: Any) -> None:
        lengths = {name: len(array) if np.ndim(array) else 0 for name, array in arrays.items()}
        if not lengths or len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(
                f"the arrays of a dataset must have the same length, at least 1: got {lengths or 'no array'}"
            )
        host = {name: np.asarray(array) for name, array in arrays.items()}
        for name, array in host.items():
            if not _is_numeric(array.dtype):
                raise ValueError(
                    f"the arrays of a dataset must hold numbers or booleans: {name!r} has dtype {array.dtype}; "
                    "encode it as numbers"
                )
        if "weight" in host:
            _check_weight(host["weight"])
        super().__init__(_Arrays(host), np.arange(next(iter(lengths.values()))))

    @cached_property
    def arrays(self) -> Batch:
        """The examples of this view only, on the device, with `weight`.

        For a whole dataset these are the arrays that its views share; for a view they are a copy, created on first use.
        Training copies nothing: it reads `rows` of the shared arrays.
        """
        is_whole = np.array_equal(self._rows, np.arange(len(self._shared)))
        return self._shared.on_device if is_whole else _put(self.host())

    @cached_property
    def rows(self) -> jax.Array:
        """Positions of this view's examples in the whole dataset: Int[Array, "n"], put on the device once."""
        return _put(self._rows.astype(np.int32))

    def host(self) -> dict[str, np.ndarray]:
        """Return the examples of this view as NumPy arrays, with `weight` and the types of `arrays`."""
        return self._shared.at(self._rows)

    def _column(self, name: str) -> np.ndarray:
        host = self._shared.host
        if name not in host:
            raise ValueError(
                f"the dataset has no array {name!r} (stratify): it has {', '.join(host)}{nearest(name, host)}"
            )
        return host[name][self._rows]


def _is_numeric(dtype: np.dtype) -> bool:
    # JAX knows numbers that NumPy does not have, such as bfloat16; for both, timedeltas are integers.
    return dtype.kind != "m" and (jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_))


def _check_weight(weight: np.ndarray) -> None:
    if weight.ndim != 1 or jnp.issubdtype(weight.dtype, np.complexfloating):
        raise ValueError(
            f"weight must have one real number per example: got shape {weight.shape}, dtype {weight.dtype}"
        )
    is_weight = (weight >= 0) & (weight <= np.finfo(np.float32).max)
    if not is_weight.all():
        at = int(np.argmin(is_weight))
        raise ValueError(f"weights must be finite and at least 0: got {weight[at]} for example {at}")


@dataclass(frozen=True, eq=False)
class _Arrays:
    """Arrays of examples that views share."""

    host: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.host.values())))

    def held_arrays(self) -> list[np.ndarray]:
        return list(self.host.values())

    @cached_property
    def on_device(self) -> Batch:
        return _put(self.at(slice(None)))

    def at(self, rows: Any) -> dict[str, np.ndarray]:
        taken = {name: narrow(array[rows]) for name, array in self.host.items()}
        length = len(next(iter(taken.values())))
        return {**taken, "weight": taken.get("weight", np.ones(length)).astype(np.float32)}


def narrow(array: np.ndarray) -> np.ndarray:
    """Convert 64-bit numbers to 32 bits, which JAX computes with."""
    narrower = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32}
    return array.astype(narrower.get(array.dtype.name, array.dtype))


D = TypeVar("D", bound=View)


@dataclass(frozen=True)
class Splits(Generic[D]):
    """The training and validation data of a study, and optionally test data."""

    train: D
    validation: D
    test: D | None = None

    def array_bytes(self) -> dict[int, int]:
        """Return the size in bytes of each array on the host, by the array's identity: views may share arrays."""
        parts = [part for part in (self.train, self.validation, self.test) if isinstance(part, View)]
        return {id(array): array.nbytes for part in parts for array in part.held_arrays()}


def steps_per_epoch(length: int, batch_size: int) -> int:
    """Return the number of batches that cover `length` examples, with the last one padded."""
    return -(-length // batch_size)


def batch_order(order: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Cut an order of examples into batches of equal size.

    The last batch is filled up from the start of the order, with weight 0. These are real examples, so that batch
    statistics remain meaningful.

    Args:
        order: Int[Array, "examples"].
        batch_size: May be larger than the number of examples, if a trial uses several devices.

    Returns:
        Indices Int[Array, "steps batch"] and weights Float[Array, "steps batch"].
    """
    steps = steps_per_epoch(order.shape[0], batch_size)
    indices = jnp.resize(order, (steps, batch_size))
    weights = (jnp.arange(steps * batch_size) < order.shape[0]).astype(jnp.float32).reshape(steps, batch_size)
    return indices, weights


def gather(arrays: Batch, indices: jax.Array, weights: jax.Array) -> Batch:
    """Return the batch of examples at `indices`, with `weight` multiplied by `weights`."""
    batch = {name: jnp.take(array, indices, axis=0) for name, array in arrays.items()}
    return {**batch, "weight": batch["weight"] * weights}
