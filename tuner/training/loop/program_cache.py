"""A cache of compiled programs on disk, which workers share: of those that need a program, one compiles it.

JAX calls `ProgramCache.get` before it compiles a program, and `put` after it. Programs are native code: the folder
must be one to which nobody else can write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import threading
import time
from pathlib import Path

import jax

from tuner.output.log import tell

_MAGIC = b"tuner program 1\n"
_WAIT_S = 300.0
"""Seconds to wait for a worker that compiles a program; then this one compiles it too."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.2
_LONGEST_NAME = 200
_LOCK = ".lock"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PROCESSOR = frozenset({
    "vendor_id", "cpu family", "model", "flags",  # x86
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features",  # ARM
    "isa", "uarch", "cpu", "machine",  # RISC-V, POWER
})  # fmt: skip
"""Lines of /proc/cpuinfo that decide which instructions a program may have."""


class ProgramCache:
    """Compiled programs in a folder, each in one file; any number of processes may use it at the same time.

    Every file is written under another name and renamed, and begins with a digest: an incomplete or damaged one is not
    read, and is replaced. A process that finds no program locks its name before it compiles, and others wait for it.
    The kernel releases the lock of a process that is killed. A thread holds one lock at most, and never while it waits
    for another, so processes cannot wait for each other in a circle.

    Args:
        root: The folder for all kinds of machines; created if there is none.
        kind: The kind of machine that can run these programs, see `kind_of_machine`.
        limit: Maximum size of the root in bytes; `trim` keeps to it.
        wait_s: Seconds to wait for another process at most.

    Attributes:
        locks: Whether a process that compiles a program makes others wait for it, and waits for them.

    Raises:
        OSError: the root cannot be used, or other users can write to it.
    """

    def __init__(self, root: Path, kind: str, limit: int, *, wait_s: float = _WAIT_S) -> None:
        self.root, self.limit, self.wait_s, self.locks = root, limit, wait_s, True
        self.folder = self._path = root / kind
        root.parent.mkdir(parents=True, exist_ok=True)
        # Files are opened below these descriptors: a folder that is moved to the same path has no effect.
        self._root = open_own_folder(root)
        try:
            self._folder = open_own_folder(kind, self._root)
        except OSError:
            os.close(self._root)
            raise
        self._held: dict[int, tuple[str, int]] = {}  # thread -> the program that it compiles, and its lock
        self._can_write = True

    def close(self) -> None:
        """Release everything."""
        for thread in list(self._held):
            self._release(thread, is_stored=False)
        folder, root, self._folder, self._root = self._folder, self._root, -1, -1  # a late call gets an OSError
        os.close(folder)
        os.close(root)

    def get(self, key: str) -> bytes | None:
        """Return a program; None if the caller must compile it, after which it calls `put` or `release`."""
        self.release()
        name = key[-_LONGEST_NAME:]  # it ends with a digest
        found = self._read(name)
        # The processes of one program wait for each other while it is compiled; they must not wait for others as well.
        if found is None and self.locks and jax.process_count() == 1:
            with contextlib.suppress(OSError):  # the file system has no locks, or is full
                return self._wait(name)
        return found

    def put(self, key: str, value: bytes) -> None:
        """Store a program, and let those that wait for it go on."""
        name = key[-_LONGEST_NAME:]
        if len(value) > self.limit:
            return
        try:
            self._write(name, value)
        except OSError as error:
            if self._can_write:
                message = f"cannot store compiled programs in {self.folder}: {error.strerror}"
                tell(f"{message}; each worker compiles its own", "compile_cache", "warning")
            self._can_write = False
        else:
            self._can_write = True
            self.release(is_stored=True)

    def release(self, *, is_stored: bool = False) -> None:
        """Release the lock of this thread, if it has one: its program is compiled, or cannot be.

        Args:
            is_stored: Whether the program is stored. If it is not, nobody waits for it again.
        """
        if threading.get_ident() in self._held:
            self._release(threading.get_ident(), is_stored)

    def forget(self) -> None:
        """Close the locks in a process that was forked from this one, which would hold them for as long as it runs."""
        for _, lock in self._held.values():
            os.close(lock)
        self._held = {}

    def trim(self) -> None:
        """Delete the least recently used programs if all together are larger than the limit."""
        trim_cache(self._root, self.limit)

    def _read(self, name: str) -> bytes | None:
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        except OSError:
            return None
        with open(file, "rb") as opened, contextlib.suppress(OSError):
            about = os.fstat(file)
            content = opened.read()
            value = content[len(_MAGIC) + hashlib.sha256().digest_size :]
            if about.st_uid == os.geteuid() and content.startswith(_head(name, value)):
                os.utime(file)  # many file systems do not record when a file was read
                return value
        return None

    def _write(self, name: str, value: bytes) -> None:
        new = f".new-{platform.node()}-{os.getpid()}-{threading.get_ident()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(new, flags, 0o600, dir_fd=self._folder), "wb") as opened:
                opened.write(_head(name, value))
                opened.write(value)
            os.replace(new, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            self._unlink(new)
            raise

    def _wait(self, name: str) -> bytes | None:
        """Lock a program's name, or return the program as soon as another process has stored it."""
        end_s, pause_s = time.monotonic() + self.wait_s, _FIRST_PAUSE_S
        while (lock := self._lock(name)) is None:
            if (found := self._read(name)) is not None or time.monotonic() >= end_s:
                return found
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if pause_s > _FIRST_PAUSE_S:
            self._look_again()
        found = self._read(name)
        if found is not None:
            self._unlink(name + _LOCK)
        if found is None and os.fstat(lock).st_size == 0:
            self._held[threading.get_ident()] = (name, lock)
        else:  # it is stored, or cannot be
            os.close(lock)
        return found

    def _lock(self, name: str) -> int | None:
        """Return the locked file of a program's name; None if another process has locked it.

        Raises:
            OSError: files cannot be locked here.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(name + _LOCK, flags, 0o600, dir_fd=self._folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return lock

    def _release(self, thread: int, is_stored: bool) -> None:
        name, lock = self._held.pop(thread)
        with contextlib.suppress(OSError):
            if is_stored:
                self._unlink(name + _LOCK)
            else:
                os.write(lock, b"-")
        os.close(lock)

    def _look_again(self) -> None:
        """Change the folder, because an NFS client remembers for a while which files it has not."""
        probe = f".look-{platform.node()}-{os.getpid()}-{threading.get_ident()}"
        with contextlib.suppress(OSError):
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._folder))
            self._unlink(probe)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._folder)


def _head(name: str, value: bytes) -> bytes:
    digest = hashlib.sha256(name.encode())
    digest.update(value)
    return _MAGIC + digest.digest()


def open_own_folder(path: Path | str, parent: int | None = None) -> int:
    """Open a folder to which only this user can write, and return its descriptor; create it if there is none.

    Args:
        path: The folder; no symbolic link.
        parent: The descriptor of a folder to which the path is relative.

    Raises:
        OSError: it cannot be created or opened, or another user owns it or can write to it.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700, dir_fd=parent)
    opened = os.open(path, _DIRECTORY, dir_fd=parent)
    about = os.fstat(opened)
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        os.close(opened)
        mode = f"others may write to it (mode {about.st_mode & 0o777:04o})"
        raise PermissionError(errno.EPERM, mode if about.st_uid == os.geteuid() else "another user owns it")
    return opened


def kind_of_machine() -> str:
    """Return the name of the folder for this machine's programs: its versions, and a digest of processor and devices.

    JAX's own keys have neither the version of JAX nor, in all of its versions, the instructions that the host has.
    """
    backend = jax.default_backend()
    devices = sorted({device.device_kind for device in jax.local_devices()}) if backend != "cpu" else []
    about = [platform.machine(), *_processor(), *devices]
    digest = hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
    versions = [f"{name}-{importlib.metadata.version(name)}" for name in ("jax", "jaxlib")]
    return re.sub(r"[^\w.+-]", "_", "-".join([*versions, backend, digest]))


def _processor(file: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return which instructions the processor has; the name of the machine where the system does not tell."""
    found: set[str] = set()
    with contextlib.suppress(OSError, UnicodeError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in _PROCESSOR:
                found.add(f"{name.strip()}: {' '.join(sorted(value.split()))}")
    return sorted(found) or [platform.node()]


def trim_cache(folder: Path | int, limit: int) -> None:
    """Delete the least recently used programs if all together are larger than `limit` bytes.

    It frees a tenth of the limit more than necessary. Other processes may use the folder at the same time: they compile
    deleted programs again.

    Args:
        folder: The folder, or its descriptor.
        limit: Its maximum size in bytes.
    """
    try:
        root = os.dup(folder) if isinstance(folder, int) else os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        _trim(root, limit)
    finally:
        os.close(root)


def _trim(root: int, limit: int) -> None:
    files: list[tuple[float, int, str]] = []
    for place, _, names, descriptor in os.fwalk(".", dir_fd=root):
        for name in names:
            with contextlib.suppress(OSError):  # deleted by another process
                about = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                # Many file systems update the time of the last read only once a day, or never.
                files.append((max(about.st_atime, about.st_mtime), about.st_size, os.path.join(place, name)))
    total = sum(size for _, size, _ in files)
    if total <= limit:
        return
    for _, size, path in sorted(files):
        if total <= 0.9 * limit:
            break
        with contextlib.suppress(OSError):
            os.unlink(path, dir_fd=root)
        total -= size
