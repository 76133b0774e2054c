"""Holding a trial: renew, report, tell, release. Each is one transaction that carries a fence.

A worker whose lease was taken over finds its fence outdated at its next write and gets `LeaseLost`. On Postgres a
write and its fence are one statement.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import LeaseLost, StorageLost, UnknownStudy
from tuner.storage.dialect import clock, insert, run_prepared, utc_now
from tuner.storage.engine import PROMPT, patient, read, tell_away, write_once
from tuner.storage.tables import (
    attempts,
    leases,
    records,
    reports,
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)
from tuner.trial import Outcome, Report

_MOST_REPORTS = 100  # in one statement: after an outage there may be thousands


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


# --- Writes that carry a fence


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


def _fenced(connection: Connection, lease: Lease, change: str, writes: Sequence[Write]) -> bool:
    """Change the lease if it is still held, and only then do the writes; return whether it was.

    Args:
        connection: A connection; on SQLite in a transaction.
        lease: The lease.
        change: `extend`, `release` or `end`.
        writes: What else to do, in any order.
    """
    dialect = connection.dialect.name
    values: dict[str, Any] = {"held_id": lease.trial_id, "fence": lease.fence, "worker": lease.worker}
    if change == "extend":
        values["lease_s"] = lease.lease_s
    if dialect == "sqlite":
        if run_prepared(connection, change, lambda: _change(dialect, change), values).rowcount != 1:
            return False
        for write in writes:
            run_write(connection, lease.trial_id, write)
        return True

    def build() -> sa.Select[Any]:
        held = _change(dialect, change).returning(leases.c.trial_id).cte("held")
        several = [write.make(held, Bind(f"w{at}_")).cte(f"write_{at}") for at, write in enumerate(writes)]
        return sa.select(held.c.trial_id).add_cte(*several)

    for at, write in enumerate(writes):
        values |= {f"w{at}_{name}": value for name, value in write.values.items()}
    key = (change, *(write.key for write in writes))
    return run_prepared(connection, key, build, values).first() is not None


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
    )
    if change == "extend":
        return statement.values(expires_at_s=clock(dialect) + place("lease_s", sa.Float(53)))
    if change == "release":
        return statement.values(worker=sa.null(), expires_at_s=sa.literal_column("0.0"))
    return statement


def lost_lease(lease: Lease) -> LeaseLost:
    """Return the error of a worker whose trial is another's."""
    return LeaseLost(
        f"trial {lease.number} must still belong to {lease.worker}: another worker has taken it over, or ended it"
    )


def _write_held(engine: Engine, lease: Lease, *writes: Write) -> None:
    """Renew the lease and do the writes.

    Raises:
        LeaseLost: another worker has the trial, or it has ended.
    """
    if not write_once(engine, lambda connection, _: _fenced(connection, lease, "extend", writes)):
        raise lost_lease(lease)


def upsert(dialect: str, table: sa.Table, rows: Sequence[Mapping[str, Any]], unique: str) -> Write:
    """Return the write that stores rows of a trial, in place of those that are there.

    Args:
        dialect: The database's.
        table: The table; it has a column `trial_id`.
        rows: The rows' other columns, the same for all.
        unique: The column that tells a trial's rows apart.
    """
    columns = tuple(rows[0])

    def make(held: sa.FromClause, bind: Bind) -> Any:
        parts = [
            sa.select(held.c.trial_id, *(bind(f"{name}_{at}", table.c[name]).label(name) for name in columns))
            for at in range(len(rows))
        ]
        source = parts[0] if len(parts) == 1 else sa.select(sa.union_all(*parts).subquery())
        # SQLite takes ON CONFLICT for a join's ON unless a WHERE stands before it.
        statement = insert(dialect, table).from_select(["trial_id", *columns], source.where(sa.literal_column("1 = 1")))
        changed = {name: statement.excluded[name] for name in columns if name != unique}
        return statement.on_conflict_do_update(index_elements=["trial_id", unique], set_=changed)

    values = {f"{name}_{at}": value for at, row in enumerate(rows) for name, value in row.items()}
    return Write((table.name, columns, len(rows)), values, make)


def renew(engine: Engine, lease: Lease) -> None:
    """Extend a lease by its length from now.

    Raises:
        LeaseLost: another worker has the trial.
    """
    _write_held(engine, lease)


def store_params(engine: Engine, lease: Lease, params: Sequence[tuple[str, float, str]]) -> None:
    """Store hyperparameters, each as name, Optuna's number for its value, and its distribution as JSON.

    Raises:
        LeaseLost: another worker has the trial.
    """
    rows = [{"param_name": name, "param_value": number, "distribution_json": text} for name, number, text in params]
    _write_held(engine, lease, upsert(engine.dialect.name, trial_params, rows, "param_name"))


def store_attribute(engine: Engine, lease: Lease, table: sa.Table, key: str, value: Any) -> None:
    """Store one of Optuna's user or system attributes of a trial.

    Raises:
        LeaseLost: another worker has the trial.
    """
    assert table in (trial_user_attributes, trial_system_attributes)
    row = {"key": key, "value_json": json.dumps(value)}
    _write_held(engine, lease, upsert(engine.dialect.name, table, [row], "key"))


def report(engine: Engine, lease: Lease, several: Sequence[Report], objective: str | None) -> None:
    """Store the metrics of epochs and extend the lease. What is already there is overwritten, never doubled.

    Args:
        engine: The storage's engine.
        lease: The trial's.
        several: The reports, usually one.
        objective: The metric that Optuna is told as well; None if there are several objectives.

    Raises:
        LeaseLost: another worker has the trial.
    """
    if len(several) > _MOST_REPORTS:
        report(engine, lease, several[:_MOST_REPORTS], objective)
        report(engine, lease, several[_MOST_REPORTS:], objective)
        return
    rows = [
        {
            "epoch": one.epoch,
            "step": one.step,
            "metrics": json.dumps({name: encode_metric(value) for name, value in one.metrics.items()}),
        }
        for one in several
    ]
    writes = [upsert(engine.dialect.name, reports, rows, "epoch")]
    if objective is not None:
        rows = []
        for one in several:
            stored, kind = stored_number(one.metrics[objective])
            rows.append({"step": one.epoch, "intermediate_value": stored, "intermediate_value_type": kind})
        writes.append(upsert(engine.dialect.name, trial_intermediate_values, rows, "step"))
    _write_held(engine, lease, *writes)


def encode_metric(value: float) -> float | str:
    """Return a metric as JSON can hold it: NaN and infinities as text."""
    return float(value) if math.isfinite(value) else str(float(value))


# --- Ends


def tell(
    engine: Engine, lease: Lease, outcome: Outcome, values: Sequence[float] | None, record: Mapping[str, Any]
) -> None:
    """End a trial: its state, values and record in one transaction.

    Optuna has no state for a diverged or out-of-memory trial: they are stored as pruned, so that samplers learn to
    avoid them (a failed trial is invisible to them), with the outcome as an attribute.

    Args:
        engine: The storage's engine.
        lease: The trial's.
        outcome: How it ended.
        values: Its objectives, if it has any.
        record: Columns of `tuner_records`.

    Raises:
        LeaseLost: another worker has the trial.
    """
    writes = endings(engine.dialect.name, lease, outcome, values, record)

    def work(connection: Connection, tries: int) -> bool:
        is_held = _fenced(connection, lease, "end", writes)
        return is_held or (tries > 0 and _has_ended(connection, lease, outcome))

    if not write_once(engine, work):
        raise lost_lease(lease)


def _has_ended(connection: Connection, lease: Lease, ending: str) -> bool:
    """Return whether this attempt has ended so: its commit went through though the answer was lost."""
    query = sa.select(attempts.c.ending).where(
        attempts.c.trial_id == lease.trial_id, attempts.c.fence == lease.fence, attempts.c.worker == lease.worker
    )
    return connection.execute(query).scalar_one_or_none() == ending


def _is_held(table: sa.Table, held: sa.FromClause) -> sa.ColumnElement[bool]:
    # A value, where IN (SELECT ...) would be a join that Postgres may do over all trials.
    return table.c.trial_id == sa.select(held.c.trial_id).scalar_subquery()


def endings(
    dialect: str, lease: Lease, outcome: Outcome, values: Sequence[float] | None, record: Mapping[str, Any]
) -> list[Write]:
    """Return the writes that end a trial, all but that to its lease; the arguments are those of `tell`."""
    state = {Outcome.COMPLETE: "COMPLETE", Outcome.FAILED: "FAIL"}.get(outcome, "PRUNED")
    writes = [_attempt_ending(dialect, lease, outcome, record.get("error"))]
    if values is not None:
        rows = []
        for objective, value in enumerate(values):
            stored, kind = stored_number(value)
            rows.append({"objective": objective, "value": stored, "value_type": kind})
        writes.append(upsert(dialect, trial_values, rows, "objective"))
    told = {"key": "outcome", "value_json": json.dumps(outcome)}
    writes.append(upsert(dialect, trial_user_attributes, [told], "key"))

    def end_trial(held: sa.FromClause, bind: Bind) -> Any:
        return (
            trials.update()
            .where(_is_held(trials, held))
            .values(state=bind("state", trials.c.state), datetime_complete=utc_now(dialect))
        )

    given = {"outcome": outcome.value, **record}

    def insert_record(held: sa.FromClause, bind: Bind) -> Any:
        columns = [bind(name, records.c[name]).label(name) for name in given]
        source = sa.select(trials.c.trial_id, trials.c.study_id, clock(dialect), *columns).where(_is_held(trials, held))
        return records.insert().from_select(["trial_id", "study_id", "ended_at_s", *given], source)

    return [
        *writes,
        Write("end_trial", {"state": state}, end_trial),
        Write(("insert_record", *given), given, insert_record),
    ]


def _attempt_ending(dialect: str, lease: Lease, ending: str, error: str | None = None) -> Write:
    def make(held: sa.FromClause, bind: Bind) -> Any:
        return (
            attempts.update()
            .where(
                _is_held(attempts, held),
                attempts.c.fence == bind("fence", attempts.c.fence),
                attempts.c.ended_at_s.is_(None),
            )
            .values(
                ended_at_s=clock(dialect),
                ending=bind("ending", attempts.c.ending),
                error=bind("error", attempts.c.error),
            )
        )

    return Write("attempt_ending", {"fence": lease.fence, "ending": str(ending), "error": error}, make)


def release(engine: Engine, lease: Lease) -> None:
    """Give a trial back unfinished, to be taken over at once.

    Raises:
        LeaseLost: another worker has the trial already.
    """
    if not _give_back(engine, lease, Outcome.PREEMPTED, None):
        raise lost_lease(lease)


def _give_back(engine: Engine, lease: Lease, ending: Outcome, error: str | None) -> bool:
    writes = [_attempt_ending(engine.dialect.name, lease, ending, error)]

    def work(connection: Connection, tries: int) -> bool:
        return _fenced(connection, lease, "release", writes) or (tries > 0 and _has_ended(connection, lease, ending))

    return write_once(engine, work)


def retry(engine: Engine, lease: Lease, error: str, limit: int) -> bool:
    """Give a trial that failed back to be tried again, unless it has failed too often; return whether it will be.

    Args:
        engine: The storage's engine.
        lease: The trial's.
        error: The traceback, which stays with the attempt.
        limit: How often a failed trial is tried again.

    Raises:
        LeaseLost: another worker has the trial already.
    """
    query = sa.select(sa.func.count()).where(
        attempts.c.trial_id == lease.trial_id, attempts.c.ending == Outcome.FAILED.value
    )
    if read(engine, lambda connection: connection.execute(query).scalar_one()) >= limit:
        return False
    if not _give_back(engine, lease, Outcome.FAILED, error):
        raise lost_lease(lease)
    return True


# --- The thread that renews


@dataclass
class Watch:
    """What a worker learns beside its training."""

    is_lost: threading.Event = field(default_factory=threading.Event)
    """Another worker has the trial."""
    must_stop: threading.Event = field(default_factory=threading.Event)
    """The study was stopped, or its hours are spent: the trial is to be given back."""


@contextlib.contextmanager
def renewed(engine: Engine, lease: Lease, must_stop: Callable[[], bool] = lambda: False) -> Iterator[Watch]:
    """Renew a lease from a thread while the body runs.

    Args:
        engine: The storage's engine. The thread does not wait for a database that is away, but tries again by itself.
        lease: The lease.
        must_stop: Asked after each renewal whether the trial must be given back.
    """
    is_over, watch = threading.Event(), Watch()
    engine = patient(engine, PROMPT)

    def beat() -> None:
        is_cut_off = False
        while not is_over.wait(min(1.0, lease.lease_s / 6) if is_cut_off else lease.lease_s / 6):
            try:
                renew(engine, lease)
                if must_stop():
                    watch.must_stop.set()
                is_cut_off = False
            except (LeaseLost, UnknownStudy):
                watch.is_lost.set()
                return
            except StorageLost as error:
                # The database may be away for a while; the lease's end, not this thread, decides.
                tell_away(engine, error, f"the lease of trial {lease.number} is not renewed")
                is_cut_off = True
            except Exception as error:  # the thread must go on, or the trial is lost for a trifle
                print(f"tuner: the lease of trial {lease.number} is not renewed: {error}", file=sys.stderr)
                is_cut_off = True

    thread = threading.Thread(target=beat, name=f"lease-{lease.number}", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        is_over.set()
        thread.join()


def stored_number(value: float) -> tuple[float | None, str]:
    """Return a float as Optuna stores it: finite ones as numbers, the others as a type."""
    value = float(value)  # psycopg2 takes NumPy's for names
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"
