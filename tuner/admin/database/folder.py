"""The folder of a database: its files, who may read them, and the lock that keeps a second server out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from tuner.admin.database.signals import StopAsked, StopSignals
from tuner.errors import UsageError

_UNLOCKABLE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_DYING_S = 30.0
"""Seconds that a server whose command was killed may take to stop."""


@dataclass(frozen=True)
class Record:
    """What a start writes into the folder for the next one.

    Attributes:
        host: The machine.
        command: The process of `tuner database` there.
        address: Where the server listens.
        port: Its port.
    """

    host: str
    command: int
    address: str
    port: int


@dataclass(frozen=True)
class DatabaseFolder:
    """The files in the folder of a database."""

    path: Path

    @property
    def data(self) -> Path:
        """Postgres's data folder."""
        return self.path / "data"

    @property
    def url(self) -> Path:
        """The URL with the password; exists while the server accepts connections."""
        return self.path / "url"

    @property
    def password(self) -> Path:
        """The password of the role that owns the database."""
        return self.path / "password"

    @property
    def superuser_password(self) -> Path:
        """The password of the superuser."""
        return self.path / "superuser-password"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.path / "log"

    @property
    def certificate(self) -> Path:
        """The certificate of a server with TLS."""
        return self.path / "server.crt"

    @property
    def key(self) -> Path:
        """The certificate's private key."""
        return self.path / "server.key"

    @property
    def record(self) -> Path:
        """What the latest start wrote."""
        return self.path / "server.json"

    @property
    def lock(self) -> Path:
        """The file that a command and its server lock; it marks the folder as ours."""
        return self.path / "tuner-database.lock"

    def data_major(self) -> int | None:
        """Return the major version of the data; None if there are none yet."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.data / "PG_VERSION").read_text())
        return None

    def read_record(self) -> Record | None:
        """Return what the latest start wrote; None if that is damaged, or if there was no start."""
        with contextlib.suppress(UsageError, ValueError, TypeError):
            found = json.loads(_read(self.record))
            record = Record(**found)
            if isinstance(record.port, int) and isinstance(record.command, int):
                return record
        return None

    def write_record(self, record: Record) -> None:
        """Write the record of this start."""
        write_private(self.record, json.dumps(asdict(record)))

    def server_process(self) -> int | None:
        """Return the number of the process in the file that a server keeps while it runs; it may be stale."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.data / "postmaster.pid").read_text().split()[0])
        return None

    def export_line(self) -> str:
        """Return the shell command that makes the database the default storage."""
        import shlex

        return f'export TUNER_STORAGE="$(cat {shlex.quote(str(self.url))})"'


def check_folder(folder: DatabaseFolder) -> None:
    """Check that a folder can be used: it does not exist, is empty, or was made by `tuner database`.

    Raises:
        UsageError: It cannot.
    """
    path = folder.path
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        file = next((one for one in (path, *path.parents) if one.exists() and not one.is_dir()), path)
        where = "" if file == path else f" ({path})"
        raise UsageError(f"{file} is a file, not a folder{where}: pass a folder for the database") from None
    except OSError as error:
        raise UsageError(f"the database's folder cannot be read: {path} ({error.strerror})") from None
    if names and folder.lock.name not in names:
        raise UsageError(
            f"the database's folder must be empty, or one that `tuner database` made: {path} contains {names[0]!r}; "
            "pass a folder that does not exist yet"
        )


def create_folder(folder: DatabaseFolder, owner: tuple[int, int] | None) -> None:
    """Create the folder if it does not exist, and close it to other users.

    Args:
        folder: The folder, after `check_folder`.
        owner: User and group of a new or empty folder; None for those of this process.

    Raises:
        UsageError: It cannot be created, or it belongs to another user.
    """
    path = folder.path
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if owner is not None:
            os.chown(path, *owner)
        path.chmod(0o700)
    except OSError as error:
        raise UsageError(
            f"the database's folder must be one that you can write to: {path} ({error.strerror})"
        ) from None


def prepare_files(folder: DatabaseFolder) -> None:
    """Make passwords if there are none, and remove the URL of an earlier server.

    Raises:
        UsageError: A file cannot be written.
    """
    try:
        folder.url.unlink(missing_ok=True)
        for path in (folder.password, folder.superuser_password):
            if not path.exists():
                write_private(path, secrets.token_urlsafe(24) + "\n")
            path.chmod(0o600)
    except OSError as error:
        raise UsageError(f"cannot write to the database's folder: {folder.path} ({error.strerror})") from None


def read_password(path: Path) -> str:
    """Return the password in a file.

    Raises:
        UsageError: The file has none.
    """
    text = _read(path).strip()
    if not text or not text.isprintable():
        raise UsageError(
            f"the file of a password must have one line: got {path}; delete the file to get a new password"
        )
    return text


@dataclass(frozen=True)
class Lock:
    """The lock on a folder.

    It is held until the command and all processes of its server have ended, because they inherit the descriptor. So it
    cannot be stale.

    Attributes:
        descriptor: The open file.
        is_held: Whether the file system supports locks.
    """

    descriptor: int
    is_held: bool


def take_lock(folder: DatabaseFolder, signals: StopSignals) -> Lock:
    """Lock the folder; if the command that has it was killed, wait until its server has stopped.

    Raises:
        StopAsked: A signal arrived.
        UsageError: Another command or its server uses the folder.
    """
    try:
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UsageError(f"cannot write to the database's folder: {folder.path} ({error.strerror})") from None
    end_s = time.monotonic() + _DYING_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record = folder.read_record()
            is_dying = record is not None and record.host == socket.gethostname() and not _is_alive(record.command)
            if not is_dying or time.monotonic() > end_s:
                raise _in_use(folder, record, is_dying) from None
            if signals.count:
                raise StopAsked from None
            signals.wait(0.1)
        except OSError as error:
            if error.errno not in _UNLOCKABLE:
                raise UsageError(f"cannot lock the file {folder.lock}: {error.strerror}") from None
            return Lock(descriptor, is_held=False)
        else:
            return Lock(descriptor, is_held=True)


def _in_use(folder: DatabaseFolder, record: Record | None, is_killed: bool) -> UsageError:
    if is_killed:
        return UsageError(
            f"{folder.path} is in use: the `tuner database` that started its Postgres was killed, and the server still "
            f"runs; stop it with `kill -INT {folder.server_process()}`"
        )
    if record is None or not folder.url.exists():
        return UsageError(f"{folder.path} is in use: another `tuner database` is starting or stopping; try again")
    return UsageError(
        f"{folder.path} is in use: its Postgres listens on {record.address}, port {record.port}, of {record.host} "
        f"(process {record.command} of `tuner database`); use it with {folder.export_line()}"
    )


def check_other_servers(folder: DatabaseFolder, lock: Lock, is_network: bool) -> None:
    """Check that no server without this lock uses the data, and remove the file that a dead one left.

    Args:
        folder: The folder.
        lock: Its lock.
        is_network: Whether other machines can use the folder. This machine may not see their locks.

    Raises:
        UsageError: Another server may use the data.
    """
    process = folder.server_process()
    if process is None:
        return
    pid_file = folder.data / "postmaster.pid"
    record = folder.read_record()
    if (is_network or not lock.is_held) and record is not None and record.host != socket.gethostname():
        raise UsageError(
            f"{folder.path} was last used on {record.host}, and its Postgres did not stop there cleanly: two servers "
            f"would destroy the data; stop it there, or if {record.host} or its job has ended, delete {pid_file}"
        )
    if not _is_alive(process):
        return  # Postgres handles this itself
    working_folder = _working_folder(process)
    if working_folder == folder.data.resolve():
        raise UsageError(
            f"{folder.path} is in use by a Postgres that `tuner database` did not start (process {process}): stop it"
        )
    if working_folder is not None and lock.is_held:
        # After a reboot another process may have this number, and Postgres would take it for a server. We hold the
        # lock, so all processes of the earlier server have ended.
        pid_file.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _working_folder(process: int) -> Path | None:
    """Return the working folder of a process, for a server its data folder; None if it cannot be read."""
    try:
        return Path(os.readlink(f"/proc/{process}/cwd"))
    except OSError:
        return None


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, atomically."""
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _read(path: Path) -> str:
    """Return a file's text, unless the file is a symbolic link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(descriptor, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"cannot read the file {path}: {error.strerror}") from None
