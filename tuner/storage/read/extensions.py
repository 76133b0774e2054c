"""Trials that continue others: what is stored about them, and which files must be kept for them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy import Engine

from tuner.storage.read.front import removable
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import trial_system_attributes, trials
from tuner.trial.extension import EXTENSION_KEY, LAST_KEY, Extension


def read_extensions(engine: Engine, study_id: int, states: Collection[str] = ()) -> dict[int, Extension]:
    """Return how trials of a study continue others, by their numbers.

    Args:
        engine: The storage's engine.
        study_id: The study.
        states: Only trials in one of these states of Optuna; all by default.
    """
    table = trial_system_attributes.c
    query = sa.select(trials.c.number, table.value_json).join(trials, table.trial_id == trials.c.trial_id)
    query = query.where(trials.c.study_id == study_id, table.key == EXTENSION_KEY)
    if states:
        query = query.where(trials.c.state.in_(states))
    rows = read(engine, lambda connection: connection.execute(query.order_by(trials.c.number)).all())
    return {number: Extension.of_json(json.loads(text)) for number, text in rows}


def find_extension(engine: Engine, trial_id: int) -> Extension | None:
    """Return how a trial continues another one; None if it does not."""
    table = trial_system_attributes.c
    query = sa.select(table.value_json).where(table.trial_id == trial_id, table.key == EXTENSION_KEY)
    text = read(engine, lambda connection: connection.execute(query).scalar_one_or_none())
    return None if text is None else Extension.of_json(json.loads(text))


def read_last_epochs(engine: Engine, study_id: int) -> dict[int, int]:
    """Return the trials of a study whose last state was kept, with the epoch of their last report, by number."""
    table = trial_system_attributes.c
    query = sa.select(trials.c.number, table.value_json).join(trials, table.trial_id == trials.c.trial_id)
    query = query.where(trials.c.study_id == study_id, table.key == LAST_KEY)
    rows = read(engine, lambda connection: connection.execute(query.order_by(trials.c.number)).all())
    return {number: json.loads(text) for number, text in rows}


def unneeded(
    engine: Engine, study_id: int, numbers: Collection[int], keep: int, *, maximize: Sequence[bool]
) -> list[int]:
    """Return the trials among these whose files are not needed any more.

    They have ended, their models are not kept (see `tuner.storage.read.front.removable`), and no trial that has not
    ended continues them.

    Args:
        engine: The storage's engine.
        study_id: The study.
        numbers: Trial numbers.
        keep: The number of best trials to keep.
        maximize: Whether larger is better, for each objective.
    """
    found = removable(engine, study_id, numbers, keep, maximize=maximize)
    if not found:
        return found
    continued = {one.of for one in read_extensions(engine, study_id, ("WAITING", "RUNNING")).values()}
    return [number for number in found if number not in continued]
