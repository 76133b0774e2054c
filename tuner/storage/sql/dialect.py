"""What SQLite and Postgres say differently: the clock, the greatest of several values, INSERT ... ON CONFLICT."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from tuner.storage.sql.engine import is_pooled
from tuner.storage.sql.retry import NOT_PREPARED, read
from tuner.storage.sql.tables import trials


def clock(dialect: str) -> sa.ColumnElement[float]:
    """Return the expression for the database's time, in seconds since 1970; workers' clocks may differ."""
    if dialect == "sqlite":
        # SQLite's time is whole milliseconds; unrounded, days would put it before or after what `utc_now` says.
        return sa.literal_column("round((julianday('now') - 2440587.5) * 86400.0, 3)", sa.Float(53))
    return sa.literal_column("CAST(extract(epoch FROM clock_timestamp()) AS double precision)", sa.Float(53))


def utc_now(dialect: str) -> sa.ColumnElement[Any]:
    """Return the expression for the database's time without a zone, as Optuna's columns have it; ours is UTC."""
    if dialect == "sqlite":
        return sa.literal_column("strftime('%Y-%m-%d %H:%M:%f000', 'now')", sa.DateTime())
    return sa.literal_column("(clock_timestamp() AT TIME ZONE 'UTC')", sa.DateTime())


def is_recent(
    dialect: str, column: sa.ColumnElement[Any], seconds: int, *, in_session_zone: bool = False
) -> sa.ColumnElement[bool]:
    """Return whether a time without a zone is at most so many seconds away from the database's.

    In either direction: a process whose clock or time zone is wrong has not begun in the future.

    Args:
        dialect: The database's.
        column: The time, in UTC.
        seconds: How far away it may be.
        in_session_zone: Postgres stored the time in the time zone of a session, as its `now()` without a zone.
    """
    if dialect == "sqlite":
        low, high = (f"strftime('%Y-%m-%d %H:%M:%f', 'now', '{sign}{seconds} seconds')" for sign in "-+")
    else:
        now = "CAST(clock_timestamp() AS timestamp)" if in_session_zone else "(clock_timestamp() AT TIME ZONE 'UTC')"
        low, high = (f"{now} {sign} interval '{seconds} seconds'" for sign in "-+")
    return (column >= sa.literal_column(low)) & (column <= sa.literal_column(high))


def now_s(engine: Engine) -> float:
    """Return the database's time, in seconds since 1970."""
    return read(engine, lambda connection: connection.execute(sa.select(clock(engine.dialect.name))).scalar_one())


def least(connection: Connection, *values: Any) -> sa.ColumnElement[Any]:
    """Return the smallest of several values of a row."""
    return sa.func.min(*values) if connection.dialect.name == "sqlite" else sa.func.least(*values)


def greatest(connection: Connection, *values: Any) -> sa.ColumnElement[Any]:
    """Return the largest of several values of a row."""
    return sa.func.max(*values) if connection.dialect.name == "sqlite" else sa.func.greatest(*values)


def insert(dialect: str, table: sa.Table) -> Any:
    """Return an INSERT that takes ON CONFLICT."""
    return (sqlite if dialect == "sqlite" else postgresql).insert(table)


def of_study(dialect: str, study_id: Any, are_new: bool) -> sa.ColumnElement[bool]:
    """Return whether a trial is one of a study; `are_new` if it must also have a greater id than a late one.

    Then plus nothing: Postgres knows neither how many such trials there are nor that the ids of a study lie together,
    takes the index on the study, and reads all its trials. SQLite's index on the study has the ids in it.
    """
    column: sa.ColumnElement[Any] = trials.c.study_id
    return (column + sa.literal_column("0") if are_new and dialect == "postgresql" else column) == study_id


def one_of(dialect: str, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
    """Return whether a column is one of the ids in the value `name`, which `ids_value` makes."""
    if dialect == "sqlite":
        listed = sa.func.json_each(sa.bindparam(name)).table_valued("value")
        return column.in_(sa.select(listed.c.value))
    return column == sa.func.any(sa.cast(sa.bindparam(name), postgresql.ARRAY(sa.Integer)))


def ids_value(dialect: str, ids: Collection[int]) -> Any:
    """Return ids as the value of `one_of`."""
    return json.dumps(list(ids)) if dialect == "sqlite" else list(ids)


@dataclass(frozen=True)
class _Text:
    """A statement's text, the names of its values in their order, and the values that it brings itself."""

    text: str
    names: tuple[str, ...]
    constants: Mapping[str, Any]


_TEXTS: dict[tuple[str, Hashable], _Text] = {}
_PREPARED = "tuner_prepared"
_servers_prepare = True


def run_prepared(
    connection: Connection,
    key: Hashable,
    build: Callable[[], Any],
    values: Mapping[str, Any],
    *,
    after: tuple[Hashable, Callable[[], Any]] | None = None,
) -> sa.CursorResult[Any]:
    """Run a statement whose text is made once in a process, and on Postgres planned once for a connection.

    A worker sends the same few statements for each trial and report. Building, keying and compiling them costs
    SQLAlchemy far more than the database takes to run them (and it caches none with ON CONFLICT); planning them costs
    Postgres more than running them.

    Args:
        connection: The connection.
        key: What tells the statement from others.
        build: Makes it, with `sqlalchemy.bindparam`s for all values.
        values: Their values by name; numbers, texts, None, and what `ids_value` makes.
        after: Key and maker of a statement to run before it, for the same values; Postgres gets both in one message.

    Returns:
        The rows as the driver has them: without SQLAlchemy's types.
    """
    statements = {one: _made(connection, one, make) for one, make in (*([after] if after else []), (key, build))}
    if connection.dialect.name == "sqlite":
        results = [_run_on_sqlite(connection, made, values) for made in statements.values()]
        return results[-1]
    constants = [name for made in statements.values() for name in made.constants]
    assert len(constants) == len({*constants}), "two statements in one message must not share names"
    for made in statements.values():
        values = {**made.constants, **values}
    if not _servers_prepare or is_pooled(connection):
        return connection.exec_driver_sql("; ".join(map(_with_places, statements.values())), values)
    try:
        several = [_prepared(connection, one, made) for one, made in statements.items()]
        return connection.exec_driver_sql("; ".join(several), values)
    except DBAPIError as error:
        _note_pooler(error)
        raise


def _made(connection: Connection, key: Hashable, build: Callable[[], Any]) -> _Text:
    dialect = connection.dialect.name
    made = _TEXTS.get((dialect, key))
    if made is None:
        made = _TEXTS[dialect, key] = _compile(dialect, build())
    return made


def _run_on_sqlite(connection: Connection, made: _Text, values: Mapping[str, Any]) -> sa.CursorResult[Any]:
    values = {**made.constants, **values}
    return connection.exec_driver_sql(made.text, tuple(values[name] for name in made.names))


def _with_places(made: _Text) -> str:
    """Return a statement for Postgres with the driver's places for its values."""
    return re.sub(r"\$(\d+)", lambda found: f"%({made.names[int(found[1]) - 1]})s", made.text.replace("%", "%%"))


def _prepared(connection: Connection, key: Hashable, made: _Text) -> str:
    """Return the call of a statement that this connection has prepared, now if not before."""
    calls = connection.info.setdefault(_PREPARED, {})
    call = calls.get(key)
    if call is None:
        # By what it does: where a pooler hands sessions on, another client's statement of this name does the same.
        name = f"tuner_{hashlib.sha256(made.text.encode()).hexdigest()[:24]}"
        places = ", ".join(f"%({name})s" for name in made.names)
        connection.exec_driver_sql(f"PREPARE {name} AS {made.text}".replace("%", "%%"))
        call = calls[key] = f"EXECUTE {name} ({places})" if places else f"EXECUTE {name}"
    return call


def _compile(dialect: str, statement: Any) -> _Text:
    named = sqlite.dialect() if dialect == "sqlite" else postgresql.dialect(paramstyle="numeric_dollar")
    compiled = statement.compile(dialect=named)
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    return _Text(str(compiled), tuple(compiled.positiontup or ()), constants)


def _note_pooler(error: DBAPIError) -> None:
    """Prepare no more where a pooler such as PgBouncer hands each transaction another server connection."""
    global _servers_prepare
    if getattr(error.orig, "pgcode", None) in NOT_PREPARED:
        _servers_prepare = False
