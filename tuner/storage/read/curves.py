"""The curves of several trials for a picture of them: thinned by the database to a limited number of reports."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.sql.dialect import ids_value, one_of
from tuner.storage.sql.encoding import loaded_number
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import attempts, reports, trial_intermediate_values


@dataclass
class Curves:
    """The reports of a trial, or some of them at equal distances, with the first and the last.

    Attributes:
        total: The number of reports that the trial has.
        epochs: The epochs of the reports here.
        steps: Optimizer updates up to each; None for a trial of plain Optuna.
        times: Seconds from the trial's first attempt to each report; None if they are not known.
        metrics: The metrics of each report, by name.
    """

    total: int
    epochs: list[int] = field(default_factory=list[int])
    steps: list[int | None] = field(default_factory=list[int | None])
    times: list[float | None] = field(default_factory=list[float | None])
    metrics: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


def read_thinned(engine: Engine, trial_ids: Collection[int], most: int) -> dict[int, Curves]:
    """Return the curves of trials by id, each with at most `most` reports and its last one.

    A trial of plain Optuna has its intermediate values, as the metric `value`.

    Args:
        engine: The storage's engine.
        trial_ids: The trials. Those without reports are missing in the result.
        most: The number of reports of each, at least 1: every n-th one is returned, with the smallest possible n.
    """

    def work(connection: Connection) -> dict[int, Curves]:
        found: dict[int, Curves] = {}
        if sa.inspect(connection).has_table(reports.name):
            started = _read_starts(connection, trial_ids)
            for trial_id, epoch, total, step, text, at_s in _rows(
                connection, trial_ids, most, reports, "epoch", ("step", "metrics", "reported_at_s")
            ):
                curves = found.setdefault(trial_id, Curves(total))
                start_s = started.get(trial_id)
                curves.epochs.append(epoch)
                curves.steps.append(step)
                curves.times.append(None if at_s is None or start_s is None else at_s - start_s)
                curves.metrics.append({name: float(value) for name, value in json.loads(text).items()})
        others = [trial_id for trial_id in trial_ids if trial_id not in found]
        values = ("intermediate_value", "intermediate_value_type")
        for trial_id, step, total, value, kind in _rows(
            connection, others, most, trial_intermediate_values, "step", values
        ):
            curves = found.setdefault(trial_id, Curves(total))
            curves.epochs.append(step)
            curves.steps.append(None)
            curves.times.append(None)
            curves.metrics.append({"value": loaded_number(value, kind)})
        return found

    return read(engine, work)


def _rows(
    connection: Connection,
    trial_ids: Collection[int],
    most: int,
    table: sa.Table,
    order: str,
    columns: Iterable[str],
) -> list[Any]:
    """Return trial, place, number of the trial's rows, and other columns of thinned rows, by trial and place."""
    dialect, trial_id = connection.dialect.name, table.c.trial_id
    if not trial_ids:
        return []
    numbered = (
        sa.select(
            trial_id,
            table.c[order],
            sa.func.count().over(partition_by=trial_id).label("total"),
            *(table.c[name] for name in columns),
            (sa.func.row_number().over(partition_by=trial_id, order_by=table.c[order]) - 1).label("place"),
        )
        .where(one_of(dialect, trial_id, "ids"))
        .subquery()
    )
    every = (numbered.c.total + (most - 1)) // most
    is_kept = (numbered.c.place % every == 0) | (numbered.c.place == numbered.c.total - 1)
    kept = [column for column in numbered.c if column.name != "place"]
    query = sa.select(*kept).where(is_kept).order_by(numbered.c.trial_id, numbered.c[order])
    return list(connection.execute(query, {"ids": ids_value(dialect, trial_ids)}))


def _read_starts(connection: Connection, trial_ids: Collection[int]) -> dict[int, float]:
    dialect = connection.dialect.name
    query = sa.select(attempts.c.trial_id, sa.func.min(attempts.c.started_at_s))
    query = query.where(one_of(dialect, attempts.c.trial_id, "ids")).group_by(attempts.c.trial_id)
    return {one: start_s for one, start_s in connection.execute(query, {"ids": ids_value(dialect, trial_ids)})}
