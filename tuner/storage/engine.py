"""Connections: engines for SQLite and Postgres, creation of the tables, and transactions."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from tuner.errors import StorageLost
from tuner.storage import tables
from tuner.storage.url import driver_url, hide_password, sqlite_path

if TYPE_CHECKING:
    import optuna

_BUSY_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 10
_CREATION_LOCK = 7_461_120  # any number that other users of the database are unlikely to lock


def _engine_arguments(url: str) -> dict[str, Any]:
    """Return `create_engine`'s arguments. On Postgres each engine keeps one connection; a worker has two engines."""
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": _BUSY_TIMEOUT_S}}
    return {
        "pool_size": 1,
        "max_overflow": 1,  # Optuna opens a second one for a moment when it checks the schema's version
        "pool_pre_ping": True,
        "connect_args": {"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "tuner"},
    }


def _new_engine(url: str) -> Engine:
    engine = sqlalchemy.create_engine(driver_url(url), **_engine_arguments(url))
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def set_pragmas(connection: Any, _record: Any) -> None:
            # NORMAL under WAL cannot corrupt the file; only a power cut may lose the last transactions.
            connection.execute("PRAGMA synchronous=NORMAL")

    return engine


def lost(error: Exception, url: str) -> StorageLost:
    """Return the one-line error for a database that does not answer."""
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()
    line = " ".join(part.strip() for part in reason[:2]) if reason else type(error).__name__
    return StorageLost(
        f"the storage must answer: {hide_password(url)} does not ({hide_password(line)}); "
        "check --storage or $TUNER_STORAGE"
    )


def connected_engine(url: str) -> Engine:
    """See `tuner.storage.connect`."""
    path = sqlite_path(driver_url(url))
    if path is not None and not path.exists():
        raise StorageLost(
            f"the storage must exist: there is no file {str(path)!r} (storage {url!r}); launch a study first"
        )
    engine = _new_engine(url)
    try:
        with engine.connect() as connection:
            # `SELECT 1` would not look into a SQLite file.
            is_sqlite = engine.dialect.name == "sqlite"
            connection.exec_driver_sql("PRAGMA schema_version" if is_sqlite else "SELECT 1")
    except DBAPIError as error:
        engine.dispose()
        raise lost(error, url) from None
    return engine


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a connection to read from.

    Raises:
        StorageLost: the database does not answer.
    """
    try:
        with engine.connect() as connection:
            yield connection
    except (OperationalError, InterfaceError) as error:
        raise lost(error, engine.url.render_as_string()) from error


@contextlib.contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that holds its write lock from the start, commit it at the end, roll back on an error.

    Raises:
        StorageLost: the database does not answer.
    """
    with reading(engine) as connection, connection.begin():
        if engine.dialect.name == "sqlite":
            # A deferred transaction that reads first and then writes fails at once when another writer came between.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


@contextlib.contextmanager
def _creation_lock(engine: Engine, path: Path | None) -> Iterator[None]:
    """Let one process at a time create tables: Optuna's `create_all` is not safe against another one."""
    if path is not None:
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
        return
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _CREATION_LOCK})
        yield
        connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": _CREATION_LOCK})


def open_rdb_storage(url: str) -> optuna.storages.BaseStorage:
    """See `tuner.storage.open_storage`."""
    import optuna

    full_url = driver_url(url)
    engine = _new_engine(url)
    try:
        with _creation_lock(engine, sqlite_path(full_url)):
            if engine.dialect.name == "sqlite":
                with engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            storage = optuna.storages.RDBStorage(full_url, engine_kwargs=_engine_arguments(full_url))
            tables.tuner_tables.create_all(storage.engine)
    except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
        raise lost(error, url) from None
    finally:
        engine.dispose()
    return optuna.storages.get_storage(storage)
