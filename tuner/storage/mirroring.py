"""The data of a mirror: its lease, the trials that a tracker does not have yet, and what was sent."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.read.budget import read_effective_trials
from tuner.storage.read.queries import StudyRow, TrialRow, read_some
from tuner.storage.sql.dialect import clock, ids_value, insert, of_study, one_of
from tuner.storage.sql.retry import read, write
from tuner.storage.sql.tables import (
    attempts,
    budgets,
    leases,
    logs,
    mirrored,
    mirrors,
    records,
    reports,
    trials,
    workers,
)
from tuner.trial import Outcome


@dataclass(frozen=True)
class Sent:
    """The data of a trial that a tracker has; `digest` is that of the reports up to `epoch`."""

    trial_id: int
    run: str
    epoch: int = 0
    digest: str = ""
    is_ended: bool = False

    def after(self, several: Sequence[StoredReport]) -> Sent:
        """Return the data that a tracker has after it was sent the next reports."""
        epoch = several[-1].epoch if several else self.epoch
        return dataclasses.replace(self, epoch=epoch, digest=digest(self.digest, several))


@dataclass(frozen=True)
class StoredReport:
    """A row of `tuner_reports`, its metrics still as text."""

    epoch: int
    step: int
    metrics: str
    reported_at_s: float | None


@dataclass(frozen=True)
class Unsent:
    """A trial with data that a tracker does not have.

    Attributes:
        row: The trial's row.
        is_ended: Whether the trial is final.
        sent: The data that the tracker has; None for nothing.
        reports: The reports after `sent`; for an ended trial all.
        attempts: Its columns of `tuner_attempts`, in order.
        worker: The worker that held it last: columns of `tuner_workers`, with `about` as an object.
        log: For an ended trial, the last lines that its last attempt printed.
    """

    row: TrialRow
    is_ended: bool
    sent: Sent | None
    reports: Sequence[StoredReport]
    attempts: Sequence[Mapping[str, Any]]
    worker: Mapping[str, Any]
    log: str = ""


def digest(before: str, several: Iterable[StoredReport]) -> str:
    """Return the digest of reports after those of another digest; times are not part of it."""
    for one in several:
        before = hashlib.sha256(f"{before} {one.epoch} {one.step} {one.metrics}".encode()).hexdigest()
    return before


# --- The lease


def hold(engine: Engine, study_id: int, target: str, owner: str, lease_s: float) -> bool:
    """Take or extend the lease on a study and a tracker; return whether `owner` has it.

    Concurrency: safe from many processes; one of them has it until its lease ends on the database's clock.
    """

    def work(connection: Connection, _: int) -> bool:
        now = clock(connection.dialect.name)
        statement = insert(connection.dialect.name, mirrors).values(
            study_id=study_id, target=target, owner=owner, expires_at_s=now + lease_s
        )
        is_free = mirrors.c.owner.is_(None) | (mirrors.c.expires_at_s <= now) | (mirrors.c.owner == owner)
        taken = statement.on_conflict_do_update(
            index_elements=["study_id", "target"],
            set_={"owner": owner, "expires_at_s": statement.excluded.expires_at_s},
            where=is_free,
        )
        return connection.execute(taken).rowcount == 1

    return write(engine, work)


def let_go(engine: Engine, study_id: int, target: str, owner: str) -> None:
    """End a lease, so that another process can take it immediately."""

    def work(connection: Connection, _: int) -> None:
        connection.execute(mirrors.update().where(*_is_own(study_id, target, owner)).values(owner=None))

    write(engine, work)


def _is_own(study_id: int, target: str, owner: str) -> tuple[sa.ColumnElement[bool], ...]:
    return mirrors.c.study_id == study_id, mirrors.c.target == target, mirrors.c.owner == owner


def enter_place(engine: Engine, study_id: int, target: str, owner: str, place: str) -> None:
    """Store the tracker's name of the study; if it is new, forget the data that was sent under the old name."""

    def work(connection: Connection, _: int) -> None:
        changed = connection.execute(
            mirrors.update()
            .where(*_is_own(study_id, target, owner), mirrors.c.place.is_distinct_from(place))
            .values(place=place)
        )
        if changed.rowcount:
            own = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)
            connection.execute(mirrored.delete().where(mirrored.c.target == target, mirrored.c.trial_id.in_(own)))

    write(engine, work)


def save(engine: Engine, study_id: int, target: str, owner: str, several: Sequence[Sent], *, lease_s: float) -> bool:
    """Store what a tracker has accepted and extend the lease; return False, and do nothing, without the lease."""

    def work(connection: Connection, _: int) -> bool:
        dialect = connection.dialect.name
        held = mirrors.update().where(*_is_own(study_id, target, owner))
        if connection.execute(held.values(expires_at_s=clock(dialect) + lease_s)).rowcount != 1:
            return False
        # A trial may have been deleted in the meantime.
        there = set(_known(connection, [one.trial_id for one in several]))
        rows = [{"target": target, **vars(one)} for one in several if one.trial_id in there]
        if rows:
            statement = insert(dialect, mirrored)
            changed = {name: statement.excluded[name] for name in ("run", "epoch", "digest", "is_ended")}
            connection.execute(
                statement.on_conflict_do_update(index_elements=["trial_id", "target"], set_=changed), rows
            )
        return True

    return write(engine, work)


def _known(connection: Connection, ids: Collection[int]) -> list[int]:
    query = sa.select(trials.c.trial_id).where(one_of(connection.dialect.name, trials.c.trial_id, "ids"))
    return list(connection.execute(query, {"ids": ids_value(connection.dialect.name, ids)}).scalars())


# --- Data to send


def place_of(engine: Engine, study_id: int, target: str) -> tuple[str | None, set[str]]:
    """Return a tracker's name of a study (None if nothing was sent), and the trials that it has."""

    def work(connection: Connection) -> tuple[str | None, set[str]]:
        place = sa.select(mirrors.c.place).where(mirrors.c.study_id == study_id, mirrors.c.target == target)
        runs = sa.select(mirrored.c.run).join(trials, trials.c.trial_id == mirrored.c.trial_id)
        runs = runs.where(trials.c.study_id == study_id, mirrored.c.target == target)
        return connection.execute(place).scalar_one_or_none(), set(connection.execute(runs).scalars())

    return read(engine, work)


def run_of(engine: Engine, trial_id: int, target: str) -> str | None:
    """Return a tracker's name of a trial; None if it does not have the trial."""
    query = sa.select(mirrored.c.run).where(mirrored.c.trial_id == trial_id, mirrored.c.target == target)
    return read(engine, lambda connection: connection.execute(query).scalar_one_or_none())


def unsent_ids(engine: Engine, study_id: int, target: str, after: int) -> list[int]:
    """Return the ids greater than `after` of started trials whose end a tracker does not have."""

    def work(connection: Connection) -> list[int]:
        has = (mirrored.c.trial_id == trials.c.trial_id) & (mirrored.c.target == target)
        query = (
            sa.select(trials.c.trial_id)
            .select_from(trials.outerjoin(mirrored, has))
            .where(
                of_study(connection.dialect.name, study_id, after > 0),
                trials.c.trial_id > after,
                mirrored.c.is_ended.is_distinct_from(True),
            )
        )
        return list(connection.execute(query.order_by(trials.c.trial_id)).scalars())

    return read(engine, work)


def read_unsent(engine: Engine, study: StudyRow, target: str, ids: Sequence[int]) -> list[Unsent]:
    """Return the data of these trials that a tracker does not have; queued trials are skipped."""
    # Read the states first: then all reports of an ended trial are stored when they are read.
    rows = [row for row in read_some(engine, study, ids) if row.outcome is not Outcome.WAITING]

    def work(connection: Connection) -> tuple[list[Any], list[Any], list[Any], list[Any], dict[int, str]]:
        dialect = connection.dialect.name
        values = {"ids": ids_value(dialect, [row.trial_id for row in rows])}

        def of_trials(query: Any, table: sa.Table) -> list[Any]:
            found: Any = connection.execute(query.where(one_of(dialect, table.c.trial_id, "ids")), values)
            return list(found)

        sent = of_trials(sa.select(mirrored).where(mirrored.c.target == target), mirrored)
        # Everything for ended trials, to compare it with the sent data.
        values["ended"] = ids_value(dialect, [row.trial_id for row in rows if row.completed is not None])
        has = (mirrored.c.trial_id == reports.c.trial_id) & (mirrored.c.target == target)
        is_new = reports.c.epoch > sa.func.coalesce(mirrored.c.epoch, 0)
        query = sa.select(reports).select_from(reports.outerjoin(mirrored, has)).order_by(reports.c.epoch)
        told = of_trials(query.where(is_new | one_of(dialect, reports.c.trial_id, "ended")), reports)
        lineage = of_trials(sa.select(attempts).order_by(attempts.c.trial_id, attempts.c.fence), attempts)
        names = {one.worker for one in lineage}
        known = list(connection.execute(sa.select(workers).where(workers.c.worker.in_(names)))) if names else []
        of_ended = sa.select(logs).where(one_of(dialect, logs.c.trial_id, "ended")).order_by(logs.c.fence)
        printed = {one.trial_id: one.lines for one in connection.execute(of_ended, {"ended": values["ended"]})}
        return sent, told, lineage, known, printed

    sent, told, lineage, known, printed = read(engine, work)
    by_worker = {one.worker: {**one._mapping, "about": json.loads(one.about)} for one in known}

    def of(row: TrialRow, several: Sequence[Any]) -> list[Any]:
        return [one for one in several if one.trial_id == row.trial_id]

    found: list[Unsent] = []
    for row in rows:
        stored = [StoredReport(one.epoch, one.step, one.metrics, one.reported_at_s) for one in of(row, told)]
        own = [dict(one._mapping) for one in of(row, lineage)]
        worker = by_worker.get(own[-1]["worker"], {}) if own else {}
        had = [Sent(one.trial_id, one.run, one.epoch, one.digest, one.is_ended) for one in of(row, sent)]
        found.append(
            Unsent(
                row,
                row.completed is not None,
                had[0] if had else None,
                stored,
                own,
                worker,
                printed.get(row.trial_id, ""),
            )
        )
    return found


def is_finished(engine: Engine, study_id: int) -> bool:
    """Return whether a study is finished: its budget is used up or it is stopped, and no worker holds a trial."""

    def work(connection: Connection) -> bool:
        now = clock(connection.dialect.name)
        budget = connection.execute(sa.select(budgets.c.stopped_at_s).where(budgets.c.study_id == study_id)).first()
        held = sa.select(sa.func.count()).select_from(trials.join(leases, leases.c.trial_id == trials.c.trial_id))
        at_work = held.where(trials.c.study_id == study_id, trials.c.state == "RUNNING", leases.c.expires_at_s > now)
        if budget is None or connection.execute(at_work).scalar_one():
            return False
        if budget.stopped_at_s is not None:
            return True
        used = [outcome.value for outcome in Outcome if outcome.uses_budget]
        query = sa.select(sa.func.count()).where(records.c.study_id == study_id, records.c.outcome.in_(used))
        asked = read_effective_trials(connection, study_id).get(study_id)
        return asked is not None and connection.execute(query).scalar_one() >= asked

    return read(engine, work)
