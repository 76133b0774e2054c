"""Passes on what a worker prints, and writes the part of each trial to its log. A process beside the worker.

`python -I -S pump.py TOKEN REPLIES OUT [ERR]`, with numbers of pipes. It copies OUT to its standard output and
ERR to its standard error until both end. It is a process of its own so that nothing is lost when the worker dies, and
so that native code that prints while it holds Python's lock cannot wait for itself. Between the lines are marks, which
are not copied: see `tuner.output.captured`. Imports nothing of the package, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import sys
from pathlib import Path
from typing import Any

_CHUNK = 1 << 16
_PASSES = 20
"""Reads of each stream before a request is answered: more than a full pipe needs."""


def _load(path: Path) -> Any:
    """Return a module of the package that needs nothing else of it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_HERE = Path(__file__).parent
_log_file = _load(_HERE / "log_file.py")
_sanitize = _load(_HERE / "sanitize.py")


class _Logs:
    """The logs of the trials that run."""

    def __init__(self) -> None:
        self._files: dict[str, Any] = {}
        self._changed: set[str] = set()

    def add(self, path: str, lines: list[bytes]) -> None:
        texts = [_sanitize.hide_password(_visible(line).decode("utf-8", "replace")) for line in lines]
        if path not in self._files:
            self._files[path] = _log_file.LogFile(Path(path))
        self._files[path].add(texts)
        self._changed.add(path)

    def take(self, path: str, *, is_end: bool) -> dict[str, Any]:
        """Return the last lines of a log if there are new ones, and why its file could not be written."""
        file = self._files.get(path)
        has_changed = path in self._changed
        self._changed.discard(path)
        if is_end:
            self._files.pop(path, None)
        if file is None or not has_changed:
            return {"lines": None, "error": None}
        return {"lines": list(file.last), "error": file.error and (file.error.strerror or str(file.error))}


def _visible(line: bytes) -> bytes:
    """Return what a terminal shows of a line: the part after the last carriage return."""
    return line.rstrip(b"\r").rpartition(b"\r")[2][: 4 * _log_file.LONGEST_LINE]


class _Stream:
    """One of the worker's streams.

    Args:
        reading: The pipe.
        target: Where to copy it.
        mark: How marks begin.
        logs: The logs.
    """

    def __init__(self, reading: int, target: int, mark: bytes, logs: _Logs) -> None:
        self.reading, self._target, self._mark, self._logs = reading, target, mark, logs
        self._path = ""  # of the trial whose output this is
        self._rest = b""  # the beginning of a mark
        self._line = b""  # the beginning of a line of the trial

    def read(self) -> list[list[str]] | None:
        """Read once; return the requests that came, each as its words, and None at the end."""
        chunk = os.read(self.reading, _CHUNK)
        data, self._rest = self._rest + chunk, b""
        asked: list[list[str]] = []
        while True:
            text, found, after = data.partition(self._mark)
            if not found:
                cut = self._partial(text) if chunk else len(text)
                self._rest = text[cut:]
                self._take(text[:cut])
                break
            self._take(text)
            words, end, data = after.partition(b"\0")
            if not end:
                if chunk:
                    self._rest = found + words
                break
            command, _, rest = words.decode("utf-8", "surrogateescape").partition(" ")
            if command == "to":
                self._end_line()
                self._path = rest
            else:
                asked.append([command, *rest.split(" ", 1)])
        if not chunk:
            self._end_line()
        return asked if chunk else None

    def _partial(self, text: bytes) -> int:
        """Return where the beginning of a mark begins at the end of a text; its length if there is none."""
        at = text.rfind(b"\0", max(0, len(text) - len(self._mark)))
        return at if at >= 0 and self._mark.startswith(text[at:]) else len(text)

    def _take(self, text: bytes) -> None:
        if not text:
            return
        with contextlib.suppress(OSError):  # whoever read it has gone
            view = memoryview(text)
            while view:
                view = view[os.write(self._target, view) :]
        if not self._path:
            return
        *lines, rest = (self._line + text).split(b"\n")
        self._line = _visible(rest) if len(rest) > _CHUNK or b"\r" in rest[:-1] else rest
        if lines:
            self._logs.add(self._path, lines)

    def _end_line(self) -> None:
        if self._line and self._path:
            self._logs.add(self._path, [self._line])
        self._line = b""


def main() -> None:
    """Copy the streams until they end."""
    token, replies, *pipes = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # it ends with the worker
    logs, mark = _Logs(), b"\0" + token.encode() + b" "
    streams = [_Stream(int(pipe), at + 1, mark, logs) for at, pipe in enumerate(pipes)]
    selector = selectors.DefaultSelector()
    for stream in streams:
        selector.register(stream.reading, selectors.EVENT_READ, stream)
    while selector.get_map():
        asked: list[list[str]] = []
        for key, _ in selector.select():
            found = key.data.read()
            if found is None:
                selector.unregister(key.fd)
            else:
                asked += found
        for _ in range(_PASSES if asked else 0):
            for key, _ in selector.select(0):
                found = key.data.read()
                if found is None:
                    selector.unregister(key.fd)
                else:
                    asked += found
        for command, number, path in asked:
            reply = {"number": int(number), **logs.take(path, is_end=command == "end")}
            with contextlib.suppress(OSError):
                os.write(int(replies), json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
