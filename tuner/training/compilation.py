"""What compiling costs: the persistent cache, and the seconds spent."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.monitoring

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def use_persistent_cache() -> None:
    """Let programs outlive the process, in `$JAX_COMPILATION_CACHE_DIR` or the user's cache folder."""
    if jax.config.jax_compilation_cache_dir is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "tuner" / "xla"))
    # By default JAX keeps only what took a second to compile; a study's programs are smaller and many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


class CompileClock:
    """Adds up the seconds that JAX spends compiling in this process, from its creation on."""

    def __init__(self) -> None:
        self.total_s = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_s: float, **_details: object) -> None:
        if event == _COMPILE_EVENT:
            self.total_s += duration_s
