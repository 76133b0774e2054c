"""What a trial has used since its attempt began: seconds, compilations, and GPUs."""

from __future__ import annotations

import time
from typing import Any

from tuner.worker.gpu_use import GpuUse
from tuner.worker.runtime import Clock, Compiled


class Spent:
    """What an attempt has used so far.

    Args:
        clock: Counts the compilations of the process.

    Attributes:
        gpu_use: What was sampled of its GPUs.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._began_s, self._before = clock, time.perf_counter(), Compiled.read(clock)
        self.gpu_use = GpuUse()

    def compiled(self) -> Compiled:
        """Return the compilations."""
        return Compiled.read(self._clock).since(self._before)

    def columns(self) -> dict[str, Any]:
        """Return the columns of the attempt's record."""
        compiled = self.compiled()
        return {
            "compilations": compiled.count,
            "compile_s": round(compiled.total_s, 4),
            # Some programs compile while others run.
            "train_s": round(max(0.0, time.perf_counter() - self._began_s - compiled.total_s), 4),
            **self.gpu_use.columns(),
        }
