"""The outbox of notifications: events of a study, and to which receivers each was sent. Launches share it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.read.hours import Hours, count_hours
from tuner.storage.sql.dialect import clock, insert
from tuner.storage.sql.retry import read, write
from tuner.storage.sql.tables import attempts, budgets, deliveries, notices, workers

SENT, GIVEN_UP = "sent", "given up"
REFERENCE, SUBSCRIBED = "first_result", "subscribed"
"""Kinds of notices that are never sent: one to compare later events with, and the sign that a receiver wants events."""
_OLDER = "older"
_NAMESPACE = uuid.UUID("2c1d8a34-90a1-4a0e-8f5c-5d6d0b7c3f11")


@dataclass(frozen=True)
class Notice:
    """An event of a study.

    Attributes:
        event_id: Equal for every launch that sees the event.
        kind: What happened.
        body: What is sent: values for JSON, among them `id`, `event`, `study`, `time` and `text`.
    """

    event_id: str
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Due:
    """A notice that this process is to send now; `tries` and `since_s` (seconds since the first) count this one."""

    notice: Notice
    receiver: str
    tries: int
    since_s: float


@dataclass(frozen=True)
class HoursBudget:
    """The budgets of a study in seconds (None for none), and what it has used of them."""

    wall_s: float | None
    device_s: float | None
    used: Hours


def subscribe(engine: Engine, study_id: int, receivers: Sequence[str], before: Sequence[Notice] = ()) -> None:
    """Note that receivers without any notice of this study want those from now on, and not those that are there.

    Args:
        engine: The storage's engine.
        study_id: The study.
        receivers: Digests of the receivers.
        before: Events that have happened, stored or not, which new receivers do not want.
    """

    def work(connection: Connection, _: int) -> None:
        new = sorted({*receivers} - _subscribed(connection, study_id))
        signs = [Notice(str(uuid.uuid5(_NAMESPACE, f"{study_id} {receiver}")), SUBSCRIBED, {}) for receiver in new]
        if new:
            _store(connection, study_id, [*before, *signs])
        _add_missing(connection, study_id, new, _OLDER)

    write(engine, work)


def subscribed(engine: Engine, study_id: int) -> set[str]:
    """Return the receivers that are subscribed to a study."""
    return read(engine, lambda connection: _subscribed(connection, study_id))


def _subscribed(connection: Connection, study_id: int) -> set[str]:
    known = sa.select(deliveries.c.receiver).where(deliveries.c.study_id == study_id).distinct()
    return set(connection.execute(known).scalars())


def post(engine: Engine, study_id: int, several: Sequence[Notice], receivers: Sequence[str]) -> None:
    """Store notices that are new, and that the receivers are to get these and others that they do not have.

    Concurrency: safe from many launches; a notice with the same id is stored once.
    """

    def work(connection: Connection, _: int) -> None:
        _store(connection, study_id, several)
        _add_missing(connection, study_id, receivers, None)

    write(engine, work)


def _store(connection: Connection, study_id: int, several: Sequence[Notice]) -> None:
    for at, one in enumerate(several):
        row = {"event_id": one.event_id, "study_id": study_id, "kind": one.kind, "body": json.dumps(one.body)}
        made_at_s = clock(connection.dialect.name) + at / 1000  # keeps the order
        statement = insert(connection.dialect.name, notices).values(**row, made_at_s=made_at_s)
        connection.execute(statement.on_conflict_do_nothing(index_elements=["event_id"]))


def _add_missing(connection: Connection, study_id: int, receivers: Sequence[str], ending: str | None) -> None:
    for receiver in receivers:
        is_never_sent = notices.c.kind.in_([REFERENCE, SUBSCRIBED])
        columns = {
            "event_id": notices.c.event_id,
            "receiver": sa.literal(receiver),
            "study_id": notices.c.study_id,
            "tries": sa.literal(0),
            "next_at_s": sa.literal(0.0),
            "ending": sa.case((is_never_sent, _OLDER), else_=sa.literal(ending, sa.String(20))),
        }
        found = sa.select(*columns.values()).where(notices.c.study_id == study_id)
        statement = insert(connection.dialect.name, deliveries).from_select(list(columns), found)
        connection.execute(statement.on_conflict_do_nothing(index_elements=["event_id", "receiver"]))


def is_stored(engine: Engine, event_id: str) -> bool:
    """Return whether an event is stored."""
    query = sa.select(notices.c.event_id).where(notices.c.event_id == event_id)
    return read(engine, lambda connection: connection.execute(query).first()) is not None


def take_due(engine: Engine, study_id: int, receiver: str, claim_s: float) -> list[Due]:
    """Return the notices that a receiver is to get now, oldest first; no other launch tries them for `claim_s`."""

    def work(connection: Connection, _: int) -> list[Due]:
        now = clock(connection.dialect.name)
        waiting = (
            sa.select(deliveries, notices.c.kind, notices.c.body, now.label("now_s"))
            .join(notices, notices.c.event_id == deliveries.c.event_id)
            .where(*_unsent(study_id, receiver), deliveries.c.next_at_s <= now)
            .order_by(notices.c.made_at_s, notices.c.event_id)
        )
        taken: list[Due] = []
        for row in list(connection.execute(waiting)):
            first_s = row.now_s if row.first_tried_at_s is None else row.first_tried_at_s
            changed = {"tries": row.tries + 1, "first_tried_at_s": first_s, "next_at_s": row.now_s + claim_s}
            is_same = (*_of(row.event_id, receiver), deliveries.c.tries == row.tries, deliveries.c.ending.is_(None))
            if connection.execute(deliveries.update().where(*is_same).values(**changed)).rowcount == 1:
                notice = Notice(row.event_id, row.kind, json.loads(row.body))
                taken.append(Due(notice, receiver, row.tries + 1, row.now_s - first_s))
        return taken

    return write(engine, work)


def settle(engine: Engine, due: Due, ending: str | None, pause_s: float = 0.0) -> None:
    """Store how a try ended: for good, or None to try again after `pause_s`."""

    def work(connection: Connection, _: int) -> None:
        changed = {"ending": ending, "next_at_s": clock(connection.dialect.name) + pause_s}
        connection.execute(deliveries.update().where(*_of(due.notice.event_id, due.receiver)).values(**changed))

    write(engine, work)


def unsent(engine: Engine, study_id: int, receiver: str) -> dict[str, float]:
    """Return the ids of the notices that a receiver is still to get, oldest first, and the seconds to the next try."""
    wait_s = deliveries.c.next_at_s - clock(engine.dialect.name)
    query = (
        sa.select(deliveries.c.event_id, wait_s).where(*_unsent(study_id, receiver)).order_by(deliveries.c.next_at_s)
    )
    return read(engine, lambda connection: {event_id: rest_s for event_id, rest_s in connection.execute(query)})


def last_of(engine: Engine, study_id: int, kinds: Sequence[str]) -> Mapping[str, Any] | None:
    """Return the body of the latest notice of these kinds; None if there is none."""
    query = sa.select(notices.c.body).where(notices.c.study_id == study_id, notices.c.kind.in_(kinds))
    query = query.order_by(notices.c.made_at_s.desc(), notices.c.event_id).limit(1)
    found = read(engine, lambda connection: connection.execute(query).scalar_one_or_none())
    return None if found is None else json.loads(found)


def count_attempts(engine: Engine, study_id: int) -> int:
    """Return how many attempts at trials a study has had, which distinguishes its ends."""
    query = sa.select(sa.func.count()).select_from(attempts).where(attempts.c.study_id == study_id)
    return read(engine, lambda connection: connection.execute(query).scalar_one())


def count_workers(engine: Engine, study_id: int) -> int:
    """Return how many workers have ever joined a study, which distinguishes its launches."""
    query = sa.select(sa.func.count()).select_from(workers).where(workers.c.study_id == study_id)
    return read(engine, lambda connection: connection.execute(query).scalar_one())


def read_hours(engine: Engine, study_id: int) -> HoursBudget | None:
    """Return what a study has used of its hours; None if they are not limited."""

    def work(connection: Connection) -> HoursBudget | None:
        query = sa.select(budgets.c.wall_s, budgets.c.device_s).where(budgets.c.study_id == study_id)
        row = connection.execute(query).first()
        if row is None or (row.wall_s is None and row.device_s is None):
            return None
        now_s = connection.execute(sa.select(clock(connection.dialect.name))).scalar_one()
        return HoursBudget(row.wall_s, row.device_s, count_hours(connection, study_id, now_s, Hours())[0])

    return read(engine, work)


def _of(event_id: str, receiver: str) -> tuple[sa.ColumnElement[bool], ...]:
    return deliveries.c.event_id == event_id, deliveries.c.receiver == receiver


def _unsent(study_id: int, receiver: str) -> tuple[sa.ColumnElement[bool], ...]:
    return deliveries.c.study_id == study_id, deliveries.c.receiver == receiver, deliveries.c.ending.is_(None)
