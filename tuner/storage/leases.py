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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import LeaseLost, UnknownStudy
from tuner.storage.dialect import clock, insert, utc_now
from tuner.storage.engine import read, write_once
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


Write = Callable[[sa.FromClause], Any]
"""Makes a statement that changes nothing unless the relation it is given, one column `trial_id`, has a row."""


def only(lease: Lease) -> sa.FromClause:
    """Return the relation of a trial that is known to be held."""
    return sa.select(sa.literal(lease.trial_id).label("trial_id")).subquery("held")


def _fenced(connection: Connection, lease: Lease, change: sa.Update | sa.Delete, writes: Sequence[Write]) -> bool:
    """Change the lease if it is still held, and only then do the writes; return whether it was."""
    change = change.where(
        leases.c.trial_id == lease.trial_id,
        leases.c.fence == lease.fence,
        leases.c.worker == lease.worker,
        # Another Optuna tool may have ended the trial, or deleted its study.
        sa.exists().where(trials.c.trial_id == lease.trial_id, trials.c.state == "RUNNING"),
    )
    if connection.dialect.name == "sqlite":
        if connection.execute(change).rowcount != 1:
            return False
        for make in writes:
            connection.execute(make(only(lease)))
        return True
    held = change.returning(leases.c.trial_id).cte("held")
    several = [make(held).cte(f"write_{index}") for index, make in enumerate(writes)]
    return connection.execute(sa.select(held.c.trial_id).add_cte(*several)).first() is not None


def _extended(connection: Connection, lease: Lease) -> sa.Update:
    return leases.update().values(expires_at_s=clock(connection.dialect.name) + lease.lease_s)


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(
        f"trial {lease.number} must still belong to {lease.worker}: another worker has taken it over, or ended it"
    )


def _write_held(engine: Engine, lease: Lease, *writes: Write) -> None:
    """Renew the lease and do the writes.

    Raises:
        LeaseLost: another worker has the trial, or it has ended.
    """
    is_held = write_once(engine, lambda connection, _: _fenced(connection, lease, _extended(connection, lease), writes))
    if not is_held:
        raise _lost(lease)


def upsert(dialect: str, table: sa.Table, rows: Sequence[Mapping[str, Any]], unique: Sequence[str]) -> Write:
    """Return the write that stores rows, in place of those that are there. All rows have the same columns."""

    def make(held: sa.FromClause) -> Any:
        parts = [
            sa.select(*(sa.cast(value, table.c[name].type).label(name) for name, value in row.items())).select_from(
                held
            )
            for row in rows
        ]
        statement = insert(dialect, table)
        source = parts[0].where(sa.true()) if len(parts) == 1 else _all_of(parts)
        statement = statement.from_select(list(rows[0]), source)
        changed = {name: statement.excluded[name] for name in rows[0] if name not in unique}
        return statement.on_conflict_do_update(index_elements=unique, set_=changed)

    return make


def _all_of(parts: Sequence[sa.Select[Any]]) -> sa.Select[Any]:
    # SQLite takes ON CONFLICT for a join's ON unless a WHERE stands before it.
    return sa.select(sa.union_all(*parts).subquery()).where(sa.true())


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
    rows = [
        {"trial_id": lease.trial_id, "param_name": name, "param_value": number, "distribution_json": text}
        for name, number, text in params
    ]
    _write_held(engine, lease, upsert(engine.dialect.name, trial_params, rows, ["trial_id", "param_name"]))


def store_attribute(engine: Engine, lease: Lease, table: sa.Table, key: str, value: Any) -> None:
    """Store one of Optuna's user or system attributes of a trial.

    Raises:
        LeaseLost: another worker has the trial.
    """
    row = {"trial_id": lease.trial_id, "key": key, "value_json": json.dumps(value)}
    assert table in (trial_user_attributes, trial_system_attributes)
    _write_held(engine, lease, upsert(engine.dialect.name, table, [row], ["trial_id", "key"]))


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
    rows = [
        {
            "trial_id": lease.trial_id,
            "epoch": one.epoch,
            "step": one.step,
            "metrics": json.dumps({name: encode_metric(value) for name, value in one.metrics.items()}),
        }
        for one in several
    ]
    writes = [upsert(engine.dialect.name, reports, rows, ["trial_id", "epoch"])]
    if objective is not None:
        rows = []
        for one in several:
            stored, kind = stored_number(one.metrics[objective])
            row = {"trial_id": lease.trial_id, "step": one.epoch}
            rows.append({**row, "intermediate_value": stored, "intermediate_value_type": kind})
        writes.append(upsert(engine.dialect.name, trial_intermediate_values, rows, ["trial_id", "step"]))
    _write_held(engine, lease, *writes)


def encode_metric(value: float) -> float | str:
    """Return a metric as JSON can hold it: NaN and infinities as text."""
    return value if math.isfinite(value) else str(value)


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
        is_held = _fenced(connection, lease, leases.delete(), writes)
        return is_held or (tries > 0 and _has_ended(connection, lease, outcome))

    if not write_once(engine, work):
        raise _lost(lease)


def _has_ended(connection: Connection, lease: Lease, ending: str) -> bool:
    """Return whether this attempt has ended so: its commit went through though the answer was lost."""
    query = sa.select(attempts.c.ending).where(
        attempts.c.trial_id == lease.trial_id, attempts.c.fence == lease.fence, attempts.c.worker == lease.worker
    )
    return connection.execute(query).scalar_one_or_none() == ending


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
            rows.append({"trial_id": lease.trial_id, "objective": objective, "value": stored, "value_type": kind})
        writes.append(upsert(dialect, trial_values, rows, ["trial_id", "objective"]))
    told = {"trial_id": lease.trial_id, "key": "outcome", "value_json": json.dumps(outcome)}
    writes.append(upsert(dialect, trial_user_attributes, [told], ["trial_id", "key"]))

    def end_trial(held: sa.FromClause) -> Any:
        return (
            trials.update()
            .where(trials.c.trial_id.in_(sa.select(held.c.trial_id)))
            .values(state=state, datetime_complete=utc_now(dialect))
        )

    def insert_record(held: sa.FromClause) -> Any:
        given = {"outcome": outcome.value, **record}
        columns = [sa.cast(value, records.c[name].type).label(name) for name, value in given.items()]
        source = sa.select(trials.c.trial_id, trials.c.study_id, clock(dialect), *columns).where(
            trials.c.trial_id.in_(sa.select(held.c.trial_id))
        )
        return records.insert().from_select(["trial_id", "study_id", "ended_at_s", *given], source)

    return [*writes, end_trial, insert_record]


def _attempt_ending(dialect: str, lease: Lease, ending: str, error: str | None = None) -> Write:
    return lambda held: (
        attempts.update()
        .where(
            attempts.c.trial_id.in_(sa.select(held.c.trial_id)),
            attempts.c.fence == lease.fence,
            attempts.c.ended_at_s.is_(None),
        )
        .values(ended_at_s=clock(dialect), ending=str(ending), error=error)
    )


def release(engine: Engine, lease: Lease) -> None:
    """Give a trial back unfinished, to be taken over at once.

    Raises:
        LeaseLost: another worker has the trial already.
    """
    if not _give_back(engine, lease, Outcome.PREEMPTED, None):
        raise _lost(lease)


def _give_back(engine: Engine, lease: Lease, ending: Outcome, error: str | None) -> bool:
    change = leases.update().values(worker=None, expires_at_s=0.0)
    writes = [_attempt_ending(engine.dialect.name, lease, ending, error)]

    def work(connection: Connection, tries: int) -> bool:
        return _fenced(connection, lease, change, writes) or (tries > 0 and _has_ended(connection, lease, ending))

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
        raise _lost(lease)
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
        engine: An engine that does not wait for a database that is away: the thread tries again by itself.
        lease: The lease.
        must_stop: Asked after each renewal whether the trial must be given back.
    """
    is_over, watch = threading.Event(), Watch()

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
            except Exception as error:
                # The database may be away for a while; the lease's end, not this thread, decides.
                if not is_cut_off:
                    print(f"tuner: lease of trial {lease.number} not renewed: {error}", file=sys.stderr)
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
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"
