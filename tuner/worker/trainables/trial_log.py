"""The log of a trial that is a command: a file in its folder, and its last lines in the database."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from tuner.output.log import tell
from tuner.output.log_file import LONGEST_LINE, STORE_EVERY_S, LogFile
from tuner.output.sanitize import hide_password


class TrialLog:
    """The log of a trial.

    Args:
        path: The file, see `LogFile`.
        store: Called from time to time with the last lines.
    """

    def __init__(self, path: Path, store: Callable[[Sequence[str]], None]) -> None:
        self._file, self._store = LogFile(path), store
        self._is_stored = True
        self._stored_s = time.monotonic()
        self._is_broken = False

    def add(self, line: str) -> None:
        """Add a line without passwords; a very long one is cut."""
        self._file.add([hide_password(line[:LONGEST_LINE])])
        self._is_stored = False
        error = self._file.error
        if error is not None and not self._is_broken:
            told = f"cannot write {self._file.path}: {error.strerror or error}; the command continues"
            tell(told, "log", "warning")
            self._is_broken = True
        self.write_if_due()

    def write_if_due(self) -> None:
        """Store the last lines if they have changed, at most every few seconds."""
        if not self._is_stored and time.monotonic() >= self._stored_s + STORE_EVERY_S:
            self._write()

    def _write(self) -> None:
        self._store(list(self._file.last))
        self._is_stored, self._stored_s = True, time.monotonic()

    def last(self, count: int) -> list[str]:
        """Return the last lines."""
        return list(self._file.last)[-count:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_stored:
            with contextlib.suppress(OSError):
                self._write()
