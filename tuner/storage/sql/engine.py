"""Connections: engines for SQLite and Postgres, and reading and writing through a database's bad minutes."""

from __future__ import annotations

import contextlib
import math
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tuner.errors import StorageDenied, StorageLost, StorageSchemaError
from tuner.output.log import tell
from tuner.storage.sql import deadlines
from tuner.storage.sql.url import driver_url, hide_password, sqlite_path
from tuner.storage.sql.waited import waiting

T = TypeVar("T")

_BUSY_TIMEOUT_S = 10
_CONNECT_TIMEOUT_S = 10
_PING_AFTER_S = 1.0

# Of what a URL, a role or a database sets itself, nothing is changed. A worker that is stopped (SIGSTOP) in the middle
# of a transaction would otherwise keep all others from claiming for as long as it is stopped.
_LIMITS = """
SELECT set_config(name, setting, {is_local})
FROM (VALUES ('statement_timeout', '120s'), ('lock_timeout', '30s'), ('idle_in_transaction_session_timeout', '30s'))
AS limits (name, setting) WHERE current_setting(name) = '0'
"""
_POOLED = "tuner_pooled"
_AFTER_THE_SERVER_S = 10.0
# A connection whose other side vanished without a word is noticed within a minute, not after TCP's two hours.
_KEEPALIVE = {
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 4,
    "tcp_user_timeout": 60_000,
}


def new_engine(url: str) -> Engine:
    """Return an engine that holds at most two connections: one for the work, one for the thread that renews leases."""
    full_url = driver_url(url)
    if full_url.startswith("sqlite"):
        engine = sqlalchemy.create_engine(full_url, connect_args={"timeout": _BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _prepare_sqlite)
        return engine
    parsed = sqlalchemy.make_url(full_url)
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
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", _ping)
    return engine


def _connect(dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> Any:
    with contextlib.suppress(ValueError):  # libpq says what is wrong
        timeout_s = float(options["connect_timeout"])
        options = {**options, "connect_timeout": deadlines.connect_timeout(timeout_s if timeout_s > 0 else math.inf)}
    return dialect.connect(*arguments, **options)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # NORMAL under WAL cannot corrupt the file; only a power cut may lose the last transactions.
    connection.execute("PRAGMA synchronous=NORMAL")


def _prepare_postgres(connection: Any, record: Any) -> None:
    record.info[_POOLED] = _is_pooled(connection)
    if not record.info[_POOLED]:
        with connection.cursor() as cursor:
            # Who waited for a lock must see what its holder has done, whatever the database or the role sets.
            isolation = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"
            limit = "SELECT setting::float / 1000 FROM pg_settings WHERE name = 'statement_timeout'"
            cursor.execute(f"{_LIMITS.format(is_local='false')}; {isolation}; {limit}")
            connection.limit_s = cursor.fetchone()[0] + _AFTER_THE_SERVER_S  # the server ends a statement first
    connection.commit()


def _is_pooled(connection: Any) -> bool:
    """Return whether a pooler such as PgBouncer is between us and the server: it makes up the process ids it tells.

    It may give each transaction another session, which then goes to others: nothing is set or prepared in it.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone() != (connection.get_backend_pid(),)


def is_pooled(connection: Connection) -> bool:
    """Return whether a connection goes through a pooler."""
    return connection.info.get(_POOLED, False)


def limit_transaction(connection: Connection) -> None:
    """Set for a transaction that begins what a pooler's session does not keep: limits, and the isolation."""
    if is_pooled(connection):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED;" + _LIMITS.format(is_local="true"))


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used_at_s"] = time.monotonic()


def _ping(connection: Any, record: Any, _proxy: Any) -> None:
    """Try a connection that has rested, as `pool_pre_ping` does for each: one that dies at work is noticed anyway."""
    if time.monotonic() < record.info.get("used_at_s", math.inf) + _PING_AFTER_S:
        return
    try:
        with _autocommit(connection), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Exception as error:
        raise DisconnectionError(str(error)) from error  # the pool makes a new one


@contextlib.contextmanager
def _autocommit(connection: Any) -> Iterator[None]:
    """Make each statement on a psycopg2 connection a transaction of its own.

    SQLAlchemy's isolation level AUTOCOMMIT does the same with a statement to the server before and after.
    """
    connection.autocommit = True
    try:
        yield
    finally:
        if not connection.closed:
            connection.autocommit = False


def lost(error: Exception, url: str) -> StorageLost:
    """Return the one-line error for a database that does not answer, or whose disk is full."""
    original = getattr(error, "orig", None)
    if _pgcode(error) == "53100" or _sqlite_code(original) == sqlite3.SQLITE_FULL:
        return StorageLost(f"the storage's disk is full: {hide_password(url)} ({_line(error)}); free some space")
    return StorageLost(
        f"the storage must answer: {hide_password(url)} does not ({_line(error)}); check --storage or $TUNER_STORAGE"
    )


def _line(error: Exception) -> str:
    """Return what a driver says of an error, in one line and without passwords."""
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()
    return hide_password(" ".join(part.strip() for part in reason[:2]) if reason else type(error).__name__)


def connected_engine(url: str) -> Engine:
    """See `tuner.storage.connect`."""
    path = sqlite_path(driver_url(url))
    if path is not None and not path.exists():
        raise StorageLost(
            f"the storage must exist: there is no file {str(path)!r} (storage {url!r}); launch a study first"
        )
    engine = new_engine(url)
    try:
        with engine.connect() as connection:
            # `SELECT 1` would not look into a SQLite file.
            is_sqlite = engine.dialect.name == "sqlite"
            connection.exec_driver_sql("PRAGMA schema_version" if is_sqlite else "SELECT 1")
    except DBAPIError as error:
        engine.dispose()
        raise lost(error, url) from None
    return engine


# --- Patience

_PATIENCE = "tuner_patience"
_LONGEST_PAUSE_S = 10.0
NOT_PREPARED = {"26000", "42P05"}
"""A prepared statement is not there, or another of its name is: a pooler gave us another session."""
# Serialization, deadlock, lock timeout, a pooler without prepared statements: rolled back, and works when repeated.
_CONFLICTS = {"40001", "40P01", "55P03", *NOT_PREPARED}
_PASSING = {
    "25006",  # read only: a standby that is being promoted
    "25P03",  # we were idle in a transaction for too long
    "53100",  # the disk is full
    "53200",  # out of memory
    "53300",  # too many connections
    "57014",  # statement timeout
    "57P01",  # shut down, crashed, starting up
    "57P02",
    "57P03",
    "57P05",
    "58030",  # a file could not be read or written
}
_PASSING_IN_SQLITE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_LASTING = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "invalid connection option",
    "unsupported startup parameter",  # PgBouncer's
    "no such database",
    "no such user",
)


@dataclass(frozen=True)
class Patience:
    """How long to wait for a database that does not answer, and when to wait no longer."""

    seconds: float
    is_over: Callable[[], bool] = lambda: False
    conflict_tries: int = 8
    statement_s: float = math.inf
    """How long a server may be silent in the middle of a statement before its connection is given up; twice as long at
    the next try. Never longer than the server's own `statement_timeout` and ten seconds."""


IMPATIENT = Patience(0.0)
PROMPT = Patience(0.0, conflict_tries=0, statement_s=10.0)
"""Not even a lock is waited for longer than the driver does."""


def patient(engine: Engine, patience: Patience) -> Engine:
    """Return an engine on the same connections whose reads and writes wait for a database that is away."""
    return engine.execution_options(**{_PATIENCE: patience})


@contextlib.contextmanager
def hurried(patience: Patience) -> Iterator[None]:
    """Have this thread's reads and writes wait no longer than this while the body runs, whatever their engine says."""
    before, _of_thread.patience = _of_thread.patience, patience
    try:
        yield
    finally:
        _of_thread.patience = before


def read(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Return what `work` reads on a connection. It is called again if that was cut off.

    Raises:
        StorageLost: the database does not answer.
    """

    def attempt(_: int) -> T:
        # Each statement sees what is committed before it anyway; this saves a BEGIN and a ROLLBACK over the network.
        with engine.connect() as connection, _single_statements(connection):
            return work(connection)

    return retried(engine, attempt)


def _single_statements(connection: Connection) -> contextlib.AbstractContextManager[None]:
    if connection.dialect.name == "sqlite":
        return contextlib.nullcontext()
    return _autocommit(connection.connection.dbapi_connection)


def write(engine: Engine, work: Callable[[Connection, int], T]) -> T:
    """Return the result of `work`, done in a transaction that holds its write lock from the start.

    Args:
        engine: The storage's engine.
        work: Gets the connection and how often it was tried before. If it was, an earlier try may have been committed:
            a connection that breaks during COMMIT leaves that open.

    Raises:
        StorageLost: the database does not answer.
    """

    def attempt(tries: int) -> T:
        with engine.connect() as connection, connection.begin():
            if engine.dialect.name == "sqlite":
                # A deferred transaction that reads first and then writes fails at once when another writer came
                # between.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            limit_transaction(connection)
            result = work(connection, tries)
        _written.add(engine.pool)
        return result

    return retried(engine, attempt)


def write_once(engine: Engine, work: Callable[[Connection, int], T]) -> T:
    """Do as `write` where `work` is a single statement on Postgres, which is a transaction of its own there."""
    if engine.dialect.name == "sqlite":
        return write(engine, work)

    def attempt(tries: int) -> T:
        with engine.connect() as connection, _single_statements(connection):
            return work(connection, tries)

    return retried(engine, attempt)


def retried(engine: Engine, attempt: Callable[[int], T]) -> T:
    """Return the result of `attempt`, made again as the engine's patience allows; it gets the number of tries before.

    Raises:
        StorageLost: the database does not answer.
    """
    with waiting():
        return _retried(engine, attempt)


class _OfThread(threading.local):
    patience: Patience | None = None


_of_thread = _OfThread()


def _retried(engine: Engine, attempt: Callable[[int], T]) -> T:
    patience: Patience = _of_thread.patience or engine.get_execution_options().get(_PATIENCE, IMPATIENT)
    began_s, tries = time.monotonic(), 0
    while True:
        try:
            with deadlines.limit(patience.statement_s * 2 ** min(tries, 10), patience.is_over):
                result = attempt(tries)
        except (DBAPIError, PoolTimeout) as error:
            kind = _kind(error, engine.pool in _written)
            may_wait = kind != "other" and time.monotonic() < began_s + patience.seconds
            # Without preparing it works at once, also for those who do not wait.
            most_tries = max(patience.conflict_tries, _pgcode(error) in NOT_PREPARED)
            is_conflict = kind == "conflict" and tries < most_tries
            if patience.is_over() or not (may_wait or is_conflict):
                if kind == "other" and _is_denied(error):
                    raise StorageDenied.because(_line(error)) from error
                if _lacks_tables(error):
                    _check_version(engine)
                    shown = hide_password(engine.url.render_as_string())
                    raise StorageSchemaError(
                        f"the tables in {shown} must be of this version: {_line(error)}; `tuner upgrade` makes them so"
                    ) from error
                if kind == "other" and not isinstance(error, OperationalError | InterfaceError):
                    raise
                if kind == "passing":
                    _away_since_s.setdefault(engine.pool, began_s)
                raise lost(error, engine.url.render_as_string()) from error
            if not is_conflict:
                _away_since_s.setdefault(engine.pool, began_s)
                tell_away(engine, lost(error, engine.url.render_as_string()), "waiting for it")
            # Jitter, so that workers that were cut off together do not come back together.
            _pause(min(_LONGEST_PAUSE_S, 0.05 * 2**tries) * random.uniform(0.5, 1.5), patience)
            tries += 1
        else:
            if _outage_s(engine) >= _OUTAGE_S:
                _back_s[engine.pool] = time.monotonic()
            _away_since_s.pop(engine.pool, None)
            if engine.pool in _away:
                _away.discard(engine.pool)
                tell("the storage answers again", "storage_back")
            return result


_away: weakref.WeakSet[Any] = weakref.WeakSet()  # pools of databases that are known not to answer
_away_since_s: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()  # since when they do not
_back_s: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()  # since when they answer again
_written: weakref.WeakSet[Any] = weakref.WeakSet()  # pools of databases that this process has written to
_RECOVERY_S = 10.0
_OUTAGE_S = 2.0
"""An outage in which other workers may miss the end of their leases; a connection that broke is not one."""


def is_recovering(engine: Engine) -> bool:
    """Return whether a database was away a moment ago: others may not have renewed their leases yet."""
    is_back = time.monotonic() < _back_s.get(engine.pool, -math.inf) + _RECOVERY_S
    return is_back or _outage_s(engine) >= _OUTAGE_S


def _outage_s(engine: Engine) -> float:
    """Return for how many seconds a database has not answered; 0 if it does."""
    since_s = _away_since_s.get(engine.pool)
    return 0.0 if since_s is None else time.monotonic() - since_s


def tell_away(engine: Engine, error: StorageLost, meanwhile: str) -> None:
    """Say on stderr that a database does not answer: once, until it answers again."""
    if engine.pool not in _away:
        _away.add(engine.pool)
        tell(f"{error}; {meanwhile}", "storage_away", "warning")


def _pause(seconds: float, patience: Patience) -> None:
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0 and not patience.is_over():
        time.sleep(min(0.1, left_s))


def _pgcode(error: Exception) -> str | None:
    return getattr(getattr(error, "orig", None), "pgcode", None)


def _lacks_tables(error: Exception) -> bool:
    """Return whether a statement names a table or a column that the database does not have."""
    original = getattr(error, "orig", None)
    is_sqlites = isinstance(original, sqlite3.Error) and str(original).startswith(("no such table", "no such column"))
    return is_sqlites or _pgcode(error) in ("42P01", "42703")


def _sqlite_code(error: Any) -> int | None:
    """Return SQLite's primary error code."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_denied(error: Exception) -> bool:
    original = getattr(error, "orig", None)
    return _pgcode(error) == "42501" or (isinstance(original, sqlite3.Error) and "readonly" in str(original))


def _check_version(engine: Engine) -> None:
    """Raise StorageSchemaError with both versions if the tables are known to be of another one."""
    from tuner.storage.sql.schema import check_tables, read_versions

    with contextlib.suppress(DBAPIError, PoolTimeout), engine.connect() as connection:
        check_tables(read_versions(connection), engine)


def _kind(error: Exception, has_written: bool) -> str:
    """Return `conflict` (rolled back for certain), `passing` (a database that is away for a while) or `other`."""
    original = getattr(error, "orig", None)
    if isinstance(original, sqlite3.Error):
        if "locked" in str(original) or "busy" in str(original):
            return "conflict"
        # A system makes a disk read-only after an error; one that was so from the start is a mistake.
        has_become_read_only = has_written and _sqlite_code(original) == sqlite3.SQLITE_READONLY
        return "passing" if has_become_read_only or _sqlite_code(original) in _PASSING_IN_SQLITE else "other"
    code = _pgcode(error)
    if code is not None:
        return "conflict" if code in _CONFLICTS else "passing" if code in _PASSING or code[:2] == "08" else "other"
    # Without a code it is the connection that failed, or could not be made.
    is_connection = isinstance(error, OperationalError | InterfaceError | PoolTimeout)
    return "passing" if is_connection and not any(text in str(original) for text in _LASTING) else "other"
