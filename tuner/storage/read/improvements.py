"""How the best value of each study has improved, and who owns a study: for a list of all studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.read.queries import StudyRow
from tuner.storage.read.ranking import best_trials, is_feasible, read_constraints
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import study_directions, trial_values, trials

if TYPE_CHECKING:
    from tuner.storage.sql.row_types import AnySelect


class Improvement(NamedTuple):
    """A complete trial that was better than all with a lower number: its number, and its first objective."""

    number: int
    value: float


def read_improvements(
    engine: Engine, studies: Sequence[StudyRow], only: int | None = None
) -> dict[int, list[Improvement]]:
    """Return the improvements of each study, by its id and then by trial; few rows for any number of trials.

    Only finite values of trials that satisfy their constraints count. Studies without such trials are missing.

    Args:
        engine: The storage's engine.
        studies: The studies.
        only: The id of the only study to read; None for all.
    """

    def work(connection: Connection) -> dict[int, list[Improvement]]:
        found: dict[int, list[tuple[int, Improvement]]] = {}
        rows: Any = connection.execute(_query(only))
        for study_id, trial_id, number, value in rows:
            found.setdefault(study_id, []).append((trial_id, Improvement(number, value)))
        constraints = read_constraints(connection, [one for several in found.values() for one, _ in several])
        # If all of them are feasible, no infeasible trial was ever the best, so the others do not matter.
        doubtful = {
            study_id
            for study_id, several in found.items()
            if not all(is_feasible(constraints.get(trial_id, {})) for trial_id, _ in several)
        }
        improved = {study_id: [one for _, one in several] for study_id, several in found.items()}
        for study in studies:
            if study.study_id in doubtful:
                improved[study.study_id] = _feasible(connection, study)
        return improved

    return read(engine, work)


def _query(only: int | None) -> AnySelect:
    is_first = (trial_values.c.trial_id == trials.c.trial_id) & (trial_values.c.objective == 0)
    is_of_first = (study_directions.c.study_id == trials.c.study_id) & (study_directions.c.objective == 0)
    sign = sa.case((study_directions.c.direction == "MAXIMIZE", -1.0), else_=1.0)
    cost = trial_values.c.value * sign
    best_before = sa.func.min(cost).over(partition_by=trials.c.study_id, order_by=trials.c.number, rows=(None, -1))
    ranked = (
        sa.select(
            trials.c.study_id, trials.c.trial_id, trials.c.number, trial_values.c.value,
            cost.label("cost"), best_before.label("best_before"),
        )
        .select_from(trials.join(trial_values, is_first).join(study_directions, is_of_first))
        .where(trials.c.state == "COMPLETE", trial_values.c.value_type == "FINITE")
        .where(sa.true() if only is None else trials.c.study_id == only)
        .subquery()
    )  # fmt: skip
    c = ranked.c
    is_better = c.best_before.is_(None) | (c.cost < c.best_before)
    query = sa.select(c.study_id, c.trial_id, c.number, c.value).where(is_better)
    return query.order_by(c.study_id, c.number)


def _feasible(connection: Connection, study: StudyRow) -> list[Improvement]:
    maximize = study.maximize[0]
    ranked = best_trials(connection, study.study_id, maximize=maximize, limit=None)
    kept: list[Improvement] = []
    for one in sorted((one for one in ranked if math.isfinite(one.value)), key=lambda one: one.number):
        if not kept or (one.value > kept[-1].value if maximize else one.value < kept[-1].value):
            kept.append(Improvement(one.number, one.value))
    return kept
