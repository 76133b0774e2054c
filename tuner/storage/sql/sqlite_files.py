"""Opens SQLite files that this process may only read: in a folder in which it cannot create files."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuner.errors import StorageDenied


def may_be_immutable(*, has_log: bool, is_folder_writable: bool) -> bool:
    """Return whether nobody can be writing to a SQLite file, so that it may be opened without locks.

    SQLite reads a file in WAL mode only if it can create, or find, two files beside it. In a folder that is not
    writable it can do so only while another process has the file open. Without a log no other process has it open.

    Args:
        has_log: Whether there is a log (`-wal`) beside it.
        is_folder_writable: Whether this process may create files beside it.
    """
    return not has_log and not is_folder_writable


def is_unwritable(file: Path) -> bool:
    """Return whether a file may be opened as immutable now.

    The file itself is never opened here: to close it would drop the locks of all SQLite connections that this process
    has to it, and another process would then write over what they have written (https://www.sqlite.org/howtocorrupt.html,
    section 2.2).
    """
    return may_be_immutable(has_log=log_of(file).exists(), is_folder_writable=_is_folder_writable(file))


def opened(file: Path, normal: Callable[[], sqlite3.Connection], immutable: Callable[[], sqlite3.Connection]) -> Any:
    """Open a file: as usual, or as immutable if SQLite cannot create what it needs beside it and nobody can be writing.

    Args:
        file: The SQLite file.
        normal: Opens it as usual.
        immutable: Opens it without locks.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    if not is_unwritable(file):
        return normal()
    connection = normal()
    try:
        connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError:
        connection.close()
        return immutable() if is_unwritable(file) else normal()
    return connection


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
