"""Answers `/api/studies/ID`, the dashboard's data of a study, quickly even for fifty thousand trials.

optuna-dashboard makes it from Python objects, trial by trial: it compares search spaces, serialises dictionaries, and
encodes them. But trials of one kind (state, hyperparameters and their distributions, user attributes) have the same
form. We therefore let optuna-dashboard write a few trials of each kind, and write the others ourselves after their
pattern. It also writes all other parts of the answer, and trials with notes, artifacts or constraints. We correct its
best trials, which may violate a constraint, and add the constraints of Optuna 5, which it does not support.
"""

from __future__ import annotations

import io
import json
import numbers
import re
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

import numpy as np
import optuna_dashboard
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.dashboard.login import WSGI
from tuner.errors import StorageLost
from tuner.output.numbers import plain
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.ranking import is_feasible
from tuner.trial import optuna_private as private

_PATH = re.compile(r"/api/studies/([0-9]{1,9})")
_COUNT = re.compile(r"[0-9]{1,9}")
_TOLD_OF_ONE = re.compile(r"dashboard:(?:artifacts:)?(\d+):")  # study attributes that belong to one trial
_SHOWN_ATTRIBUTES = ("fixed_params", "constraints", "artifacts:")  # system attributes of trials that are shown
_LONGEST_ATTRIBUTE = 1024
_MOST = sys.float_info.max
MOST_CURVES = 2_000
"""The maximum number of trials for the front-end's plot with a curve and a legend entry per trial, which would block it
for minutes with thousands of trials. For larger studies the plot is disabled; the reports are still sent."""
_BLOCK = 500  # trials that are sent together
# The parts that differ between trials of a kind.
_OWN = ("trial_id", "number", "params", "user_attrs", "intermediate_values", "values", "datetime_start",
        "datetime_complete")  # fmt: skip

Answer = tuple[str, list[tuple[str, str]], bytes]


class StudyDetail:
    """A WSGI application around Optuna's dashboard that answers for whole studies itself.

    Args:
        app: Optuna's dashboard on the storage; answers all other requests.
        storage: The storage.
    """

    def __init__(self, app: WSGI, storage: Storage) -> None:
        self.app = app
        self.storage = storage

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = _PATH.fullmatch(environ["PATH_INFO"].rstrip("/"))
        query = parse_qs(environ.get("QUERY_STRING", ""))
        after = query.get("after", ["0"])[0]
        if environ["REQUEST_METHOD"] != "GET" or asked is None or set(query) - {"after"} or not _COUNT.fullmatch(after):
            return self.app(environ, start_response)
        study_id = int(asked[1])
        try:
            trials = self.storage.get_all_trials(study_id, deepcopy=False)
            singled = _singled_out(self.storage.get_study_system_attrs(study_id))
            directions = self.storage.get_study_directions(study_id)
        except (KeyError, StorageLost):  # it answers these itself
            return self.app(environ, start_response)
        kinds = [_kind(trial, singled) for trial in trials]
        best = _best(trials, directions)
        samples = _samples(trials, kinds, best)
        status, headers, body = _ask(_Sampled(self.storage, study_id, samples), environ)
        detail = json.loads(body) if status.startswith("200") else {}
        if "trials" not in detail or detail.get("is_preferential"):
            return self.app(environ, start_response)
        detail["has_intermediate_values"] &= len(trials) <= MOST_CURVES
        shown = {trial["number"]: trial for trial in detail.pop("trials")}
        _correct(detail, shown, trials, best)
        patterns = _patterns(samples, shown, singled)
        start = int(after)
        texts = (
            _text(trial, patterns[kind]) if kind in patterns else json.dumps(shown[trial.number])
            for trial, kind in zip(trials[start:], kinds[start:], strict=True)
        )
        start_response(status, [(name, value) for name, value in headers if name.lower() != "content-length"])
        return _sent(json.dumps(detail), texts)


# The trials that optuna-dashboard writes.


def _singled_out(study_attributes: Mapping[str, object]) -> set[int]:
    """Return the ids of trials with notes or artifacts in the study's attributes."""
    found = (_TOLD_OF_ONE.match(key) for key in study_attributes)
    return {int(match[1]) for match in found if match is not None}


def _kind(trial: FrozenTrial, singled: set[int]) -> Hashable:
    """Return a key that trials of the same form share; a trial with a unique form is its own kind."""
    number = private.trial_id(trial)
    if number in singled or any(name.startswith(_SHOWN_ATTRIBUTES) for name in private.system_attrs(trial)):
        return number
    # Equal distributions are one object, because the storage reads each text once. Comparing them is slow.
    distributions = tuple([(name, id(one)) for name, one in private.distributions(trial).items()])
    attributes = tuple([(name, type(value)) for name, value in private.user_attrs(trial).items()])
    return trial.state, distributions, attributes, bool(trial.intermediate_values)


def _samples(trials: Sequence[FrozenTrial], kinds: Sequence[Hashable], best: Sequence[int]) -> list[FrozenTrial]:
    """Return trials that represent all trials: the first and the last of each kind, and the best.

    Both ends are needed, because the order of other parts of the answer depends on them.
    """
    last = {kind: number for number, kind in enumerate(kinds)}
    first = {kind: number for number, kind in reversed(list(enumerate(kinds)))}
    return [trials[place] for place in sorted({*first.values(), *last.values(), *best})]


def _best(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[int]:
    """Return the positions of the best complete trials: the Pareto front or, with one objective, only the best.

    Trials that violate a constraint are skipped, as in `optuna.Study.best_trials`.
    """
    complete = [
        place
        for place, trial in enumerate(trials)
        if trial.state == TrialState.COMPLETE and is_feasible(trial.constraints)
    ]
    if len(directions) > 1:
        return sorted(_front(trials, complete, directions))
    sign = -1.0 if directions[0] == StudyDirection.MAXIMIZE else 1.0
    return [min(complete, key=lambda place: sign * trials[place].values[0])] if complete else []


def _front(trials: Sequence[FrozenTrial], among: Sequence[int], directions: Sequence[StudyDirection]) -> set[int]:
    """Return the positions of complete trials that no other one beats."""
    places = np.array(among, dtype=int)
    signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
    costs = np.array([trials[place].values for place in places]).reshape(len(places), len(signs)) * signs
    at = 0
    while at < len(places):
        is_beaten = (costs >= costs[at]).all(axis=1) & (costs > costs[at]).any(axis=1)
        at = int((~is_beaten[:at]).sum()) + 1
        places, costs = places[~is_beaten], costs[~is_beaten]
    return set(places.tolist())


def _correct(
    detail: dict[str, Any], shown: dict[int, dict[str, Any]], trials: Sequence[FrozenTrial], best: Sequence[int]
) -> None:
    """Correct optuna-dashboard's answer about constraints: all of each trial, and the best trials."""
    constrained = [trial for trial in trials if trial.constraints]
    for trial in shown.values():
        trial["constraints"] = trial["constraints"] or []  # None if the function that computes them failed
    for trial in constrained:
        # The front-end uses only their signs, and JSON does not support NaN and infinities.
        shown[trial.number]["constraints"] = [
            one if abs(one) <= _MOST else -_MOST if one < 0 else _MOST for one in trial.constraints.values()
        ]
    if not all(is_feasible(trial.constraints) for trial in constrained):
        detail["best_trials"] = [shown[trials[place].number] for place in best]


class _Sampled:
    """A storage in which a study has only some of its trials."""

    def __init__(self, storage: Storage, study_id: int, trials: list[FrozenTrial]) -> None:
        self._storage = storage
        self._study_id = study_id
        self._trials = trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(self, study_id: int, **options: Any) -> list[FrozenTrial]:
        return self._trials if study_id == self._study_id else self._storage.get_all_trials(study_id, **options)


BaseStorage.register(_Sampled)


def _ask(storage: Any, environ: WSGIEnvironment) -> Answer:
    """Return the answer of a new dashboard, without cached data."""
    told: list[Any] = []
    inner = {**environ, "QUERY_STRING": "", "wsgi.input": io.BytesIO()}
    app: Any = optuna_dashboard.wsgi(storage)
    body = b"".join(app(inner, lambda status, headers, *_: told.append((status, headers))))
    return *told[-1], body


# Writing the other trials after the pattern of their kind.


class _Pattern:
    """The JSON pattern of trials of a kind.

    Args:
        trial: A trial of the kind.
        shown: The trial as written by optuna-dashboard.
    """

    def __init__(self, trial: FrozenTrial, shown: dict[str, Any]) -> None:
        rest = json.dumps({name: value for name, value in shown.items() if name not in _OWN})
        self.rest = rest.removeprefix("{")
        self.params: list[tuple[str, Any, str, str]] = []
        for param in shown["params"]:
            name = param["name"]
            head = f'{{"name": {quoted(name)}, "distribution": {json.dumps(param["distribution"])}'
            self.params.append((name, private.distributions(trial)[name], head, ', "param_internal_value": '))


def _patterns(
    samples: Sequence[FrozenTrial], shown: dict[int, dict[str, Any]], singled: set[int]
) -> dict[Hashable, _Pattern]:
    patterns: dict[Hashable, _Pattern] = {}
    for trial in samples:
        kind = _kind(trial, singled)
        if not isinstance(kind, int) and kind not in patterns:
            patterns[kind] = _Pattern(trial, shown[trial.number])
    return patterns


def _text(trial: FrozenTrial, pattern: _Pattern) -> str:
    """Return a trial as JSON."""
    params, values = private.params(trial), private.values(trial)
    shown = ", ".join(
        [
            f"{head}{inside}{_number(distribution.to_internal_repr(params[name]))}"
            f', "param_external_value": {quoted(str(params[name]))}, "param_external_pytyp": "{type(params[name])}"}}'
            for name, distribution, head, inside in pattern.params
        ]
    )
    attributes = ", ".join(
        [
            f'{{"key": {quoted(name)}, "value": {quoted(_shown(value))}}}'
            for name, value in private.user_attrs(trial).items()
        ]
    )
    reports = ", ".join(
        [f'{{"step": {step}, "value": {_number(value)}}}' for step, value in sorted(trial.intermediate_values.items())]
    )
    objectives = "" if values is None else f'"values": [{", ".join([_number(value) for value in values])}], '
    start, end = trial.datetime_start, trial.datetime_complete
    times = "" if start is None else f'"datetime_start": "{start.isoformat()}", '
    times += "" if end is None else f'"datetime_complete": "{end.isoformat()}", '
    return (
        f'{{"trial_id": {private.trial_id(trial)}, "number": {trial.number}, "params": [{shown}], '
        f'"user_attrs": [{attributes}], "intermediate_values": [{reports}], {objectives}{times}{pattern.rest}'
    )


def _number(value: float) -> str:
    """Return a number as JSON; NaN and infinities as text, as the front-end expects."""
    return json.dumps(plain(value))


def _shown(value: object) -> str:
    """Return a user attribute in the form of optuna-dashboard."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, numbers.Real) else json.dumps(value)[:_LONGEST_ATTRIBUTE]


def _sent(detail: str, texts: Iterator[str]) -> Iterator[bytes]:
    """Yield the answer in blocks, because it may have a hundred megabytes."""
    block, lead = [], f'{detail[:-1]}, "trials": ['
    for text in texts:
        block.append(text)
        if len(block) == _BLOCK:
            yield (lead + ", ".join(block)).encode()
            block, lead = [], ", "
    yield ((lead if block or lead != ", " else "") + ", ".join(block) + "]}").encode()
