"""Retries reads and writes while a database is down, for a limited time."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tuner.errors import StorageDenied, StorageLost, StorageSchemaError
from tuner.output.log import tell
from tuner.output.sanitize import hide_password
from tuner.storage.sql import deadlines
from tuner.storage.sql.backoff import Backoff
from tuner.storage.sql.engine import (
    ADVICE,
    autocommit,
    error_line,
    is_denied,
    limit_transaction,
    lost,
    pgcode,
    sqlite_code,
)
from tuner.storage.sql.versions import check_tables, read_versions
from tuner.storage.sql.wait_time import waiting

T = TypeVar("T")

_PATIENCE = "tuner_patience"
_LONGEST_PAUSE_S = 10.0
NOT_PREPARED = {"26000", "42P05"}
"""A prepared statement does not exist, or is another one, because a pooler gave us another session."""
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
    """How long to wait for a database that does not answer, and when to stop waiting."""

    seconds: float
    is_over: Callable[[], bool] = lambda: False
    conflict_tries: int = 8
    statement_s: float = math.inf
    """Seconds without an answer to a statement after which its connection is closed; twice as long at the next try, but
    at most the server's own `statement_timeout` and ten seconds."""


IMPATIENT = Patience(0.0)
PROMPT = Patience(0.0, conflict_tries=0, statement_s=10.0)
"""Waits for nothing, except for locks as long as the driver does."""


def patient(engine: Engine, patience: Patience) -> Engine:
    """Return an engine on the same connections whose reads and writes wait for a database that is down."""
    return engine.execution_options(**{_PATIENCE: patience})


@contextlib.contextmanager
def hurried(patience: Patience) -> Generator[None]:
    """Limit how long this thread's reads and writes wait during the body, with any engine."""
    before, _of_thread.patience = _of_thread.patience, patience
    try:
        yield
    finally:
        _of_thread.patience = before


def read(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Return the result of `work` with a connection; `work` is called again if the connection breaks.

    Raises:
        StorageLost: the database does not answer.
    """

    def attempt(_: int) -> T:
        # Each statement sees earlier commits anyway; this saves a BEGIN and a ROLLBACK over the network.
        with engine.connect() as connection, _single_statements(connection):
            return work(connection)

    return retried(engine, attempt)


def _single_statements(connection: Connection) -> contextlib.AbstractContextManager[None]:
    if connection.dialect.name == "sqlite":
        return contextlib.nullcontext()
    return autocommit(connection.connection.dbapi_connection)


def write(engine: Engine, work: Callable[[Connection, int], T]) -> T:
    """Return the result of `work` in a transaction that has its write lock from the start.

    Args:
        engine: The storage's engine.
        work: Gets the connection and the number of earlier tries. An earlier try may have been committed, because that
            is unknown if a connection breaks during COMMIT.

    Raises:
        StorageLost: the database does not answer.
    """

    def attempt(tries: int) -> T:
        with engine.connect() as connection, connection.begin():
            if engine.dialect.name == "sqlite":
                # A deferred transaction that reads first and then writes fails immediately if another writer was
                # faster.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            limit_transaction(connection)
            result = work(connection, tries)
        _written.add(engine.pool)
        return result

    return retried(engine, attempt)


def write_once(engine: Engine, work: Callable[[Connection, int], T]) -> T:
    """Like `write`, if `work` is a single statement on Postgres, where it is a separate transaction."""
    if engine.dialect.name == "sqlite":
        return write(engine, work)

    def attempt(tries: int) -> T:
        with engine.connect() as connection, _single_statements(connection):
            return work(connection, tries)

    return retried(engine, attempt)


def retried(engine: Engine, attempt: Callable[[int], T]) -> T:
    """Return the result of `attempt`, repeated as the engine's patience allows; it gets the number of earlier tries.

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
    began_s, tries, pauses = time.monotonic(), 0, Backoff(0.1, _LONGEST_PAUSE_S)
    while True:
        try:
            with deadlines.limit(patience.statement_s * 2 ** min(tries, 10), patience.is_over):
                result = attempt(tries)
        except (DBAPIError, PoolTimeout) as error:
            kind = _kind(error, engine.pool in _written)
            may_wait = kind != "other" and time.monotonic() < began_s + patience.seconds
            # Works immediately without preparing, also for callers that do not wait.
            most_tries = max(patience.conflict_tries, pgcode(error) in NOT_PREPARED)
            is_conflict = kind == "conflict" and tries < most_tries
            if patience.is_over() or not (may_wait or is_conflict):
                if kind == "other" and is_denied(error):
                    raise StorageDenied.because(error_line(error)) from error
                if _lacks_tables(error):
                    _check_version(engine)
                    shown = hide_password(engine.url.render_as_string())
                    raise StorageSchemaError(
                        f"the tables in {shown} are not of this version: {error_line(error)}; "
                        "back up the database, stop all workers, then run `tuner upgrade`"
                    ) from error
                if kind == "other" and not isinstance(error, OperationalError | InterfaceError):
                    raise
                if kind == "passing":
                    _away_since_s.setdefault(engine.pool, began_s)
                raise lost(error, engine.url) from error
            if not is_conflict:
                _away_since_s.setdefault(engine.pool, began_s)
                tell_away(engine, lost(error, engine.url), "waiting for it")
            _pause(pauses.next_s(), patience)
            tries += 1
        else:
            if _outage_s(engine) >= _OUTAGE_S:
                _back_s[engine.pool] = time.monotonic()
            _away_since_s.pop(engine.pool, None)
            if engine.pool in _away:
                _away.discard(engine.pool)
                tell("the storage answers again", "storage_back")
            return result


_away: weakref.WeakSet[Any] = weakref.WeakSet()  # pools of databases that do not answer
_away_since_s: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()  # since when they do not answer
_back_s: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()  # since when they answer again
_written: weakref.WeakSet[Any] = weakref.WeakSet()  # pools of databases that this process has written to
_RECOVERY_S = 10.0
_OUTAGE_S = 2.0
"""Seconds of an outage after which other workers may have missed renewals; shorter ones are broken connections."""


def is_recovering(engine: Engine) -> bool:
    """Return whether a database was down a moment ago, so that others may not have renewed their leases yet."""
    is_back = time.monotonic() < _back_s.get(engine.pool, -math.inf) + _RECOVERY_S
    return is_back or _outage_s(engine) >= _OUTAGE_S


def _outage_s(engine: Engine) -> float:
    """Return the seconds since a database last answered; 0 if it answers."""
    since_s = _away_since_s.get(engine.pool)
    return 0.0 if since_s is None else time.monotonic() - since_s


def tell_away(engine: Engine, error: StorageLost, meanwhile: str) -> None:
    """Print on stderr that a database does not answer, once until it answers again."""
    if engine.pool not in _away:
        _away.add(engine.pool)
        tell(f"{str(error).removesuffix(ADVICE)}; {meanwhile}", "storage_away", "warning")


def _pause(seconds: float, patience: Patience) -> None:
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0 and not patience.is_over():
        time.sleep(min(0.1, left_s))


def _lacks_tables(error: Exception) -> bool:
    """Return whether a statement uses a table or a column that the database does not have."""
    original = getattr(error, "orig", None)
    is_sqlites = isinstance(original, sqlite3.Error) and str(original).startswith(("no such table", "no such column"))
    return is_sqlites or pgcode(error) in ("42P01", "42703")


def _check_version(engine: Engine) -> None:
    """Raise StorageSchemaError with both versions if the tables belong to another version."""
    with contextlib.suppress(DBAPIError, PoolTimeout), engine.connect() as connection:
        check_tables(read_versions(connection), engine)


def _kind(error: Exception, has_written: bool) -> str:
    """Return `conflict` (certainly rolled back), `passing` (the database is down temporarily) or `other`."""
    original = getattr(error, "orig", None)
    if isinstance(original, sqlite3.Error):
        if "locked" in str(original) or "busy" in str(original):
            return "conflict"
        # A disk may become read-only after an error; if it was read-only from the start, that is a mistake.
        has_become_read_only = has_written and sqlite_code(original) == sqlite3.SQLITE_READONLY
        return "passing" if has_become_read_only or sqlite_code(original) in _PASSING_IN_SQLITE else "other"
    code = pgcode(error)
    if code is not None:
        return "conflict" if code in _CONFLICTS else "passing" if code in _PASSING or code[:2] == "08" else "other"
    # Without a code, the connection failed or could not be opened.
    is_connection = isinstance(error, OperationalError | InterfaceError | PoolTimeout)
    return "passing" if is_connection and not any(text in str(original) for text in _LASTING) else "other"
