"""What a worker uses of JAX: nothing, unless its study does."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from tuner.output.log import tell
from tuner.storage.artifacts import Artifacts

_FRAMEWORKS = {
    "jax": "jax", "jaxlib": "jaxlib", "flax": "flax", "optax": "optax", "orbax.checkpoint": "orbax-checkpoint",
    "equinox": "equinox", "haiku": "dm-haiku", "numpyro": "numpyro", "torch": "torch", "sklearn": "scikit-learn",
    "numpy": "numpy",
}  # fmt: skip
"""Module -> distribution, of which results may depend."""


class Clock(Protocol):
    """Counts compiled programs, those found in the compile cache, the seconds spent on both, and those saved."""

    total_s: float
    count: int
    fetched: int
    saved_s: float


@dataclass(frozen=True)
class Compiled:
    """What a clock shows, or the difference between two times; see `Clock`."""

    total_s: float
    count: int
    fetched: int
    saved_s: float

    @classmethod
    def read(cls, clock: Clock) -> Compiled:
        """Return what a clock shows now."""
        return cls(clock.total_s, clock.count, clock.fetched, clock.saved_s)

    def since(self, before: Compiled) -> Compiled:
        """Return the difference to an earlier time."""
        return Compiled(
            self.total_s - before.total_s,
            self.count - before.count,
            self.fetched - before.fetched,
            self.saved_s - before.saved_s,
        )


class Runtime(Protocol):
    """The runtime of a worker's framework."""

    @property
    def clock(self) -> Clock: ...
    @property
    def layout(self) -> Any:
        """The devices as a `tuner.training.mesh.Layout`; None without JAX."""
        ...

    @property
    def device_count(self) -> int: ...
    def trains_on_gpus(self) -> bool:
        """Return whether trials train on GPUs, as far as that is known."""
        ...

    def versions(self) -> dict[str, str]: ...
    def tidy(self) -> None:
        """Free memory between trials."""
        ...

    def is_out_of_memory(self, error: Exception) -> bool: ...


class _NoCompiler:
    total_s, count, fetched, saved_s = 0.0, 0, 0, 0.0


class PlainRuntime:
    """The runtime of a worker whose study has not imported JAX.

    Args:
        devices: The worker's devices as text, such as `gpu 0,1`.
    """

    layout = None

    def __init__(self, devices: str) -> None:
        self.clock: Clock = _NoCompiler()
        self._devices = devices
        # Like JAX, which has one CPU device however many cores there are.
        self.device_count = 1 if devices.startswith("cpu") else devices.count(",") + 1

    def trains_on_gpus(self) -> bool:
        """Return whether the worker was given GPUs, by its launcher or else by a scheduler."""
        return self._devices.startswith("gpu") or bool(not self._devices and os.environ.get("CUDA_VISIBLE_DEVICES"))

    def versions(self) -> dict[str, str]:
        """Return the versions of Python and of the frameworks that the study has imported."""
        loaded = {name for module, name in _FRAMEWORKS.items() if module in sys.modules}
        return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in loaded}}

    def tidy(self) -> None:
        pass

    def is_out_of_memory(self, error: Exception) -> bool:
        """Return whether an error means that a device or the host is out of memory."""
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's
            return True
        if "jax" in sys.modules:  # a function may import it late
            return JaxRuntime.is_out_of_memory(error)
        return isinstance(error, MemoryError)


class JaxRuntime:
    """The runtime of a worker whose study uses JAX: a compile cache on disk, and a clock for compilations.

    Args:
        devices: The worker's devices as text, such as `gpu 0,1`.
        artifacts: Where the study's artifacts are; the cache is there too if that is a folder.
        spans_hosts: Whether trials use the devices of all connected processes. They use no cache: a program that one
            process finds there and another compiles can make the other wait for ever.
    """

    def __init__(self, devices: str, artifacts: Artifacts | None = None, *, spans_hosts: bool = False) -> None:
        from tuner.training.hosts import group_layout
        from tuner.training.loop.runtime import CompileClock, missing_accelerator, use_persistent_cache, worker_layout

        if not spans_hosts:
            use_persistent_cache(artifacts.folder if artifacts is not None and artifacts.store is None else None)
        warning = missing_accelerator(devices)
        if warning:
            tell(warning, "no_accelerator", "warning")
        self.clock: Clock = CompileClock()
        self.layout = group_layout() if spans_hosts else worker_layout(devices)
        self.device_count = max(1, len(self.layout.devices))
        self._devices = devices

    def trains_on_gpus(self) -> bool:
        """Return whether JAX uses GPUs, or PyTorch may use those that the worker was given."""
        from tuner.training.loop.runtime import uses_gpus

        return uses_gpus() or ("torch" in sys.modules and self._devices.startswith("gpu"))

    def versions(self) -> dict[str, str]:
        """Return the versions on which results depend."""
        from tuner.training.saved.run_record import versions

        return versions()

    def tidy(self) -> None:
        from tuner.training.loop.runtime import tidy

        tidy()

    @staticmethod
    def is_out_of_memory(error: Exception) -> bool:
        """Return whether an error means that a device or the host is out of memory."""
        from tuner.training.loop.runtime import is_out_of_memory

        return is_out_of_memory(error)


def make_runtime(
    devices: str, *, needs_jax: bool, artifacts: Artifacts | None = None, spans_hosts: bool = False
) -> Runtime:
    """Return the runtime for a worker that has imported its study.

    Args:
        devices: The worker's devices as text, such as `gpu 0,1`; empty if it was given none.
        needs_jax: Whether the study has a `TrainerModule`.
        artifacts: Where the study's artifacts are, if that is known.
        spans_hosts: Whether trials use the devices of all connected processes.
    """
    if needs_jax or "jax" in sys.modules:
        return JaxRuntime(devices, artifacts, spans_hosts=spans_hosts)
    return PlainRuntime(devices)
