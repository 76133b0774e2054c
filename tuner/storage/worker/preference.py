"""Which of several waiting trials a worker takes first: one whose program it has compiled, within limits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from tuner.storage.sql.tables import trial_params, trial_system_attributes, trials

MOST_AHEAD = 8
"""Trials in a row that may go ahead of the oldest one that waits."""
_KEPT = 16
_LOOKED_AT = 50
"""Queued trials of which the oldest is chosen; more would have to be read under the study's lock."""

_Key = frozenset[tuple[str, str]]


@dataclass
class Preference:
    """The programs that a worker has compiled.

    Attributes:
        names: The static hyperparameters. Trials with the same values of them run the same programs.
        known: The values whose programs the worker has, the latest last.
        ahead: Trials in a row that have gone ahead of an older one.
    """

    names: frozenset[str] = frozenset()
    known: dict[_Key, None] = field(default_factory=dict[_Key, None])
    ahead: int = 0

    def note(self, params: Mapping[str, Any]) -> None:
        """Note that the worker has the programs of a trial with these hyperparameters."""
        key = self._key(params)
        self.known.pop(key, None)
        self.known[key] = None
        for oldest in list(self.known)[:-_KEPT]:
            del self.known[oldest]

    def choose(self, waiting: Sequence[Mapping[str, Any]]) -> int:
        """Return the position of the trial to take, given the hyperparameters of those that wait, oldest first.

        It is the oldest whose program the worker has. After `MOST_AHEAD` others in a row, it is the oldest of all.
        """
        has_program = (at for at, params in enumerate(waiting) if self._key(params) in self.known)
        chosen = next(has_program, 0) if self.ahead < MOST_AHEAD else 0
        self.ahead = self.ahead + 1 if chosen else 0
        return chosen

    @property
    def is_empty(self) -> bool:
        """Whether all trials are the same to the worker."""
        return not (self.names and self.known)

    def _key(self, params: Mapping[str, Any]) -> _Key:
        # As JSON, because other tools may have queued any value.
        return frozenset((name, json.dumps(params[name], sort_keys=True)) for name in self.names & params.keys())


def params_of(connection: Connection, trial_ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Return the hyperparameters of trials that have begun, by id."""
    from optuna.distributions import json_to_distribution

    found: dict[int, dict[str, Any]] = {trial_id: {} for trial_id in trial_ids}
    query = sa.select(trial_params).where(trial_params.c.trial_id.in_(list(found)))
    for row in connection.execute(query):
        distribution = json_to_distribution(row.distribution_json)
        found[row.trial_id][row.param_name] = distribution.to_external_repr(row.param_value)
    return found


def queued_params(connection: Connection, study_id: int) -> dict[int, dict[str, Any]]:
    """Return the hyperparameters with which the oldest waiting trials were queued, by id, oldest first."""
    attributes = trial_system_attributes
    query = (
        sa.select(trials.c.trial_id, attributes.c.value_json)
        .select_from(
            trials.outerjoin(
                attributes, (attributes.c.trial_id == trials.c.trial_id) & (attributes.c.key == "fixed_params")
            )
        )
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING")
        .order_by(trials.c.trial_id)
        .limit(_LOOKED_AT)
    )
    return {trial_id: json.loads(text) if text else {} for trial_id, text in connection.execute(query)}
