"""A worker process as its launcher handles it: its pipes, its events and its exit."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuner.output.log import is_json, parse

EVENTS_VARIABLE = "TUNER_EVENTS_FD"
"""Has the number of the pipe for a worker's events, one JSON object per line."""


@dataclass
class Message:
    """A line from a worker.

    Attributes:
        index: The worker's place in the launch.
        worker: Its name.
        event: The event; a printed line is an event `output`, unless it is a line of a JSON log.
        is_printed: Whether the worker printed this line, for people.
    """

    index: int
    worker: str
    event: dict[str, Any]
    is_printed: bool = False


@dataclass
class WorkerProcess:
    """A running worker.

    Its standard input is a pipe without data: it is closed when the launcher ends for any reason, and the worker then
    ends too.
    """

    index: int
    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    inbox: queue.Queue[Message]
    process: subprocess.Popen[str] = field(init=False)
    last_lines: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            self.command,
            env={**self.env, "TUNER_WORKER": self.name, EVENTS_VARIABLE: str(writing)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=(writing,),
            # Only the launcher gets Ctrl-C; it then stops its workers.
            start_new_session=True,
        )
        os.close(writing)
        self._threads = [
            threading.Thread(target=self._read_events, args=(reading,), daemon=True),
            threading.Thread(target=self._read_output, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_events(self, reading: int) -> None:
        with open(reading, encoding="utf-8") as lines:
            for line in lines:
                self.inbox.put(Message(self.index, self.name, json.loads(line)))

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                event = (parse(line) if is_json() else None) or {"event": "output", "message": line.rstrip()}
                self.last_lines = [*self.last_lines[-19:], event.get("error") or event.get("message", "")]
                self.inbox.put(Message(self.index, self.name, event, is_printed=True))

    def has_ended(self) -> bool:
        """Return whether the process has exited and all its messages have been read."""
        if self.process.poll() is None:
            return False
        for thread in self._threads:
            thread.join(timeout=5)
        return True

    @property
    def ending(self) -> str:
        """How the process ended, as text."""
        code = self.process.returncode
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit status {code}"

    def stop(self) -> None:
        """Ask the worker to give back its trial and exit."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the worker and all processes that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
