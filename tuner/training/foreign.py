"""JAX for training functions of any library: keys, and pytrees in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuner.training.hparams import register
from tuner.training.pytree import PyTree
from tuner.training.saved import files
from tuner.training.saved.plain import from_plain, to_plain

__all__ = ["key", "placed_like", "read_tree", "register", "to_host", "write_tree"]


def key(seed: int) -> jax.Array:
    """Return a key (Key[Array, ""]) from a seed in [0, 2^31)."""
    return jax.random.key(seed)


def to_host(tree: PyTree) -> dict[str, Any]:
    """Return a copy of a pytree as nested dicts of NumPy arrays.

    Raises:
        CheckpointError: a leaf is not an array or a number.
    """
    # A copy even if NumPy could use JAX's memory directly: the next step may reuse that memory.
    return jax.tree.map(np.array, jax.device_get(to_plain(tree)))


def write_tree(folder: Path, epoch: int, plain: dict[str, Any]) -> None:
    """Write what `to_host` returned with Orbax into a new folder."""
    files.add(folder, files.Content(epoch, plain, {}), 1)


def placed_like(array: np.ndarray[Any, Any], like: PyTree) -> Any:
    """Return an array of the shape and dtype of `like` as a JAX array if that is one, else as it is."""
    return from_plain({"": array}, like) if isinstance(like, jax.Array | jax.ShapeDtypeStruct) else array


def read_tree(folder: Path, like: PyTree) -> Any:
    """Return what `write_tree` wrote, as a pytree like `like`; without it, as nested dicts of NumPy arrays.

    Raises:
        CheckpointError: the files are damaged, or the tree has another structure than `like`.
    """
    plain = files.load(files.newest_first(folder)[0]).plain
    if like is not None:
        return from_plain(plain, like)
    return plain[""] if plain.keys() == {""} else plain  # a tree that is one leaf
