"""The process that sends a study to trackers while a launcher runs: started with the study, ended after it."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tuner.launch.process import Message, WorkerProcess
from tuner.launch.progress import Progress
from tuner.tracking import MLFLOW_VARIABLE, check_trackers

_NICENESS = 10
GRACE_S = 15.0
"""How long a launcher's end may take to send the rest; most of it is for a study that ends while MLflow is imported."""


def mirror_command(mlflow: str | None, tensorboard: str | None, wandb: str | None) -> tuple[list[str], dict[str, str]]:
    """Return the options of `tuner track` and its environment; none of either if nothing is to be sent anywhere.

    Raises:
        UsageError: a tracker is named that cannot be one, or is not installed.
    """
    # What was typed must be right. $MLFLOW_TRACKING_URI may be meant for others: its troubles are the mirror's.
    check_trackers(mlflow, tensorboard, wandb)
    options = [f"--tensorboard={os.path.abspath(tensorboard)}"] if tensorboard else []
    options += [f"--wandb={wandb}"] if wandb else []
    uri = mlflow or os.environ.get(MLFLOW_VARIABLE)
    # Not as an option: there may be a password in it.
    return options, {MLFLOW_VARIABLE: uri} if uri else {}


@dataclass
class MirrorProcess:
    """`tuner track` under way; whatever becomes of it, the launch goes on.

    Args:
        asked: From `mirror_command`.
        url: The storage's URL.
    """

    asked: tuple[Sequence[str], Mapping[str, str]]
    url: str
    _study: str = ""
    _process: WorkerProcess | None = None
    _inbox: queue.Queue[Message] = field(default_factory=queue.Queue)

    def start(self, study: str) -> None:
        """Start it, once."""
        options, environment = self.asked
        if self._study or not (options or environment):
            return
        self._study = study
        env = {**os.environ, **environment, "TUNER_STORAGE": self.url, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "tuner", "track", *options, "--", study]
        self._process = WorkerProcess(0, "mirror", command, env, self._inbox)
        with contextlib.suppress(OSError):  # training comes first on a busy machine
            os.setpriority(os.PRIO_PROCESS, self._process.process.pid, _NICENESS)

    def watch(self, progress: Progress) -> None:
        """Show what it says, and notice its end."""
        process = self._process
        has_ended = process is not None and process.has_ended()
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get_nowait().event.get("message", "")
                progress.say({"event": "track", "message": message.removeprefix("tuner: ")})
        if process is not None and has_ended:
            self._process = None
            if process.process.returncode != 0:
                progress.note(
                    f"not all of study {self._study!r} was sent to its trackers ({process.ending}); "
                    f"`tuner track --once` with the same trackers sends the rest",
                    "track_ended",
                    "warning",
                )

    def end(self, progress: Progress) -> None:
        """Give it a moment to send the rest, then end it."""
        if self._process is None:
            return
        assert self._process.process.stdin is not None
        self._process.process.stdin.close()
        deadline_s = time.monotonic() + GRACE_S + 2.0
        while self._process is not None and time.monotonic() < deadline_s:
            self.watch(progress)
            time.sleep(0.05)
        if self._process is not None:
            self._process.kill()
            self.watch(progress)
