"""Trials as Optuna knows them, read set by set: two statements, whatever the number of trials."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from tuner.storage.tables import (
    studies,
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)

_LISTED = 500  # trials that are named one by one rather than by a range of ids
_SPECIAL = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
_STATES = {state.name: state for state in TrialState}

to_distribution = functools.lru_cache(maxsize=4096)(json_to_distribution)
"""A study has a few distributions, which each of its trials repeats as JSON."""


def load_trials(
    connection: Connection, study_id: int, newer_than: int, also: Collection[int] = ()
) -> list[FrozenTrial] | None:
    """Return some trials of a study by id; None if there is no such study.

    Args:
        connection: A connection.
        study_id: The study.
        newer_than: All trials with a greater id than this.
        also: And those with these ids.
    """
    wanted = trials.c.trial_id > newer_than
    if also:
        wanted |= trials.c.trial_id.in_(also)
    columns = ("trial_id", "number", "state", "datetime_start", "datetime_complete")
    query = (
        sa.select(*(trials.c[name] for name in columns))
        .select_from(studies.outerjoin(trials, (trials.c.study_id == studies.c.study_id) & wanted))
        .where(studies.c.study_id == study_id)
        .order_by(trials.c.trial_id)
    )
    rows = connection.execute(query).all()
    if not rows:
        return None
    found = {row[0]: new_trial(*row) for row in rows if row[0] is not None}
    if found:
        _fill(found, connection.execute(_details(study_id, list(found))))
    return list(found.values())


def load_trial(connection: Connection, trial_id: int) -> FrozenTrial | None:
    """Return one trial, None if there is none of that id."""
    columns = ("trial_id", "number", "state", "datetime_start", "datetime_complete")
    row = connection.execute(sa.select(*(trials.c[name] for name in columns)).where(trials.c.trial_id == trial_id))
    found = {row[0]: new_trial(*row) for row in row}
    if not found:
        return None
    _fill(found, connection.execute(_details(0, [trial_id])))
    return found[trial_id]


def new_trial(
    trial_id: int, number: int, state: str = "RUNNING", start: Any = None, complete: Any = None
) -> FrozenTrial:
    """Return a trial that nothing belongs to yet."""
    return FrozenTrial(
        number=number,
        state=_STATES[state],
        value=None,
        datetime_start=start,
        datetime_complete=complete,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=trial_id,
    )


# Kinds of rows below. Parameters come in the order they were suggested in, which is that of their keys.
_PARAM, _VALUE, _REPORT, _USER, _SYSTEM = range(5)


def _details(study_id: int, ids: list[int]) -> sa.CompoundSelect[Any]:
    """Return the query for everything that belongs to trials, as (kind, trial_id, position, name, number, text)."""
    if len(ids) <= _LISTED:
        listed: Any = ids
    else:
        listed = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id, trials.c.trial_id >= ids[0])
    nothing = sa.null()

    def part(kind: int, table: sa.Table, position: Any, name: Any, number: Any, text: Any) -> sa.Select[Any]:
        columns = (
            sa.literal_column(str(kind)).label("kind"),
            table.c.trial_id,
            position,
            sa.cast(name, sa.Text),
            sa.cast(number, sa.Float(53)),
            sa.cast(text, sa.Text),
        )
        return sa.select(*columns).where(table.c.trial_id.in_(listed))

    params, values, reports = trial_params.c, trial_values.c, trial_intermediate_values.c
    user, system = trial_user_attributes.c, trial_system_attributes.c
    zero = sa.literal_column("0")
    return sa.union_all(
        part(_PARAM, trial_params, params.param_id, params.param_name, params.param_value, params.distribution_json),
        part(_VALUE, trial_values, values.objective, nothing, values.value, values.value_type),
        part(
            _REPORT,
            trial_intermediate_values,
            reports.step,
            nothing,
            reports.intermediate_value,
            reports.intermediate_value_type,
        ),
        part(_USER, trial_user_attributes, zero, user.key, nothing, user.value_json),
        part(_SYSTEM, trial_system_attributes, zero, system.key, nothing, system.value_json),
    )


def _fill(found: dict[int, FrozenTrial], rows: Any) -> None:
    params: dict[int, list[tuple[int, str, float, BaseDistribution]]] = {}
    values: dict[int, dict[int, float]] = {}
    for kind, trial_id, position, name, number, text in rows:
        trial = found.get(trial_id)
        if trial is None:  # created between the two queries
            continue
        if kind == _PARAM:
            params.setdefault(trial_id, []).append((position, name, number, to_distribution(text)))
        elif kind == _REPORT:
            trial.intermediate_values[position] = number if text == "FINITE" else _SPECIAL[text]
        elif kind == _VALUE:
            values.setdefault(trial_id, {})[position] = number if text == "FINITE" else _SPECIAL[text]
        elif kind == _USER:
            trial._user_attrs[name] = json.loads(text)
        else:
            trial._system_attrs[name] = json.loads(text)
    for trial_id, several in params.items():
        several.sort()
        trial = found[trial_id]
        trial._params = {name: distribution.to_external_repr(number) for _, name, number, distribution in several}
        trial._distributions = {name: distribution for _, name, _, distribution in several}
    for trial_id, by_objective in values.items():
        found[trial_id]._values = [by_objective[objective] for objective in range(len(by_objective))]


def copies(trials: Collection[FrozenTrial]) -> Iterator[FrozenTrial]:
    """Yield copies of trials that may be changed: some twenty times as fast as `copy.deepcopy`.

    Distributions are shared: nobody changes them.
    """
    for trial in trials:
        copied = FrozenTrial.__new__(FrozenTrial)
        fields: Any = copied.__dict__
        fields.update(trial.__dict__)
        for name in ("_params", "_distributions", "intermediate_values"):
            fields[name] = dict(fields[name])
        for name in ("_user_attrs", "_system_attrs"):
            fields[name] = {key: _copied(value) for key, value in fields[name].items()}
        if fields["_values"] is not None:
            fields["_values"] = list(fields["_values"])
        yield copied


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
