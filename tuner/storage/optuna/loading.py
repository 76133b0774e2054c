"""Loads trials as Optuna objects, in two statements for any number of trials."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from tuner.storage.sql import statements
from tuner.storage.sql.dialect import ids_value
from tuner.storage.sql.encoding import loaded_number
from tuner.storage.sql.prepared_statements import run
from tuner.storage.sql.statements import PARAM, REPORT, USER, VALUE
from tuner.storage.sql.zones import UTC, local_time
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from tuner.storage.sql.row_types import AnyResult

_LISTED = 500  # the maximum number of trials selected by id instead of by a range
_STATES = {state.name: state for state in TrialState}

to_distribution = functools.lru_cache(maxsize=4096)(json_to_distribution)
"""Cache of distributions: a study has few, and each trial repeats them as JSON."""


class Loaded(NamedTuple):
    """A study as it was read.

    Attributes:
        name: Its name.
        version: The version of its space, as text; None if it was never changed.
        trials: Some of its trials, by id.
    """

    name: str
    version: str | None
    trials: list[FrozenTrial]


def load_trials(
    connection: Connection,
    study_id: int,
    newer_than: int,
    also: Collection[int] = (),
    *,
    zone: datetime.tzinfo | None = None,
) -> Loaded | None:
    """Return a study's name, the version of its space, and some of its trials by id; None if there is no such study.

    Args:
        connection: A connection.
        study_id: The study.
        newer_than: Load trials with a greater id than this.
        also: Load also the trials with these ids.
        zone: See `new_trial`.
    """
    are_new = newer_than >= 0
    values = {"study_id": study_id, "newer_than": newer_than, "also": ids_value(connection.dialect.name, also)}
    rows = run(connection, statements.load_trials.of(are_new), values).all()
    if not rows:
        return None
    found = {row[0]: new_trial(*row[:-2], zone=zone) for row in rows if row[0] is not None}
    if found:
        _fill(found, _details(connection, study_id, list(found)))
    name, version = rows[0][-2:]
    return Loaded(name, version, list(found.values()))


def load_trial(connection: Connection, trial_id: int, zone: datetime.tzinfo | None = None) -> FrozenTrial | None:
    """Return a trial by id, or None; for `zone` see `new_trial`."""
    row = run(connection, statements.load_trial, {"trial_id": trial_id}).first()
    if row is None:
        return None
    found = {trial_id: new_trial(*row, zone=zone)}
    _fill(found, _details(connection, 0, [trial_id]))
    return found[trial_id]


def new_trial(
    trial_id: int,
    number: int,
    state: str = "RUNNING",
    start: datetime.datetime | str | None = None,
    complete: datetime.datetime | str | None = None,
    *,
    zone: datetime.tzinfo | None = None,
) -> FrozenTrial:
    """Return a trial without parameters, values and attributes.

    Args:
        trial_id: The trial's id.
        number: The trial's number in its study.
        state: The name of its state.
        start: When it started, as returned by the driver.
        complete: When it ended.
        zone: The zone of its times; None for local times without a zone, as Optuna's own storage returns them.
    """
    return FrozenTrial(
        number=number,
        state=_STATES[state],
        value=None,
        datetime_start=_time(start, zone),
        datetime_complete=_time(complete, zone),
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=trial_id,
    )


def _time(value: datetime.datetime | str | None, zone: datetime.tzinfo | None) -> datetime.datetime | None:
    """Return a time that a driver has read; SQLite returns text."""
    if value is None:
        return None
    stored = datetime.datetime.fromisoformat(value) if isinstance(value, str) else value
    return local_time(stored) if zone is None else stored.replace(tzinfo=UTC).astimezone(zone)


def _details(connection: Connection, study_id: int, ids: list[int]) -> AnyResult:
    """Return everything that belongs to trials, as rows of (kind, trial_id, position, name, number, text)."""
    is_listed = len(ids) <= _LISTED or len(ids) < (ids[-1] - ids[0]) / 4  # otherwise a range of ids is shorter
    wanted = {"ids": ids_value(connection.dialect.name, ids)} if is_listed else {"study_id": study_id, "first": ids[0]}
    return run(connection, statements.trial_details.of(is_listed), wanted)


def _fill(found: dict[int, FrozenTrial], rows: Any) -> None:
    params: dict[int, list[tuple[int, str, float, BaseDistribution]]] = {}
    values: dict[int, dict[int, float]] = {}
    for kind, trial_id, position, name, number, text in rows:
        trial = found.get(trial_id)
        if trial is None:  # created between the two queries
            continue
        if kind == PARAM:
            params.setdefault(trial_id, []).append((position, name, number, to_distribution(text)))
        elif kind == REPORT:
            trial.intermediate_values[position] = loaded_number(number, text)
        elif kind == VALUE:
            values.setdefault(trial_id, {})[position] = loaded_number(number, text)
        elif kind == USER:
            trial.user_attrs[name] = json.loads(text)
        else:
            trial.system_attrs[name] = json.loads(text)
    for trial_id, several in params.items():
        several.sort()
        trial = found[trial_id]
        trial.params = {name: distribution.to_external_repr(number) for _, name, number, distribution in several}
        trial.distributions = {name: distribution for _, name, _, distribution in several}
    for trial_id, by_objective in values.items():
        found[trial_id].values = [by_objective[objective] for objective in range(len(by_objective))]


def copies(trials: Collection[FrozenTrial]) -> Iterator[FrozenTrial]:
    """Yield independent copies of trials, ten times as fast as `copy.deepcopy`.

    Distributions that trials share are shared by their copies too, as with `copy.deepcopy` of a list.
    """
    copied_distributions: dict[int, BaseDistribution] = {}

    def copy_of(distribution: BaseDistribution) -> BaseDistribution:
        found = copied_distributions.get(id(distribution))
        if found is None:
            found = copied_distributions[id(distribution)] = _copied_distribution(distribution)
        return found

    for trial in trials:
        copied = FrozenTrial.__new__(FrozenTrial)
        fields: Any = copied.__dict__
        fields.update(trial.__dict__)
        fields["intermediate_values"] = dict(fields["intermediate_values"])
        fields[private.DISTRIBUTIONS] = {key: copy_of(one) for key, one in fields[private.DISTRIBUTIONS].items()}
        for name in private.ATTRIBUTES:
            fields[name] = {key: _copied(value) for key, value in fields[name].items()}
        if fields[private.VALUES] is not None:
            fields[private.VALUES] = list(fields[private.VALUES])
        yield copied


def _copied_distribution(distribution: BaseDistribution) -> BaseDistribution:
    kind = type(distribution)
    copied = kind.__new__(kind)
    fields: Any = copied.__dict__
    fields.update(distribution.__dict__)
    if kind is CategoricalDistribution:
        fields["choices"] = tuple([_copied(choice) for choice in fields["choices"]])
    return copied


def _copied(value: object) -> object:
    """Return a copy of a value that was read from JSON."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in cast("dict[str, object]", value).items()}
    return [_copied(item) for item in cast("list[object]", value)] if isinstance(value, list) else value
