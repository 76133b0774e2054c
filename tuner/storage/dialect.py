"""What SQLite and Postgres say differently: the clock, the greatest of several values, INSERT ... ON CONFLICT."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects import postgresql, sqlite

from tuner.storage.engine import read


def clock(dialect: str) -> sa.ColumnElement[float]:
    """Return the expression for the database's time, in seconds since 1970; workers' clocks may differ."""
    if dialect == "sqlite":
        return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Float(53))
    return sa.literal_column("CAST(extract(epoch FROM clock_timestamp()) AS double precision)", sa.Float(53))


def utc_now(dialect: str) -> sa.ColumnElement[Any]:
    """Return the expression for the database's time as Optuna stores it: without a zone; ours is UTC."""
    if dialect == "sqlite":
        return sa.literal_column("strftime('%Y-%m-%d %H:%M:%f000', 'now')", sa.DateTime())
    return sa.literal_column("(clock_timestamp() AT TIME ZONE 'UTC')", sa.DateTime())


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
