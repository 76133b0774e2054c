"""Ranks complete trials that satisfy all constraints by their first objective, without Optuna."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.sql.dialect import ids_value, one_of
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import trial_system_attributes, trial_values, trials

_KEY = "constraints"
"""Optuna's attribute: a list under this key (before version 5), or a number under each `constraints:NAME`."""
_PAGE = 1000  # trials per page after the first, when looking for feasible ones


class Ranked(NamedTuple):
    """A complete trial, with its first objective."""

    trial_id: int
    number: int
    value: float


def constraint_key(name: str) -> str:
    """Return the attribute in which Optuna stores a constraint, from version 5 on."""
    return f"{_KEY}:{name}"


def is_constraint_key(key: str) -> bool:
    """Return whether an attribute of a trial has one or all of its constraints."""
    return key == _KEY or key.startswith(f"{_KEY}:")


def is_feasible(constraints: Mapping[str, float]) -> bool:
    """Return whether all constraints are 0 or less, as in Optuna; True if there are none."""
    return all(value <= 0 for value in constraints.values())


def read_constraints(connection: Connection, trial_ids: Collection[int]) -> dict[int, dict[str, float]]:
    """Return the constraints of these trials, if they have some: trial id -> name -> value."""
    columns = (trial_system_attributes.c[name] for name in ("trial_id", "key", "value_json"))
    dialect = connection.dialect.name
    query = sa.select(*columns).where(one_of(dialect, trial_system_attributes.c.trial_id, "ids"), _is_constraint())
    query = query.order_by(trial_system_attributes.c.trial_system_attribute_id)
    found: dict[int, list[tuple[str, str]]] = {}
    rows: Any = connection.execute(query, {"ids": ids_value(dialect, trial_ids)})
    for trial_id, key, text in rows:
        found.setdefault(trial_id, []).append((key, text))
    return {trial_id: named for trial_id, pairs in found.items() if (named := _constraints(pairs))}


def _is_constraint() -> sa.ColumnElement[bool]:
    key = trial_system_attributes.c.key
    return (key == _KEY) | key.startswith(f"{_KEY}:")


def _constraints(attributes: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Return constraints by name from Optuna's attributes (key and JSON); positions in a list are names."""
    listed: dict[str, float] = {}
    named: dict[str, float] = {}
    for key, text in attributes:
        value = json.loads(text)
        if key == _KEY:  # None if the constraint function failed
            listed = {str(at): one for at, one in enumerate(value or ())}
        elif key.startswith(f"{_KEY}:"):  # SQLite's LIKE ignores case
            named[key.removeprefix(f"{_KEY}:")] = value
    return listed | named


def best_trials(
    connection: Connection, study_id: int, *, maximize: bool, limit: int | None, better_than: float | None = None
) -> list[Ranked]:
    """Return the best feasible complete trials by their first objective, best first; ties go to the earlier trial.

    Args:
        connection: A connection.
        study_id: The study.
        maximize: Whether the first objective is maximised.
        limit: The maximum number; None for all.
        better_than: Return only trials with a better value than this; None for all.
    """
    found: dict[int, Ranked] = {}
    offset, size = 0, limit
    while True:
        page = _page(connection, study_id, maximize, better_than, size, offset)
        found |= {one.trial_id: one for one, constraints in page if is_feasible(constraints)}
        if limit is None or size is None or len(found) >= limit or len(page) < size:
            return list(found.values())[:limit]
        offset, size = offset + size, _PAGE


def _page(
    connection: Connection, study_id: int, maximize: bool, better_than: float | None, limit: int | None, offset: int
) -> list[tuple[Ranked, dict[str, float]]]:
    """Return complete trials, best first, each with its constraints."""
    value = _first_value()
    is_first = (trial_values.c.trial_id == trials.c.trial_id) & (trial_values.c.objective == 0)
    query = (
        sa.select(trials.c.trial_id, trials.c.number, value.label("first"))
        .select_from(trials.join(trial_values, is_first))
        .where(trials.c.study_id == study_id, trials.c.state == "COMPLETE")
        .order_by(value.desc() if maximize else value.asc(), trials.c.number)
    )
    if better_than is not None:
        query = query.where(value > better_than if maximize else value < better_than)
    page = query.limit(limit).offset(offset).subquery() if limit is not None else query.subquery()
    key = trial_system_attributes.c
    with_constraints = page.outerjoin(trial_system_attributes, (key.trial_id == page.c.trial_id) & _is_constraint())
    rows = connection.execute(
        sa.select(page, key.key, key.value_json)
        .select_from(with_constraints)
        .order_by(page.c.first.desc() if maximize else page.c.first.asc(), page.c.number, key.trial_system_attribute_id)
    )
    return [
        (one, _constraints((key, text) for *_, key, text in several if key is not None))
        for one, several in itertools.groupby(rows, lambda row: Ranked(*row[:3]))
    ]


def _first_value() -> sa.ColumnElement[float]:
    return sa.case(
        (trial_values.c.value_type == "INF_POS", sa.literal(math.inf)),
        (trial_values.c.value_type == "INF_NEG", sa.literal(-math.inf)),
        else_=trial_values.c.value,
    )


def read_values(engine: Engine, study_id: int) -> list[float]:
    """Return the first objective of each complete trial that satisfies its constraints."""
    found = read(engine, lambda connection: best_trials(connection, study_id, maximize=False, limit=None))
    return [one.value for one in found]


def is_among_best(engine: Engine, study_id: int, value: float, keep: int, *, maximize: bool) -> bool:
    """Return whether fewer than `keep` feasible complete trials are better than a value of the first objective."""

    def work(connection: Connection) -> int:
        return len(best_trials(connection, study_id, maximize=maximize, limit=keep, better_than=value))

    return read(engine, work) < keep


def removable(engine: Engine, study_id: int, numbers: Collection[int], keep: int, *, maximize: bool) -> list[int]:
    """Return the trials among these that have ended and are not among the best by their first objective.

    Args:
        engine: The storage's engine.
        study_id: The study.
        numbers: Trial numbers.
        keep: The number of best trials to keep; of equal trials the earlier is better.
        maximize: Whether the first objective is maximised.
    """
    ended = sa.select(trials.c.number).where(
        trials.c.study_id == study_id, trials.c.number.in_(numbers), trials.c.state.in_(["COMPLETE", "PRUNED", "FAIL"])
    )

    def work(connection: Connection) -> list[int]:
        # In this order, so that a trial that ends between the two statements, perhaps as the best, is not treated as
        # ended and not among the best.
        gone = list(connection.execute(ended).scalars())
        kept = {one.number for one in best_trials(connection, study_id, maximize=maximize, limit=keep)}
        return [number for number in gone if number not in kept]

    return read(engine, work)


class Result(NamedTuple):
    """A trial that has ended and used budget.

    Attributes:
        number: Its number.
        values: Its objectives; None unless it is complete.
        is_feasible: Whether it satisfies its constraints, if it has some.
    """

    number: int
    values: tuple[float, ...] | None
    is_feasible: bool


def _have_used(study_id: int) -> sa.ColumnElement[bool]:
    return (trials.c.study_id == study_id) & trials.c.state.in_(["COMPLETE", "PRUNED"])


def count_ended(engine: Engine, study_id: int) -> int:
    """Return the number of a study's trials that have ended and used budget."""
    query = sa.select(sa.func.count()).select_from(trials).where(_have_used(study_id))
    return read(engine, lambda connection: connection.execute(query).scalar_one())


def read_results(engine: Engine, study_id: int, objectives: int) -> list[Result]:
    """Return the trials that have ended and used budget, in the order in which they ended.

    Args:
        engine: The storage's engine.
        study_id: The study.
        objectives: Its number of objectives.
    """
    ended = sa.select(trials.c.trial_id, trials.c.number, trials.c.state).where(_have_used(study_id))
    ended = ended.order_by(trials.c.datetime_complete, trials.c.trial_id)
    told = sa.select(trial_values.c.trial_id, trial_values.c.objective, _first_value())
    told = told.join(trials, trials.c.trial_id == trial_values.c.trial_id).where(_have_used(study_id))

    def work(connection: Connection) -> list[Result]:
        rows: list[Any] = list(connection.execute(ended))
        values: dict[int, dict[int, float]] = {}
        for trial_id, objective, value in connection.execute(told):
            values.setdefault(trial_id, {})[objective] = value
        complete = [row.trial_id for row in rows if row.state == "COMPLETE"]
        constraints = read_constraints(connection, complete)
        return [
            Result(
                row.number,
                tuple(values.get(row.trial_id, {}).get(at, math.nan) for at in range(objectives))
                if row.state == "COMPLETE"
                else None,
                is_feasible(constraints.get(row.trial_id, {})),
            )
            for row in rows
        ]

    return read(engine, work)
