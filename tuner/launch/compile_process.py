"""The process that compiles a study's programs during a launch, on cores that have nothing else to do."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tuner.launch.devices import DeviceGroup, environment
from tuner.launch.process import Message, WorkerProcess
from tuner.launch.progress import Progress
from tuner.trial.events import ProgramsCompiled

_GRACE_S = 1.0
MOST = 32
"""The maximum number of combinations of static hyperparameters. With more, a study needs few of them again."""


@dataclass
class CompileProcess:
    """A worker that only compiles; the launch continues whatever happens to it.

    It runs where the workers are on CPUs, and are fewer than the cores. The kernel gives it no time that another
    process wants. On GPUs it would need a part of their memory.

    Args:
        command: The command line of a worker.
        groups: The devices of the launch's workers.
    """

    command: Sequence[str]
    groups: Sequence[DeviceGroup]
    _process: WorkerProcess | None = None
    _has_begun: bool = False
    _inbox: queue.Queue[Message] = field(default_factory=queue.Queue[Message])

    def start(self, combinations: int, env: Mapping[str, str], like: int | None = None) -> None:
        """Start it, once, if it is of use.

        Args:
            combinations: The number of combinations of static hyperparameters.
            env: The environment of this process.
            like: The process of a worker, which has loaded the same data: there must be as much memory again.
        """
        cores = tuple(sorted({core for group in self.groups for core in group.cores}))
        on_cpus = all(group.kind == "cpu" for group in self.groups)
        if self._has_begun or not (on_cpus and 2 <= combinations <= MOST and len(self.groups) < len(cores)):
            return
        self._has_begun = True
        if like is not None and not _has_memory_for(like):
            return
        env = environment(DeviceGroup("cpu", cores[:1], cores), env)
        self._process = WorkerProcess(0, "compile", [*self.command, "--compile-only"], env, self._inbox)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(self._process.process.pid, os.SCHED_IDLE, os.sched_param(0))

    def watch(self, progress: Progress) -> None:
        """Show what it has compiled."""
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get_nowait()
                if isinstance(message.said, ProgramsCompiled):
                    progress.say(message.said)

    def end(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()  # it may be in the study's code, which may want to clean up
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.process.wait(_GRACE_S)
            process.kill()
            assert process.process.stdin is not None
            process.process.stdin.close()


def _has_memory_for(process: int, root: Path = Path("/proc")) -> bool:
    """Return whether the memory that a process uses is available once more; also if the system does not tell."""
    try:
        used = re.search(r"VmRSS:\s*(\d+) kB", (root / str(process) / "status").read_text())
        available = re.search(r"MemAvailable:\s*(\d+) kB", (root / "meminfo").read_text())
    except OSError:
        return True
    return used is None or available is None or int(used[1]) < int(available[1])
