"""The number of trials of a study: that of the latest launch, or the one that a user has set since."""

from __future__ import annotations

import json
from typing import TypedDict

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.sql.retry import read
from tuner.storage.sql.statements import CHANGED_TRIALS_KEY
from tuner.storage.sql.tables import budgets, study_system_attributes


class ChangedTrials(TypedDict):
    """A number of trials that a user has set; it applies to launches with the number that it replaces."""

    trials: int
    instead_of: int


def effective_trials(launched: int | None, changed: str | None) -> int | None:
    """Return the number of trials that applies to a launch.

    A launch with another number than the one that the user has replaced is a new decision, so its own number applies.

    Args:
        launched: The number of the launch; None for a study that was never launched.
        changed: The study's attribute with the number that a user has set, as JSON; None if there is none.
    """
    if changed is None or launched is None:
        return launched
    found: ChangedTrials = json.loads(changed)
    return found["trials"] if found["instead_of"] == launched else launched


def read_effective_trials(connection: Connection, study_id: int | None = None) -> dict[int, int | None]:
    """Return the number of trials of each study that was launched, or of one, by its id.

    Args:
        connection: A connection to a database with tuner's tables.
        study_id: The study; None for all.
    """
    attributes = study_system_attributes.c
    is_changed = (attributes.study_id == budgets.c.study_id) & (attributes.key == CHANGED_TRIALS_KEY)
    query = sa.select(budgets.c.study_id, budgets.c.trials, attributes.value_json)
    query = query.select_from(budgets.outerjoin(study_system_attributes, is_changed))
    if study_id is not None:
        query = query.where(budgets.c.study_id == study_id)
    return {one: effective_trials(launched, changed) for one, launched, changed in connection.execute(query)}


def find_effective_trials(engine: Engine, study_id: int) -> int | None:
    """Return the number of trials of a study; None if it was never launched."""
    return read(engine, lambda connection: read_effective_trials(connection, study_id)).get(study_id)


def find_all_effective_trials(engine: Engine) -> dict[int, int | None]:
    """Return the number of trials of each study that was launched, by its id."""

    def work(connection: Connection) -> dict[int, int | None]:
        has_table = sa.inspect(connection).has_table(budgets.name)  # not in a database of plain Optuna
        return read_effective_trials(connection) if has_table else {}

    return read(engine, work)
