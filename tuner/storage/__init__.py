"""The storage of trials, with all SQL of the package. SQLite (WAL) is the default; use Postgres to share it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING

from tuner.output.sanitize import hide_password
from tuner.storage.sql.url import DEFAULT_URL, AnyURL, StorageURL, parse_url, storage_url, warn_of_password

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tuner.storage.optuna.storage import Storage

__all__ = [
    "DEFAULT_URL",
    "AnyURL",
    "StorageURL",
    "connect",
    "connect_when_up",
    "connected",
    "hide_password",
    "open_storage",
    "open_to_read",
    "parse_url",
    "storage_url",
    "warn_of_password",
]


def open_storage(url: AnyURL) -> Storage:
    """Return the storage at `url`, its tables created if it has none.

    Args:
        url: `sqlite:///FILE` or `postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE`.

    Raises:
        StorageURLError: the URL is not a valid storage URL.
        StorageLost: the database cannot be reached.
        StorageSchemaError: its tables are those of another version; `tuner upgrade` upgrades older ones.

    Concurrency: safe from many processes, also on an empty database.
    """
    from tuner.storage.optuna.storage import Storage

    return Storage(url)


def open_to_read(url: AnyURL) -> Storage:
    """Return the storage at `url` like `open_storage`, but create no tables; a database user may have only SELECT.

    Raises:
        StorageURLError: the URL is not a valid storage URL.
        StorageLost: the database cannot be reached.
        StorageSchemaError: its tables are those of another version; `tuner upgrade` upgrades older ones.
    """
    from tuner.storage.optuna.storage import Storage

    return Storage(url, creates_tables=False)


def connect(url: AnyURL) -> Engine:
    """Return an engine for `url` after a successful connection; creates nothing.

    Raises:
        StorageURLError: the URL is not a valid storage URL.
        StorageLost: the database cannot be reached, or the SQLite file does not exist.
        StorageDenied: the database user may not use any schema.
    """
    from tuner.storage.sql.engine import connected_engine

    return connected_engine(url)


@contextlib.contextmanager
def connected(url: AnyURL) -> Generator[Engine]:
    """Yield an engine like `connect`, and close its connections at the end.

    Raises:
        StorageURLError: the URL is not a valid storage URL.
        StorageLost: the database cannot be reached, or the SQLite file does not exist.
        StorageDenied: the database user may not use any schema.
    """
    engine = connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


def connect_when_up(url: AnyURL) -> Engine:
    """Return an engine like `connect`; wait for a Postgres server that is starting up, and print a message once.

    It waits for up to a minute, or up to ten seconds if the port is closed.

    Raises:
        StorageURLError: the URL is not a valid storage URL.
        StorageLost: the database cannot be reached, or the SQLite file does not exist.
        StorageDenied: the database user may not use any schema.
    """
    from tuner.storage.sql.server_startup import engine_when_up

    return engine_when_up(url)
