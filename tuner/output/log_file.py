"""The file of a trial's log, with its last lines. Imports nothing of the package: `pump.py` loads it alone."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

LONGEST_LINE = 10_000
STORED_LINES = 100
"""Last lines that the database gets."""
STORE_EVERY_S = 5.0
"""Seconds between two times that it gets them."""
_MAX_BYTES = 5 * 2**20


class LogFile:
    """A log: a file and its last lines.

    Args:
        path: The file, `log.txt`. Beyond 5 MiB it is renamed to `log.1.txt`, which replaces an older one. It and its
            folder are created with the first line.

    Attributes:
        last: The last lines.
        error: The first error while writing the file; None if there was none. The lines are then only in `last`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: deque[str] = deque(maxlen=STORED_LINES)
        self.error: OSError | None = None

    def add(self, lines: Sequence[str]) -> None:
        """Add lines; very long ones are cut."""
        lines = [line[:LONGEST_LINE] for line in lines]
        self.last.extend(lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(f"{line}\n" for line in lines))
                size = file.tell()
            if size > _MAX_BYTES:
                os.replace(self.path, self.path.with_name("log.1.txt"))
        except OSError as error:
            self.error = self.error or error
