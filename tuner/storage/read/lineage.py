"""How trials ran: their workers, versions, durations and rungs.

A database of plain Optuna lacks the tables; nothing is known then.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import NotRequired, TypedDict, cast

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.sql.dialect import clock, greatest, ids_value, least, one_of
from tuner.storage.sql.encoding import loaded_number
from tuner.storage.sql.outcomes import recorded_outcome
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import (
    attempts,
    leases,
    records,
    reports,
    rungs,
    trial_intermediate_values,
    trials,
    workers,
)
from tuner.trial import Outcome
from tuner.trial.environment import GitState


@dataclass(frozen=True)
class Attempt:
    """One worker's run of a trial.

    Attributes:
        worker: Its name.
        devices: How many it had.
        started_at_s: When it began, in seconds of the database's clock.
        ended_at_s: When it ended; None while it goes on.
        ending: An outcome, `preempted` or `died`; None while it goes on.
        error: The traceback of one that failed.
    """

    worker: str
    devices: int
    started_at_s: float
    ended_at_s: float | None
    ending: str | None
    error: str | None


def read_attempts(engine: Engine, trial_id: int) -> list[Attempt]:
    """Return the attempts at a trial, in order; none for a trial of plain Optuna."""
    query = sa.select(*(attempts.c[part.name] for part in fields(Attempt))).where(attempts.c.trial_id == trial_id)

    def work(connection: Connection) -> list[Attempt]:
        if not sa.inspect(connection).has_table(attempts.name):
            return []
        return [Attempt(*row) for row in connection.execute(query.order_by(attempts.c.fence))]

    return read(engine, work)


def read_metrics(engine: Engine, trial_id: int) -> dict[int, tuple[int, dict[str, float]]]:
    """Return all reports of a trial: epoch -> optimizer updates so far, and metrics by name."""
    query = sa.select(reports.c.epoch, reports.c.step, reports.c.metrics).where(reports.c.trial_id == trial_id)

    def work(connection: Connection) -> dict[int, tuple[int, dict[str, float]]]:
        if not sa.inspect(connection).has_table(reports.name):
            return {}
        return {
            epoch: (step, {name: float(value) for name, value in json.loads(text).items()})
            for epoch, step, text in connection.execute(query.order_by(reports.c.epoch))
        }

    return read(engine, work)


def read_metric(engine: Engine, trial_ids: Collection[int], metric: str) -> dict[int, dict[int, float]]:
    """Return the values of a metric by epoch, for the trials among these that have reported it."""

    def work(connection: Connection) -> dict[int, dict[int, float]]:
        dialect = connection.dialect.name
        query = sa.select(reports.c.trial_id, reports.c.epoch, reports.c.metrics)
        query = query.where(one_of(dialect, reports.c.trial_id, "ids")).order_by(reports.c.trial_id, reports.c.epoch)
        found: dict[int, dict[int, float]] = {}
        for trial_id, epoch, text in connection.execute(query, {"ids": ids_value(dialect, trial_ids)}):
            metrics = json.loads(text)
            if metric in metrics:
                found.setdefault(trial_id, {})[epoch] = float(metrics[metric])
        return found

    return read(engine, work)


@dataclass(frozen=True)
class Point:
    """A report: the trial's number, the epoch, optimizer updates so far (None if not known), metrics by name."""

    number: int
    epoch: int
    step: int | None
    metrics: dict[str, float]


def read_curves(engine: Engine, study_id: int) -> list[Point]:
    """Return all reports of a study, by trial and epoch.

    A trial of plain Optuna only has its intermediate values, as the metric `value`.
    """
    ours = sa.select(trials.c.number, reports.c.epoch, reports.c.step, reports.c.metrics)
    ours = ours.join(reports, reports.c.trial_id == trials.c.trial_id).where(trials.c.study_id == study_id)
    values = sa.select(
        trials.c.number,
        trial_intermediate_values.c.step,
        trial_intermediate_values.c.intermediate_value,
        trial_intermediate_values.c.intermediate_value_type,
    )
    values = values.join(trial_intermediate_values, trial_intermediate_values.c.trial_id == trials.c.trial_id)
    values = values.where(trials.c.study_id == study_id)

    def work(connection: Connection) -> list[Point]:
        points: list[Point] = []
        if sa.inspect(connection).has_table(reports.name):
            points = [
                Point(number, epoch, step, {name: float(value) for name, value in json.loads(text).items()})
                for number, epoch, step, text in connection.execute(ours)
            ]
        known = {point.number for point in points}
        points += [
            Point(number, step, None, {"value": loaded_number(value, kind)})
            for number, step, value, kind in connection.execute(values)
            if number not in known
        ]
        return sorted(points, key=lambda point: (point.number, point.epoch))

    return read(engine, work)


class RanWith(TypedDict):
    """Where a worker runs and with which devices and versions; the table has it as JSON."""

    host: str
    devices: str
    file: NotRequired[str | None]
    """The study's file."""
    code: NotRequired[str | None]
    """A digest of the file's code."""
    git: NotRequired[GitState | None]
    versions: NotRequired[dict[str, str]]
    """Of Python, the packages, and the device."""


def read_about(engine: Engine, names: Collection[str]) -> dict[str, RanWith]:
    """Return information about workers by name: host, devices, study file, Git state, versions."""
    query = sa.select(workers.c.worker, workers.c.host, workers.c.devices, workers.c.about)

    def work(connection: Connection) -> dict[str, RanWith]:
        if not names or not sa.inspect(connection).has_table(workers.name):
            return {}
        found = connection.execute(query.where(workers.c.worker.in_(names)))
        return {
            name: cast("RanWith", {"host": host, "devices": devices, **json.loads(about)})
            for name, host, devices, about in found
        }

    return read(engine, work)


@dataclass(frozen=True)
class StudyFile:
    """The path of a study's file, and the name of the function in it if the file has no `Study`."""

    path: str
    function: str | None


def read_study_file(engine: Engine, study_id: int) -> StudyFile | None:
    """Return the study file of the latest worker; None if no worker had a file."""
    query = sa.select(workers.c.about).where(workers.c.study_id == study_id).order_by(workers.c.started_at_s.desc())

    def work(connection: Connection) -> StudyFile | None:
        if not sa.inspect(connection).has_table(workers.name):
            return None
        abouts = (json.loads(about) for about in connection.execute(query).scalars())
        return next((StudyFile(one["file"], one.get("function")) for one in abouts if one.get("file")), None)

    return read(engine, work)


@dataclass(frozen=True)
class Effort:
    """The time and epochs of an ended trial.

    Attributes:
        number: The trial's number.
        outcome: How it ended.
        epochs: The last reported epoch; 0 if there are no reports.
        device_s: Seconds of all its attempts, multiplied by the devices of each.
        epoch_device_s: Device seconds of an epoch after the first; 0 if not known.
    """

    number: int
    outcome: Outcome
    epochs: int
    device_s: float
    epoch_device_s: float


def read_efforts(engine: Engine, study_id: int) -> list[Effort]:
    """Return the effort of each ended trial, by number; empty for a study of plain Optuna."""
    tried = (
        sa.select(
            attempts.c.trial_id,
            sa.func.sum((attempts.c.ended_at_s - attempts.c.started_at_s) * attempts.c.devices).label("device_s"),
            sa.func.max(attempts.c.devices).label("devices"),
            sa.func.count().label("tries"),
        )
        .where(attempts.c.study_id == study_id, attempts.c.ended_at_s.is_not(None))
        .group_by(attempts.c.trial_id)
        .subquery()
    )
    reached = (
        sa.select(
            reports.c.trial_id,
            sa.func.max(reports.c.epoch).label("epochs"),
            (sa.func.max(reports.c.epoch) - sa.func.min(reports.c.epoch)).label("between"),
            (sa.func.max(reports.c.reported_at_s) - sa.func.min(reports.c.reported_at_s)).label("between_s"),
        )
        .join(records, records.c.trial_id == reports.c.trial_id)
        .where(records.c.study_id == study_id)
        .group_by(reports.c.trial_id)
        .subquery()
    )
    # Between the reports of one attempt: the time before the first (compiling, data) does not grow with epochs.
    is_known = (tried.c.tries == 1) & (reached.c.between > 0) & reached.c.between_s.is_not(None)
    epoch_s = sa.case((is_known, reached.c.between_s / reached.c.between * tried.c.devices), else_=0.0)
    query = (
        sa.select(
            trials.c.number,
            recorded_outcome(records),
            sa.func.coalesce(reached.c.epochs, 0),
            tried.c.device_s,
            epoch_s,
        )
        .select_from(records.join(trials, trials.c.trial_id == records.c.trial_id))
        .join(tried, tried.c.trial_id == records.c.trial_id)
        .outerjoin(reached, reached.c.trial_id == records.c.trial_id)
        .where(records.c.study_id == study_id)
        .order_by(trials.c.number)
    )

    def work(connection: Connection) -> list[Effort]:
        if not sa.inspect(connection).has_table(records.name):
            return []
        return [Effort(number, Outcome(outcome), *rest) for number, outcome, *rest in connection.execute(query)]

    return read(engine, work)


def read_train_seconds(engine: Engine, study_id: int) -> dict[int, float]:
    """Return the seconds of training without compiling of each ended trial that ran in one attempt, by number."""
    once = sa.select(attempts.c.trial_id).where(attempts.c.study_id == study_id)
    once = once.group_by(attempts.c.trial_id).having(sa.func.count() == 1)
    query = sa.select(trials.c.number, records.c.train_s).join(records, records.c.trial_id == trials.c.trial_id)
    query = query.where(records.c.study_id == study_id, records.c.train_s.is_not(None), trials.c.trial_id.in_(once))

    def work(connection: Connection) -> dict[int, float]:
        if not sa.inspect(connection).has_table(records.name):
            return {}
        return {number: seconds for number, seconds in connection.execute(query)}

    return read(engine, work)


@dataclass(frozen=True)
class TimelineRow:
    """An attempt at a trial: worker, devices and times; a running one ends now, or with its lease."""

    number: int
    worker: str
    devices: str
    started_at_s: float
    ended_at_s: float
    ending: str | None


def read_timeline(engine: Engine, study_id: int) -> list[TimelineRow]:
    """Return all attempts at a study's trials, ordered by their start."""
    start = attempts.c.started_at_s

    def work(connection: Connection) -> list[TimelineRow]:
        if not sa.inspect(connection).has_table(attempts.name):
            return []
        now = clock(connection.dialect.name)
        ongoing = greatest(
            connection.dialect.name,
            start,
            least(connection.dialect.name, now, sa.func.coalesce(leases.c.expires_at_s, start)),
        )
        query = (
            sa.select(
                trials.c.number, attempts.c.worker, sa.func.coalesce(workers.c.devices, ""), start,
                sa.func.coalesce(attempts.c.ended_at_s, ongoing), attempts.c.ending,
            )
            .select_from(attempts.join(trials, trials.c.trial_id == attempts.c.trial_id))
            .outerjoin(leases, leases.c.trial_id == attempts.c.trial_id)
            .outerjoin(workers, workers.c.worker == attempts.c.worker)
            .where(attempts.c.study_id == study_id)
            .order_by(start, trials.c.number)
        )  # fmt: skip
        return [TimelineRow(*row) for row in connection.execute(query)]

    return read(engine, work)


@dataclass(frozen=True)
class RungRow:
    """The number of trials that reached a rung of a bracket, and of those that were promoted immediately."""

    bracket: int
    rung: int
    entered: int
    promoted: int


def read_rungs(engine: Engine, study_id: int) -> list[RungRow]:
    """Return the rungs of a study, by bracket and rung."""
    aside = -2 - rungs.c.bracket  # of trials that violate a constraint; see `tuner.storage.worker.rungs`
    place = (sa.case((rungs.c.bracket < -1, aside), else_=rungs.c.bracket).label("bracket"), rungs.c.rung)
    went_on = sa.func.count(sa.case((rungs.c.is_promoted, 1)))
    is_in = (rungs.c.study_id == study_id) & (rungs.c.bracket != -1)  # not those that have left
    query = sa.select(*place, sa.func.count(), went_on).where(is_in).group_by(*place)

    def work(connection: Connection) -> list[RungRow]:
        if not sa.inspect(connection).has_table(rungs.name):
            return []
        return [RungRow(*row) for row in connection.execute(query.order_by(*place))]

    return read(engine, work)
