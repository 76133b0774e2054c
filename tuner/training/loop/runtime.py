"""JAX's runtime: the compile cache, compile times, the devices of a worker, and out-of-memory errors."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import jax
import jax.monitoring

from tuner.errors import how_to_install
from tuner.training.loop.programs import forget_dropped
from tuner.training.mesh import Layout

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"


_CACHE_BYTES = 2 * 2**30
"""Default limit of the compile cache on disk in bytes; `$JAX_COMPILATION_CACHE_MAX_SIZE` overrides it."""
_TRIM_EVERY_S = 60.0


def use_persistent_cache() -> None:
    """Store compiled programs on disk, in `$JAX_COMPILATION_CACHE_DIR` or the user's cache folder.

    `tidy` limits the size of the latter; a folder set by the user follows only JAX's own settings.
    """
    global _cache
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "tuner" / "xla"))
        limit = getattr(jax.config, "jax_compilation_cache_max_size", -1)
        _cache = _Cache(root / "tuner" / "xla", limit if limit > 0 else _CACHE_BYTES)
        # JAX's own limit locks the folder for each read and write, and fails on files written without a limit.
        jax.config.update("jax_compilation_cache_max_size", -1 if limit > 0 else limit)
    # By default JAX stores only programs that took a second to compile; a study has many smaller ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    tidy()


def tidy() -> None:
    """Remove programs that were not used for long from memory and disk; call it between trials."""
    forget_dropped()
    if _cache is not None:
        _cache.trim_if_due()


class _Cache:
    """The compile cache on disk; when it is full, the least recently used files are deleted.

    Args:
        folder: The folder of the cache.
        limit: Its maximum size in bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._trimmed_at_s: float | None = None

    def trim_if_due(self) -> None:
        """Trim the cache, at most once a minute."""
        now_s = time.monotonic()
        if self._trimmed_at_s is None or now_s - self._trimmed_at_s >= _TRIM_EVERY_S:
            self._trimmed_at_s = now_s
            trim_cache(self.folder, self.limit)


_cache: _Cache | None = None


def trim_cache(folder: Path, limit: int) -> None:
    """Delete the least recently used programs if all together are larger than `limit` bytes.

    It frees a tenth of the limit more than necessary. Other processes may use the folder at the same time: they compile
    deleted programs again.
    """
    files = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            with contextlib.suppress(OSError):  # deleted by another process
                about = os.stat(path, follow_symlinks=False)
                # Many file systems update the time of the last read only once a day, or never.
                files.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= limit:
        return
    for _, size, path in sorted(files):
        if total <= 0.9 * limit:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size


class CompileClock:
    """Counts the programs that JAX compiles in this process, from its creation on.

    Attributes:
        total_s: Seconds spent, including reading compiled programs from the persistent cache.
        count: Compiled programs; programs found in the persistent cache do not count.
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
    """Return the layout of a worker's trials: all devices that it was given.

    Args:
        wanted: The worker's device group as text, such as `gpu 0,1`; empty if it was given none. Virtual CPU devices
            are used only if the worker was given them.
    """
    is_ours = wanted or jax.default_backend() != "cpu"
    return Layout(jax.local_devices() if is_ours else ())


def missing_accelerator(wanted: str) -> str | None:
    """Return a warning if a worker was given GPUs or TPUs that JAX does not find, else None.

    Args:
        wanted: The worker's device group as text, such as `gpu 0,1`; empty if it was given none.
    """
    kind = wanted.partition(" ")[0]
    if kind not in ("gpu", "tpu") or jax.default_backend() != "cpu":
        return None
    extra = "cuda" if kind == "gpu" else "tpu"
    return f"this worker was given {wanted}, but JAX finds only CPUs: {how_to_install(extra)}"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that a device or the host is out of memory."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError)
