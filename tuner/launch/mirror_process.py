"""The process that sends a study to trackers during a launch."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tuner.launch.options import MirrorOptions
from tuner.launch.process import Message, WorkerProcess
from tuner.launch.progress import Progress
from tuner.output.log import LogLine
from tuner.storage import StorageURL

_NICENESS = 10
GRACE_S = 15.0
"""Seconds that the mirror has to send the rest after a signal."""
QUIET_S = 60.0
"""Seconds after a launch's end that the mirror waits for a tracker that accepts no data."""
START_S = 120.0
"""Seconds that its start (mostly imports) may take after a launch's end on a slow and busy machine."""
_KILL_AFTER_S = QUIET_S + 15.0
"""Seconds after which a mirror that should have exited is killed."""
_TELL_AFTER_S, _STOP_S = 5.0, 2.0


@dataclass
class MirrorProcess:
    """A running `tuner track`; the launch continues whatever happens to it.

    Args:
        asked: Its options.
        url: The storage's URL.
    """

    asked: MirrorOptions
    url: StorageURL
    _study: str = ""
    _process: WorkerProcess | None = None
    _inbox: queue.Queue[Message] = field(default_factory=queue.Queue[Message])
    _progressed_s: float | None = None
    """The time of its last report that a tracker accepted data; None until it starts to send."""

    def start(self, study: str) -> None:
        """Start it, once."""
        if self._study or not self.asked:
            return
        self._study = study
        env = {**os.environ, **self.asked.environment, "TUNER_STORAGE": self.url.text, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "tuner", "track", *self.asked.options, "--", study]
        self._process = WorkerProcess(0, "mirror", command, env, self._inbox)
        with contextlib.suppress(OSError):  # training has priority on a busy machine
            os.setpriority(os.PRIO_PROCESS, self._process.process.pid, _NICENESS)

    def watch(self, progress: Progress) -> None:
        """Show its messages, and check whether it has exited."""
        process = self._process
        has_ended = process is not None and process.has_ended()
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get_nowait()
                if isinstance(message.said, LogLine):
                    progress.say(LogLine("track", {"message": message.said.message.removeprefix("tuner: ")}))
                else:
                    self._progressed_s = time.monotonic()
        if process is not None and has_ended:
            self._process = None
            if process.process.returncode != 0:
                progress.note(
                    f"not all of study {self._study!r} was sent to its trackers ({process.ending}); "
                    f"`tuner track --once` with the same trackers sends the rest",
                    "track_ended",
                    "warning",
                )

    def end(self, progress: Progress, stop: threading.Event) -> None:
        """Let it send the rest, then stop it.

        It waits as long as a tracker accepts data; after a signal at most `GRACE_S` seconds, and not at all if the
        signal arrives during the wait.

        Args:
            progress: Shows its messages.
            stop: Set by signals.
        """
        process = self._process
        if process is None:
            return
        assert process.process.stdin is not None
        process.process.stdin.close()
        began_s = time.monotonic()
        if stop.is_set():
            self._watch_until(progress, lambda: time.monotonic() >= began_s + GRACE_S + 2.0)
        else:

            def is_over() -> bool:
                return stop.is_set() or time.monotonic() >= self._deadline_s(began_s)

            self._watch_until(progress, lambda: is_over() or time.monotonic() >= began_s + _TELL_AFTER_S)
            if self._is_running() and not is_over():
                study = self._study
                progress.note(f"sending the rest of study {study!r} to its trackers; press Ctrl-C to stop", "track")
            self._watch_until(progress, is_over)
        if self._is_running():
            process.stop()
            asked_s = time.monotonic()
            self._watch_until(progress, lambda: time.monotonic() >= asked_s + _STOP_S)
        if self._is_running():
            process.kill()
            self.watch(progress)

    def _is_running(self) -> bool:
        return self._process is not None

    def _watch_until(self, progress: Progress, is_over: Callable[[], bool]) -> None:
        """Show its messages until it has exited, or a condition holds."""
        while self._is_running() and not is_over():
            self.watch(progress)
            time.sleep(0.05)

    def _deadline_s(self, began_s: float) -> float:
        """Return the deadline for its next message, given the time when it was asked to stop."""
        if self._progressed_s is None:
            return began_s + START_S
        return max(began_s, self._progressed_s) + _KILL_AFTER_S
