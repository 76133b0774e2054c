"""The log of a trial: a file in its folder, and its last lines in the database."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from tuner.output.log import tell

_LONGEST_LINE = 10_000
_MAX_BYTES = 5 * 2**20
_STORED_LINES = 100
_STORE_EVERY_S = 5.0


class TrialLog:
    """The log of a trial.

    Args:
        path: The file, `log.txt`. Beyond 5 MiB it is renamed to `log.1.txt`, which replaces an older one.
        store: Called from time to time with the last lines.
    """

    def __init__(self, path: Path, store: Callable[[Sequence[str]], None]) -> None:
        self._path, self._store = path, store
        self._lines: deque[str] = deque(maxlen=_STORED_LINES)
        self._is_stored = True
        self._stored_s = time.monotonic()
        self._is_broken = False

    def add(self, line: str) -> None:
        """Add a line; a very long one is cut."""
        line = line[:_LONGEST_LINE]
        self._lines.append(line)
        self._is_stored = False
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{line}\n")
                size = file.tell()
            if size > _MAX_BYTES:
                os.replace(self._path, self._path.with_name("log.1.txt"))
        except OSError as error:
            if not self._is_broken:
                told = f"cannot write {self._path}: {error.strerror or error}; the command continues"
                tell(told, "log", "warning")
            self._is_broken = True
        self.write_if_due()

    def write_if_due(self) -> None:
        """Store the last lines if they have changed, at most every few seconds."""
        if not self._is_stored and time.monotonic() >= self._stored_s + _STORE_EVERY_S:
            self._write()

    def _write(self) -> None:
        self._store(list(self._lines))
        self._is_stored, self._stored_s = True, time.monotonic()

    def last(self, count: int) -> list[str]:
        """Return the last lines."""
        return list(self._lines)[-count:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_stored:
            with contextlib.suppress(OSError):
                self._write()
