"""Reads studies and trials without Optuna, in a few queries for any number of trials."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import UnknownStudy, nearest
from tuner.storage.read.budget import read_effective_trials
from tuner.storage.read.hours import Hours, count_hours
from tuner.storage.read.ranking import Ranked, best_trials, is_feasible
from tuner.storage.read.trial_parts import CHUNK, read_parts
from tuner.storage.sql.dialect import clock, ids_value, one_of
from tuner.storage.sql.outcomes import recorded_outcome
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import (
    budgets,
    leases,
    records,
    studies,
    study_directions,
    study_system_attributes,
    study_user_attributes,
    trial_params,
    trial_system_attributes,
    trials,
    unknown_zones,
)
from tuner.storage.sql.zones import is_optuna_5
from tuner.storage.worker.claims import latest_errors
from tuner.storage.worker.leases import FETCHED_KEY, LANES_KEY, OUTCOME_ATTRIBUTE, SAVED_KEY
from tuner.trial import Outcome
from tuner.trial.seed_values import SEEDS_KEY, StoredSeeds

_OUTCOME_OF_STATE = {
    "COMPLETE": Outcome.COMPLETE,
    "PRUNED": Outcome.PRUNED,
    "FAIL": Outcome.FAILED,
    "RUNNING": Outcome.RUNNING,
    "WAITING": Outcome.WAITING,
}
_STORED_AS_PRUNED = [Outcome.DIVERGED.value, Outcome.OUT_OF_MEMORY.value, Outcome.TIMED_OUT.value]


@dataclass(frozen=True)
class StudyRow:
    """The row of a study."""

    study_id: int
    name: str
    directions: tuple[str, ...]
    record: dict[str, Any]
    metric_names: tuple[str, ...] = ()
    """Those that `optuna.Study.set_metric_names` has stored."""
    owner: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def maximize(self) -> tuple[bool, ...]:
        """Whether larger is better, for each objective."""
        return tuple(direction == "maximize" for direction in self.directions)

    @property
    def has_seeds(self) -> bool:
        """Whether its trials train with several seeds."""
        return self.record.get("seeds", [1]) != [1]

    @property
    def objectives(self) -> list[str]:
        """The names of the objectives; their numbers if they have none."""
        return self.named_objectives or [str(at) for at, _ in enumerate(self.directions)]

    @property
    def named_objectives(self) -> list[str]:
        """The names of the objectives; empty if another tool created the study without names."""
        return self.record.get("objective") or list(self.metric_names)


@dataclass(frozen=True)
class Recorded:
    """The columns of `tuner_records` for a trial that has ended; each is None if unknown.

    Attributes:
        worker: The worker that ended it.
        compile_s: Seconds of compiling in the last attempt.
        compilations: The number of programs compiled in it.
        train_s: Its other seconds.
        gpu_peak_bytes: The memory in use of the fullest of its GPUs, at most; what else ran there is included.
        gpu_mean_bytes: The memory in use on average, over its GPUs and the samples.
        gpu_total_bytes: The memory of the fullest GPU.
        gpu_percent: The mean utilisation of its GPUs, 0 to 100.
        checkpoint: Where its best checkpoint is.
        error_kind: The kind of its error, by which trials in a row are compared.
        error: The traceback.
    """

    worker: str | None = None
    compile_s: float | None = None
    compilations: int | None = None
    train_s: float | None = None
    gpu_peak_bytes: int | None = None
    gpu_mean_bytes: int | None = None
    gpu_total_bytes: int | None = None
    gpu_percent: float | None = None
    checkpoint: str | None = None
    error_kind: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class TrialRow:
    """A trial as the storage has it; `values` is None unless it is complete.

    `started` and `completed` are UTC; without a zone where an earlier version stored local time of an unknown zone.
    `constraints` has Optuna's by name; each is satisfied if it is 0 or less. `user_attrs` are JSON values, without the
    one in which tuner tells other tools the outcome. `seeds` is None unless trials of the study have several and the
    trial has ended.
    """

    trial_id: int
    number: int
    outcome: Outcome
    started: datetime.datetime | None
    completed: datetime.datetime | None
    values: list[float] | None = None
    hparams: dict[str, Any] = field(default_factory=dict[str, Any])
    reports: dict[int, float] = field(default_factory=dict[int, float])
    record: Recorded = field(default_factory=Recorded)
    constraints: dict[str, float] = field(default_factory=dict[str, float])
    user_attrs: dict[str, Any] = field(default_factory=dict[str, Any])
    seeds: StoredSeeds | None = None

    @property
    def stderrs(self) -> list[float] | None:
        """The standard error of each value, which is the mean over several seeds; None if the trial is not complete."""
        return None if self.values is None or self.seeds is None else self.seeds.stderrs

    @property
    def is_feasible(self) -> bool | None:
        """Whether the trial satisfies all its constraints; None if it has none."""
        return is_feasible(self.constraints) if self.constraints else None

    @property
    def seconds(self) -> float | None:
        """Seconds from the trial's start to its end; None while it runs, or if they cannot be known."""
        if self.started is None or self.completed is None:
            return None
        if (self.started.tzinfo is None) != (self.completed.tzinfo is None):
            return None
        seconds = (self.completed - self.started).total_seconds()
        return seconds if seconds >= 0 or self.started.tzinfo is not None else None


def read_studies(engine: Engine) -> list[StudyRow]:
    """Return all studies, oldest first; none if Optuna's tables do not exist yet."""
    return read(engine, _read_studies)


def _read_studies(connection: Connection) -> list[StudyRow]:
    if not sa.inspect(connection).has_table("studies"):
        return []
    directions: dict[int, list[str]] = {}
    query = sa.select(study_directions.c.study_id, study_directions.c.direction)
    for study_id, direction in connection.execute(query.order_by(study_directions.c.objective)):
        directions.setdefault(study_id, []).append(direction.lower())
    key = study_system_attributes.c.key
    query = sa.select(study_system_attributes.c.study_id, key, study_system_attributes.c.value_json)
    known: dict[tuple[int, str], Any] = {
        (study_id, name): json.loads(text)
        for study_id, name, text in connection.execute(query.where(key.in_([RECORD_KEY, METRIC_NAMES_KEY])))
    }
    attribute = study_user_attributes.c
    query = sa.select(attribute.study_id, attribute.key, attribute.value_json)
    said: dict[tuple[int, str], Any] = {
        (study_id, name): json.loads(text)
        for study_id, name, text in connection.execute(query.where(attribute.key.in_([OWNER_KEY, LABELS_KEY])))
    }
    rows = connection.execute(sa.select(studies.c.study_id, studies.c.study_name).order_by(studies.c.study_id))
    return [
        StudyRow(
            study_id,
            name,
            tuple(directions.get(study_id, ())),
            known.get((study_id, RECORD_KEY), {}),
            tuple(known.get((study_id, METRIC_NAMES_KEY), ())),
            owner if isinstance(owner := said.get((study_id, OWNER_KEY)), str) else None,
            tuple(labels_in(said.get((study_id, LABELS_KEY)))),
        )
        for study_id, name in rows
    ]


def find_study(engine: Engine, name: str) -> StudyRow:
    """Return one study.

    Raises:
        UnknownStudy: there is no study of that name; the message suggests the nearest name.
    """
    rows = read_studies(engine)
    for row in rows:
        if row.name == name:
            return row
    names = [row.name for row in rows]
    known = f"it has {', '.join(names)}" if names else "it has none"
    raise UnknownStudy(f"no study {name!r} in this storage: {known}{nearest(name, names)}")


def labels_in(value: object) -> list[str]:
    """Return the labels in a user attribute, which users may have set themselves."""
    return [label for label in value if isinstance(label, str)] if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]


RECORD_KEY = "tuner:study"
"""The study attribute with the study's recorded settings."""
METRIC_NAMES_KEY = "study:metric_names"
"""Optuna's study attribute with the names of the objectives."""
END_KEY = "tuner:end"
"""The study attribute that says why a study has ended before its budget was used up (`tuner.results.stopping.End`)."""
SEARCH_ENDED_KEY = "tuner:search_ended"
"""The study attribute that is set when the sampler has ended the search, until the study is launched again."""
OWNER_KEY, LABELS_KEY = "owner", "labels"
"""The user attributes of a study with its owner, a text, and its labels, a list of texts."""
MIGRATIONS_KEY = "tuner:migrations"
"""The study attribute with the changes of its space by `tuner migrate`, in order."""
BASELINE_KEY = "tuner:baseline"
"""The study attribute with the number of the baseline's trial, set when it is complete."""


def outcome_counts(engine: Engine, study_id: int) -> dict[Outcome, int]:
    """Return the number of a study's trials with each outcome."""
    counts = dict.fromkeys(Outcome, 0)

    def work(connection: Connection) -> list[Any]:
        ours = _Ours(connection)
        of_study = sa.select(ours.outcome.label("outcome")).select_from(ours.trials)
        outcomes = of_study.where(trials.c.study_id == study_id).subquery()
        query = sa.select(outcomes.c.outcome, sa.func.count()).group_by(outcomes.c.outcome)
        return [tuple(row) for row in connection.execute(query)]

    for outcome, count in read(engine, work):
        counts[Outcome(outcome)] += count
    return counts


class _Ours:
    """The trials joined with our own tables; in a database of plain Optuna, those columns are NULL."""

    def __init__(self, connection: Connection) -> None:
        has_tables = sa.inspect(connection).has_table(records.name)
        self.records, lease, self.unknown_zones = (
            table if has_tables else _nothing_of(table) for table in (records, leases, unknown_zones)
        )
        self.is_old_optuna = not has_tables and not is_optuna_5(connection)
        self.trials = trials.outerjoin(self.records, self.records.c.trial_id == trials.c.trial_id).outerjoin(
            lease, lease.c.trial_id == trials.c.trial_id
        )
        known = recorded_outcome(self.records)
        is_given_back = lease.c.expires_at_s <= clock(connection.dialect.name)
        self.outcome = sa.case(
            ((trials.c.state == "PRUNED") & known.in_(_STORED_AS_PRUNED), known),
            ((trials.c.state == "RUNNING") & is_given_back, Outcome.PREEMPTED.value),
            *((trials.c.state == state, outcome.value) for state, outcome in _OUTCOME_OF_STATE.items()),
        )


def _nothing_of(table: sa.Table) -> sa.FromClause:
    columns = [sa.cast(sa.null(), column.type).label(column.name) for column in table.columns]
    return sa.select(*columns).where(sa.false()).subquery()


def read_trials(engine: Engine, study: StudyRow, *, with_reports: bool = False) -> list[TrialRow]:
    """Return all trials of a study by number, with their intermediate values if `with_reports`."""
    return _load(engine, study, [trials.c.study_id == study.study_id], with_reports=with_reports)


def read_latest(engine: Engine, study: StudyRow, count: int) -> list[TrialRow]:
    """Return the trials that ended last, latest first."""
    query = sa.select(trials.c.trial_id).where(
        trials.c.study_id == study.study_id, trials.c.datetime_complete.is_not(None)
    )
    query = query.order_by(trials.c.datetime_complete.desc(), trials.c.number.desc()).limit(count)
    return read_by_ids(engine, study, read(engine, lambda connection: list(connection.execute(query).scalars())))


def read_by_ids(engine: Engine, study: StudyRow, ids: Sequence[int]) -> list[TrialRow]:
    """Return some trials by their ids, in that order."""
    parts = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
    found = {row.trial_id: row for part in parts for row in _load(engine, study, [trials.c.trial_id.in_(part)])}
    return [found[trial_id] for trial_id in ids if trial_id in found]


def read_some(engine: Engine, study: StudyRow, trial_ids: Collection[int]) -> list[TrialRow]:
    """Return these trials of a study, by number."""
    return _load(engine, study, [trials.c.study_id == study.study_id, trials.c.trial_id.in_(trial_ids)])


def read_numbers(engine: Engine, study: StudyRow, numbers: Collection[int]) -> list[TrialRow]:
    """Return the trials of a study with these numbers, by number."""
    return _load(engine, study, [trials.c.study_id == study.study_id, trials.c.number.in_(numbers)])


def read_trial(engine: Engine, study: StudyRow, number: int) -> TrialRow:
    """Return one trial with its reports.

    Raises:
        UnknownStudy: the study has no trial of that number.
    """
    known = [trials.c.study_id == study.study_id, trials.c.number == number]
    # Larger numbers do not fit into the column.
    rows = _load(engine, study, known, with_reports=True) if 0 <= number < 2**31 else []
    if not rows:
        query = sa.select(sa.func.count()).select_from(trials).where(trials.c.study_id == study.study_id)
        count = read(engine, lambda connection: connection.execute(query).scalar_one())
        known = f"it has 0 to {count - 1}" if count else "it has none yet"
        raise UnknownStudy(f"study {study.name!r} has no trial {number}: {known}")
    return rows[0]


@dataclass(frozen=True)
class Standing:
    """The budgets of a study, and how much of them is used.

    Attributes:
        trials: The number of trials of the latest launch, or the one that a user has set since; None for a study that
            was not launched.
        wall_s: The wall-clock budget in seconds; None for no limit.
        device_s: The device-time budget in seconds; None for no limit.
        used: The used part of both.
        is_stopped: Whether it was stopped.
        end: Why it has ended before its budget was used up; None if it has not, or a user stopped it.
        search_ended: Whether the sampler has ended the search, and no trial is left to run or to resume.
        workers: The number of workers that hold a trial.
    """

    trials: int | None = None
    wall_s: float | None = None
    device_s: float | None = None
    used: Hours = field(default_factory=Hours)
    is_stopped: bool = False
    end: str | None = None
    search_ended: bool = False
    workers: int = 0

    @property
    def is_out_of_hours(self) -> bool:
        """Whether one of the budgets in hours is used up."""
        pairs = ((self.wall_s, self.used.wall_s), (self.device_s, self.used.device_s))
        return any(limit is not None and used >= limit for limit, used in pairs)


def read_standings(engine: Engine, only: int | None = None) -> dict[int, Standing]:
    """Return the standing of each of tuner's studies, or of one, by its id."""

    def work(connection: Connection) -> dict[int, Standing]:
        if not sa.inspect(connection).has_table(budgets.name):
            return {}
        now_s = connection.execute(sa.select(clock(connection.dialect.name))).scalar_one()
        live = sa.select(trials.c.study_id, sa.func.count()).join(leases, leases.c.trial_id == trials.c.trial_id)
        live = live.where(trials.c.state == "RUNNING", leases.c.expires_at_s > now_s).group_by(trials.c.study_id)
        held = {study_id: count for study_id, count in connection.execute(live)}
        table = study_system_attributes.c
        ended = sa.select(table.study_id, table.value_json).where(table.key == END_KEY)
        ends = {study_id: json.loads(text)["why"] for study_id, text in connection.execute(ended)}
        columns = (budgets.c.wall_s, budgets.c.device_s, budgets.c.stopped_at_s)
        is_open = (trials.c.study_id == table.study_id) & trials.c.state.in_(("RUNNING", "WAITING"))
        over = sa.select(table.study_id).where(table.key == SEARCH_ENDED_KEY, ~sa.exists().where(is_open))
        searched = set(connection.scalars(over))
        asked = read_effective_trials(connection, only)
        return {
            study_id: Standing(
                asked.get(study_id),
                *limits,
                used=count_hours(connection, study_id, now_s, Hours())[0],
                is_stopped=stopped_at_s is not None,
                end=None if stopped_at_s is None else ends.get(study_id),
                search_ended=study_id in searched,
                workers=held.get(study_id, 0),
            )
            for study_id, *limits, stopped_at_s in connection.execute(
                sa.select(budgets.c.study_id, *columns).where(sa.true() if only is None else budgets.c.study_id == only)
            )
        }

    return read(engine, work)


def read_identity(engine: Engine, study_id: int) -> str | None:
    """Return the identity of a study, which a later study of its name does not have; None for plain Optuna."""
    query = sa.select(budgets.c.identity).where(budgets.c.study_id == study_id)

    def work(connection: Connection) -> str | None:
        has_table = sa.inspect(connection).has_table(budgets.name)
        return connection.execute(query).scalar_one_or_none() if has_table else None

    return read(engine, work)


def read_distributions(engine: Engine, study_id: int) -> dict[str, list[str]]:
    """Return the distributions of each hyperparameter in a study's trials, as JSON."""
    pair = (trial_params.c.param_name, trial_params.c.distribution_json)
    query = sa.select(*pair).join(trials, trials.c.trial_id == trial_params.c.trial_id)
    query = query.where(trials.c.study_id == study_id).group_by(*pair).order_by(sa.func.min(trial_params.c.param_id))
    known: dict[str, list[str]] = {}
    for name, text in read(engine, lambda connection: list(connection.execute(query))):
        known.setdefault(name, []).append(text)
    return known


def read_best(engine: Engine, study: StudyRow, count: int | None) -> list[TrialRow]:
    """Return the best complete trials of a study with one objective, best first; ties go to the earlier trial.

    Trials that violate a constraint are skipped.
    """

    def work(connection: Connection) -> list[Ranked]:
        return best_trials(connection, study.study_id, maximize=study.maximize[0], limit=count)

    return read_by_ids(engine, study, [one.trial_id for one in read(engine, work)])


def _load(
    engine: Engine,
    study: StudyRow,
    where: Sequence[sa.ColumnElement[bool]],
    *,
    with_reports: bool = False,
) -> list[TrialRow]:
    """Return trials by number."""

    def work(connection: Connection) -> list[TrialRow]:
        ours = _Ours(connection)
        unknown = ours.unknown_zones.c
        source = ours.trials.outerjoin(ours.unknown_zones, unknown.trial_id == trials.c.trial_id)
        kept = [ours.records.c[part.name] for part in fields(Recorded)]
        query: Any = sa.select(
            trials.c.trial_id,
            trials.c.number,
            ours.outcome,
            trials.c.datetime_start,
            trials.c.datetime_complete,
            unknown.is_start,
            unknown.is_end,
            *kept,
        ).select_from(source)
        read_rows: Any = connection.execute(query.where(*where).order_by(trials.c.number))
        found: list[Any] = list(read_rows)
        hidden = [OUTCOME_ATTRIBUTE] if study.record else []
        parts = read_parts(connection, [row.trial_id for row in found], with_reports, hidden)
        seeds = _read_seeds(connection, list(parts)) if study.has_seeds else {}
        rows: list[TrialRow] = []
        for trial_id, number, outcome, start, complete, is_start, is_end, *record in found:
            own, values = parts[trial_id], None
            if own.values and Outcome(outcome) is Outcome.COMPLETE:
                values = [own.values.get(at, math.nan) for at, _ in enumerate(study.directions)]
            row = TrialRow(
                trial_id,
                number,
                Outcome(outcome),
                started=_time(start, is_known=not (is_start or ours.is_old_optuna)),
                completed=_time(complete, is_known=not (is_end or ours.is_old_optuna)),
                values=values,
                hparams=own.hparams,
                reports=dict(sorted(own.reports.items())),
                record=Recorded(*record),
                constraints=own.constraints,
                seeds=seeds.get(trial_id),
                user_attrs=own.user_attrs,
            )
            rows.append(row)
        return rows

    return read(engine, work)


def _time(stored: datetime.datetime | None, *, is_known: bool) -> datetime.datetime | None:
    return stored.replace(tzinfo=datetime.UTC) if stored is not None and is_known else stored


def _read_seeds(connection: Connection, ids: Sequence[int]) -> dict[int, StoredSeeds]:
    """Return what the trials that have ended say about their seeds, by trial."""
    dialect, table = connection.dialect.name, trial_system_attributes.c
    query = sa.select(table.trial_id, table.value_json).where(one_of(dialect, table.trial_id, "ids"))
    rows = connection.execute(query.where(table.key == SEEDS_KEY), {"ids": ids_value(dialect, ids)})
    return {trial_id: StoredSeeds.of_json(json.loads(text)) for trial_id, text in rows}


def last_errors(engine: Engine, study_id: int, since_s: float) -> list[tuple[str, str]]:
    """Return kind and traceback of the latest errors, newest first, up to the first trial that did not fail.

    Args:
        engine: The storage's engine.
        study_id: The study.
        since_s: Trials that ended before this time, in seconds on the database's clock, are skipped.
    """
    return read(engine, lambda connection: latest_errors(connection, study_id, since_s))


def find_record(engine: Engine, study_id: int, key: str) -> Any | None:
    """Return the value recorded with a study under a key, as plain JSON; None if there is none."""
    query = sa.select(study_system_attributes.c.value_json).where(
        study_system_attributes.c.study_id == study_id, study_system_attributes.c.key == key
    )
    text = read(engine, lambda connection: connection.execute(query).scalar_one_or_none())
    return json.loads(text) if text else None


def find_records(engine: Engine, study_id: int, prefix: str) -> dict[str, Any]:
    """Return the values recorded with a study under keys that begin with a prefix, as plain JSON by key."""
    key = study_system_attributes.c.key
    query = sa.select(key, study_system_attributes.c.value_json).where(
        study_system_attributes.c.study_id == study_id, key.startswith(prefix, autoescape=True)
    )
    return read(engine, lambda connection: {name: json.loads(text) for name, text in connection.execute(query)})


class ProgramUse(NamedTuple):
    """The programs of a trial.

    Attributes:
        fetched: The number that came from the compile cache; 0 if an earlier version ran the trial.
        lanes: The number of trainings that its program runs at once.
        saved_s: The seconds that it took to compile those, less those of reading them; None if it is not known.
    """

    fetched: int = 0
    lanes: int = 1
    saved_s: float | None = None


def read_programs(engine: Engine, trial_id: int) -> ProgramUse:
    """Return what is stored about the programs of a trial."""
    table, keys = trial_system_attributes.c, {FETCHED_KEY: "fetched", LANES_KEY: "lanes", SAVED_KEY: "saved_s"}
    query = sa.select(table.key, table.value_json).where(table.trial_id == trial_id, table.key.in_(keys))
    rows = read(engine, lambda connection: connection.execute(query).all())
    return ProgramUse(**{keys[key]: json.loads(value) for key, value in rows})


def find_baseline(engine: Engine, study: StudyRow) -> int | None:
    """Return the number of the complete trial that has the study's baseline; None without one."""
    if "baseline" not in study.record:
        return None
    found = find_record(engine, study.study_id, BASELINE_KEY)
    return None if found is None else found["number"]
