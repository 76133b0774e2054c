"""Converts pytrees to nested dicts of arrays, the content of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from tuner.errors import CheckpointError
from tuner.training.mesh import place as placed
from tuner.training.pytree import PyTree

Path = tuple[str, ...]

_ADDED = {"clipped_grad_norm": 0.0, "accumulated_weight": -1.0}
"""Parts of the state that checkpoints of earlier versions do not have, and the values to use for them."""


def to_plain(tree: PyTree) -> dict[str, Any]:
    """Convert a pytree to nested dicts with string keys and array leaves.

    Args:
        tree: A pytree of arrays, typed PRNG keys and numbers.

    Returns:
        Dicts keyed by field name, key or index. Typed keys become their key data; a part without leaves becomes `{}`.

    Raises:
        CheckpointError: A leaf is not an array, or two parts have the same name.
    """
    plain: dict[str, Any] = {}
    for path, leaf in _named_leaves(tree, is_leaf=_has_no_leaves):
        insert(plain, path, {} if _has_no_leaves(leaf) else _as_array(leaf, path))
    return plain


def from_plain(plain: Mapping[str, object], like: PyTree, shardings: PyTree = None) -> Any:
    """Convert the result of `to_plain` back to a tree.

    Args:
        plain: Nested dicts of arrays.
        like: A tree of the same structure, shapes and dtypes; its leaves are arrays, typed keys, numbers or
            `jax.ShapeDtypeStruct`s. NumPy arrays and numbers are restored as NumPy arrays, others as JAX arrays.
        shardings: The placement of JAX arrays: one `jax.sharding.Sharding`, or a tree of them that matches `like`; None
            for JAX's default device.

    Returns:
        The tree, bit for bit.

    Raises:
        CheckpointError: An array is missing, is not in `like`, or has another shape or dtype.
    """
    found = {path: array for path, array in flatten(plain) if not isinstance(array, Mapping)}
    treedef = jax.tree.structure(like)
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        places = [shardings] * treedef.num_leaves
    else:
        places = treedef.flatten_up_to(shardings)
    leaves = []
    for (path, expected), place in zip(_named_leaves(like), places, strict=True):
        added = [name for name in path if name in _ADDED]
        if path not in found and added:
            found[path] = np.full(np.shape(expected), _ADDED[added[0]], expected.dtype)
        if path not in found:
            raise CheckpointError(f"the checkpoint does not fit the state: the array {_name(path)} is missing")
        leaves.append(_restored(found.pop(path), expected, place, path))
    if found:
        raise CheckpointError(f"the checkpoint does not fit the state: the state has no array {_name(min(found))}")
    return jax.tree.unflatten(treedef, leaves)


def flatten(plain: Mapping[str, PyTree], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield (path, array) of nested dicts, and (path, {}) where a dict is empty."""
    for name, part in plain.items():
        if isinstance(part, Mapping) and part:
            yield from flatten(part, (*path, name))
        else:
            yield (*path, name), part


def insert(plain: dict[str, PyTree], path: Path, value: PyTree) -> None:
    """Put a value at a path of nested dicts.

    Raises:
        CheckpointError: The path already has a value.
    """
    for name in path[:-1]:
        plain = plain.setdefault(name, {})
    if path[-1] in plain:
        raise CheckpointError(f"two parts of the state have the same name: {_name(path)}")
    plain[path[-1]] = value


def _restored(array: PyTree, expected: PyTree, place: jax.sharding.Sharding | None, path: Path) -> Any:
    """Check an array and convert it to the kind of `expected`."""
    is_key = _is_key(expected)
    wanted = jax.eval_shape(jax.random.key_data, expected) if is_key else expected
    shape, dtype = np.shape(wanted), np.dtype(getattr(wanted, "dtype", None) or np.asarray(wanted).dtype)
    if (array.shape, array.dtype) != (shape, dtype):
        raise CheckpointError(
            f"the checkpoint does not fit the state: {_name(path)} is {_kind(array.shape, array.dtype)}, "
            f"and {_kind(shape, dtype)} in the state"
        )
    if is_key:
        return placed(jax.random.wrap_key_data(jax.device_put(array), impl=_key_impl(expected)), place)
    is_jax = isinstance(expected, jax.Array | jax.ShapeDtypeStruct)
    if not is_jax or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        return np.array(array)
    if getattr(expected, "weak_type", False) and shape == ():
        # A strongly typed argument would need another program.
        weak = jax.numpy.asarray(array.item())
        array = weak if weak.dtype == dtype else array
    return placed(array, place)


def _as_array(leaf: PyTree, path: Path) -> Any:
    """Return a leaf as an array, a typed key as its data."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if array.dtype.kind in "OUSMm":
        raise CheckpointError(f"every leaf of the state must be an array: {_name(path)} is {type(leaf).__name__}")
    return array


def _is_key(leaf: PyTree) -> bool:
    """Return whether a leaf, or its `ShapeDtypeStruct`, is a typed PRNG key."""
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(expected: PyTree) -> Any:
    """Return the implementation of a key, or of its ShapeDtypeStruct, which `key_impl` does not accept."""
    impls: list[Any] = []
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), expected)
    return impls[0]


def _has_no_leaves(part: PyTree) -> bool:
    return jax.tree.structure(part).num_leaves == 0


def _named_leaves(tree: PyTree, is_leaf: Callable[[PyTree], bool] | None = None) -> Iterator[tuple[Path, Any]]:
    """Yield (path of strings, leaf); a tree that is one leaf has the path ("",)."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]:
        if path or not _has_no_leaves(leaf):
            yield tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path) or ("",), leaf


def _name(path: Path) -> str:
    return "/".join(path) or "the root"


def _kind(shape: tuple[int, ...], dtype: DTypeLike) -> str:
    return f"{np.dtype(dtype).name}[{','.join(map(str, shape))}]"
