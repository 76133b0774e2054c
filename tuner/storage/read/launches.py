"""What the database tells of the launches of all studies: attempts, and workers that run, have ended or vanished."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.sql.dialect import clock
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import attempts, workers

LOST_S = 120.0
"""Seconds without a sign of life after which a worker counts as gone; a worker gives one every few seconds."""


@dataclass(frozen=True)
class Activity:
    """The launches of a study, as far as its workers and attempts tell.

    Attributes:
        attempts: The number of attempts at its trials.
        joined: The number of workers that have ever joined it.
        alive: The number of those that run.
        since_s: When the first of those joined that run, or else the last of all; on the database's clock.
        has_lost: Whether the worker that was seen last vanished, without saying that it ends.
    """

    attempts: int = 0
    joined: int = 0
    alive: int = 0
    since_s: float = 0.0
    has_lost: bool = False


def read_activity(engine: Engine) -> dict[int, Activity]:
    """Return the activity of each study that a worker has joined, by its id."""

    def work(connection: Connection) -> dict[int, Activity]:
        if not sa.inspect(connection).has_table(workers.name):  # a database of plain Optuna
            return {}
        table = workers.c
        runs = table.ended_at_s.is_(None) & (table.seen_at_s > clock(connection.dialect.name) - LOST_S)
        query = sa.select(
            table.study_id,
            sa.func.count(),
            sa.func.sum(sa.case((runs, 1), else_=0)),
            sa.func.coalesce(sa.func.min(sa.case((runs, table.started_at_s))), sa.func.max(table.started_at_s)),
            sa.func.max(sa.case((table.ended_at_s.is_(None), table.seen_at_s))),
            sa.func.max(table.ended_at_s),
        ).group_by(table.study_id)
        tries = sa.select(attempts.c.study_id, sa.func.count()).group_by(attempts.c.study_id)
        tried = {study_id: count for study_id, count in connection.execute(tries)}
        return {
            study_id: Activity(
                tried.get(study_id, 0), joined, int(alive), since_s, not alive and (lost_s or 0.0) > (ended_s or 0.0)
            )
            for study_id, joined, alive, since_s, lost_s, ended_s in connection.execute(query)
        }

    return read(engine, work)
