"""Several devices in one trial: divides the batch among them, and copies or divides the parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jax.tree_util import KeyPath

from tuner.errors import StudyError
from tuner.training.pytree import PyTree

Device: TypeAlias = Any
"""A `jax.Device`, which type checkers do not recognize as a class."""
AXIS = "data"
"""The only axis of the mesh."""


@dataclass(frozen=True)
class Layout:
    """The placement of a trial's arrays. `Layout()` uses one device; `Layout(jax.devices())` divides each batch.

    Attributes:
        devices: The trial's devices; with a single one, the compiler gets no sharding constraints.
        shard_params: Divide large parameters, their averages and their optimizer states among the devices, instead
            of a copy on each (fully sharded data parallelism: Rajbhandari et al., 2020, stage 3).
        rules: The placement of an array, by the first pattern found in its path, such as
            `("Dense_0/kernel", PartitionSpec(None, "data"))`; takes precedence over `shard_params`.
        min_size: Arrays with fewer elements are copied.
    """

    devices: tuple[Device, ...] = ()
    shard_params: bool = False
    rules: tuple[tuple[str, PartitionSpec], ...] = ()
    min_size: int = 2**14

    def __init__(
        self,
        devices: Sequence[Device] = (),
        *,
        shard_params: bool = False,
        rules: Sequence[tuple[str, PartitionSpec]] = (),
        min_size: int = 2**14,
    ) -> None:
        for name, value in (("devices", tuple(devices)), ("shard_params", shard_params), ("rules", tuple(rules))):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "min_size", min_size)

    @property
    def size(self) -> int:
        """The number of devices among which a batch is divided."""
        return max(1, len(self.devices))

    @property
    def spans_hosts(self) -> bool:
        """Whether some of the devices are those of other processes, which run the same programs."""
        return any(device.process_index != jax.process_index() for device in self.devices)

    @property
    def _mesh(self) -> Mesh:
        return jax.make_mesh((self.size,), (AXIS,), axis_types=(AxisType.Auto,), devices=self.devices)

    def put(self, tree: PyTree) -> Any:
        """Return a pytree with each array on the trial's device, or copied to all of its devices."""
        if self.size == 1:
            return jax.device_put(tree, self.devices[0] if self.devices else None)
        return place(tree, NamedSharding(self._mesh, PartitionSpec()))

    def share(self, batch_size: int) -> np.ndarray:
        """Return the positions in a batch that the devices of this process compute: Int[np.ndarray, "share"]."""
        return np.concatenate([np.arange(*part.indices(batch_size)) for part in self._parts(batch_size)])

    def put_share(self, batch: PyTree, batch_size: int) -> Any:
        """Return a batch of which each process has read its share, divided among all devices.

        Args:
            batch: The examples at the positions that `share` returns, as NumPy arrays.
            batch_size: The size of the whole batch.
        """
        sharding, starts, length = NamedSharding(self._mesh, PartitionSpec(AXIS)), dict[int, int](), 0
        for part in self._parts(batch_size):
            first, last, _ = part.indices(batch_size)
            starts[first], length = length, length + last - first

        def put(array: np.ndarray) -> jax.Array:
            def rows(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                first, last, _ = index[0].indices(batch_size)
                return array[starts[first] :][: last - first]

            return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, rows)

        return jax.tree.map(put, batch)

    def _parts(self, batch_size: int) -> list[slice]:
        """Return the parts of a batch that the devices of this process compute, in the batch's order."""
        sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))
        indices = sharding.addressable_devices_indices_map((batch_size,)).values()
        parts = [index[0] for index in indices if index is not None]
        return sorted(parts, key=lambda part: part.indices(batch_size)[0])

    def divide(self, batch: PyTree) -> Any:
        """Constrain a batch inside a program to be divided along its first axis."""
        if self.size == 1:
            return batch
        return jax.lax.with_sharding_constraint(batch, NamedSharding(self._mesh, PartitionSpec(AXIS)))

    def copy(self, results: PyTree) -> Any:
        """Constrain what the host fetches from a program to be on each device, if no process has all devices."""
        if not self.spans_hosts:
            return results
        return jax.lax.with_sharding_constraint(results, NamedSharding(self._mesh, PartitionSpec()))

    def keep(self, state: PyTree) -> Any:
        """Constrain the placement of a state inside a program, so that it does not change between steps."""
        return state if self.size == 1 else jax.lax.with_sharding_constraint(state, self.shardings(state))

    def shardings(self, tree: PyTree) -> Any:
        """Return the sharding of each array of a state, from its path and shape.

        Raises:
            StudyError: a rule does not fit an array.
        """
        if self.size == 1:
            device = self.devices[0] if self.devices else jax.local_devices()[0]
            return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(device), tree)
        mesh = self._mesh
        return jax.tree_util.tree_map_with_path(lambda path, leaf: self._sharding(mesh, path, leaf), tree)

    def _sharding(self, mesh: Mesh, path: KeyPath, leaf: PyTree) -> Sharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in self.rules:
            if leaf.ndim and re.search(pattern, name):
                if self._fits(spec, leaf.shape):
                    return NamedSharding(mesh, spec)
                # An optimizer may keep an array of another shape for a parameter: that is copied.
                if name.startswith("params"):
                    raise StudyError(
                        f"the sharding rule {pattern!r} with {spec} does not fit {name} of shape {leaf.shape}: the "
                        f"length of a divided axis must be a multiple of the {self.size} devices"
                    )
        spec = PartitionSpec()
        divisible = [axis for axis, length in enumerate(leaf.shape) if length % self.size == 0]
        if self.shard_params and leaf.size >= self.min_size and divisible:
            widest = max(divisible, key=lambda axis: leaf.shape[axis])
            spec = PartitionSpec(*(AXIS if axis == widest else None for axis in range(leaf.ndim)))
        return NamedSharding(mesh, spec)

    def _fits(self, spec: PartitionSpec, shape: tuple[int, ...]) -> bool:
        axes = list(zip(spec, shape, strict=False))
        return len(spec) <= len(shape) and all(
            axis is None or (axis == AXIS and length % self.size == 0) for axis, length in axes
        )

    def batch_size(self, asked: int, length: int) -> int:
        """Return the size of a batch: the requested size, but not more than the data need.

        Raises:
            StudyError: it is not a multiple of the number of devices.
        """
        if asked % self.size:
            raise StudyError(
                f"batch_size must be a multiple of the number of devices: got batch_size={asked} on {self.size} devices"
            )
        return min(asked, -(-length // self.size) * self.size)


def place(tree: PyTree, shardings: PyTree) -> Any:
    """Return a pytree with its arrays placed like `jax.device_put`, which would compare them on all hosts each time.

    Args:
        tree: Arrays and numbers, the same in each process.
        shardings: One sharding, or a tree of them that matches.
    """
    leaves, structure = jax.tree.flatten(tree)
    several = isinstance(shardings, Sharding | None)
    places = [shardings] * len(leaves) if several else structure.flatten_up_to(shardings)
    if all(where is None or where.is_fully_addressable for where in places):
        return jax.device_put(tree, shardings)
    return structure.unflatten([_place(leaf, where) for leaf, where in zip(leaves, places, strict=True)])


def _place(leaf: PyTree, sharding: Sharding | None) -> Any:
    if sharding is None:
        return jax.device_put(leaf)
    if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place(np.asarray(jax.random.key_data(leaf)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if not hasattr(leaf, "dtype") or getattr(leaf, "weak_type", False):
        # Only a program keeps the weak type of a number, without which results would have other types.
        number = leaf.item() if hasattr(leaf, "dtype") else leaf
        return jax.jit(_same, out_shardings=sharding)(number)
    array = np.asarray(leaf)
    array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: np.asarray(array[index]))


def _same(number: PyTree) -> PyTree:
    return number


def local(tree: PyTree) -> Any:
    """Return a pytree with this process's own copy of each array that is copied to the devices of several hosts.

    Raises:
        StudyError: an array is divided among hosts, so that none has all of it.
    """

    def own(leaf: PyTree) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if not leaf.is_fully_replicated:
            raise StudyError("an array that is divided among several hosts cannot be read by one of them")
        return leaf.addressable_data(0)

    return jax.tree.map(own, tree)
