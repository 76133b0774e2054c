"""Reads what population-based training compares, and the copies that trials took of each other."""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Engine

from tuner.storage.sql.encoding import loaded_number
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import trial_intermediate_values, trial_system_attributes, trials
from tuner.study.population import COPIES_KEY, Copy, Member


def read_members(engine: Engine, study_id: int, epoch: int) -> list[Member]:
    """Return the trials of a study that have reported an epoch, with their objective, except failed ones."""
    values = trial_intermediate_values.c
    query = sa.select(trials.c.number, values.intermediate_value, values.intermediate_value_type)
    query = query.join(trial_intermediate_values, values.trial_id == trials.c.trial_id)
    query = query.where(trials.c.study_id == study_id, values.step == epoch, trials.c.state != "FAIL")
    rows = read(engine, lambda connection: connection.execute(query).all())
    return [Member(number, loaded_number(value, kind)) for number, value, kind in rows]


def read_copies(engine: Engine, study_id: int, number: int | None = None) -> dict[int, list[Copy]]:
    """Return the copies that trials of a study took, by the number of the trial, each by epoch.

    Args:
        engine: The storage's engine.
        study_id: The study.
        number: A trial, for its own copies only.
    """
    table = trial_system_attributes.c
    query = sa.select(trials.c.number, table.value_json).join(trials, table.trial_id == trials.c.trial_id)
    query = query.where(trials.c.study_id == study_id, table.key == COPIES_KEY)
    if number is not None:
        query = query.where(trials.c.number == number)
    rows = read(engine, lambda connection: connection.execute(query.order_by(trials.c.number)).all())
    return {number: copies for number, text in rows if (copies := loaded_copies(json.loads(text)))}


def loaded_copies(stored: Sequence[dict[str, object]]) -> list[Copy]:
    """Return the copies in the attribute of a trial."""
    return [Copy(**one) for one in stored]  # pyright: ignore[reportArgumentType]
