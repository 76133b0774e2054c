"""What JAX does around a program: the compile cache and its clock, the backend, running out of memory."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.monitoring

from tuner.errors import how_to_install
from tuner.training.mesh import Layout

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"


def use_persistent_cache() -> None:
    """Let programs outlive the process, in `$JAX_COMPILATION_CACHE_DIR` or the user's cache folder."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "tuner" / "xla"))
    # By default JAX keeps only what took a second to compile; a study's programs are smaller and many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


class CompileClock:
    """Adds up what JAX compiles in this process, from its creation on.

    Attributes:
        total_s: Seconds spent, those of reading compiled programs from the persistent cache included.
        count: Programs compiled; one found in the persistent cache is not.
    """

    def __init__(self) -> None:
        self.total_s, self.count = 0.0, 0
        jax.monitoring.register_event_duration_secs_listener(self._add)
        jax.monitoring.register_event_listener(self._found)

    def _add(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILE_EVENT:
            self.total_s += duration_secs
            self.count += 1

    def _found(self, event: str, **kwargs: str | int) -> None:
        if event == _CACHE_HIT_EVENT:
            self.count -= 1


def worker_layout(wanted: str) -> Layout:
    """Return the layout of a worker's trials: all devices it was given.

    Args:
        wanted: The worker's device group as text, such as `gpu 0,1`; empty if it was given none. Virtual CPU devices
            are used only by who was given them.
    """
    is_ours = wanted or jax.default_backend() != "cpu"
    return Layout(jax.local_devices() if is_ours else ())


def missing_accelerator(wanted: str) -> str | None:
    """Return a warning if a worker was given GPUs or TPUs that JAX does not see, else None.

    Args:
        wanted: The worker's device group as text, such as `gpu 0,1`; empty if it was given none.
    """
    kind = wanted.partition(" ")[0]
    if kind not in ("gpu", "tpu") or jax.default_backend() != "cpu":
        return None
    extra = "cuda" if kind == "gpu" else "tpu"
    return f"this worker was given {wanted}, but JAX sees only CPUs: {how_to_install(extra)}"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that a device or the host had no memory left."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError)
