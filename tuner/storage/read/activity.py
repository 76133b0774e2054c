"""Current and past activity of workers, in a few queries for any number of workers and trials."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.read.ranking import is_feasible, read_constraints
from tuner.storage.sql.dialect import clock, greatest, ids_value, one_of
from tuner.storage.sql.encoding import loaded_number
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import (
    attempts,
    leases,
    records,
    reports,
    studies,
    study_directions,
    trial_values,
    trials,
    workers,
)


class Reported(TypedDict):
    """The latest report of a trial; all None of one that has not reported."""

    epoch: int | None
    step: int | None
    metrics: dict[str, float | str] | None


class WorkerRow(Reported):
    """A worker. Ages and the rest of a lease are seconds on the database's clock.

    The fields of a trial are None for a worker that holds no trial: `trial_id`, `trial`, `fence`, `deaths`,
    `lease_rest_s`, and the latest report.
    """

    study: str
    study_id: int
    worker: str
    host: str
    pid: int
    devices: str
    ended_at_s: float | None
    age_s: float
    unseen_s: float
    trial_id: int | None
    trial: int | None
    fence: int | None
    deaths: int | None
    lease_rest_s: float | None


class CompilingRow(TypedDict):
    """What compiling has cost a worker in a study, and what it saved; None while no trial of the study has compiled."""

    study_id: int
    worker: str
    trials: int
    train_s: float
    compile_s: float
    compilations: int
    saved_s: float | None


class FailureRow(TypedDict):
    """An attempt that failed, ran out of memory or timed out, or whose worker died.

    `ago_s` is on the database's clock; `error`, the traceback, is None where the worker could not leave one.
    """

    study: str
    trial: int
    worker: str
    ending: str
    ago_s: float
    error: str | None


class CheckpointRow(TypedDict):
    """A trial's best checkpoint, a folder on the worker's machine, with the trial's reports as (epoch, metrics)."""

    trial_id: int
    trial: int
    value: float
    checkpoint: str
    worker: str
    curve: list[tuple[int, dict[str, Any]]]


_MOST_WORKERS = 200
_OF_INTEREST = ("failed", "died", "out_of_memory", "timed_out")


def study_of(engine: Engine, study_id: int | None, trial_id: int | None) -> int | None:
    """Return the id of the study of a trial; None if the study or the trial does not exist.

    Args:
        engine: The storage's engine.
        study_id: The study; None for any.
        trial_id: The trial; None for only the study.
    """
    query = sa.select(studies.c.study_id)
    if study_id is not None:
        query = query.where(studies.c.study_id == study_id)
    if trial_id is not None:
        query = query.join(trials, trials.c.study_id == studies.c.study_id).where(trials.c.trial_id == trial_id)
    return read(engine, lambda connection: connection.execute(query.limit(1)).scalar_one_or_none())


def read_workers(engine: Engine, study_id: int | None) -> list[WorkerRow]:
    """Return the workers of a study, or of all: those that have not ended first, then by their last sign of life.

    Args:
        engine: The storage's engine.
        study_id: The study; None for all.

    Returns:
        At most 200 rows.
    """

    def work(connection: Connection) -> list[WorkerRow]:
        if not sa.inspect(connection).has_table(workers.name):  # a database of plain Optuna
            return []
        dialect = connection.dialect.name
        now = clock(dialect)
        held = (
            sa.select(leases, trials.c.number)
            .join(trials, trials.c.trial_id == leases.c.trial_id)
            .where(trials.c.state == "RUNNING")
            .subquery()
        )
        # Short trials start and end without a renewal, which is the only event that updates `tuner_workers`.
        life = sa.select(
            attempts.c.worker,
            attempts.c.study_id,
            sa.func.max(sa.func.coalesce(attempts.c.ended_at_s, attempts.c.started_at_s)).label("at_s"),
        ).group_by(attempts.c.worker, attempts.c.study_id)
        if study_id is not None:
            life = life.where(attempts.c.study_id == study_id)
        life = life.subquery()
        seen_s = greatest(connection.dialect.name, workers.c.seen_at_s, sa.func.coalesce(life.c.at_s, 0.0))
        query = (
            sa.select(
                studies.c.study_name.label("study"),
                workers.c.study_id,
                *(workers.c[name] for name in ("worker", "host", "pid", "devices", "ended_at_s")),
                (now - workers.c.started_at_s).label("age_s"),
                (now - seen_s).label("unseen_s"),
                held.c.trial_id,
                held.c.number.label("trial"),
                held.c.fence,
                held.c.deaths,
                (held.c.expires_at_s - now).label("lease_rest_s"),
            )
            .select_from(
                workers.join(studies, studies.c.study_id == workers.c.study_id)
                .outerjoin(held, held.c.worker == workers.c.worker)
                .outerjoin(life, (life.c.worker == workers.c.worker) & (life.c.study_id == workers.c.study_id))
            )
            .order_by(workers.c.ended_at_s.is_not(None), seen_s.desc(), workers.c.worker)
            .limit(_MOST_WORKERS)
        )
        if study_id is not None:
            query = query.where(workers.c.study_id == study_id)
        rows = [dict(row) for row in connection.execute(query).mappings()]
        latest = _latest_reports(connection, [row["trial_id"] for row in rows if row["trial_id"] is not None])
        nothing: Reported = {"epoch": None, "step": None, "metrics": None}
        return [cast("WorkerRow", row | latest.get(row["trial_id"], nothing)) for row in rows]

    return read(engine, work)


def is_file_at_work(engine: Engine, file: Path) -> bool:
    """Return whether a trial is running whose worker has loaded its study from this file.

    Args:
        engine: The storage's engine.
        file: The absolute path of the study's file.
    """

    def work(connection: Connection) -> bool:
        query = (
            sa.select(workers.c.about)
            .join(leases, leases.c.worker == workers.c.worker)
            .where(leases.c.expires_at_s > clock(connection.dialect.name), workers.c.ended_at_s.is_(None))
        )
        return any(json.loads(about).get("file") == str(file) for about in connection.execute(query).scalars())

    return read(engine, work)


def _latest_reports(connection: Connection, trial_ids: Sequence[int]) -> dict[int, Reported]:
    if not trial_ids:
        return {}
    dialect = connection.dialect.name
    is_wanted = one_of(dialect, reports.c.trial_id, "ids")
    last = (
        sa.select(reports.c.trial_id, sa.func.max(reports.c.epoch).label("epoch"))
        .where(is_wanted)
        .group_by(reports.c.trial_id)
        .subquery()
    )
    columns = (reports.c.trial_id, reports.c.epoch, reports.c.step, reports.c.metrics)
    is_last = (last.c.trial_id == reports.c.trial_id) & (last.c.epoch == reports.c.epoch)
    query = sa.select(*columns).join(last, is_last)
    return {
        trial_id: {"epoch": epoch, "step": step, "metrics": json.loads(metrics)}
        for trial_id, epoch, step, metrics in connection.execute(query, {"ids": ids_value(dialect, trial_ids)})
    }


def read_compiling(engine: Engine, study_id: int | None) -> list[CompilingRow]:
    """Return what compiling has cost each worker, and what it saved.

    A trial that compiled nothing found its program in its process, or in the cache on disk. Without either it would
    have compiled as the others did: so it saved the mean of the compile seconds of those trials of its study that did
    compile, less the seconds in which it read the cache. It is an estimate: programs differ in size.

    Args:
        engine: The storage's engine.
        study_id: The study; None for all.

    Returns:
        A row for each worker and study, over the trials that have ended.
    """
    is_free = records.c.compilations == 0
    query = sa.select(
        records.c.study_id,
        records.c.worker,
        sa.func.count().label("trials"),
        sa.func.coalesce(sa.func.sum(records.c.train_s), 0.0).label("train_s"),
        sa.func.coalesce(sa.func.sum(records.c.compile_s), 0.0).label("compile_s"),
        sa.func.coalesce(sa.func.sum(records.c.compilations), 0).label("compilations"),
        sa.func.sum(sa.case((is_free, 1), else_=0)).label("free"),
        sa.func.sum(sa.case((is_free, sa.func.coalesce(records.c.compile_s, 0.0)), else_=0.0)).label("free_s"),
        sa.func.sum(sa.case((records.c.compilations > 0, 1), else_=0)).label("compiled"),
    ).group_by(records.c.study_id, records.c.worker)
    query = query.where(records.c.worker.is_not(None))
    if study_id is not None:
        query = query.where(records.c.study_id == study_id)

    def work(connection: Connection) -> list[dict[str, Any]]:
        if not sa.inspect(connection).has_table(records.name):
            return []
        return [dict(row) for row in connection.execute(query).mappings()]

    rows = read(engine, work)
    compiled: dict[int, tuple[int, float]] = {}
    for row in rows:
        count, seconds = compiled.get(row["study_id"], (0, 0.0))
        compiled[row["study_id"]] = (count + row["compiled"], seconds + row["compile_s"] - row["free_s"])
    found: list[CompilingRow] = []
    for row in rows:
        count, seconds = compiled[row["study_id"]]
        one: CompilingRow = {
            "study_id": row["study_id"],
            "worker": row["worker"],
            "trials": row["trials"],
            "train_s": row["train_s"],
            "compile_s": row["compile_s"],
            "compilations": row["compilations"],
            "saved_s": max(0.0, row["free"] * seconds / count - row["free_s"]) if count else None,
        }
        found.append(one)
    return found


def read_failures(engine: Engine, study_id: int | None, count: int = 20) -> list[FailureRow]:
    """Return the latest attempts that failed, ran out of memory or timed out, or whose worker died, newest first.

    Args:
        engine: The storage's engine.
        study_id: The study; None for all.
        count: How many.
    """

    def work(connection: Connection) -> list[FailureRow]:
        if not sa.inspect(connection).has_table(attempts.name):
            return []
        ago = clock(connection.dialect.name) - attempts.c.ended_at_s
        query = (
            sa.select(
                studies.c.study_name.label("study"),
                trials.c.number.label("trial"),
                attempts.c.worker,
                attempts.c.ending,
                ago.label("ago_s"),
                attempts.c.error,
            )
            .join(trials, trials.c.trial_id == attempts.c.trial_id)
            .join(studies, studies.c.study_id == attempts.c.study_id)
            .where(attempts.c.ending.in_(_OF_INTEREST))
            .order_by(attempts.c.ended_at_s.desc())
            .limit(count)
        )
        if study_id is not None:
            query = query.where(attempts.c.study_id == study_id)
        return [cast("FailureRow", dict(row)) for row in connection.execute(query).mappings()]

    return read(engine, work)


def read_checkpoints(engine: Engine, study_id: int, count: int = 10) -> list[CheckpointRow]:
    """Return the trials of a study that recorded a best checkpoint, best first by their first objective.

    Args:
        engine: The storage's engine.
        study_id: The study.
        count: How many.

    Returns:
        A row for each. Checkpoints of trials that others have surpassed since are removed. Trials that violate a
        constraint are skipped.
    """

    def work(connection: Connection) -> list[CheckpointRow]:
        if not sa.inspect(connection).has_table(records.name):
            return []
        direction = connection.execute(
            sa.select(study_directions.c.direction).where(
                study_directions.c.study_id == study_id, study_directions.c.objective == 0
            )
        ).scalar_one_or_none()
        value = trial_values.c.value
        is_first = (trial_values.c.trial_id == records.c.trial_id) & (trial_values.c.objective == 0)
        query = (
            sa.select(
                records.c.trial_id,
                trials.c.number,
                value,
                trial_values.c.value_type,
                records.c.checkpoint,
                records.c.worker,
            )
            .join(trials, trials.c.trial_id == records.c.trial_id)
            .join(trial_values, is_first)
            .where(records.c.study_id == study_id, records.c.checkpoint.is_not(None))
            .order_by(value.desc() if direction == "MAXIMIZE" else value.asc(), trials.c.number)
        )
        found = connection.execute(query).all()
        constraints = read_constraints(connection, [row.trial_id for row in found])
        kept = [row for row in found if is_feasible(constraints.get(row.trial_id, {}))][:count]
        curves = _curves(connection, [row.trial_id for row in kept])
        return [
            {
                "trial_id": trial_id,
                "trial": number,
                "value": loaded_number(value, kind),
                "checkpoint": checkpoint,
                "worker": worker,
                "curve": curves.get(trial_id, []),
            }
            for trial_id, number, value, kind, checkpoint, worker in kept
        ]

    return read(engine, work)


def _curves(connection: Connection, trial_ids: Sequence[int]) -> dict[int, list[tuple[int, dict[str, Any]]]]:
    dialect = connection.dialect.name
    query = sa.select(reports.c.trial_id, reports.c.epoch, reports.c.metrics)
    query = query.where(one_of(dialect, reports.c.trial_id, "ids")).order_by(reports.c.trial_id, reports.c.epoch)
    curves: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for trial_id, epoch, metrics in connection.execute(query, {"ids": ids_value(dialect, trial_ids)}):
        curves.setdefault(trial_id, []).append((epoch, json.loads(metrics)))
    return curves
