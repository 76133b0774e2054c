"""The users of the dashboard: a text file with a line for each user, `NAME ROLE SECRET`.

The secret is an Argon2 hash of a password, or a SHA-256 of a bearer token; neither can be turned back.
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import os
import re
import secrets
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import UsageError
from tuner.output.log import say

MIN_PASSWORD_LENGTH = 8
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_TOKEN = "token:"
_PASSWORD = "$argon2"


class Role(enum.StrEnum):
    """Permissions of a user: view only, or also make changes."""

    READER = "reader"
    EDITOR = "editor"


@dataclass(frozen=True)
class User:
    """One line of the file."""

    name: str
    role: Role
    secret: str


def parse_users(text: str, where: str) -> dict[str, User]:
    """Return the users of a file by name.

    Args:
        text: The file's text. Empty lines and lines that begin with `#` are skipped.
        where: The file's name, for errors.

    Raises:
        UsageError: A line is invalid, or a name occurs twice. The message never has a secret.
    """
    users: dict[str, User] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 3 or words[1] not in list(Role) or not words[2].startswith((_PASSWORD, _TOKEN)):
            raise UsageError(
                f"invalid line {number} in {where}: each line must be NAME, reader or editor, and a hash; "
                "add lines with `tuner user add` or `tuner user token`"
            )
        if words[0] in users:
            raise UsageError(f"user {words[0]!r} is listed twice in {where}: remove line {number}")
        users[words[0]] = User(words[0], Role(words[1]), words[2])
    return users


def read_users(path: Path) -> dict[str, User]:
    """Read a users file; warn on stderr if others may read it.

    Raises:
        UsageError: The file cannot be read, or a line is invalid.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            f"cannot read the users file {path}: {reason}; "
            f"create it with `tuner user add NAME --role editor --users {path}`"
        ) from None
    if mode & 0o077:
        say(f"{path} can be read by others (mode {mode:03o}); run chmod 600 {path}")
    return parse_users(text, str(path))


def add_user(path: Path, name: str, role: Role, secret: str) -> None:
    """Append a user to a users file, which is created with mode 0600 if it does not exist.

    Args:
        path: The file.
        name: The user's name, which must not be in the file yet.
        role: What the user may do.
        secret: The result of `hash_password` or `hash_token`.

    Raises:
        UsageError: The name is invalid or taken, or the file cannot be written.

    Concurrency: safe from many processes.
    """
    _append(path, name, role, secret, if_empty=False)


def add_first_user(path: Path, name: str, password: str) -> bool:
    """Append an editor to a users file that has no users or does not exist; a file with users is not changed.

    Args:
        path: The file.
        name: The user's name.
        password: The user's password.

    Returns:
        Whether the user was added.

    Raises:
        UsageError: The name or the password is invalid, a line of the file is, or the file cannot be written.

    Concurrency: safe from many processes.
    """
    return _append(path, name, Role.EDITOR, hash_password(password), if_empty=True)


def _append(path: Path, name: str, role: Role, secret: str, *, if_empty: bool) -> bool:
    """Append a user; with `if_empty`, only to a file without users. Return whether the user was added."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"a user's name must be 1 to 64 letters, digits and . _ @ -: got {name!r}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise UsageError(f"cannot write the users file {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        users = parse_users(text, str(path))
        if if_empty and users:
            return False
        if name in users:
            raise UsageError(f"user {name!r} is already in {path}: remove that line first to replace it")
        lead = "\n" if text and not text.endswith("\n") else ""
        file.write(f"{lead}{name} {role.value} {secret}\n")
    return True


def hash_password(password: str) -> str:
    """Return the Argon2id hash of a password.

    Raises:
        UsageError: The password is too short.
    """
    from argon2 import PasswordHasher

    if len(password) < MIN_PASSWORD_LENGTH:
        raise UsageError(f"a password must have at least {MIN_PASSWORD_LENGTH} characters: got {len(password)}")
    return PasswordHasher().hash(password)


def new_token() -> str:
    """Return a bearer token: 256 random bits, which cannot be guessed, so that a plain hash of it is safe."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return the stored hash of a bearer token."""
    return _TOKEN + hashlib.sha256(token.encode()).hexdigest()


class Users:
    """The users of a file, read again whenever it changes.

    If the file cannot be read any more, no one can log in, and a warning is printed on stderr.

    Args:
        path: The file.

    Raises:
        UsageError: The file cannot be read, or has no users.

    Concurrency: safe from many threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()  # each check of a password takes 64 MiB
        self._seen = self._look()
        self._users = read_users(path)
        if not self._users:
            raise UsageError(
                f"the users file {path} has no users; add one with `tuner user add NAME --role editor --users {path}`"
            )
        self._of_nobody = hash_password(new_token())

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _now(self) -> dict[str, User]:
        with self._lock:
            seen = self._look()
            if seen != self._seen:
                self._seen = seen
                try:
                    self._users = read_users(self.path)
                except UsageError as error:
                    say(f"nobody can log in to the dashboard now: {error}")
                    self._users = {}
            return self._users

    def named(self, name: str) -> User | None:
        """Return the user with a name."""
        return self._now().get(name)

    def with_password(self, name: str, password: str) -> User | None:
        """Return the user with a name and a password. It takes as long for unknown names."""
        from argon2 import PasswordHasher
        from argon2.exceptions import InvalidHashError, VerificationError

        user = self.named(name)
        is_person = user is not None and user.secret.startswith(_PASSWORD)
        secret = user.secret if user is not None and is_person else self._of_nobody
        with self._one_at_a_time:
            try:
                PasswordHasher().verify(secret, password)
            except (VerificationError, InvalidHashError):
                return None
        return user

    def with_token(self, token: str) -> User | None:
        """Return the user with a bearer token."""
        secret = hash_token(token).encode()
        return next(
            (user for user in self._now().values() if secrets.compare_digest(user.secret.encode(), secret)), None
        )
