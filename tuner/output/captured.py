"""What a worker prints, with the part of each trial in the trial's log: prints, native code and child processes.

The worker's standard output and error become pipes to a process, `pump.py`, that copies them to where they went
before. Marks in the pipes tell it whose output follows: `NUL TOKEN ` and then `to PATH` (the log of a trial, or nothing
for none), or `lines NUMBER PATH` and `end NUMBER PATH`, which ask for the last lines of a log; then another NUL. A mark
is a single small write, which no other write can interrupt.

Trials of a cohort run on threads that take turns: Python's `print` and `sys.stderr.write` are marked by thread. What
native code, child processes and other threads print then belongs to no trial.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import re
import secrets
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from tuner.output.log import tell
from tuner.output.log_file import STORE_EVERY_S

_PUMP = str(Path(__file__).with_name("pump.py"))
_ANSWER_S = 2.0
"""Seconds to wait for the end of a log; a terminal that is paused keeps it back."""
Store = Callable[[Sequence[str]], None]
try:
    _libc = ctypes.CDLL(None)
    _stdout = ctypes.c_void_p.in_dll(_libc, "stdout" if sys.platform == "linux" else "__stdoutp")
except (OSError, ValueError):
    _libc = _stdout = None


class CapturedOutput:
    """Captures the output of this process until it is closed.

    Args:
        by_thread: Whether several trials run at once, each on a thread of its own.
    """

    def __init__(self, *, by_thread: bool) -> None:
        self._mark = b"\0" + secrets.token_hex(8).encode() + b" "
        self._lock = threading.Lock()  # of requests
        self._asked = 0
        self._replies = b""
        self._stores: dict[str, Store] = {}
        self._is_closed = threading.Event()
        self._warned: set[str] = set()
        self._flush()
        self._saved = os.dup(1), os.dup(2)
        # A single pipe keeps the order of streams that go to the same place.
        pipes = [os.pipe() for _ in range(1 if _is_same(*self._saved) else 2)]
        reading, replying = os.pipe()
        self._reading, readers = reading, [pipe[0] for pipe in pipes]
        words = [self._mark[1:-1].decode(), str(replying), *map(str, readers)]
        self._pump = subprocess.Popen(
            [sys.executable, "-I", "-S", _PUMP, *words],
            stdin=subprocess.DEVNULL,
            stdout=self._saved[0],
            stderr=self._saved[1],
            pass_fds=(replying, *readers),
            start_new_session=True,  # it outlives a kill of the worker's group, to pass on the last lines
        )
        os.close(replying)
        os.dup2(pipes[0][1], 1)
        os.dup2(pipes[-1][1], 2)
        # Kept open: no write fails if the pump is killed, and marks do not depend on what the study does to 1 and 2.
        self._readers, self._writers = readers, [pipe[1] for pipe in pipes]
        self._of_thread = _OfThread() if by_thread else None
        self._streams = sys.stdout, sys.stderr
        if self._of_thread is not None:
            for name, descriptor in (("stdout", 1), ("stderr", 2)):
                writing = self._writers[min(descriptor, len(pipes)) - 1]
                stream = _ByThread(getattr(sys, name), writing, self._of_thread, self._mark)
                setattr(sys, name, cast("TextIO", stream))
        for work in (self._replace_pump, self._store_sometimes):
            threading.Thread(target=work, name="output", daemon=True).start()

    @contextlib.contextmanager
    def of_trial(self, path: Path, store: Store, store_last: Store) -> Generator[None]:
        """Write what is printed while the body runs to a log.

        Args:
            path: The log's file.
            store: Called with its last lines from time to time, on another thread.
            store_last: Called with its last lines at the end, if they have changed since.
        """
        text = str(path)
        self._switch(text)
        self._stores[text] = store
        try:
            yield
        finally:
            self._switch("")
            self._stores.pop(text, None)
            self._take(text, store_last, "end")

    def close(self) -> None:
        """Pass on what is left, and restore standard output and error."""
        self._is_closed.set()
        self._flush()
        self._ask("end", "")
        sys.stdout, sys.stderr = self._streams
        for at in (0, 1):
            os.dup2(self._saved[at], at + 1)
        for writing in self._writers:
            os.close(writing)

    def _switch(self, path: str) -> None:
        """Say whose output follows."""
        if self._of_thread is not None:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, _ByThread):
                    stream.end_line()
            self._of_thread.path = path
            return
        self._flush()
        for writing in self._writers:
            _write(writing, self._marked("to", path))

    def _marked(self, command: str, rest: str) -> bytes:
        return self._mark + f"{command} {rest}".encode("utf-8", "surrogateescape") + b"\0"

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        if _libc is not None:
            _libc.fflush(_stdout)  # what native code has printed

    def _take(self, path: str, store: Store, command: str) -> None:
        """Store the last lines of a log, if there are new ones."""
        found = self._ask(command, path)
        if found is None or found["lines"] is None:
            return
        if found["error"] is not None and path not in self._warned:
            self._warned.add(path)
            tell(f"cannot write {path}: {found['error']}; the trial continues", "log", "warning")
        store(found["lines"])

    def _ask(self, command: str, path: str) -> dict[str, Any] | None:
        """Return the answer to a request; None if it does not come."""
        with self._lock:
            self._asked += 1
            if self._pump.returncode is not None:
                return None
            _write(self._writers[0], self._marked(command, f"{self._asked} {path}"))
            end_s = time.monotonic() + _ANSWER_S
            while (left_s := end_s - time.monotonic()) > 0:
                line, found, rest = self._replies.partition(b"\n")
                if found:
                    self._replies = rest
                    answer: dict[str, Any] = json.loads(line)
                    if answer["number"] == self._asked:
                        return answer
                elif select.select([self._reading], [], [], left_s)[0]:
                    chunk = os.read(self._reading, 1 << 16)
                    if not chunk:  # the pump has been killed
                        return None
                    self._replies += chunk
            return None

    # --- On threads

    def _store_sometimes(self) -> None:
        """Store the last lines of the trials that run."""
        while not self._is_closed.wait(STORE_EVERY_S):
            for path, store in list(self._stores.items()):
                self._take(path, store, "lines")

    def _replace_pump(self) -> None:
        """Copy the output if something has killed the pump, so that no print ever waits for it."""
        self._pump.wait()
        if self._is_closed.is_set():
            return
        tell("the process that writes logs of trials has ended: they get nothing more", "log", "warning")
        for at in (0, 1):
            os.dup2(self._saved[at], at + 1)
        while True:  # what was written before, and what child processes write
            for reader in select.select(self._readers, [], [])[0]:
                chunk = re.sub(re.escape(self._mark) + rb"[^\0]*\0", b"", os.read(reader, 1 << 16))
                _write(self._saved[self._readers.index(reader)], chunk)


class _OfThread(threading.local):
    path: str = ""
    lines: dict[int, str] | None = None


class _ByThread(io.TextIOBase):
    """A stream that marks each line with the trial of the thread that writes it.

    Args:
        stream: The stream.
        descriptor: Its descriptor.
        of_thread: The trial of each thread, and the lines that it has begun.
        mark: How marks begin.
    """

    def __init__(self, stream: TextIO, descriptor: int, of_thread: _OfThread, mark: bytes) -> None:
        self._stream, self._descriptor, self._of_thread, self._mark = stream, descriptor, of_thread, mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str, /) -> int:
        path = self._of_thread.path
        if not path:
            return self._stream.write(text)
        begun = self._begun()
        lines, found, rest = (begun.get(self._descriptor, "") + text).rpartition("\n")
        begun[self._descriptor] = rest
        if found:
            self._write_lines(path, lines)
        return len(text)

    def end_line(self) -> None:
        """Write a line that this thread has begun."""
        rest = self._begun().pop(self._descriptor, "")
        if rest and self._of_thread.path:
            self._write_lines(self._of_thread.path, rest)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def _begun(self) -> dict[int, str]:
        if self._of_thread.lines is None:
            self._of_thread.lines = {}
        return self._of_thread.lines

    def _write_lines(self, path: str, lines: str) -> None:
        self._stream.flush()
        to, none = (self._mark + f"to {one}".encode("utf-8", "surrogateescape") + b"\0" for one in (path, ""))
        _write(self._descriptor, to + f"{lines}\n".encode("utf-8", "backslashreplace") + none)


def _write(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError):  # whoever read it has gone
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]


def _is_same(one: int, other: int) -> bool:
    """Return whether two descriptors lead to the same file."""
    first, second = os.fstat(one), os.fstat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)
