"""Compiles programs on other threads, so that several compile at once, and checks that they fit into memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax

from tuner.training.mesh import Layout
from tuner.training.pytree import PyTree

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Compiling:
    """Programs that are compiled before their first call, each on a thread of its own.

    They are traced on the caller's thread, because a trainer's code must not run on two threads at once. A call with
    the same shapes then finds its program compiled.
    """

    def __init__(self) -> None:
        self._started: dict[Any, tuple[Any, Future[Any]]] = {}  # with what was compiled, whose id is in the key

    def start(self, jitted: Any, *args: PyTree, **static: Any) -> Future[Any]:
        """Start to compile a program, unless that was done before.

        Args:
            jitted: What `jax.jit` returned.
            args: The arguments, or their shapes and types.
            static: Static arguments.

        Returns:
            The compiled program. None if that fails: the first call of the program then raises the error.

        Raises:
            Exception: the program cannot be traced.
        """
        leaves, structure = jax.tree.flatten(args)
        key = id(jitted), structure, tuple(_signature(leaf) for leaf in leaves), tuple(sorted(static.items()))
        if key not in self._started:
            lowered, future = jitted.lower(*args, **static), Future[Any]()
            threading.Thread(target=_compile, args=(lowered, future), name="compile").start()
            self._started[key] = jitted, future
        return self._started[key][1]


def _compile(lowered: Any, future: Future[Any]) -> None:
    try:
        future.set_result(lowered.compile())
    except BaseException:
        future.set_result(None)


def _signature(leaf: Any) -> tuple[Any, ...]:
    return getattr(leaf, "shape", ()), str(getattr(leaf, "dtype", type(leaf))), getattr(leaf, "weak_type", False)


def placed(shapes: PyTree, layout: Layout) -> Any:
    """Return shapes and types with the placement that arrays have after a program with a layout of one device."""
    if not layout.devices:
        return shapes
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding, weak_type=getattr(leaf, "weak_type", False)
        ),
        shapes,
        layout.shardings(shapes),
    )


def check_memory(program: Any, layout: Layout) -> None:
    """Check that a compiled program fits into the memory of its device, which it has not used yet.

    Its arguments are on an accelerator already. A host may use all of its memory, whatever other processes use now.

    Args:
        program: What `Lowered.compile()` returned; nothing is checked if it is None.
        layout: Its devices.

    Raises:
        MemoryError: it does not fit.
    """
    analysis = None if program is None else program.memory_analysis()
    if analysis is None:
        return
    needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    device = layout.devices[0] if layout.devices else jax.local_devices()[0]
    stats = device.memory_stats()
    if stats is None:
        needed, free = needed + analysis.argument_size_in_bytes, host_bytes()
    elif "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    else:
        return
    if needed > free:
        raise MemoryError(
            f"the program of a training step needs {_gib(needed)} of memory, and {device.device_kind} has "
            f"{_gib(free)}: use a smaller batch or model"
        )


def host_bytes(limits: Sequence[Path] = _LIMITS) -> int:
    """Return the memory of this machine, or what its container may use of it, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in limits:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # there is no such limit
            continue
    return total


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"
