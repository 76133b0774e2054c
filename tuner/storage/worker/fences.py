"""Writes with a fence: if another worker has taken over the trial, the write changes nothing.

On Postgres a write and its fence are one statement.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import LeaseLost
from tuner.storage.sql import statements
from tuner.storage.sql.lease_clock import lease_clock, rebase
from tuner.storage.sql.prepared_statements import HeldStatement, Statement, WithWrites, run
from tuner.storage.sql.retry import write_once


class Change(enum.Enum):
    """A change of a lease."""

    EXTEND = "it ends later"
    RELEASE = "its trial may be taken over at once"
    BURY = "the same, and a death is counted"
    END = "its trial has ended"


_CHANGES = {
    Change.RELEASE: statements.release_lease,
    Change.BURY: statements.bury_lease,
    Change.END: statements.end_lease,
}


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's claim on a trial, until `lease_s` seconds after the last claim, renewal or report."""

    trial_id: int
    number: int
    worker: str
    fence: int
    lease_s: float
    is_new: bool = False
    """The fence before any write to the trial."""


@dataclass(frozen=True)
class Write:
    """A statement for a held trial, and its values by name."""

    what: HeldStatement
    values: Mapping[str, Any]


def run_write(connection: Connection, trial_id: int, write: Write) -> None:
    """Run a write for a trial that is known to be held."""
    values = {f"w_{name}": value for name, value in write.values.items()}
    run(connection, write.what, {**values, "held_id": trial_id})


def fenced(
    connection: Connection, lease: Lease, change: Change, writes: Sequence[Write], *, epoch: int | None = None
) -> bool:
    """Change the lease if it is still held, and only then run the writes; return whether it was held.

    Args:
        connection: A connection; on SQLite in a transaction.
        lease: The lease.
        change: The change of the lease.
        writes: Other writes, in any order.
        epoch: If the lease is extended by a write of reports, the greatest of their epochs.
    """
    rebase(connection)
    values: dict[str, Any] = {"held_id": lease.trial_id, "fence": lease.fence, "worker": lease.worker}
    what = _CHANGES.get(change)
    if what is None:
        on_clock = lease_clock(connection.dialect.name, lease.fence)
        extension = statements.extend_lease if epoch is None else statements.extend_lease_reported
        what = extension.of(tuple(on_clock))
        values |= {"lease_s": lease.lease_s, **{f"of_{name}": value for name, value in on_clock.items()}}
        values |= {} if epoch is None else {"epoch": epoch}
    return run_with(connection, what, values, writes) is not None


def run_with(
    connection: Connection, change: Statement, values: Mapping[str, object], writes: Sequence[Write]
) -> int | None:
    """Run a change of a trial and writes for the changed trial, on Postgres in one statement.

    Args:
        connection: A connection; on SQLite in a transaction.
        change: A statement that returns the trial's id, or no row.
        values: The values of the change.
        writes: Other writes, in any order.

    Returns:
        The trial's id; None if nothing was changed.
    """
    if connection.dialect.name == "sqlite":
        trial_id = run(connection, change, values).scalar_one_or_none()
        if trial_id is not None:
            for write in writes:
                run_write(connection, trial_id, write)
        return trial_id
    theirs = {f"w{at}_{name}": value for at, write in enumerate(writes) for name, value in write.values.items()}
    what = WithWrites(change, tuple(write.what for write in writes))
    return run(connection, what, {**values, **theirs}).scalar_one_or_none()


def insertion(table: sa.Table, row: Mapping[str, object]) -> Write:
    """Return the write that adds a trial's row, given without its `trial_id`."""
    return Write(statements.insert_row.of(table, tuple(row)), row)


def lost_lease(lease: Lease) -> LeaseLost:
    """Return the error for a worker whose trial another worker has taken over."""
    return LeaseLost(
        f"trial {lease.number} no longer belongs to {lease.worker}: another worker has taken it over, or ended it"
    )


def write_held(engine: Engine, lease: Lease, *writes: Write, epoch: int | None = None) -> None:
    """Renew the lease and run the writes.

    Args:
        engine: The storage's engine.
        lease: The lease.
        writes: The writes.
        epoch: The greatest epoch among the reports that they store; None if they store none.

    Raises:
        LeaseLost: another worker has the trial, or it has ended.
    """
    if not write_once(engine, lambda connection, _: fenced(connection, lease, Change.EXTEND, writes, epoch=epoch)):
        raise lost_lease(lease)


def upsert(
    table: sa.Table, rows: Sequence[Mapping[str, object]], unique: str, *, time_column: str | None = None
) -> Write:
    """Return the write that stores rows of a trial, replacing existing ones.

    Args:
        table: The table; it has a column `trial_id`.
        rows: The other columns of the rows, the same for all.
        unique: The column that distinguishes the rows of a trial.
        time_column: Another column that gets the database's time; existing rows keep their time.
    """
    values = {f"{name}_{at}": value for at, row in enumerate(rows) for name, value in row.items()}
    return Write(statements.upsert_rows.of(table, tuple(rows[0]), unique, len(rows), time_column), values)
