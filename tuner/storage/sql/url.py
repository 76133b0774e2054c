"""Checks storage URLs, and shows them without their password."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tuner.errors import StorageURLError
from tuner.output.log import tell
from tuner.output.sanitize import hide_password

DEFAULT_URL = "sqlite:///tuner.db"
_FORMS = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


# user:password@host:port/database?options; only the user's name may contain an @.
_POSTGRES = re.compile(r"(?:[^:/?#\s]*(?::[^@/?#\s]*)?@)?[^@/?#\s]*(?:/[^@?#\s]*)?(?:\?[^@\s]*)?")


def storage_url(given: str | None) -> str:
    """Return `given`, else `$TUNER_STORAGE`, else the SQLite file `tuner.db` in the working directory.

    Raises:
        StorageURLError: the URL cannot be a storage's.
    """
    url = given or os.environ.get("TUNER_STORAGE") or DEFAULT_URL
    driver_url(url)
    return url


def warn_of_password() -> None:
    """Warn on stderr if a storage's password is on this process's command line."""
    words = " ".join(sys.argv)
    if hide_password(words) != words:
        tell(
            "a password on the command line is visible in the process list; "
            "use $TUNER_STORAGE, a PGPASSFILE or a service file instead",
            "password_shown",
            "warning",
        )


def _shown(url: str) -> str:
    """Return a refused URL for display, hiding everything between a colon and an @, which may be a password."""
    return re.sub(r"(?s)(?<=:)(?!//).*@", "***@", hide_password(url))


def driver_url(url: str) -> str:
    """Return `url` with an explicit driver for SQLAlchemy.

    Raises:
        StorageURLError: the URL cannot be a storage's.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise StorageURLError(f"a storage URL must be {_FORMS}: got {_shown(url)!r}")
    if scheme == "sqlite":
        return _sqlite_url(url, rest)
    if scheme in ("postgresql", "postgres", "postgresql+psycopg2"):
        return _postgres_url(url, rest)
    raise StorageURLError(f"a storage URL must be {_FORMS}: got {scheme!r} in {_shown(url)!r}")


def _sqlite_url(url: str, rest: str) -> str:
    path = rest.removeprefix("/").partition("?")[0]
    if not rest.startswith("/") or path in ("", ":memory:") or path.startswith("file:"):
        raise StorageURLError(
            f"a SQLite storage must be a file, sqlite:///FILE, because workers share it: got {_shown(url)!r}"
        )
    folder = Path(path).parent
    if not folder.is_dir():
        raise StorageURLError(
            f"the folder of the SQLite storage does not exist: {str(folder)!r} (storage {url!r}); create it first"
        )
    return url


def _postgres_url(url: str, rest: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if not _POSTGRES.fullmatch(rest):
        raise StorageURLError(
            f"a storage URL's password must have its @ / ? # and blanks escaped, as %40 %2F %3F %23 %20: "
            f"got {_shown(url)!r}"
        )
    # `postgresql://` means psycopg 3 in SQLAlchemy 2.1, and psycopg2 in 2.0; we depend on psycopg2.
    try:
        parsed = make_url(f"postgresql+psycopg2://{rest}")
    except (ArgumentError, ValueError) as error:
        raise StorageURLError(
            f"a storage URL must be {_FORMS}: got {hide_password(url)!r} ({hide_password(str(error))})"
        ) from None
    if not parsed.database and "service" not in parsed.query:
        raise StorageURLError(f"a Postgres storage URL must name a database: got {hide_password(url)!r}")
    return f"postgresql+psycopg2://{rest}"


def for_optuna(url: str) -> str:
    """Return a URL for `RDBStorage`, which treats braces as placeholders."""
    return driver_url(url).replace("{", "{{").replace("}", "}}")


def is_new_file(url: str) -> bool:
    """Return whether a URL names a SQLite file that does not exist yet.

    Raises:
        StorageURLError: it does not exist and cannot be created.
    """
    path = sqlite_path(url)
    if path is None or path.exists():
        return False
    if not os.access(path.parent, os.W_OK):
        raise StorageURLError(f"the folder of the SQLite storage is not writable: {str(path.parent)!r}")
    return True


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for other URLs."""
    if not url.startswith("sqlite"):
        return None
    return Path(url.removeprefix("sqlite:///").partition("?")[0])
