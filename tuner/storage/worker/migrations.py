"""Rewrites the hyperparameters of a study's trials for another space, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import UnknownStudy, UsageError
from tuner.storage.read.queries import MIGRATIONS_KEY, RECORD_KEY
from tuner.storage.read.trial_parts import CHUNK
from tuner.storage.sql import statements
from tuner.storage.sql.dialect import clock, insert
from tuner.storage.sql.prepared_statements import run
from tuner.storage.sql.retry import read, write
from tuner.storage.sql.statements import SPACE_VERSION_KEY
from tuner.storage.sql.tables import leases, study_system_attributes, trial_params, trial_system_attributes, trials
from tuner.trial.extension import EXTENSION_KEY

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class Plan(Protocol):
    """What a migration changes; see `tuner.study.migration.SpacePlan`."""

    @property
    def rewritten(self) -> frozenset[str]: ...
    def distribution(self, name: str, old: BaseDistribution) -> BaseDistribution: ...
    def added(self, params: Mapping[str, Any]) -> Mapping[str, Any] | None: ...
    def new_distribution(self, name: str) -> BaseDistribution: ...
    def contains(self, params: Mapping[str, Any]) -> bool: ...


class Rewrite(NamedTuple):
    """A distribution of a hyperparameter, which is replaced in all trials that have it; both as JSON."""

    name: str
    old: str
    new: str
    trials: int


class Addition(NamedTuple):
    """A value that a trial gets: the trial's id, the name, Optuna's number for the value, the distribution as JSON."""

    trial_id: int
    name: str
    number: float
    text: str


@dataclass(frozen=True)
class Migrated:
    """What a migration changes, or has changed, in the trials.

    Attributes:
        version: The version of the space afterwards.
        rewrites: The distributions that are replaced.
        additions: The values that trials get.
        outside: The numbers of the trials that are outside of the new space, which samplers do not see.
        incomplete: The numbers of the trials that lack hyperparameters, and get none.
    """

    version: int
    rewrites: tuple[Rewrite, ...]
    additions: tuple[Addition, ...]
    outside: tuple[int, ...]
    incomplete: tuple[int, ...]


def preview(engine: Engine, study_id: int, plan: Plan) -> Migrated:
    """Return what a migration would change.

    Raises:
        UsageError: a worker holds a trial of the study, a trial waits to continue another one, or the plan cannot be
            carried out.
    """

    def work(connection: Connection) -> Migrated:
        _check_no_live_trial(connection, study_id)
        _check_no_waiting_continuation(connection, study_id)
        return _changes(connection, study_id, plan)

    return read(engine, work)


def migrate_space(
    engine: Engine,
    study_id: int,
    plan: Plan,
    *,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Migrated:
    """Change the recorded settings of a study and the hyperparameters of its trials, and count the version up.

    Args:
        engine: The storage's engine.
        study_id: The study.
        plan: What changes for the trials.
        before: The recorded settings that the plan was made for.
        after: The settings to record.
        about: What to record about the migration, as plain JSON.

    Raises:
        UnknownStudy: the study was deleted.
        UsageError: a worker holds a trial of the study, a trial waits to continue another one, or the study's record
            has changed since.

    Concurrency: one transaction that locks the study's row, under which trials are claimed.
    """

    def work(connection: Connection, tries: int) -> Migrated:
        if run(connection, statements.lock_study, {"study_id": study_id}).first() is None:
            raise UnknownStudy(f"the study was deleted: id {study_id}")
        recorded = _attribute(connection, study_id, RECORD_KEY)
        earlier: list[Any] = _attribute(connection, study_id, MIGRATIONS_KEY) or []
        if tries and recorded == after and earlier:  # committed, although the answer was lost
            return done[0]
        _check_no_live_trial(connection, study_id)
        _check_no_waiting_continuation(connection, study_id)
        if recorded != before:
            raise UsageError("the study's record has changed meanwhile: run `tuner migrate` again")
        found = _changes(connection, study_id, plan)
        done[:] = [found]
        _apply(connection, study_id, found)
        now_s = connection.execute(sa.select(clock(connection.dialect.name))).scalar_one()
        note = {"version": found.version, "at_s": now_s, **about}
        _put(connection, study_id, RECORD_KEY, after)
        _put(connection, study_id, MIGRATIONS_KEY, [*earlier, note])
        _put(connection, study_id, SPACE_VERSION_KEY, found.version)
        return found

    done: list[Migrated] = []
    return write(engine, work)


def dump(engine: Engine, study_id: int) -> dict[str, Any]:
    """Return everything that a migration can change in a study, as plain JSON."""
    attributes = study_system_attributes.c
    settings = sa.select(attributes.key, attributes.value_json).where(attributes.study_id == study_id)

    def work(connection: Connection) -> dict[str, Any]:
        rows = [
            {"trial": number, "name": name, "value": value, "distribution": text}
            for _, number, name, value, text in _params(connection, study_id)
        ]
        return {"attributes": {key: text for key, text in connection.execute(settings)}, "params": rows}

    return read(engine, work)


# --- Reading


def _params(connection: Connection, study_id: int) -> Sequence[Any]:
    columns = (trials.c.trial_id, trials.c.number, trial_params.c.param_name)
    columns = (*columns, trial_params.c.param_value, trial_params.c.distribution_json)
    query = sa.select(*columns).join(trials, trials.c.trial_id == trial_params.c.trial_id)
    query = query.where(trials.c.study_id == study_id).order_by(trials.c.number, trial_params.c.param_id)
    return connection.execute(query).all()


def _started(connection: Connection, study_id: int) -> list[tuple[int, int]]:
    """Return ids and numbers of the trials that are not queued, in order, and of queued ones with hyperparameters."""
    has_params = sa.exists().where(trial_params.c.trial_id == trials.c.trial_id)
    query = sa.select(trials.c.trial_id, trials.c.number).where(trials.c.study_id == study_id)
    query = query.where((trials.c.state != "WAITING") | has_params).order_by(trials.c.number)
    return [(row[0], row[1]) for row in connection.execute(query)]


def _check_no_live_trial(connection: Connection, study_id: int) -> None:
    dialect = connection.dialect.name
    is_running = (trials.c.study_id == study_id) & (trials.c.state == "RUNNING")
    held = sa.select(trials.c.number).join(leases, leases.c.trial_id == trials.c.trial_id)
    held = held.where(is_running, leases.c.expires_at_s > clock(dialect)).order_by(trials.c.number)
    others = sa.select(trials.c.number).outerjoin(leases, leases.c.trial_id == trials.c.trial_id)
    others = others.where(is_running, leases.c.trial_id.is_(None), statements.is_alive(dialect))
    if numbers := connection.execute(held).scalars().all():
        raise UsageError(
            f"a worker runs trial {', '.join(map(str, numbers))}: run `tuner stop`, and wait until it has exited"
        )
    if numbers := connection.execute(others.order_by(trials.c.number)).scalars().all():
        raise UsageError(
            f"another program runs trial {', '.join(map(str, numbers))}: end it, or wait an hour after its start"
        )


def _check_no_waiting_continuation(connection: Connection, study_id: int) -> None:
    attributes = trial_system_attributes.c
    query = sa.select(trials.c.number).join(trial_system_attributes, attributes.trial_id == trials.c.trial_id)
    is_open = trials.c.state.in_(["WAITING", "RUNNING"])  # one that runs was given back: nobody holds a trial
    query = query.where(trials.c.study_id == study_id, is_open, attributes.key == EXTENSION_KEY)
    if numbers := connection.execute(query.order_by(trials.c.number)).scalars().all():
        raise UsageError(
            f"trial {', '.join(map(str, numbers))} waits to continue another one with its hyperparameters: launch the "
            "study and let it run first, or end it with `tuner stop STUDY --trial NUMBER`"
        )


def _changes(connection: Connection, study_id: int, plan: Plan) -> Migrated:
    from optuna.distributions import distribution_to_json, json_to_distribution

    texts: dict[tuple[str, str], int] = {}
    by_trial: dict[tuple[int, int], dict[str, Any]] = {key: {} for key in _started(connection, study_id)}
    known: dict[str, BaseDistribution] = {}
    for trial_id, number, name, value, text in _params(connection, study_id):
        distribution = known.get(text) or known.setdefault(text, json_to_distribution(text))
        texts[name, text] = texts.get((name, text), 0) + 1
        by_trial[trial_id, number][name] = distribution.to_external_repr(value)
    rewrites: list[Rewrite] = []
    for (name, text), count in texts.items():
        if name not in plan.rewritten:
            continue
        new = plan.distribution(name, known[text])
        if new != known[text]:
            rewrites.append(Rewrite(name, text, distribution_to_json(new), count))
    additions: list[Addition] = []
    outside: list[int] = []
    incomplete: list[int] = []
    for (trial_id, number), params in by_trial.items():
        added = plan.added(params)
        if added is None:
            incomplete.append(number)
            continue
        for name, label in added.items():
            distribution = plan.new_distribution(name)
            internal = float(distribution.to_internal_repr(label))
            additions.append(Addition(trial_id, name, internal, distribution_to_json(distribution)))
        if not plan.contains(params):
            outside.append(number)
    version = (_attribute(connection, study_id, SPACE_VERSION_KEY) or 0) + 1
    return Migrated(version, tuple(rewrites), tuple(additions), tuple(outside), tuple(incomplete))


# --- Writing


def _apply(connection: Connection, study_id: int, found: Migrated) -> None:
    of_study = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)
    for one in found.rewrites:
        is_this = (trial_params.c.param_name == one.name) & (trial_params.c.distribution_json == one.old)
        changed = trial_params.update().where(is_this, trial_params.c.trial_id.in_(of_study))
        connection.execute(changed.values(distribution_json=one.new))
    rows = [
        {"trial_id": one.trial_id, "param_name": one.name, "param_value": one.number, "distribution_json": one.text}
        for one in found.additions
    ]
    for start in range(0, len(rows), CHUNK):
        connection.execute(trial_params.insert(), rows[start : start + CHUNK])


def _attribute(connection: Connection, study_id: int, key: str) -> Any:
    attributes = study_system_attributes.c
    query = sa.select(attributes.value_json).where(attributes.study_id == study_id, attributes.key == key)
    text = connection.execute(query).scalar_one_or_none()
    return None if text is None else json.loads(text)


def _put(connection: Connection, study_id: int, key: str, value: object) -> None:
    statement = insert(connection.dialect.name, study_system_attributes).values(
        study_id=study_id, key=key, value_json=json.dumps(value)
    )
    changed = {"value_json": statement.excluded.value_json}
    connection.execute(statement.on_conflict_do_update(index_elements=["study_id", "key"], set_=changed))
