"""The dashboard as one WSGI application: Optuna's dashboard and our pages, all behind the login."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bottle
import optuna_dashboard

from tuner.dashboard.api_checks import check_routes
from tuner.dashboard.descriptions import Descriptions
from tuner.dashboard.login import CALLER, WSGI, Login
from tuner.dashboard.optuna_page import OptunaPage
from tuner.dashboard.pages import checkpoints_page, logs_page, plots_page, refusal_page, workers_page
from tuner.dashboard.plot_cache import PlotCache
from tuner.dashboard.study_detail import StudyDetail
from tuner.dashboard.trials_csv import send_csv
from tuner.dashboard.users import Users
from tuner.errors import StorageLost, UnknownStudy
from tuner.output.numbers import plain_json
from tuner.output.sanitize import printable
from tuner.results.plots import KINDS
from tuner.results.trial_log import last_lines
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.activity import WorkerRow, read_checkpoints, read_compiling, read_failures, read_workers
from tuner.storage.read.queries import StudyRow, find_study, read_studies, read_trial

ASSETS = Path(__file__).parent / "assets"
LOST_S = 60.0
"""Seconds without a sign of life after which a worker counts as lost: twice the length of its lease."""
_POLICY = "default-src 'none';img-src 'self';script-src 'self';style-src 'self';form-action 'self';base-uri 'none'"
_PARAMETER = "study"


def make_app(
    storage: Storage, users: Users | None, *, prefix: str, is_behind_proxy: bool, audit: logging.Logger
) -> WSGI:
    """Return the whole dashboard.

    Args:
        storage: The storage.
        users: Users who may log in; None allows everyone who can reach this machine's loopback address.
        prefix: The path that the dashboard is under, as `/tuner`, or nothing.
        is_behind_proxy: Whether every request comes through a proxy.
        audit: Gets one JSON line for each login, refusal and change.

    Raises:
        UsageError: The front-end cannot be served below the prefix.
    """
    folder = Path(optuna_dashboard.__file__).parent
    page = OptunaPage(StudyDetail(routes(storage), storage), prefix, folder)
    return Login(page, users, prefix=prefix, is_behind_proxy=is_behind_proxy, audit=audit)


def routes(storage: Storage) -> bottle.Bottle:
    """Return Optuna's dashboard with our routes, without a login."""
    app: Any = optuna_dashboard.wsgi(storage)
    for route in app.routes:
        if route.rule == "/csv/<study_id:int>":
            route.callback = lambda study_id: send_csv(storage, study_id)
    app.get("/assets/<name>", callback=lambda name: bottle.static_file(name, root=str(ASSETS)))
    app.get("/workers", callback=lambda: _page(workers_page, **_chosen(storage), **_activity(storage)))
    app.get("/workers.json", callback=lambda: _json(_activity(storage)))
    about = Descriptions()
    app.get(
        "/checkpoints", callback=lambda: _page(checkpoints_page, **_chosen(storage), groups=_groups(storage, about))
    )
    pictures = PlotCache(storage)
    app.get("/plots", callback=lambda: _page(plots_page, **_chosen(storage), kinds=list(KINDS)))
    app.get("/logs", callback=lambda: _page(logs_page, **_chosen(storage), **_log(storage)))
    app.get("/logs/<study_id:int>", callback=lambda study_id: _to_log(storage, study_id))
    app.get("/plots/<kind:re:[a-z]+>.svg", callback=lambda kind: _picture(storage, pictures, kind))
    app.error(500)(_failed)
    check_routes(app, storage)
    return app


def _failed(error: bottle.HTTPError) -> str:
    """Return an error page; a database that is down is not a bug."""
    if isinstance(error.exception, StorageLost):
        bottle.response.status = 503
        return refusal_page(bottle.request.environ["SCRIPT_NAME"], str(error.exception))
    return refusal_page(bottle.request.environ["SCRIPT_NAME"], "Something went wrong; the server's stderr says what.")


def _page(render: Callable[..., str], **given: object) -> bytes:
    bottle.response.set_header("Content-Security-Policy", _POLICY)
    caller = bottle.request.environ[CALLER]
    user = caller.name if caller.has_session else None
    page: str = render(prefix=bottle.request.environ["SCRIPT_NAME"], user=user, **given)
    return page.encode("utf-8", "backslashreplace")  # names of metrics may contain lone surrogates


def _json(value: object) -> str:
    bottle.response.content_type = "application/json"
    return json.dumps(plain_json(value), allow_nan=False)


def _study(storage: Storage) -> StudyRow | None:
    """Return the study in the request; None for all studies.

    Raises:
        HTTPError: There is none of that name.
    """
    query: Any = bottle.request.query
    name = query.getunicode(_PARAMETER)
    if name is None and query.get(_PARAMETER):
        raise bottle.HTTPError(400, f"{_PARAMETER} must be the name of a study in UTF-8")
    try:
        return find_study(storage.engine, name) if name else None
    except UnknownStudy as error:
        raise bottle.HTTPError(404, str(error)) from None


def _chosen(storage: Storage) -> dict[str, Any]:
    """Return the data of a page's header: the studies, and the chosen one."""
    study = _study(storage)
    query = bottle.urlencode({_PARAMETER: study.name}) if study else ""
    return {
        "studies": [row.name for row in read_studies(storage.engine)],
        "study": study.name if study else None,
        "query": f"?{query}" if query else "",
    }


def _activity(storage: Storage) -> dict[str, Any]:
    """Return workers, their compile times and savings, and the latest failures."""
    study = _study(storage)
    study_id = study.study_id if study else None
    compiling = {(row["study_id"], row["worker"]): row for row in read_compiling(storage.engine, study_id)}
    nothing = {"trials": 0, "train_s": 0.0, "compile_s": 0.0, "compilations": 0, "saved_s": None}
    workers = []
    for row in read_workers(storage.engine, study_id):
        done: Mapping[str, object] = compiling.get((row["study_id"], row["worker"]), nothing)
        shown = {name: value for name, value in row.items() if name not in ("study_id", "trial_id")}
        workers.append({**shown, **{name: done[name] for name in nothing}, "state": _state(row)})
    saved = [row["saved_s"] for row in compiling.values() if row["saved_s"] is not None]
    return {
        "workers": workers,
        "failures": read_failures(storage.engine, study_id),
        "at_work": sum(row["state"] == "at work" for row in workers),
        "compile_s": sum(row["compile_s"] for row in compiling.values()),
        "saved_s": sum(saved) if saved else None,
    }


def _state(row: WorkerRow) -> str:
    """Return `at work` for a worker that holds a trial, `idle` between trials, `lost` or `ended`."""
    if row["ended_at_s"] is not None:
        return "ended"
    has_lease = row["lease_rest_s"] is not None and row["lease_rest_s"] > 0
    if has_lease:
        return "at work"
    return "idle" if row["unseen_s"] < LOST_S else "lost"


def _picture(storage: Storage, pictures: PlotCache, kind: str) -> bytes:
    study = _study(storage)
    if study is None or kind not in KINDS:
        raise bottle.HTTPError(404, f"use /plots/KIND.svg?study=NAME, where KIND is one of {', '.join(KINDS)}")
    bottle.response.content_type = "image/svg+xml"
    bottle.response.set_header("Content-Security-Policy", "default-src 'none';style-src 'unsafe-inline'")
    return pictures.svg(study, kind)


def _to_log(storage: Storage, study_id: int) -> None:
    """Redirect from the id of a study, which Optuna's pages have in their addresses, to the log of a trial."""
    names = [row.name for row in read_studies(storage.engine) if row.study_id == study_id]
    query: Any = bottle.request.query
    words = {**({_PARAMETER: names[0]} if names else {}), "trial": query.get("trial") or ""}
    bottle.redirect(f"{bottle.request.environ['SCRIPT_NAME']}/logs?{bottle.urlencode(words)}", 303)


def _log(storage: Storage) -> dict[str, Any]:
    """Return the trial in the request, and its last lines.

    Raises:
        HTTPError: There is none of that number.
    """
    query: Any = bottle.request.query
    study, number = _study(storage), query.get("trial") or ""
    if study is None or not number:
        return {"trial": None, "lines": "", "reloads": False}
    try:
        trial = read_trial(storage.engine, study, int(number) if number.isascii() and number.isdecimal() else -1)
    except UnknownStudy as error:
        raise bottle.HTTPError(404, str(error)) from None
    lines = [printable(line) for line in last_lines(storage.engine, trial.trial_id)]
    return {"trial": trial.number, "lines": "\n".join(lines), "reloads": trial.completed is None}


def _groups(storage: Storage, descriptions: Descriptions) -> list[dict[str, Any]]:
    """Return each study with its best checkpoints."""
    study = _study(storage)
    studies = [study] if study else read_studies(storage.engine)
    return [_group(storage, row, descriptions) for row in studies]


def _group(storage: Storage, study: StudyRow, descriptions: Descriptions) -> dict[str, Any]:
    objective = next(iter(study.record.get("objective", [])), "value")
    rows = []
    found = read_checkpoints(storage.engine, study.study_id)
    for row, (about, is_known) in zip(found, descriptions.read([row["checkpoint"] for row in found]), strict=True):
        if about is None and is_known:  # removed, because others became better
            continue
        curve = [float(metrics[objective]) for _, metrics in row["curve"] if objective in metrics]
        rows.append({**row, "about": about and asdict(about), "curve": curve})
    return {"study": study.name, "objective": objective, "rows": rows}
