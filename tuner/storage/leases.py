"""Who runs which trial: claim, renew, report, tell, release. Each is one transaction, safe from many workers.

The study's row is the lock under which trials are claimed, so the number of trials is exact. A lease carries a
fence; a worker whose lease was taken over finds its fence outdated at its next write and gets `LeaseLost`.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import json
import math
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects import postgresql, sqlite

from tuner.errors import LeaseLost, UnknownStudy
from tuner.storage.engine import transaction
from tuner.storage.tables import (
    leases,
    studies,
    trial_intermediate_values,
    trial_user_attributes,
    trial_values,
    trials,
)
from tuner.trial import Outcome

MAX_DEATHS = 3
"""A trial in which this many workers died is failed: a fourth would probably die as well."""


class NoTrial(enum.Enum):
    """Why there is nothing to claim."""

    WAIT = "the rest of the budget is running elsewhere; a trial may come back"
    DONE = "the budget is spent"


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's claim on a trial, until `lease_s` seconds after the last claim, renewal or report."""

    trial_id: int
    number: int
    worker: str
    fence: int
    lease_s: float


def _now_s(connection: Connection) -> float:
    """Return the database's clock, in seconds since 1970."""
    if connection.dialect.name == "sqlite":
        return connection.execute(sa.text("SELECT (julianday('now') - 2440587.5) * 86400.0")).scalar_one()
    return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())


def _utc_now() -> datetime.datetime:
    """Return the time as Optuna stores it: UTC, without a zone."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def claim(engine: Engine, study_id: int, worker: str, *, budget: int, lease_s: float) -> Lease | NoTrial:
    """Take over a trial whose lease has ended, else start a queued one, else create the next if the budget allows.

    Args:
        engine: The storage's engine.
        study_id: The study.
        worker: The worker's name.
        budget: Trials asked for: complete, pruned, diverged and out-of-memory ones count, failed ones do not.
        lease_s: How long the lease lasts without a renewal, in seconds.

    Returns:
        The lease, or why there is none.

    Raises:
        UnknownStudy: the study has been deleted.

    Concurrency: one transaction that holds the study's row.
    """
    with transaction(engine) as connection:
        row = connection.execute(sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update())
        if row.first() is None:
            raise UnknownStudy(f"the study must stay in the storage while it runs: number {study_id} was deleted")
        now_s = _now_s(connection)
        if _count(connection, study_id)[0] >= budget:
            return NoTrial.DONE
        adopted = _adopt(connection, study_id, worker, now_s, lease_s)
        if adopted is not None:
            return adopted
        # Counted again: a trial may have been failed just now, because too many workers died in it.
        if sum(_count(connection, study_id)) >= budget:
            return NoTrial.WAIT
        trial_id, number = _start_queued(connection, study_id) or _create(connection, study_id)
        fence = _open_lease(connection, trial_id, worker, now_s + lease_s)
        return Lease(trial_id, number, worker, fence, lease_s)


def _count(connection: Connection, study_id: int) -> tuple[int, int]:
    """Return how many trials have used budget, and how many of ours are running.

    One statement: between two, another worker may end a trial, which neither would count.
    """
    is_finished = trials.c.state.in_(["COMPLETE", "PRUNED"])
    is_ours = (trials.c.state == "RUNNING") & leases.c.trial_id.is_not(None)
    query = (
        sa.select(sa.func.count(sa.case((is_finished, 1))), sa.func.count(sa.case((is_ours, 1))))
        .select_from(trials.outerjoin(leases, leases.c.trial_id == trials.c.trial_id))
        .where(trials.c.study_id == study_id)
    )
    finished, running = connection.execute(query).one()
    return finished, running


def _open_lease(connection: Connection, trial_id: int, worker: str, expires_at_s: float) -> int:
    """Write the lease of a trial that has just been started; return its fence.

    There may be one already: SQLite gives the ids of deleted trials to new ones.
    """
    old = connection.execute(sa.select(leases.c.fence).where(leases.c.trial_id == trial_id)).scalar_one_or_none()
    row = {"trial_id": trial_id, "worker": worker, "fence": (old or 0) + 1, "deaths": 0, "expires_at_s": expires_at_s}
    _upsert(connection, leases, [row], ["trial_id"])
    return row["fence"]


def _adopt(connection: Connection, study_id: int, worker: str, now_s: float, lease_s: float) -> Lease | None:
    query = (
        sa.select(leases.c.trial_id, trials.c.number, leases.c.worker, leases.c.fence, leases.c.deaths)
        .select_from(trials.join(leases, leases.c.trial_id == trials.c.trial_id))
        .where(trials.c.study_id == study_id, trials.c.state == "RUNNING", leases.c.expires_at_s <= now_s)
        .order_by(trials.c.number)
        # A lease that its owner is just writing to is not ours to take.
        .with_for_update(of=leases, skip_locked=True)
    )
    for row in connection.execute(query).all():
        deaths = row.deaths + (row.worker is not None)
        if deaths >= MAX_DEATHS:
            error = f"{deaths} workers died while they ran this trial, the last was {row.worker}"
            _finish(
                connection,
                row.trial_id,
                "FAIL",
                None,
                {"outcome": Outcome.FAILED, "error_kind": "dead workers", "error": error},
            )
            continue
        connection.execute(
            leases.update()
            .where(leases.c.trial_id == row.trial_id)
            .values(worker=worker, fence=row.fence + 1, deaths=deaths, expires_at_s=now_s + lease_s)
        )
        return Lease(row.trial_id, row.number, worker, row.fence + 1, lease_s)
    return None


def _start_queued(connection: Connection, study_id: int) -> tuple[int, int] | None:
    query = (
        sa.select(trials.c.trial_id, trials.c.number)
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING")
        .order_by(trials.c.number)
        .limit(1)
        .with_for_update()
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    connection.execute(
        trials.update().where(trials.c.trial_id == row.trial_id).values(state="RUNNING", datetime_start=_utc_now())
    )
    return row.trial_id, row.number


def _create(connection: Connection, study_id: int) -> tuple[int, int]:
    number = connection.execute(
        sa.select(sa.func.count()).select_from(trials).where(trials.c.study_id == study_id)
    ).scalar_one()
    statement = (
        trials.insert()
        .values(number=number, study_id=study_id, state="RUNNING", datetime_start=_utc_now())
        .returning(trials.c.trial_id)
    )
    return connection.execute(statement).scalar_one(), number


def _extend(connection: Connection, lease: Lease) -> None:
    """Renew the lease inside a transaction; every write of a worker starts with this.

    Raises:
        LeaseLost: another worker has the trial, or it has ended.
    """
    statement = (
        leases.update()
        .where(leases.c.trial_id == lease.trial_id, leases.c.fence == lease.fence, leases.c.worker == lease.worker)
        # Another Optuna tool may have ended the trial, or deleted its study.
        .where(sa.exists().where(trials.c.trial_id == lease.trial_id, trials.c.state == "RUNNING"))
        .values(expires_at_s=_now_s(connection) + lease.lease_s)
    )
    if connection.execute(statement).rowcount != 1:
        raise LeaseLost(
            f"trial {lease.number} must still belong to {lease.worker}: another worker has taken it over, or ended it"
        )


def renew(engine: Engine, lease: Lease) -> None:
    """Extend a lease by its length from now.

    Raises:
        LeaseLost: another worker has the trial.
    """
    with transaction(engine) as connection:
        _extend(connection, lease)


@contextlib.contextmanager
def renewed(engine: Engine, lease: Lease) -> Iterator[threading.Event]:
    """Renew a lease from a thread while the body runs; the event is set once the lease is lost."""
    is_over, is_lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not is_over.wait(lease.lease_s / 3):
            try:
                renew(engine, lease)
            except LeaseLost:
                is_lost.set()
                return
            except Exception as error:
                # The database may be away for a while; the lease's end, not this thread, decides.
                print(f"tuner: lease of trial {lease.number} not renewed: {error}", file=sys.stderr)

    thread = threading.Thread(target=beat, name=f"lease-{lease.number}", daemon=True)
    thread.start()
    try:
        yield is_lost
    finally:
        is_over.set()
        thread.join()


def report(engine: Engine, lease: Lease, epoch: int, value: float) -> None:
    """Store an intermediate value and extend the lease. A value already there is overwritten, never doubled.

    Raises:
        LeaseLost: another worker has the trial.
    """
    stored, kind = _stored(value)
    row = {
        "trial_id": lease.trial_id,
        "step": epoch,
        "intermediate_value": stored,
        "intermediate_value_type": kind,
    }
    with transaction(engine) as connection:
        _extend(connection, lease)
        _upsert(connection, trial_intermediate_values, [row], ["trial_id", "step"])


def tell(
    engine: Engine, lease: Lease, outcome: Outcome, values: Sequence[float] | None, attributes: Mapping[str, Any]
) -> None:
    """End a trial: its state, values and attributes in one transaction.

    Optuna has no state for a diverged or out-of-memory trial: they are stored as pruned, so that samplers learn to
    avoid them (a failed trial is invisible to them), with the outcome as an attribute.

    Raises:
        LeaseLost: another worker has the trial.
    """
    state = {Outcome.COMPLETE: "COMPLETE", Outcome.FAILED: "FAIL"}.get(outcome, "PRUNED")
    with transaction(engine) as connection:
        _extend(connection, lease)
        _finish(connection, lease.trial_id, state, values, {**attributes, "outcome": outcome})


def _finish(
    connection: Connection,
    trial_id: int,
    state: str,
    values: Sequence[float] | None,
    attributes: Mapping[str, Any],
) -> None:
    if values is not None:
        rows = []
        for objective, value in enumerate(values):
            stored, kind = _stored(value)
            rows.append({"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind})
        _upsert(connection, trial_values, rows, ["trial_id", "objective"])
    rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]
    _upsert(connection, trial_user_attributes, rows, ["trial_id", "key"])
    connection.execute(
        trials.update().where(trials.c.trial_id == trial_id).values(state=state, datetime_complete=_utc_now())
    )
    connection.execute(leases.delete().where(leases.c.trial_id == trial_id))


def release(engine: Engine, lease: Lease) -> None:
    """Give a trial back unfinished, to be taken over at once.

    Raises:
        LeaseLost: another worker has the trial already.
    """
    with transaction(engine) as connection:
        _extend(connection, lease)
        connection.execute(
            leases.update().where(leases.c.trial_id == lease.trial_id).values(worker=None, expires_at_s=0.0)
        )


def release_all(engine: Engine, worker: str, *, died: bool) -> None:
    """End the leases of a worker that is known to be gone, so that nobody waits for them to expire.

    Args:
        engine: The storage's engine.
        worker: The worker's name.
        died: It ended by itself in the middle of its trial, which counts against the trial.
    """
    values: dict[str, Any] = {"expires_at_s": 0.0} if died else {"expires_at_s": 0.0, "worker": None}
    with transaction(engine) as connection:
        connection.execute(leases.update().where(leases.c.worker == worker).values(values))


def _upsert(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], unique: Sequence[str]) -> None:
    insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
    changed = {name: insert.excluded[name] for name in rows[0] if name not in unique}
    connection.execute(insert.on_conflict_do_update(index_elements=unique, set_=changed), list(rows))


def _stored(value: float) -> tuple[float | None, str]:
    """Return a float as Optuna stores it: finite ones as numbers, the others as a type."""
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"
