"""A worker process as its launcher handles it: its pipes, its events and its exit."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tuner.output.log import LogLine, is_json
from tuner.output.log import parse as parse_log
from tuner.trial.events import OF_PIPES, Event, parse

EVENTS_VARIABLE = "TUNER_EVENTS_FD"
"""Has the number of the pipe for a worker's events, one JSON object per line."""


@dataclass(frozen=True)
class Message:
    """A line from a worker.

    Attributes:
        index: The worker's place.
        worker: Its name.
        said: An event for its launcher, or a line that it printed, for people.
    """

    index: int
    worker: str
    said: Event | LogLine


def read_printed(line: str) -> LogLine:
    """Return what a process printed: a line of its JSON log if this process has one too, else an `output`."""
    found = parse_log(line) if is_json() else None
    if found is None or found.event in OF_PIPES:
        return LogLine("output", {"message": line.rstrip()})
    return found


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
                event = parse(line)
                if event is not None:
                    self.inbox.put(Message(self.index, self.name, event))

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                said = read_printed(line)
                self.last_lines = [*self.last_lines[-19:], str(said.fields.get("error") or said.message)]
                self.inbox.put(Message(self.index, self.name, said))

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
