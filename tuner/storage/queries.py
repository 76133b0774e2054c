"""Reading, without Optuna: a handful of set-based queries, whatever the number of trials."""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import UnknownStudy, nearest
from tuner.storage.engine import reading
from tuner.storage.tables import (
    studies,
    study_directions,
    study_system_attributes,
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)
from tuner.trial import Outcome

_OUTCOME_OF_STATE = {
    "COMPLETE": Outcome.COMPLETE,
    "PRUNED": Outcome.PRUNED,
    "FAIL": Outcome.FAILED,
    "RUNNING": Outcome.RUNNING,
    "WAITING": Outcome.WAITING,
}
_CHUNK = 500  # ids in one IN (...): SQLite allows 32,766 variables, Postgres plans short lists well


@dataclass(frozen=True)
class StudyRow:
    """A study as it stands in the storage."""

    study_id: int
    name: str
    directions: tuple[str, ...]
    record: dict[str, Any]

    @property
    def maximize(self) -> tuple[bool, ...]:
        """For each objective, whether larger is better."""
        return tuple(direction == "maximize" for direction in self.directions)


@dataclass
class TrialRow:
    """A trial as it stands in the storage; `values` is None unless it is complete."""

    trial_id: int
    number: int
    outcome: Outcome
    started: datetime.datetime | None
    completed: datetime.datetime | None
    values: list[float] | None = None
    hparams: dict[str, Any] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """From the trial's start to its end, None while it runs."""
        if self.started is None or self.completed is None:
            return None
        return (self.completed - self.started).total_seconds()


def read_studies(engine: Engine) -> list[StudyRow]:
    """Return all studies in the order of their creation; none where Optuna has no tables yet."""
    with reading(engine) as connection:
        if not sa.inspect(connection).has_table("studies"):
            return []
        directions: dict[int, list[str]] = {}
        query = sa.select(study_directions.c.study_id, study_directions.c.direction)
        for study_id, direction in connection.execute(query.order_by(study_directions.c.objective)):
            directions.setdefault(study_id, []).append(direction.lower())
        query = sa.select(study_system_attributes.c.study_id, study_system_attributes.c.value_json)
        records = {
            study_id: json.loads(text)
            for study_id, text in connection.execute(query.where(study_system_attributes.c.key == RECORD_KEY))
        }
        rows = connection.execute(sa.select(studies.c.study_id, studies.c.study_name).order_by(studies.c.study_id))
        return [
            StudyRow(study_id, name, tuple(directions.get(study_id, ())), records.get(study_id, {}))
            for study_id, name in rows
        ]


def find_study(engine: Engine, name: str) -> StudyRow:
    """Return one study.

    Raises:
        UnknownStudy: there is none of that name; the message has the nearest one.
    """
    rows = read_studies(engine)
    for row in rows:
        if row.name == name:
            return row
    names = [row.name for row in rows]
    known = f"it has {', '.join(names)}" if names else "it has none"
    raise UnknownStudy(f"no study {name!r} in this storage: {known}{nearest(name, names)}")


RECORD_KEY = "tuner:study"
"""The study attribute under which a study's settings are recorded."""


def outcome_counts(engine: Engine, study_id: int) -> dict[Outcome, int]:
    """Return how many trials of a study stand at each outcome."""
    stored = _stored_outcome()
    query = (
        sa.select(trials.c.state, stored.c.value_json, sa.func.count())
        .select_from(trials.outerjoin(stored, stored.c.trial_id == trials.c.trial_id))
        .where(trials.c.study_id == study_id)
        .group_by(trials.c.state, stored.c.value_json)
    )
    counts = dict.fromkeys(Outcome, 0)
    with reading(engine) as connection:
        for state, text, count in connection.execute(query):
            counts[_outcome(state, text)] += count
    return counts


def _stored_outcome() -> sa.Subquery:
    return (
        sa.select(trial_user_attributes.c.trial_id, trial_user_attributes.c.value_json)
        .where(trial_user_attributes.c.key == "outcome")
        .subquery()
    )


def _outcome(state: str, text: str | None) -> Outcome:
    """Return what a state means; of a pruned trial, the outcome that we stored with it.

    Other tools' users may have an attribute of that name, with anything in it.
    """
    stored = json.loads(text) if text and state == "PRUNED" else None
    return Outcome(stored) if stored in (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY) else _OUTCOME_OF_STATE[state]


def read_trials(engine: Engine, study: StudyRow, *, reports: bool = False) -> list[TrialRow]:
    """Return all trials of a study by number, with their intermediate values if `reports`."""
    return _load(engine, study, sa.select(trials).where(trials.c.study_id == study.study_id), reports)


def read_trial(engine: Engine, study: StudyRow, number: int) -> TrialRow:
    """Return one trial with its reports.

    Raises:
        UnknownStudy: the study has no trial of that number.
    """
    query = sa.select(trials).where(trials.c.study_id == study.study_id, trials.c.number == number)
    rows = _load(engine, study, query, reports=True)
    if not rows:
        with reading(engine) as connection:
            count = connection.execute(
                sa.select(sa.func.count()).select_from(trials).where(trials.c.study_id == study.study_id)
            ).scalar_one()
        known = f"it has 0 to {count - 1}" if count else "it has none yet"
        raise UnknownStudy(f"study {study.name!r} has no trial {number}: {known}")
    return rows[0]


def read_best(engine: Engine, study: StudyRow, count: int | None) -> list[TrialRow]:
    """Return the complete trials of a study with one objective, best first; ties go to the earlier trial."""
    query = (
        sa.select(trials)
        .select_from(_complete(study.study_id))
        .order_by(_value().desc() if study.maximize[0] else _value().asc(), trials.c.number)
    )
    return _load(engine, study, query.limit(count), reports=False, in_query_order=True)


def _load(
    engine: Engine, study: StudyRow, query: sa.Select[Any], reports: bool, in_query_order: bool = False
) -> list[TrialRow]:
    with reading(engine) as connection:
        rows = {
            row.trial_id: TrialRow(
                row.trial_id, row.number, _OUTCOME_OF_STATE[row.state], row.datetime_start, row.datetime_complete
            )
            for row in connection.execute(query)
        }
        ids = list(rows)
        for trial_id, name, value, text in _of_trials(
            connection,
            ids,
            trial_params,
            ("param_name", "param_value", "distribution_json"),
        ):
            rows[trial_id].hparams[name] = _decode(value, text)
        for trial_id, key, text in _of_trials(connection, ids, trial_user_attributes, ("key", "value_json")):
            row = rows[trial_id]
            if key == "outcome":
                row.outcome = _outcome(_state_of(row), text)
            else:
                row.attributes[key] = json.loads(text)
        for trial_id, objective, value, kind in _of_trials(
            connection, ids, trial_values, ("objective", "value", "value_type")
        ):
            if rows[trial_id].outcome is Outcome.COMPLETE:
                values = rows[trial_id].values = rows[trial_id].values or [math.nan] * len(study.directions)
                values[objective] = _number(value, kind)
        if reports:
            columns = ("step", "intermediate_value", "intermediate_value_type")
            for trial_id, step, value, kind in _of_trials(connection, ids, trial_intermediate_values, columns):
                rows[trial_id].reports[step] = _number(value, kind)
    for row in rows.values():
        row.reports = dict(sorted(row.reports.items()))
    return list(rows.values()) if in_query_order else sorted(rows.values(), key=lambda row: row.number)


def _state_of(row: TrialRow) -> str:
    return {outcome: state for state, outcome in _OUTCOME_OF_STATE.items()}[row.outcome]


def _of_trials(
    connection: Connection, ids: Sequence[int], table: sa.Table, columns: Sequence[str]
) -> list[tuple[Any, ...]]:
    """Return `columns` of the table's rows that belong to these trials, in the order they were written."""
    key = next(iter(table.primary_key.columns))
    query = sa.select(table.c.trial_id, *(table.c[name] for name in columns)).order_by(key)
    found: list[tuple[Any, ...]] = []
    for start in range(0, len(ids), _CHUNK):
        found += map(tuple, connection.execute(query.where(table.c.trial_id.in_(ids[start : start + _CHUNK]))))
    return found


def _decode(value: float, distribution: str) -> Any:
    """Return a parameter's value from Optuna's stored float and its distribution."""
    kind = json.loads(distribution)
    if "choices" in kind["attributes"]:
        return kind["attributes"]["choices"][int(value)]
    return int(value) if kind["name"].startswith("Int") else value


def _number(value: float | None, kind: str) -> float:
    special = {"NAN": math.nan, "INF_POS": math.inf, "INF_NEG": -math.inf}
    return special.get(kind, value if value is not None else math.nan)


def failed_trials(engine: Engine, study_id: int, before_s: float) -> frozenset[int]:
    """Return the ids of the trials that had failed by a time, in seconds since 1970."""
    before = datetime.datetime.fromtimestamp(before_s, datetime.UTC).replace(tzinfo=None)
    query = sa.select(trials.c.trial_id).where(
        trials.c.study_id == study_id, trials.c.state == "FAIL", trials.c.datetime_complete < before
    )
    with reading(engine) as connection:
        return frozenset(connection.execute(query).scalars())


def last_errors(
    engine: Engine, study_id: int, count: int, without: frozenset[int] = frozenset()
) -> list[tuple[str, str]]:
    """Return kind and traceback of the latest errors, newest first, up to the first trial that did not fail.

    Args:
        engine: The storage's engine.
        study_id: The study.
        count: How many of the last ended trials to look at.
        without: Trials to leave out, such as those that failed before a bug was mended.
    """
    query = (
        sa.select(trials.c.trial_id, trials.c.state)
        .where(trials.c.study_id == study_id, trials.c.state.in_(["COMPLETE", "PRUNED", "FAIL"]))
        .where(trials.c.trial_id.not_in(without))
        .order_by(trials.c.datetime_complete.desc(), trials.c.number.desc())
        .limit(count)
    )
    with reading(engine) as connection:
        ended = connection.execute(query).all()
        attributes = _of_trials(
            connection, [row.trial_id for row in ended], trial_user_attributes, ("key", "value_json")
        )
    texts = {(trial_id, key): json.loads(text) for trial_id, key, text in attributes}
    failed = itertools.takewhile(lambda row: row.state == "FAIL", ended)
    return [(texts.get((row.trial_id, "error_kind"), ""), texts.get((row.trial_id, "error"), "")) for row in failed]


def find_record(engine: Engine, study_id: int, key: str) -> Any | None:
    """Return what is recorded with a study under a key, as plain JSON; None if nothing is."""
    query = sa.select(study_system_attributes.c.value_json).where(
        study_system_attributes.c.study_id == study_id, study_system_attributes.c.key == key
    )
    with reading(engine) as connection:
        text = connection.execute(query).scalar_one_or_none()
    return json.loads(text) if text else None


def rank_of(engine: Engine, study_id: int, value: float, *, maximize: bool) -> int:
    """Return how many complete trials are better than a value of the first objective."""
    better = _value() > value if maximize else _value() < value
    query = sa.select(sa.func.count()).select_from(_complete(study_id)).where(better)
    with reading(engine) as connection:
        return connection.execute(query).scalar_one()


def superfluous(engine: Engine, study_id: int, numbers: Collection[int], keep: int, *, maximize: bool) -> list[int]:
    """Return those of these trials that have ended and are not among the best by their first objective.

    Args:
        engine: The storage's engine.
        study_id: The study.
        numbers: Trial numbers.
        keep: How many of the best are not superfluous; of equal ones the earlier are better.
        maximize: Whether the first objective is maximised.
    """
    best = (
        sa.select(trials.c.number)
        .select_from(_complete(study_id))
        .order_by(_value().desc() if maximize else _value().asc(), trials.c.number)
        .limit(keep)
    )
    ended = sa.select(trials.c.number).where(
        trials.c.study_id == study_id, trials.c.number.in_(numbers), trials.c.state.in_(["COMPLETE", "PRUNED", "FAIL"])
    )
    with reading(engine) as connection:
        kept = set(connection.execute(best).scalars())
        return [number for number in connection.execute(ended).scalars() if number not in kept]


def _value() -> sa.ColumnElement[float]:
    return sa.case(
        (trial_values.c.value_type == "INF_POS", sa.literal(math.inf)),
        (trial_values.c.value_type == "INF_NEG", sa.literal(-math.inf)),
        else_=trial_values.c.value,
    )


def _complete(study_id: int) -> sa.FromClause:
    """Return the complete trials of a study joined with their first values."""
    is_ours = (trials.c.study_id == study_id) & (trials.c.state == "COMPLETE") & (trial_values.c.objective == 0)
    return trials.join(trial_values, (trial_values.c.trial_id == trials.c.trial_id) & is_ours)


def read_system_attributes(engine: Engine, trial_id: int) -> dict[str, Any]:
    """Return what samplers and pruners have noted about a trial."""
    query = sa.select(trial_system_attributes.c.key, trial_system_attributes.c.value_json)
    with reading(engine) as connection:
        rows = connection.execute(query.where(trial_system_attributes.c.trial_id == trial_id))
        return {key: json.loads(text) for key, text in rows}
