"""Checks requests to Optuna's dashboard before passing them on.

optuna-dashboard trusts its own front-end. What that never sends (values of other types, unknown ids, names that a
database cannot store) ends there in a traceback and status 500. Here the ids, the query and the JSON body of each route
are checked, and a wrong one is answered with 400, 404 or 409 and one line.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import bottle
from optuna.exceptions import UpdateFinishedTrialError

from tuner.dashboard.answers import refused
from tuner.errors import StorageLost, is_int, is_number
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.activity import study_of

_logger = logging.getLogger(__name__)

_MOST_ID = 2**31 - 1
_MOST_NAME = 512  # characters, as in the columns
_MOST_TEXT = 64  # characters of a kind of plot or of a history's id
_DEEPEST = 64


class Wrong(Exception):
    """An invalid request; the message is for the client."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


# Fields of JSON bodies. Each check gets the name of the field for messages, and its value.

Check = Callable[[str, Any], None]


def _wrong(name: str, rule: str, value: object) -> Wrong:
    text = json.dumps(value)
    return Wrong(f"{name} must be {rule}: got {text if len(text) <= 60 else text[:60] + '...'}")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _wrong(name, "text", value)
    if not is_storable(value):
        raise _wrong(name, "text without NUL or lone surrogates", value)


def _name(name: str, value: Any) -> None:
    _text(name, value)
    if not 0 < len(value) <= _MOST_NAME:
        raise _wrong(name, f"1 to {_MOST_NAME} characters", value)


def _whole(name: str, value: object) -> None:
    if not is_int(value) or abs(value) > _MOST_ID:
        raise _wrong(name, "a whole number", value)


def _number(name: str, value: Any) -> None:
    try:
        is_right = is_number(value) and not math.isnan(float(value))
    except OverflowError:
        is_right = False
    if not is_right:
        raise _wrong(name, "a number", value)


def _list_of(check: Check) -> Check:
    def checked(name: str, value: object) -> None:
        if not isinstance(value, list):
            raise _wrong(name, "a list", value)
        for place, part in enumerate(value):
            check(f"{name}[{place}]", part)

    return checked


def _attributes(name: str, value: object) -> None:
    if not isinstance(value, dict):
        raise _wrong(name, "an object", value)
    for key in value:
        _name(f"a key of {name}", key)


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)


_NOTE: Mapping[str, Check] = {"version": _whole, "body": _text}
_STUDY = "/api/studies/<study_id:int>"
FIELDS: dict[tuple[str, str], Mapping[str, Check]] = {
    ("POST", "/api/studies"): {"study_name": _name, "directions": _list_of(_text)},
    ("DELETE", _STUDY): {"remove_associated_artifacts": _flag},
    ("POST", f"{_STUDY}/rename"): {"study_name": _name},
    ("PUT", f"{_STUDY}/note"): _NOTE,
    ("PUT", f"{_STUDY}/<trial_id:int>/note"): _NOTE,
    ("POST", f"{_STUDY}/preference"): {"mode": _text, "candidates": _list_of(_whole), "clicked": _whole},
    ("PUT", f"{_STUDY}/preference_feedback_component"): {"output_type": _text, "artifact_key": _text},
    ("POST", "/api/trials/<trial_id:int>/tell"): {"state": _text, "values": _list_of(_number)},
    ("POST", "/api/trials/<trial_id:int>/user-attrs"): {"user_attrs": _attributes},
    ("POST", "/api/artifacts/<study_id:int>"): {"file": _text, "filename": _text},
    ("POST", "/api/artifacts/<study_id:int>/<trial_id:int>"): {"file": _text, "filename": _text},
    ("POST", "/api/llm/trial_filter_query"): {},
    ("POST", "/api/llm/generate_plotly_graph_query"): {},
    ("POST", "/api/llm/re_generate_plotly_graph_query"): {},
}
"""Checks of the JSON body of each route. Fields are optional here: the route itself checks which ones it needs."""
WITHOUT_BODY = frozenset(
    {
        ("POST", f"{_STUDY}/<trial_id:int>/skip"),
        ("POST", f"{_STUDY}/preference/<history_id>"),
        ("DELETE", f"{_STUDY}/preference/<history_id>"),
        ("DELETE", "/api/artifacts/<study_id:int>/<artifact_id:re:[0-9a-fA-F-]+>"),
        ("DELETE", "/api/artifacts/<study_id:int>/<trial_id:int>/<artifact_id:re:[0-9a-fA-F-]+>"),
        ("POST", "/incompatible-rdb-schema"),
    }
)
"""Routes that make changes but read no body."""
_MAY_BE_EMPTY = frozenset({("DELETE", _STUDY)})
_MAY_BE_NULL = frozenset({"artifact_key", "values"})


def is_storable(text: str) -> bool:
    """Return whether every database can store a text."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def check_routes(app: bottle.Bottle, storage: Storage) -> None:
    """Check the requests of every route of Optuna's dashboard before the route handles them.

    Args:
        app: Optuna's dashboard; its routes are changed.
        storage: The storage.
    """
    for route in app.routes:
        view = getattr(route.callback, "__wrapped__", None)  # without optuna-dashboard's own error handling
        key = route.method, route.rule
        route.callback = _page(storage, route.callback) if view is None else _data(storage, key, view)
        route.reset()


def _page(storage: Storage, view: Callable[..., object]) -> Callable[..., Any]:
    """Return a view that checks its ids."""

    def checked(**ids: object) -> Any:
        try:
            _check_ids(storage, {name: value for name, value in ids.items() if isinstance(value, int)})
        except Wrong as wrong:
            is_action = bottle.request.method == "POST"
            raise (refused if is_action else bottle.HTTPError)(wrong.status, str(wrong)) from None
        return view(**ids)

    return checked


def _data(storage: Storage, key: tuple[str, str], view: Callable[..., object]) -> Callable[..., Any]:
    """Return a view that answers with JSON, including errors."""

    def checked(**ids: object) -> Any:
        bottle.response.content_type = "application/json"
        try:
            study_id = _check_ids(storage, ids)
            _check_query()
            _check_body(storage, key, study_id)
            return view(**ids)
        except Wrong as wrong:
            return _refuse(wrong.status, str(wrong))
        except bottle.HTTPError as error:
            return _refuse(error.status_code, str(error.body))
        except UpdateFinishedTrialError:
            return _refuse(409, f"trial_id={ids.get('trial_id')} has ended, and cannot be changed any more")
        except ImportError as error:
            return _refuse(404, f"this needs a package that is not installed: {error.name}")
        except StorageLost as error:
            return _refuse(503, str(error))
        except Exception as error:
            if isinstance(error, KeyError) and _are_gone(storage, ids):
                return _refuse(404, "the study or trial has been deleted")
            if isinstance(error, ValueError) and "plot_type" in ids:
                return _refuse(400, f"this study has no such plot: {error}")
            _logger.exception("%s %s failed", *key)
            return _refuse(500, "internal server error")

    return checked


def _refuse(status: int, reason: str) -> str:
    bottle.response.status = status
    return json.dumps({"reason": reason})


def _check_ids(storage: Storage, ids: Mapping[str, Any]) -> int | None:
    """Return the id of a request's study, if it has one.

    Raises:
        Wrong: The study or trial does not exist.
    """
    for name, value in ids.items():
        if isinstance(value, str) and not (len(value) <= _MOST_TEXT and value.isprintable()):
            raise Wrong(f"unknown {name}", 404)
    study_id, trial_id = ids.get("study_id"), ids.get("trial_id")
    if study_id is None and trial_id is None:
        return None
    given = [one for one in (study_id, trial_id) if one is not None]
    found = study_of(storage.engine, study_id, trial_id) if all(0 < one <= _MOST_ID for one in given) else None
    if found is None:
        asked = ", ".join(f"{name}={str(ids[name])[:20]}" for name in ("study_id", "trial_id") if name in ids)
        raise Wrong(f"{asked} is not found", 404)
    return found


def _are_gone(storage: Storage, ids: Mapping[str, object]) -> bool:
    try:
        _check_ids(storage, ids)
    except Wrong:
        return True
    return False


def _check_query() -> None:
    query: Any = bottle.request.query
    after = query.get("after")
    if after is not None and not (after.isascii() and after.isdecimal() and int(after[:10]) <= _MOST_ID):
        raise Wrong("`after` must be a whole number of trials")


def _check_body(storage: Storage, key: tuple[str, str], study_id: int | None) -> None:
    fields = FIELDS.get(key)
    if fields is None:
        return
    try:
        data: Any = bottle.request.json
    except RecursionError:
        raise Wrong(f"the body must not be nested deeper than {_DEEPEST}") from None
    if data is None and key in _MAY_BE_EMPTY:
        return
    if data is None:
        raise Wrong("the body must be JSON, with `Content-Type: application/json`")
    if not isinstance(data, dict):
        raise _wrong("the body", "an object", data)
    if _is_deeper(data, _DEEPEST):
        raise Wrong(f"the body must not be nested deeper than {_DEEPEST}")
    for name, check in fields.items():
        if name in data and not (data[name] is None and name in _MAY_BE_NULL):
            check(name, data[name])
    if study_id is not None:
        _check_against_study(storage, study_id, data)


def _check_against_study(storage: Storage, study_id: int, data: Mapping[str, Any]) -> None:
    """Check fields that depend on the study: its number of objectives and of trials."""
    if data.get("values") is not None:
        count = len(storage.get_study_directions(study_id))
        if len(data["values"]) != count:
            raise _wrong("values", f"one number for each of {count} objectives", data["values"])
    numbers = [*data.get("candidates", []), *([data["clicked"]] if data.get("clicked", -1) != -1 else [])]
    if numbers:
        count = len(storage.get_all_trials(study_id, deepcopy=False))
        if not all(0 <= number < count for number in numbers):
            raise _wrong("candidates and clicked", f"numbers of the study's {count} trials", numbers)


def _is_deeper(value: object, most: int) -> bool:
    """Return whether lists and objects are nested deeper than `most`."""
    layer = [value]
    for _ in range(most):
        layer = [part for one in layer for part in (one.values() if isinstance(one, dict) else one)
                 if isinstance(part, dict | list)]  # fmt: skip
        if not layer:
            return False
    return True
