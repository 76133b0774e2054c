"""Opens SQLite files that this process may only read: in a folder in which it cannot create files."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

from tuner.errors import StorageDenied

_WAL = b"\x02\x02"
_MODE_AT = 18
"""The offset of the two bytes of a file's header that are 2 for WAL: https://www.sqlite.org/fileformat.html."""


class Opening(Enum):
    """How to open a SQLite file."""

    NORMAL = "normal"
    IMMUTABLE = "immutable"
    """Without locks, and without the files that WAL needs beside it: correct only if nobody writes."""


def opening_of(*, is_wal: bool, has_log: bool, is_folder_writable: bool) -> Opening:
    """Return how to open a SQLite file.

    SQLite reads a file in WAL mode only if it can create, or find, two files beside it. In a folder that is not
    writable it can do so only while another process has the file open. Without a log no other process has it open.

    Args:
        is_wal: Whether the file is in WAL mode.
        has_log: Whether there is a log (`-wal`) beside it.
        is_folder_writable: Whether this process may create files beside it.
    """
    return Opening.IMMUTABLE if is_wal and not has_log and not is_folder_writable else Opening.NORMAL


def find_opening(file: Path) -> Opening:
    """Return how to open this file now."""
    return opening_of(is_wal=_is_wal(file), has_log=log_of(file).exists(), is_folder_writable=_is_folder_writable(file))


def log_of(file: Path) -> Path:
    """Return the path of a SQLite file's log."""
    return file.with_name(f"{file.name}-wal")


def immutable_uri(file: Path) -> str:
    """Return the URI with which SQLite opens a file as immutable."""
    return f"{file.absolute().as_uri()}?mode=ro&immutable=1"


def unreadable(file: Path, reason: str) -> StorageDenied | None:
    """Return the error for a file that cannot be opened because of its folder; None if that is not the reason.

    Args:
        file: The SQLite file.
        reason: What SQLite said.
    """
    log = log_of(file)
    if _is_folder_writable(file) or not log.exists():
        return None
    return StorageDenied(
        f"cannot read {str(file)!r} ({reason}): its folder is not writable, and {log.name!r} beside it holds changes "
        "of a process that still runs or was killed; stop it and run `tuner studies` as the owner of the folder, or "
        "copy both files to a folder that you may write to"
    )


def _is_folder_writable(file: Path) -> bool:
    return os.access(file.absolute().parent, os.W_OK)


def _is_wal(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            opened.seek(_MODE_AT)
            return opened.read(len(_WAL)) == _WAL
    except OSError:  # SQLite reports it
        return False
