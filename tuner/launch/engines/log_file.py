"""A log file, read while it grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


class LogFile:
    """See `WorkerLog`."""

    poll_s = 0.5

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.path = path
        self._offset = 0

    def lines(self) -> Iterator[bytes]:
        """See `WorkerLog.lines`."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield line
