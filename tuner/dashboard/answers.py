"""What our routes have in common: the study and the trial in a request, and answers with HTML or JSON."""

from __future__ import annotations

import json
from typing import Any

import bottle

from tuner.dashboard.layout import Page, Viewer, study_query
from tuner.dashboard.login import CALLER
from tuner.dashboard.users import Role
from tuner.errors import UnknownStudy
from tuner.output.numbers import plain_json
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.queries import StudyRow, find_study, read_studies

POLICY = (
    "default-src 'none';img-src 'self';script-src 'self';style-src 'self';connect-src 'self';form-action 'self';"
    "base-uri 'none'"
)
_STUDY, _TRIAL = "study", "trial"
_LONGEST_NUMBER = 10  # digits


def viewer() -> Viewer:
    """Return who has sent the request."""
    caller = bottle.request.environ[CALLER]
    user = caller.name if caller.has_session else None
    return Viewer(bottle.request.environ["SCRIPT_NAME"], user, str(caller.role), caller.role is Role.EDITOR)


def send_page(page: Page, title: str, **given: object) -> bytes:
    """Send a page as HTML."""
    bottle.response.set_header("Content-Security-Policy", POLICY)
    text = page.render(viewer(), title, **given)
    return text.encode("utf-8", "backslashreplace")  # names of metrics may contain lone surrogates


def send_json(value: object) -> str:
    """Send a value as JSON; numbers that are not finite as text."""
    bottle.response.content_type = "application/json"
    return json.dumps(plain_json(value), allow_nan=False)


def wants_page() -> bool:
    """Return whether a person's browser asks, and not a script."""
    return "text/html" in (bottle.request.get_header("Accept") or "")


def refused(status: int, error: str) -> bottle.HTTPResponse:
    """Return the refusal of an action, to be raised: a page for a browser, else JSON with the `reason`."""
    reason = " ".join(error.split("\n", 1)[0].split())
    if wants_page():
        return bottle.HTTPError(status, reason)
    headers = {"Content-Type": "application/json"}
    return bottle.HTTPResponse(json.dumps({"reason": reason[:1000]}), status, headers=headers)


def in_query(name: str) -> str | None:
    """Return a text of the request's query; None if it is not there or empty.

    Raises:
        HTTPError: It is not in UTF-8.
    """
    query: Any = bottle.request.query
    text = query.getunicode(name)
    if text is None and query.get(name):
        raise bottle.HTTPError(400, f"{name} must be in UTF-8")
    return text or None


def chosen_study(storage: Storage) -> StudyRow | None:
    """Return the study in the request's query; None if it names none.

    Raises:
        HTTPError: There is none of that name.
    """
    name = in_query(_STUDY)
    try:
        return find_study(storage.engine, name) if name else None
    except UnknownStudy as error:
        raise bottle.HTTPError(404, str(error)) from None


def asked_study(storage: Storage) -> StudyRow:
    """Return the study in the request's query.

    Raises:
        HTTPError: It names none, or there is none of that name.
    """
    study = chosen_study(storage)
    if study is None:
        raise bottle.HTTPError(404, "the address must name a study: add ?study=NAME")
    return study


def trial_number() -> int | None:
    """Return the number of the trial in the request's query; None if it names none, -1 if it is not a number."""
    text = in_query(_TRIAL)
    if text is None:
        return None
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER else -1


def choice(storage: Storage) -> dict[str, Any]:
    """Return the data of a page on which a study can be chosen: the studies, the chosen one, and its query."""
    study = chosen_study(storage)
    return {
        "studies": [row.name for row in read_studies(storage.engine)],
        "study": study.name if study else None,
        "query": study_query(study.name) if study else "",
    }


def study_of_id(storage: Storage, study_id: int) -> StudyRow:
    """Return the study with an id.

    Raises:
        HTTPError: There is none.
    """
    for row in read_studies(storage.engine):
        if row.study_id == study_id:
            return row
    raise bottle.HTTPError(404, "the study has been deleted")
