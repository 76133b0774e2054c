"""JAX's runtime: the compile cache, compile times, the devices of a worker, and out-of-memory errors."""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
from jax.experimental.compilation_cache import compilation_cache

from tuner.errors import how_to_install
from tuner.output.log import tell
from tuner.training.loop.jax_private import provide_cache
from tuner.training.loop.program_cache import ProgramCache, kind_of_machine
from tuner.training.loop.programs import forget_dropped
from tuner.training.mesh import Layout

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"
_SAVED_EVENT = "/jax/compilation_cache/compile_time_saved_sec"
_KEPT_SPANS = 100


_CACHE_BYTES = 2 * 2**30
"""Default limit of the compile cache on disk in bytes; `$JAX_COMPILATION_CACHE_MAX_SIZE` overrides it."""
_TRIM_EVERY_S = 60.0


def use_persistent_cache(artifacts: Path | None = None, *, locks: bool = True) -> None:
    """Store compiled programs on disk, where all workers with the same artifacts folder find them.

    If the user has named a folder (`$JAX_COMPILATION_CACHE_DIR`), JAX uses that one, as it does without tuner.

    Args:
        artifacts: The folder of the artifacts; None if they are in object storage. Then, and if others can write to
            the folder in it, programs are stored in the user's cache folder.
        locks: Whether others wait for the programs that this process compiles.
    """
    settings: Any = jax.config
    limit = settings.jax_compilation_cache_max_size
    if not settings.jax_enable_compilation_cache or limit == 0:
        return
    named = settings.jax_compilation_cache_dir
    is_ours = named is None or (_state.cache is not None and named == str(_state.cache.folder))
    if is_ours:
        _use(_open_cache(artifacts, limit if limit > 0 else _CACHE_BYTES))
        if _state.cache is not None:
            _state.cache.locks = locks
    # By default JAX stores only programs that took a second to compile; a study has many smaller ones. In a folder of
    # ours it stores all of them: otherwise each worker would compile the small ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0 if is_ours else 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    tidy()


def tidy() -> None:
    """Remove programs that were not used for long from memory and disk; call it between trials."""
    forget_dropped()
    now_s = time.monotonic()
    if _state.cache is not None and now_s - _state.trimmed_at_s >= _TRIM_EVERY_S:
        _state.trimmed_at_s = now_s
        _state.cache.trim()


@dataclass
class _State:
    """The cache of this process.

    Attributes:
        cache: Where JAX stores programs; None if the user has named a folder, or none can be used.
        trimmed_at_s: When it was last trimmed, on the monotonic clock.
        is_provided: Whether JAX asks us for its cache; None before it is set up.
    """

    cache: ProgramCache | None = None
    trimmed_at_s: float = -math.inf
    is_provided: bool | None = None


_state = _State()


def _open_cache(artifacts: Path | None, limit: int) -> ProgramCache | None:
    """Open the cache in the artifacts folder, else the one in the user's cache folder."""
    shared = [] if artifacts is None else [artifacts / f"compiled-{os.geteuid()}"]
    own = _own_folder()
    kind = kind_of_machine()
    for root in (*shared, *([] if own is None else [own])):
        if _state.cache is not None and (_state.cache.root, _state.cache.limit) == (root, limit):
            return _state.cache
        try:
            return ProgramCache(root, kind, limit)
        except OSError as error:
            instead = f"this worker uses {own}" if root in shared and own else "this worker compiles its own"
            message = f"cannot share compiled programs in {root}: {error.strerror}; {instead}"
            tell(message, "compile_cache", "warning")
    return None


def _own_folder() -> Path | None:
    """Return the folder for programs in the user's cache folder; None for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "tuner" / "compiled"
    except RuntimeError:
        return None


def _use(cache: ProgramCache | None) -> None:
    """Make JAX use a cache, from its next program on."""
    if cache is not _state.cache:
        before = _state.cache
        _state.cache, _state.trimmed_at_s = cache, -math.inf
        compilation_cache.reset_cache()
        if before is not None:
            before.close()
    jax.config.update("jax_compilation_cache_dir", None if cache is None else str(cache.folder))
    if _state.is_provided is None:
        _state.is_provided = provide_cache(_cache_of)
        jax.monitoring.register_event_duration_secs_listener(_compiled)
        os.register_at_fork(after_in_child=_forked)
        if not _state.is_provided:
            message = "this version of JAX does not accept tuner's compile cache: workers that start at the same time"
            tell(f"{message} compile the same programs; install a version that it supports", "compile_cache", "warning")
    if _state.is_provided:
        # JAX 0.9 and 0.10 put the path of XLA's cache of autotuning into its keys.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    else:
        # JAX's own limit locks the folder for each read and write, and fails on files written without a limit.
        jax.config.update("jax_compilation_cache_max_size", -1)


def _cache_of(path: str) -> ProgramCache | None:
    return _state.cache if _state.cache is not None and path == str(_state.cache.folder) else None


def _compiled(event: str, duration_secs: float, **kwargs: str | int) -> None:
    """Release a program that JAX has not stored, because it cannot be compiled, or contains a callback."""
    if event == _COMPILE_EVENT and _state.cache is not None:
        _state.cache.release()


def _forked() -> None:
    if _state.cache is not None:
        _state.cache.forget()


class CompileClock:
    """Counts the programs that JAX compiles in this process, from its creation on.

    Attributes:
        total_s: Seconds during which programs were compiled, including waiting for another worker and reading programs
            from the persistent cache. Seconds during which several were compiled count once.
        count: Compiled programs; programs found in the persistent cache do not count.
        fetched: Programs found in the persistent cache.
        saved_s: Seconds that it took to compile the programs found there, less those of reading them.
    """

    def __init__(self) -> None:
        self.total_s, self.count, self.fetched, self.saved_s = 0.0, 0, 0, 0.0
        self._spans: list[tuple[float, float]] = []  # counted already; disjoint, and in order
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._add)
        jax.monitoring.register_event_listener(self._found)

    def _add(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event not in (_SAVED_EVENT, _COMPILE_EVENT):
            return
        with self._lock:  # programs compile on several threads
            if event == _SAVED_EVENT:
                self.saved_s += max(0.0, duration_secs)
                return
            self.count += 1
            end_s = time.perf_counter()
            began_s = end_s - duration_secs
            self.total_s += duration_secs
            while self._spans and self._spans[-1][1] > began_s:
                earlier = self._spans.pop()
                self.total_s -= earlier[1] - max(began_s, earlier[0])
                began_s = min(began_s, earlier[0])
            self._spans = [*self._spans[-_KEPT_SPANS:], (began_s, end_s)]

    def _found(self, event: str, **kwargs: str | int) -> None:
        if event == _CACHE_HIT_EVENT:
            with self._lock:
                self.count -= 1
                self.fetched += 1


def worker_layout(wanted: str) -> Layout:
    """Return the layout of a worker's trials: all devices that it was given.

    Args:
        wanted: The worker's device group as text, such as `gpu 0,1`; empty if it was given none. Several virtual CPU
            devices are used only if the worker was given them.
    """
    is_ours = wanted or jax.default_backend() != "cpu"
    # Also a single device is named, because programs for an unnamed one are others, which workers could not share.
    return Layout(jax.local_devices() if is_ours else jax.local_devices()[:1])


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


def uses_gpus() -> bool:
    """Return whether JAX trains on GPUs."""
    return jax.default_backend() == "gpu"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that a device or the host is out of memory."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError)
