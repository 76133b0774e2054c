"""Reads what belongs to trials in tables of its own: hyperparameters, values, reports, constraints, user attributes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from tuner.storage.read.ranking import read_constraints
from tuner.storage.sql.encoding import loaded_number
from tuner.storage.sql.tables import (
    trial_intermediate_values,
    trial_params,
    trial_user_attributes,
    trial_values,
)

CHUNK = 500
"""Ids in one IN (...): SQLite allows 32,766 variables, Postgres plans short lists well."""


@dataclass(frozen=True)
class Parts:
    """What other tables have of a trial: hyperparameters, values by objective, reports by epoch, attributes."""

    hparams: dict[str, Any] = field(default_factory=dict[str, Any])
    values: dict[int, float] = field(default_factory=dict[int, float])
    reports: dict[int, float] = field(default_factory=dict[int, float])
    constraints: dict[str, float] = field(default_factory=dict[str, float])
    user_attrs: dict[str, Any] = field(default_factory=dict[str, Any])


def read_parts(
    connection: Connection, ids: Sequence[int], with_reports: bool, hidden: Sequence[str]
) -> dict[int, Parts]:
    """Return the parts of these trials by id.

    Args:
        connection: A connection.
        ids: The ids of the trials.
        with_reports: Whether to read the reports.
        hidden: User attributes that are not read.
    """
    parts = {trial_id: Parts() for trial_id in ids}
    columns = ("param_name", "param_value", "distribution_json")
    for trial_id, name, value, text in _of_trials(connection, ids, trial_params, columns):
        parts[trial_id].hparams[name] = _decode(value, text)
    columns = ("objective", "value", "value_type")
    for trial_id, objective, value, kind in _of_trials(connection, ids, trial_values, columns):
        parts[trial_id].values[objective] = loaded_number(value, kind)
    if with_reports:
        columns = ("step", "intermediate_value", "intermediate_value_type")
        for trial_id, step, value, kind in _of_trials(connection, ids, trial_intermediate_values, columns):
            parts[trial_id].reports[step] = loaded_number(value, kind)
    columns, is_shown = ("key", "value_json"), trial_user_attributes.c.key.not_in(hidden)
    for trial_id, key, text in _of_trials(connection, ids, trial_user_attributes, columns, is_shown):
        parts[trial_id].user_attrs[key] = json.loads(text)
    for trial_id, constraints in read_constraints(connection, ids).items():
        parts[trial_id].constraints.update(constraints)
    return parts


def _of_trials(
    connection: Connection,
    ids: Sequence[int],
    table: sa.Table,
    columns: Sequence[str],
    where: sa.ColumnElement[bool] | None = None,
) -> list[tuple[Any, ...]]:
    """Return `columns` of the rows of these trials, in the order in which they were written."""
    key = next(iter(table.primary_key.columns))
    query: Any = sa.select(table.c.trial_id, *(table.c[name] for name in columns)).order_by(key)
    query = query if where is None else query.where(where)
    found: list[tuple[Any, ...]] = []
    for start in range(0, len(ids), CHUNK):
        rows: Any = connection.execute(query.where(table.c.trial_id.in_(ids[start : start + CHUNK])))
        found += [tuple(row) for row in rows]
    return found


def _decode(value: float, distribution: str) -> Any:
    """Return a parameter's value from the float stored by Optuna and its distribution."""
    kind = json.loads(distribution)
    if "choices" in kind["attributes"]:
        return kind["attributes"]["choices"][int(value)]
    return int(value) if kind["name"].startswith("Int") else value
