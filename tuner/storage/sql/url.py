"""Storage URLs: parsed once, where they enter the program, and shown without their password."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tuner.errors import StorageURLError
from tuner.output.log import tell
from tuner.output.sanitize import hide_password

DEFAULT_URL = "sqlite:///tuner.db"
_FORMS = "sqlite:///FILE or postgresql+psycopg2://USER:PASSWORD@HOST:PORT/DATABASE"


# user:password@host:port/database?options; only the user's name may contain an @.
_POSTGRES = re.compile(r"(?:[^:/?#\s]*(?::[^@/?#\s]*)?@)?[^@/?#\s]*(?:/[^@?#\s]*)?(?:\?[^@\s]*)?")


@dataclass(frozen=True)
class StorageURL:
    """A checked storage URL, from `parse_url`; `str()` hides the password.

    Attributes:
        text: The URL as it was given, with its password.
        driver: The same for SQLAlchemy, with the name of the driver.
        file: The SQLite file; None for Postgres.
    """

    text: str = field(repr=False)
    driver: str = field(repr=False)
    file: Path | None

    def __str__(self) -> str:
        return hide_password(self.text)

    @property
    def for_optuna(self) -> str:
        """The URL for Optuna's `RDBStorage`, which fills in what is between braces."""
        return self.driver.replace("{", "{{").replace("}", "}}")

    def is_new_file(self) -> bool:
        """Return whether this is a SQLite file that does not exist yet.

        Raises:
            StorageURLError: it does not exist and cannot be created.
        """
        if self.file is None or self.file.exists():
            return False
        if not os.access(self.file.parent, os.W_OK):
            raise StorageURLError(f"the folder of the SQLite storage is not writable: {str(self.file.parent)!r}")
        return True


AnyURL: TypeAlias = StorageURL | str
"""The type of URL arguments of public functions."""


def storage_url(given: AnyURL | None) -> StorageURL:
    """Return `given`, else `$TUNER_STORAGE`, else the SQLite file `tuner.db` in the working directory.

    Raises:
        StorageURLError: it is not a valid storage URL.
    """
    return parse_url(given or os.environ.get("TUNER_STORAGE") or DEFAULT_URL)


def parse_url(url: AnyURL) -> StorageURL:
    """Check a storage URL; one that has been checked is returned as it is.

    Raises:
        StorageURLError: it is not a valid storage URL.
    """
    if isinstance(url, StorageURL):
        return url
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise StorageURLError(f"a storage URL must be {_FORMS}: got {_shown(url)!r}")
    if scheme == "sqlite":
        return StorageURL(url, url, _sqlite_file(url, rest))
    if scheme in ("postgresql", "postgres", "postgresql+psycopg2"):
        return StorageURL(url, _postgres_url(url, rest), None)
    raise StorageURLError(f"a storage URL must be {_FORMS}: got {scheme!r} in {_shown(url)!r}")


def warn_of_password() -> None:
    """Warn on stderr if a password is on this process's command line."""
    words = " ".join(sys.argv)
    if hide_password(words) != words:
        tell(
            "a password on the command line is visible in the process list; use an environment variable, such as "
            "$TUNER_STORAGE or $TUNER_NOTIFY, or a file instead",
            "password_shown",
            "warning",
        )


def _shown(url: str) -> str:
    """Return a refused URL for display, hiding everything between a colon and an @, which may be a password."""
    return re.sub(r"(?s)(?<=:)(?!//).*@", "***@", hide_password(url))


def _sqlite_file(url: str, rest: str) -> Path:
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
    return Path(path)


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
