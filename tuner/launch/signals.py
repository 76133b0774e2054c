"""Handles signals that end a process: the first lets it finish cleanly, the second ends it immediately."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

from tuner.output.log import note_ending

_IN_ORDER_S = 3.0
"""Seconds that a process may take to end after the second signal."""
_EXIT_STATUS = 130


def end_on_signals(numbers: Sequence[signal.Signals], stop: Callable[[], None]) -> Callable[[], None]:
    """Call `stop` at the first of these signals from now on; the second ends the process.

    The second raises KeyboardInterrupt in the main thread. Python runs handlers only in the main thread and between its
    own instructions, so a thread that waits in C, for example for a database, would not run them. Therefore another
    thread reads the signals, calls `stop`, and ends the process if it is still running three seconds after the second
    signal.

    In threads other than the main one, this does nothing, because they get no signals.

    Args:
        numbers: The signals.
        stop: Called at the first signal, from any thread and possibly twice.

    Returns:
        A function that restores the previous handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    is_over, came = threading.Event(), 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came += 1
        note_ending(True)
        if came > 1:
            raise KeyboardInterrupt
        stop()

    def watch() -> None:
        count = 0
        while not is_over.is_set() and (told := reading.recv(64)):
            count += sum(number in numbers for number in told)
            if count:
                stop()
            if count > 1 and not is_over.wait(_IN_ORDER_S):
                _end()

    before = {number: signal.signal(number, handle) for number in numbers}
    descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    _watching.add(writing)
    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()

    def undo() -> None:
        is_over.set()
        note_ending(False)
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        _watching.discard(writing)
        writing.close()  # the thread reads the end of the pipe
        thread.join(timeout=1.0)
        reading.close()

    return undo


_watching: set[socket.socket] = set()


def _forget() -> None:
    """Prevent a forked child from reporting its own signals to its parent."""
    if _watching:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)


def _end() -> None:
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # a live table hides the cursor
    os._exit(_EXIT_STATUS)
