"""Differences between SQLite and Postgres: the clock, the greatest of several values, INSERT ... ON CONFLICT."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.dialects import postgresql, sqlite

from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import trials


def clock(dialect: str) -> sa.ColumnElement[float]:
    """Return the expression for the database's time, in seconds since 1970; workers' clocks may differ."""
    if dialect == "sqlite":
        # SQLite's time has milliseconds; without rounding, the conversion from days would differ from `utc_now`.
        return sa.literal_column("round((julianday('now') - 2440587.5) * 86400.0, 3)", sa.Float(53))
    return sa.literal_column("CAST(extract(epoch FROM clock_timestamp()) AS double precision)", sa.Float(53))


def utc_now(dialect: str) -> sa.ColumnElement[Any]:
    """Return the expression for the database's time in UTC without a zone, as in Optuna's columns."""
    if dialect == "sqlite":
        return sa.literal_column("strftime('%Y-%m-%d %H:%M:%f000', 'now')", sa.DateTime())
    return sa.literal_column("(clock_timestamp() AT TIME ZONE 'UTC')", sa.DateTime())


def is_recent(
    dialect: str, column: sa.ColumnElement[Any], seconds: int, *, in_session_zone: bool = False
) -> sa.ColumnElement[bool]:
    """Return whether a time without a zone is at most this many seconds away from the database's time.

    In either direction, because a process with a wrong clock or zone may seem to have started in the future.

    Args:
        dialect: The database's dialect.
        column: The time, in UTC.
        seconds: The largest difference.
        in_session_zone: Whether Postgres stored the time in the time zone of a session, as `now()` without a zone.
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


def least(dialect: str, *values: object) -> sa.ColumnElement[Any]:
    """Return the smallest of several values of a row."""
    return sa.func.min(*values) if dialect == "sqlite" else sa.func.least(*values)


def greatest(dialect: str, *values: object) -> sa.ColumnElement[Any]:
    """Return the largest of several values of a row."""
    return sa.func.max(*values) if dialect == "sqlite" else sa.func.greatest(*values)


def insert(dialect: str, table: sa.Table) -> Any:
    """Return an INSERT that supports ON CONFLICT."""
    return (sqlite if dialect == "sqlite" else postgresql).insert(table)


def of_study(dialect: str, study_id: object, are_new: bool) -> sa.ColumnElement[bool]:
    """Return whether a trial belongs to a study; `are_new` if it must also have a greater id than a late one.

    With `are_new`, Postgres gets `column + 0`: it does not know how many such trials there are, and would otherwise use
    the index on the study and read all its trials. SQLite's index on the study contains the ids.
    """
    column: sa.ColumnElement[Any] = trials.c.study_id
    return (column + sa.literal_column("0") if are_new and dialect == "postgresql" else column) == study_id


def one_of(dialect: str, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
    """Return whether a column is one of the ids in the value `name`, from `ids_value`."""
    if dialect == "sqlite":
        listed = sa.func.json_each(sa.bindparam(name)).table_valued("value")
        return column.in_(sa.select(listed.c.value))
    return column == sa.func.any(sa.cast(sa.bindparam(name), postgresql.ARRAY(sa.Integer)))


def ids_value(dialect: str, ids: Collection[int]) -> Any:
    """Return ids as a value for `one_of`."""
    return json.dumps(list(ids)) if dialect == "sqlite" else list(ids)
