"""Engines for SQLite and Postgres, and one-line messages for errors of their drivers."""

from __future__ import annotations

import contextlib
import math
import re
import sqlite3
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Dialect, Engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from tuner.errors import StorageDenied, StorageLost, StorageMissing
from tuner.output.sanitize import hide_password
from tuner.storage.sql import deadlines, sqlite_files
from tuner.storage.sql.url import AnyURL, StorageURL, parse_url

_BUSY_TIMEOUT_S = 10
_CONNECT_TIMEOUT_S = 10
_PING_AFTER_S = 1.0

# Values set by a URL, a role or a database are not changed. A worker that is stopped (SIGSTOP) in the middle
# of a transaction would otherwise keep all others from claiming for as long as it is stopped.
_LIMITS = """
SELECT set_config(name, setting, {is_local})
FROM (VALUES ('statement_timeout', '120s'), ('lock_timeout', '30s'), ('idle_in_transaction_session_timeout', '30s'))
AS limits (name, setting) WHERE current_setting(name) = '0'
"""
_POOLED = "tuner_pooled"
_AFTER_THE_SERVER_S = 10.0
# A connection whose other side is gone is detected within a minute, not after TCP's two hours.
_KEEPALIVE = {
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 4,
    "tcp_user_timeout": 60_000,
}


def new_engine(url: AnyURL) -> Engine:
    """Return an engine with at most two connections, which all threads of a worker share."""
    url = parse_url(url)
    if url.file is not None:
        return _sqlite_engine(url, url.file)
    parsed = sqlalchemy.make_url(url.driver)
    arguments = {"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "tuner", **_KEEPALIVE}
    engine = sqlalchemy.create_engine(
        parsed,
        pool_size=2,
        max_overflow=0,
        connect_args={
            **{name: value for name, value in arguments.items() if name not in parsed.query},
            "connection_factory": deadlines.Connection,
            "cursor_factory": deadlines.Cursor,
        },
    )
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "connect", _prepare_postgres)
    event.listen(engine, "checkin", _note_use)  # codespell:ignore checkin
    event.listen(engine, "checkout", _ping)
    return engine


def _sqlite_engine(url: StorageURL, file: Path) -> Engine:
    # Of an immutable file, each use opens a new connection: someone who may write to it may have changed it since.
    pool = NullPool if sqlite_files.is_unwritable(file) else None
    engine = sqlalchemy.create_engine(url.driver, connect_args={"timeout": _BUSY_TIMEOUT_S}, poolclass=pool)

    def open_file(dialect: Dialect, _record: object, arguments: Any, options: dict[str, Any]) -> Any:
        def normal() -> Any:
            return dialect.connect(*arguments, **options)

        def immutable() -> Any:
            return dialect.connect(sqlite_files.immutable_uri(file), **{**options, "uri": True})

        return sqlite_files.opened(file, normal, immutable)

    event.listen(engine, "do_connect", open_file)
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _connect(dialect: Dialect, _record: object, arguments: Any, options: dict[str, Any]) -> Any:
    with contextlib.suppress(ValueError):  # libpq reports the error
        timeout_s = float(options["connect_timeout"])
        options = {**options, "connect_timeout": deadlines.connect_timeout(timeout_s if timeout_s > 0 else math.inf)}
    return dialect.connect(*arguments, **options)


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # NORMAL under WAL cannot corrupt the file; only a power cut may lose the last transactions.
    connection.execute("PRAGMA synchronous=NORMAL")


def _prepare_postgres(connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[_POOLED] = _is_pooled(connection)
    if not record.info[_POOLED]:
        with connection.cursor() as cursor:
            # After waiting for a lock, a transaction must see its holder's changes, whatever the database or role sets.
            isolation = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"
            limit = "SELECT setting::float / 1000 FROM pg_settings WHERE name = 'statement_timeout'"
            cursor.execute(f"{_LIMITS.format(is_local='false')}; {isolation}; {limit}")
            connection.limit_s = cursor.fetchone()[0] + _AFTER_THE_SERVER_S  # the server ends a statement first
    connection.commit()


def _is_pooled(connection: deadlines.Connection) -> bool:
    """Return whether a pooler such as PgBouncer is between us and the server: it invents the process ids.

    It may give each transaction another session, which other clients use later: nothing is set or prepared in it.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone() != (connection.get_backend_pid(),)


def is_pooled(connection: Connection) -> bool:
    """Return whether a connection goes through a pooler."""
    return connection.info.get(_POOLED, False)


def limit_transaction(connection: Connection) -> None:
    """Set limits and isolation for a new transaction, because a pooler's session does not keep them."""
    if is_pooled(connection):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED;" + _LIMITS.format(is_local="true"))


def _note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["used_at_s"] = time.monotonic()


def _ping(connection: deadlines.Connection, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Test only connections that were idle; `pool_pre_ping` would test all. A break during use is detected anyway."""
    if time.monotonic() < record.info.get("used_at_s", math.inf) + _PING_AFTER_S:
        return
    try:
        with autocommit(connection), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Exception as error:
        raise DisconnectionError(str(error)) from error  # the pool opens a new one


@contextlib.contextmanager
def autocommit(connection: Any) -> Generator[None]:
    """Make each statement on a psycopg2 connection a separate transaction.

    SQLAlchemy's isolation level AUTOCOMMIT does the same with a statement to the server before and after.
    """
    connection.autocommit = True
    try:
        yield
    finally:
        if not connection.closed:
            connection.autocommit = False


ADVICE = "; check the storage URL"
"""The end of the message for a database that cannot be reached."""


def lost(error: Exception, where: StorageURL | sqlalchemy.URL) -> StorageLost:
    """Return a one-line error for a database that does not answer, or whose disk is full."""
    shown = hide_password(str(where))
    original = getattr(error, "orig", None)
    if pgcode(error) == "53100" or sqlite_code(original) == sqlite3.SQLITE_FULL:
        return StorageLost(f"the storage's disk is full: {shown} ({error_line(error)}); free some space")
    kind = StorageMissing if sqlite_code(original) == sqlite3.SQLITE_NOTADB else StorageLost
    return kind(f"cannot reach the storage {shown}: {error_line(error)}{ADVICE}")


_STATEMENT_LINE = re.compile(r"\w+ \d+: ")
"""`LINE 2: CREATE TABLE ...`, in the server's language: where in a statement Postgres found the error."""


def error_line(error: Exception) -> str:
    """Return what a driver says of an error, in one line, without passwords and without the statement."""
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()
    if len(reason) > 1 and _STATEMENT_LINE.match(reason[1]):
        reason = reason[:1]
    return hide_password(" ".join(part.strip() for part in reason[:2]) if reason else type(error).__name__)


def connected_engine(url: AnyURL) -> Engine:
    """See `tuner.storage.connect`."""
    url = parse_url(url)
    if url.file is not None and not url.file.exists():
        raise StorageMissing(
            f"the storage does not exist: no file {str(url.file)!r} (storage {str(url)!r}); launch a study first"
        )
    engine = new_engine(url)
    try:
        with engine.connect() as connection:
            # `SELECT 1` would not read a SQLite file.
            is_sqlite = engine.dialect.name == "sqlite"
            query = "PRAGMA schema_version" if is_sqlite else "SELECT current_schema()"
            answer = connection.exec_driver_sql(query).scalar_one()
    except DBAPIError as error:
        engine.dispose()
        denied = None if url.file is None else sqlite_files.unreadable(url.file, error_line(error))
        raise denied or lost(error, url) from None
    if answer is None:  # without a schema every table seems to be missing
        engine.dispose()
        raise StorageDenied.because("no USAGE on a schema of the search path")
    return engine


def pgcode(error: Exception) -> str | None:
    """Return the SQLSTATE of a Postgres error; None if it has none."""
    return getattr(getattr(error, "orig", None), "pgcode", None)


def is_denied(error: Exception) -> bool:
    """Return whether the user lacks a right; of a SQLite file, to write to it."""
    original = getattr(error, "orig", None)
    return pgcode(error) == "42501" or (isinstance(original, sqlite3.Error) and "readonly" in str(original))


def sqlite_code(error: object) -> int | None:
    """Return SQLite's primary error code."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
