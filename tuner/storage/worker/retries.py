"""Trials that were queued with the hyperparameters of one that failed; at most one of them is open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.sql.retry import read, write
from tuner.storage.sql.tables import studies, trial_system_attributes, trial_user_attributes, trials

RETRY_OF = "retry_of"
"""The user attribute of a trial that has the number of the one that it repeats."""
_FIXED_KEY = "fixed_params"
"""The system attribute from which Optuna takes the hyperparameters of a queued trial."""


@dataclass(frozen=True)
class Retry:
    """The trial that repeats a failed one, and whether it was queued now or before."""

    number: int
    is_new: bool


def find_open_retry(engine: Engine, study_id: int, number: int) -> int | None:
    """Return the number of the trial that repeats a trial and has not ended; None if there is none."""
    return read(engine, lambda connection: connection.execute(_open(study_id, number)).scalars().first())


def queue_retry(engine: Engine, study_id: int, number: int, params: Mapping[str, object]) -> Retry:
    """Queue a trial that repeats another one, unless one that has not ended does so already.

    Args:
        engine: The storage's engine.
        study_id: The study.
        number: The trial to repeat.
        params: Its hyperparameters, in Optuna's form.

    Concurrency: one transaction that locks the study's row; of several calls at once, one queues.
    """

    def work(connection: Connection, _: int) -> Retry:
        connection.execute(sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update())
        there = connection.execute(_open(study_id, number)).scalars().first()
        if there is not None:
            return Retry(there, is_new=False)
        count = sa.select(sa.func.count()).select_from(trials).where(trials.c.study_id == study_id)
        new = trials.insert().values(number=count.scalar_subquery(), study_id=study_id, state="WAITING")
        trial_id, made = connection.execute(new.returning(trials.c.trial_id, trials.c.number)).one()
        for table, key, value in (
            (trial_system_attributes, _FIXED_KEY, dict(params)),
            (trial_user_attributes, RETRY_OF, number),
        ):
            connection.execute(table.insert().values(trial_id=trial_id, key=key, value_json=json.dumps(value)))
        return Retry(made, is_new=True)

    return write(engine, work)


def _open(study_id: int, number: int) -> sa.Select[Any]:
    attributes = trial_user_attributes.c
    query = sa.select(trials.c.number).join(trial_user_attributes, attributes.trial_id == trials.c.trial_id)
    query = query.where(trials.c.study_id == study_id, trials.c.state.in_(["WAITING", "RUNNING"]))
    return query.where(attributes.key == RETRY_OF, attributes.value_json == json.dumps(number)).order_by(
        trials.c.number
    )
