"""The Pareto front: the trials of a study with several objectives that no other one beats; their models are kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.read import ranking
from tuner.storage.read.ranking import is_feasible, read_constraints
from tuner.storage.read.trial_parts import CHUNK
from tuner.storage.sql.encoding import loaded_number
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import trial_values, trials

K = TypeVar("K", bound=Hashable)


def front_of(values: Mapping[K, Sequence[float]], maximize: Sequence[bool]) -> set[K]:
    """Return the keys whose values no other one's beat in one objective and equal or beat in all.

    Keys with equal values do not beat each other.

    Args:
        values: The values of each key, one for each objective. A key with a NaN is in the front, and beats no other.
        maximize: Whether larger is better, for each objective.
    """
    signs = [-1.0 if larger else 1.0 for larger in maximize]
    costs = {key: tuple(sign * one for sign, one in zip(signs, own, strict=True)) for key, own in values.items()}
    found = {key for key, own in costs.items() if any(math.isnan(one) for one in own)}
    front: list[tuple[float, ...]] = []
    # In this order a trial is only beaten by earlier ones, and then by one of the front.
    for key in sorted(costs.keys() - found, key=costs.__getitem__):
        own = costs[key]
        if front and front[-1] == own:
            found.add(key)
        elif not any(all(theirs <= mine for theirs, mine in zip(other, own, strict=True)) for other in front):
            front.append(own)
            found.add(key)
    return found


def is_worth_keeping(
    engine: Engine, study_id: int, values: Sequence[float], keep: int, *, maximize: Sequence[bool]
) -> bool:
    """Return whether the model of a trial with these values is kept.

    It is kept if the trial is among the best `keep` or, with several objectives, if no other trial beats it.

    Args:
        engine: The storage's engine.
        study_id: The study.
        values: The objectives of the trial.
        keep: The number of best trials to keep; 0 for none.
        maximize: Whether larger is better, for each objective.
    """
    if not keep:
        return False
    if len(maximize) == 1:
        return ranking.is_among_best(engine, study_id, values[0], keep, maximize=maximize[0])
    return not read(engine, lambda connection: _is_beaten(connection, study_id, values, maximize))


def removable(
    engine: Engine, study_id: int, numbers: Collection[int], keep: int, *, maximize: Sequence[bool]
) -> list[int]:
    """Return the trials among these that have ended and whose models are not kept; see `is_worth_keeping`.

    Args:
        engine: The storage's engine.
        study_id: The study.
        numbers: Trial numbers.
        keep: The number of best trials to keep; of equal trials the earlier is better.
        maximize: Whether larger is better, for each objective.
    """
    if len(maximize) == 1 or not keep:
        return ranking.removable(engine, study_id, numbers, keep, maximize=maximize[0])
    ended = sa.select(trials.c.number).where(
        trials.c.study_id == study_id, trials.c.number.in_(numbers), trials.c.state.in_(["COMPLETE", "PRUNED", "FAIL"])
    )

    def work(connection: Connection) -> list[int]:
        gone = list(connection.execute(ended).scalars())  # first: see `ranking.removable`
        kept = front_of(_feasible_values(connection, study_id, len(maximize)), maximize)
        return [number for number in gone if number not in kept]

    return read(engine, work)


def _is_beaten(connection: Connection, study_id: int, values: Sequence[float], maximize: Sequence[bool]) -> bool:
    """Return whether a feasible complete trial beats these values in one objective and equals or beats them in all."""
    worse: list[Any] = []
    better: list[Any] = []
    for at, (own, larger) in enumerate(zip(values, maximize, strict=True)):
        is_this, value = trial_values.c.objective == at, _value()
        worse.append(is_this & (value < own if larger else value > own))
        better.append(is_this & (value > own if larger else value < own))
    query = sa.select(trials.c.trial_id).join(trial_values, trial_values.c.trial_id == trials.c.trial_id)
    query = query.where(trials.c.study_id == study_id, trials.c.state == "COMPLETE").group_by(trials.c.trial_id)
    query = query.having(_count(sa.or_(*worse)) == 0, _count(sa.or_(*better)) > 0)
    ids = list(connection.execute(query).scalars())
    parts = (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))
    return any(_has_feasible(connection, part) for part in parts)


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))


def _has_feasible(connection: Connection, ids: Sequence[int]) -> bool:
    constraints = read_constraints(connection, ids)
    return any(is_feasible(constraints.get(trial_id, {})) for trial_id in ids)


def _feasible_values(connection: Connection, study_id: int, count: int) -> dict[int, list[float]]:
    """Return the values of the complete trials that satisfy their constraints: trial number -> objectives."""
    query = sa.select(
        trials.c.trial_id,
        trials.c.number,
        trial_values.c.objective,
        trial_values.c.value,
        trial_values.c.value_type,
    ).join(trial_values, trial_values.c.trial_id == trials.c.trial_id)
    found: dict[tuple[int, int], list[float]] = {}
    for trial_id, number, at, value, kind in connection.execute(
        query.where(trials.c.study_id == study_id, trials.c.state == "COMPLETE")
    ):
        found.setdefault((trial_id, number), [math.nan] * count)[at] = loaded_number(value, kind)
    constraints = read_constraints(connection, [trial_id for trial_id, _ in found])
    return {number: own for (trial_id, number), own in found.items() if is_feasible(constraints.get(trial_id, {}))}


def _value() -> sa.ColumnElement[float]:
    return sa.case(
        (trial_values.c.value_type == "INF_POS", sa.literal(math.inf)),
        (trial_values.c.value_type == "INF_NEG", sa.literal(-math.inf)),
        else_=trial_values.c.value,
    )
