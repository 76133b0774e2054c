"""The checkpoints of a training in several processes: rank 0 reads and writes them, and sends what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from tuner.training.mesh import local
from tuner.training.pytree import PyTree
from tuner.training.saved.checkpoints import Checkpoints
from tuner.training.saved.plain import flatten, from_plain, insert, to_plain

T = TypeVar("T")


class Sharing(Protocol):
    """What the checkpoints need of a group; see `tuner.worker.group.Group`."""

    @property
    def is_leader(self) -> bool: ...
    def agree(self, what: str, decide: Callable[[], T]) -> T: ...
    def share(
        self, what: str, pack: Callable[[], tuple[Any, Sequence[bytes | memoryview]]]
    ) -> tuple[Any, list[bytes]]: ...


class SharedCheckpoints(Checkpoints):
    """The checkpoints of a training in several processes, which need no folder in common.

    All processes make the same calls. Only rank 0 uses the folder. A checkpoint can be resumed by any number of
    processes.

    Args:
        group: The processes.
        folder: The folder of rank 0.
        options: See `Checkpoints`.
    """

    def __init__(self, group: Sharing, folder: str | Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self._group = group
        self._is_due = False

    def agree_to_stop(self, must_stop: Callable[[], bool]) -> bool:
        """Return whether rank 0 says that the training must stop; note whether it says that a checkpoint is due."""
        stops, self._is_due = self._group.agree("stop", lambda: (must_stop(), super(SharedCheckpoints, self).is_due()))
        return stops

    def is_due(self) -> bool:
        """Return what rank 0 said with its latest answer whether to stop."""
        return self._is_due

    def has_latest(self) -> bool:
        """See `Checkpoints.has_latest`."""
        return self._group.agree("has a checkpoint", super().has_latest)

    def latest_record(self) -> dict[str, Any] | None:
        """See `Checkpoints.latest_record`."""
        return self._group.agree("record of a checkpoint", super().latest_record)

    def restore(
        self, like: PyTree, *, shardings: PyTree = None, identity: Mapping[str, object] | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """See `Checkpoints.restore`; raises its errors on rank 0."""
        found = None
        if self._group.is_leader:
            found = super().restore(like, shardings=shardings, identity=identity)
        head, arrays = self._group.share("checkpoint", lambda: _packed(found))
        if self._group.is_leader or head is None:
            return found
        plain: dict[str, Any] = {}
        for (path, dtype, shape), array in zip(head["arrays"], arrays, strict=True):
            insert(plain, tuple(path), np.frombuffer(array, jax.numpy.dtype(dtype)).reshape(shape))
        for path in head["empty"]:
            insert(plain, tuple(path), {})
        self.restored = head["record"]
        return head["step"], from_plain(plain, like, shardings), head["record"]

    def save(self, step: int, tree: PyTree, record: Mapping[str, object]) -> None:
        """See `Checkpoints.save`."""
        if self._group.is_leader:
            super().save(step, tree, record)

    def offer_last(self, step: int, tree: PyTree, record: Mapping[str, object]) -> None:
        """See `Checkpoints.offer_last`."""
        if self._group.is_leader:
            super().offer_last(step, tree, record)

    def write_best(self) -> Path | None:
        """See `Checkpoints.write_best`."""
        return super().write_best() if self._group.is_leader else None

    def delete_latest(self) -> None:
        """See `Checkpoints.delete_latest`."""
        if self._group.is_leader:
            super().delete_latest()


def _packed(found: tuple[int, Any, dict[str, Any]] | None) -> tuple[Any, list[memoryview]]:
    """Return a restored checkpoint as plain JSON and the bytes of its arrays."""
    if found is None:
        return None, []
    step, tree, record = found
    parts = [(path, part) for path, part in flatten(jax.device_get(to_plain(local(tree))))]
    arrays = [(path, np.asarray(part, order="C")) for path, part in parts if not isinstance(part, Mapping)]
    head = {
        "step": step,
        "record": record,
        "arrays": [(path, array.dtype.name, np.shape(array)) for path, array in arrays],
        "empty": [path for path, part in parts if isinstance(part, Mapping)],
    }
    return head, [array.reshape(-1).view(np.uint8).data for _, array in arrays]
