"""What an editor can do from our pages. Each action calls the function that the command line calls.

`login.py` has refused readers, strangers and other sites before a request comes here, and writes the audit lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import bottle

from tuner.admin import edits, lifecycle
from tuner.dashboard.answers import refused, study_of_id, wants_page
from tuner.dashboard.api_checks import is_storable
from tuner.dashboard.enqueue_form import MOST_FIELDS, words_of
from tuner.dashboard.layout import study_query
from tuner.dashboard.notes import Note, save_note
from tuner.errors import StorageLost, TunerError, UnknownStudy, UsageError
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.queries import StudyRow, read_trial

_FORM = "application/x-www-form-urlencoded"
_STUDY = "/actions/<study_id:int>"
_OF_TRIAL = f"{_STUDY}/trials/<number:int>"
_MOST_BYTES = 1 << 20

DONE = {
    "stopped": "The study is stopped: its workers give back their trials and exit.",
    "already-stopped": "The study was already stopped.",
    "resumed": "The study can be launched again.",
    "not-stopped": "The study was not stopped.",
    "changed": "The number of trials is changed. Running workers use it from their next trial.",
    "queued": "The trial is queued.",
    "ended": "The trial is ended. Its worker drops it at its next report.",
    "removed": "The trial is removed from the queue.",
    "noted": "The note is saved.",
}
"""What a page says after an action, by the word in its address."""


@dataclass(frozen=True)
class Asked:
    """An action that is asked for.

    Attributes:
        storage: The storage.
        study: The study.
        number: The trial; -1 for an action on the study.
        form: The fields of the form.
    """

    storage: Storage
    study: StudyRow
    number: int
    form: Mapping[str, str]


def _stop(asked: Asked) -> str:
    _check_ours(asked.study)
    return "stopped" if lifecycle.stop(asked.storage.engine, asked.study.name) else "already-stopped"


def _resume(asked: Asked) -> str:
    _check_ours(asked.study)
    resumed = lifecycle.resume(asked.storage.engine, asked.study.name)
    if resumed.end is not None:
        raise UsageError(resumed.end.describe(asked.study.name))
    return "resumed" if resumed.was_stopped else "not-stopped"


def _check_ours(study: StudyRow) -> None:
    if not study.record:
        raise UsageError(f"study {study.name!r} was not created by tuner, so it has no workers to stop")


def _change_trials(asked: Asked) -> str:
    lifecycle.change_trials(asked.storage.engine, asked.study.name, _whole(asked.form, "trials"))
    return "changed"


def _enqueue(asked: Asked) -> str:
    edits.enqueue(asked.storage.url, asked.study.name, words_of(asked.form))
    return "queued"


def _note(asked: Asked) -> str:
    trial_id = None if asked.number < 0 else read_trial(asked.storage.engine, asked.study, asked.number).trial_id
    text = asked.form.get("text", "").replace("\r\n", "\n")
    save_note(asked.storage, asked.study.study_id, trial_id, Note(text, _whole(asked.form, "version")))
    return "noted"


def _end(asked: Asked) -> str:
    ended = edits.end_trial(asked.storage.url, asked.study.name, asked.number)
    return "removed" if ended.was_waiting else "ended"


def _retry(asked: Asked) -> str:
    edits.retry(asked.storage.url, asked.study.name, asked.number)
    return "queued"


ACTIONS: Mapping[str, Callable[[Asked], str]] = {
    f"{_STUDY}/stop": _stop,
    f"{_STUDY}/resume": _resume,
    f"{_STUDY}/trials": _change_trials,
    f"{_STUDY}/enqueue": _enqueue,
    f"{_STUDY}/note": _note,
    f"{_OF_TRIAL}/end": _end,
    f"{_OF_TRIAL}/retry": _retry,
    f"{_OF_TRIAL}/note": _note,
}
"""The actions by the rules of their routes. Each returns a key of `DONE`."""


def add_actions(app: Any, storage: Storage) -> None:
    """Add a POST route for each action to the dashboard."""
    for rule, act in ACTIONS.items():
        app.post(rule, callback=_route(storage, act))


def _route(storage: Storage, act: Callable[[Asked], str]) -> Callable[..., Any]:
    def acted(study_id: int, number: int = -1) -> Any:
        try:
            study = study_of_id(storage, study_id)
        except bottle.HTTPError as error:
            raise refused(error.status_code, str(error.body)) from None
        try:
            done = act(Asked(storage, study, number, read_form()))
        except StorageLost:
            raise
        except UnknownStudy as error:
            raise refused(404, str(error)) from None
        except TunerError as error:
            raise refused(400, str(error)) from None
        if not wants_page():
            bottle.response.content_type = "application/json"
            return json.dumps({"done": DONE[done]})
        if number < 0:
            bottle.redirect(f"/study{study_query(study.name, done=done)}", 303)
        bottle.redirect(f"/trial{study_query(study.name, trial=number, done=done)}", 303)

    return acted


def read_form() -> dict[str, str]:
    """Return the fields of the request's form; of a field that is sent twice, the last.

    Raises:
        UsageError: The body is not a form in UTF-8, or is too long, or a text cannot be stored.
    """
    body = bottle.request.environ["wsgi.input"].read(_MOST_BYTES + 1)
    kind = bottle.request.environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if not body:
        return {}
    if kind != _FORM:
        raise UsageError(f"the body must be a form, with `Content-Type: {_FORM}`")
    if len(body) > _MOST_BYTES:
        raise UsageError(f"the form must have at most {_MOST_BYTES} bytes")
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS + 10, errors="strict"
        )
    except (UnicodeDecodeError, ValueError):
        raise UsageError(f"the body must be a form in UTF-8 with at most {MOST_FIELDS + 10} fields") from None
    if not all(is_storable(text) for pair in pairs for text in pair):
        raise UsageError("the fields of the form must be text without NUL: remove it")
    return dict(pairs)


def _whole(form: Mapping[str, str], name: str) -> int:
    text = form.get(name, "").strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise UsageError(f"{name} must be a whole number: got {text[:60]!r}")
    return int(text)
