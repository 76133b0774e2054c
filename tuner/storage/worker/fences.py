"""Writes that carry a fence: a worker whose trial was taken over finds its own outdated, and changes nothing.

On Postgres a write and its fence are one statement.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import LeaseLost
from tuner.storage.sql.boot import lease_clock, rebase
from tuner.storage.sql.dialect import clock, insert, run_prepared
from tuner.storage.sql.retry import write_once
from tuner.storage.sql.tables import leases, trials


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's claim on a trial, until `lease_s` seconds after the last claim, renewal or report."""

    trial_id: int
    number: int
    worker: str
    fence: int
    lease_s: float
    is_new: bool = False
    """Nobody has written to the trial yet."""


@dataclass(frozen=True)
class Write:
    """A statement that changes nothing unless a relation `held`, with one column `trial_id`, has a row.

    Attributes:
        key: What tells its text from others'.
        values: Its values by name.
        make: Makes it from `held` and a function from a value's name to its place in the text.
    """

    key: Hashable
    values: Mapping[str, Any]
    make: Callable[[sa.FromClause, Bind], Any]


class Bind:
    """Places for values in a text that several writes share."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __call__(self, name: str, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        return sa.cast(sa.bindparam(f"{self._prefix}{name}", type_=column.type), column.type)


def run_write(connection: Connection, trial_id: int, write: Write) -> None:
    """Do a write for a trial that is known to be held."""

    def build() -> Any:
        held_id = sa.cast(sa.bindparam("held_id", type_=sa.Integer), sa.Integer)
        held = sa.select(held_id.label("trial_id")).subquery("held")
        return write.make(held, Bind("w_"))

    values = {f"w_{name}": value for name, value in write.values.items()}
    run_prepared(connection, write.key, build, {**values, "held_id": trial_id})


def fenced(connection: Connection, lease: Lease, change: str, writes: Sequence[Write]) -> bool:
    """Change the lease if it is still held, and only then do the writes; return whether it was.

    Args:
        connection: A connection; on SQLite in a transaction.
        lease: The lease.
        change: `extend`, `release` or `end`.
        writes: What else to do, in any order.
    """
    dialect = connection.dialect.name
    rebase(connection)
    values: dict[str, Any] = {"held_id": lease.trial_id, "fence": lease.fence, "worker": lease.worker}
    if change == "extend":
        on_clock = lease_clock(dialect, lease.fence)
        values |= {"lease_s": lease.lease_s, **{f"of_{name}": value for name, value in on_clock.items()}}
    return run_with(connection, change, lambda: _change(dialect, change), values, writes) is not None


def run_with(
    connection: Connection, key: str, build: Callable[[], Any], values: Mapping[str, Any], writes: Sequence[Write]
) -> int | None:
    """Do a change to one trial, and writes for the trial that it changed: on Postgres in one statement.

    Args:
        connection: A connection; on SQLite in a transaction.
        key: As that of `run_prepared`.
        build: As that of `run_prepared`; the change returns a trial's id, or no row.
        values: As those of `run_prepared`.
        writes: What else to do, in any order.

    Returns:
        The trial's id; None if nothing was done.
    """
    if connection.dialect.name == "sqlite":
        trial_id = run_prepared(connection, key, build, values).scalar_one_or_none()
        if trial_id is not None:
            for write in writes:
                run_write(connection, trial_id, write)
        return trial_id

    def with_writes() -> sa.Select[Any]:
        held = build().cte("held")
        several = [write.make(held, Bind(f"w{at}_")).cte(f"write_{at}") for at, write in enumerate(writes)]
        return sa.select(held.c.trial_id).add_cte(*several)

    theirs = {f"w{at}_{name}": value for at, write in enumerate(writes) for name, value in write.values.items()}
    whole_key = (key, *(write.key for write in writes))
    return run_prepared(connection, whole_key, with_writes, {**values, **theirs}).scalar_one_or_none()


def _change(dialect: str, change: str) -> Any:
    def place(name: str, type_: Any) -> sa.ColumnElement[Any]:
        return sa.cast(sa.bindparam(name, type_=type_), type_)

    held_id = place("held_id", sa.Integer())
    statement: Any = leases.delete() if change == "end" else leases.update()
    statement = statement.where(
        leases.c.trial_id == held_id,
        leases.c.fence == place("fence", sa.Integer()),
        leases.c.worker == place("worker", sa.Text()),
        # Another Optuna tool may have ended the trial, or deleted its study.
        sa.exists().where(trials.c.trial_id == held_id, trials.c.state == sa.literal_column("'RUNNING'")),
    ).returning(leases.c.trial_id)
    if change == "extend":
        on_clock = {name: place(f"of_{name}", leases.c[name].type) for name in lease_clock(dialect, 0)}
        return statement.values(expires_at_s=clock(dialect) + place("lease_s", sa.Float(53)), **on_clock)
    if change == "release":
        return statement.values(worker=sa.null(), expires_at_s=sa.literal_column("0.0"))
    return statement


def insertion(table: sa.Table, row: Mapping[str, Any]) -> Write:
    """Return the write that adds a trial's row, given without its `trial_id`."""

    def make(held: sa.FromClause, bind: Bind) -> Any:
        source = sa.select(held.c.trial_id, *(bind(name, table.c[name]).label(name) for name in row))
        return table.insert().from_select(["trial_id", *row], source)

    return Write(("insert", table.name, *row), row, make)


def lost_lease(lease: Lease) -> LeaseLost:
    """Return the error of a worker whose trial is another's."""
    return LeaseLost(
        f"trial {lease.number} no longer belongs to {lease.worker}: another worker has taken it over, or ended it"
    )


def write_held(engine: Engine, lease: Lease, *writes: Write) -> None:
    """Renew the lease and do the writes.

    Raises:
        LeaseLost: another worker has the trial, or it has ended.
    """
    if not write_once(engine, lambda connection, _: fenced(connection, lease, "extend", writes)):
        raise lost_lease(lease)


def upsert(
    dialect: str,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    unique: str,
    *,
    at_first: Mapping[str, sa.ColumnElement[Any]] | None = None,
) -> Write:
    """Return the write that stores rows of a trial, in place of those that are there.

    Args:
        dialect: The database's.
        table: The table; it has a column `trial_id`.
        rows: The rows' other columns, the same for all.
        unique: The column that tells a trial's rows apart.
        at_first: Further columns as the database's expressions, which rows that are there keep as they are.
    """
    columns, firsts = tuple(rows[0]), dict(at_first or {})

    def make(held: sa.FromClause, bind: Bind) -> Any:
        parts = [
            sa.select(
                held.c.trial_id,
                *(bind(f"{name}_{at}", table.c[name]).label(name) for name in columns),
                *(expression.label(name) for name, expression in firsts.items()),
            )
            for at in range(len(rows))
        ]
        source = parts[0] if len(parts) == 1 else sa.select(sa.union_all(*parts).subquery())
        # SQLite takes ON CONFLICT for a join's ON unless a WHERE stands before it.
        names = ["trial_id", *columns, *firsts]
        statement = insert(dialect, table).from_select(names, source.where(sa.literal_column("1 = 1")))
        changed = {name: statement.excluded[name] for name in columns if name != unique}
        return statement.on_conflict_do_update(index_elements=["trial_id", unique], set_=changed)

    values = {f"{name}_{at}": value for at, row in enumerate(rows) for name, value in row.items()}
    return Write((table.name, columns, tuple(firsts), len(rows)), values, make)
