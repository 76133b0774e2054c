"""The account that a server runs as: Postgres refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from tuner.errors import UsageError

ACCOUNT = "tuner-postgres"
_INSTEAD = "or run the command as another user"


def server_account(folder: Path) -> pwd.struct_passwd | None:
    """Return the account to run as; None to stay the current one, which is not root.

    Root runs as the owner of the folder, if that is another user, else as `tuner-postgres`, which is created.

    Raises:
        UsageError: There is no such account.
    """
    if os.geteuid() != 0:
        return None
    owner = folder.stat().st_uid if folder.exists() else 0
    if owner == 0:
        return _ensure_account()
    try:
        return pwd.getpwuid(owner)
    except KeyError:
        raise UsageError(
            f"Postgres cannot run as root, and {folder} belongs to user {owner}, who has no account here: "
            f"change the folder's owner, {_INSTEAD}"
        ) from None


def _ensure_account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError:
        pass
    program = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise UsageError(
            f"Postgres cannot run as root, and there is no program useradd to create the account {ACCOUNT}: "
            f"create it yourself, {_INSTEAD}"
        )
    words = [program, "--system", "--user-group", "--no-create-home", "--home-dir", "/", "--shell", "/bin/false"]
    done = subprocess.run([*words, ACCOUNT], capture_output=True, text=True)
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError:
        raise UsageError(
            f"Postgres cannot run as root, and the account {ACCOUNT} cannot be created "
            f"({done.stderr.strip().partition(chr(10))[0]}): create it yourself, {_INSTEAD}"
        ) from None


def become(account: pwd.struct_passwd) -> None:
    """Make this process, which is root's, one of another account, for good.

    Raises:
        UsageError: The process may not do that.
    """
    try:
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    except OSError as error:
        raise UsageError(
            f"Postgres cannot run as root, and this process may not become {account.pw_name} ({error.strerror}): "
            "run the command as another user"
        ) from None
    os.chdir("/")  # the account may not read root's working folder


def first_closed(path: Path) -> Path | None:
    """Return the first folder on the way to a path, itself included, that this process may not enter or read."""
    for folder in [*reversed(path.parents), path]:
        if not os.access(folder, os.X_OK):
            return folder
    return None if os.access(path, os.R_OK) else path
