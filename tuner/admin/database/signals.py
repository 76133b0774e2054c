"""Signals that ask a command to stop, counted, and a wait that they and ending children interrupt."""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType, TracebackType


class StopAsked(Exception):
    """A signal asked the command to stop before its server was ready."""


class StopSignals:
    """Counts SIGINT, SIGTERM and SIGHUP while it is entered; the main thread waits with `wait`.

    A SIGHUP that is ignored, as below nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        self._descriptor = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)  # only wakes the wait
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._descriptor)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._reading.close()
        self._writing.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    def wait(self, seconds: float) -> None:
        """Wait until a signal arrives, a child ends, or the time is over."""
        if select.select([self._reading], [], [], seconds)[0]:
            self._reading.recv(4096)
