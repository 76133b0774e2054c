"""The dashboard as one WSGI application: Optuna's dashboard and our pages, all behind the login."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bottle
import optuna_dashboard

from tuner.dashboard import pages
from tuner.dashboard.actions import DONE, add_actions
from tuner.dashboard.answers import (
    POLICY,
    asked_study,
    choice,
    chosen_study,
    in_query,
    send_json,
    send_page,
    study_of_id,
    trial_number,
    viewer,
)
from tuner.dashboard.api_checks import check_routes
from tuner.dashboard.curves import MOST_TRIALS, parse_numbers, parse_selection, read_curves_json
from tuner.dashboard.curves_page import CURVES
from tuner.dashboard.descriptions import Descriptions
from tuner.dashboard.layout import study_query
from tuner.dashboard.login import WSGI, Login
from tuner.dashboard.optuna_page import OptunaPage
from tuner.dashboard.pictures import send_picture
from tuner.dashboard.plot_cache import PlotCache
from tuner.dashboard.savings import SavingsCache
from tuner.dashboard.start_page import START, Choice, read_overviews
from tuner.dashboard.study_detail import StudyDetail
from tuner.dashboard.study_page import STUDY, read_study_page
from tuner.dashboard.trial_page import TRIAL, read_trial_page
from tuner.dashboard.trials_csv import send_csv
from tuner.dashboard.users import Users
from tuner.errors import StorageLost, UnknownStudy, UsageError
from tuner.output.sanitize import printable
from tuner.results.plots import KINDS
from tuner.results.trial_log import last_lines
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.activity import WorkerRow, read_checkpoints, read_compiling, read_failures, read_workers
from tuner.storage.read.queries import StudyRow, TrialRow, read_studies, read_trial

ASSETS = Path(__file__).parent / "assets"
LOST_S = 60.0
"""Seconds without a sign of life after which a worker counts as lost: twice the length of its lease."""
_BY_ID = ("study", "trial", "curves", "workers", "checkpoints", "plots", "logs")
"""Our pages about one study, which Optuna's pages link to by the study's id."""


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
        if (route.method, route.rule) == ("GET", "/"):
            route.callback = lambda: bottle.redirect("/studies", 302)
    about, pictures, savings = Descriptions(), PlotCache(storage), SavingsCache(storage.engine)
    ours = {
        "/assets/<name>": lambda name: bottle.static_file(name, root=str(ASSETS)),
        "/studies": lambda: _studies_page(storage),
        "/study": lambda: _study_page(storage, savings),
        "/trial": lambda: _trial_page(storage),
        "/curves": lambda: _curves_page(storage),
        "/curves.json": lambda: _curves_json(storage),
        "/workers": lambda: send_page(pages.WORKERS, "Workers", **choice(storage), **_activity(storage)),
        "/workers.json": lambda: send_json(_activity(storage)),
        "/checkpoints": lambda: send_page(
            pages.CHECKPOINTS, "Checkpoints", **choice(storage), groups=_groups(storage, about)
        ),
        "/plots": lambda: send_page(pages.PLOTS, "Plots", **choice(storage), kinds=list(KINDS)),
        "/plots/<kind:re:[a-z]+>.svg": lambda kind: _plot(storage, pictures, kind),
        "/logs": lambda: send_page(pages.LOGS, "Logs", **choice(storage), **_log(storage)),
        "/pictures/<study_id:int>/<number:int>/<name>": lambda study_id, number, name: _picture(
            storage, study_id, number, name
        ),
        f"/of/<study_id:int>/<page:re:{'|'.join(_BY_ID)}>": lambda study_id, page: _by_id(storage, study_id, page),
    }
    for rule, callback in ours.items():
        app.get(rule, callback=callback)
    add_actions(app, storage)
    app.error(500)(_failed)
    for status in (400, 404):
        app.error(status)(_refused)
    check_routes(app, storage)
    return app


def _failed(error: bottle.HTTPError) -> str:
    """Return an error page; a database that is down is not a bug."""
    if isinstance(error.exception, StorageLost):
        bottle.response.status = 503
        return pages.refusal_page(bottle.request.environ["SCRIPT_NAME"], str(error.exception))
    prefix = bottle.request.environ["SCRIPT_NAME"]
    return pages.refusal_page(prefix, "Something went wrong; the server's stderr says what.")


def _refused(error: bottle.HTTPError) -> str:
    bottle.response.set_header("Content-Security-Policy", POLICY)
    reason = printable(str(error.body)).encode("utf-8", "backslashreplace").decode()
    return pages.refusal_page(bottle.request.environ["SCRIPT_NAME"], reason[:2000])


def _done() -> str | None:
    """Return what a page says about the action after which it is shown."""
    return DONE.get(in_query("done") or "")


def _asked_trial(storage: Storage, study: StudyRow, number: int) -> TrialRow:
    """Return a trial.

    Raises:
        HTTPError: There is none of that number.
    """
    try:
        return read_trial(storage.engine, study, number)
    except UnknownStudy as error:
        raise bottle.HTTPError(404, str(error)) from None


def _studies_page(storage: Storage) -> bytes:
    """Send the list of studies: all, or with `?owner=` and `?label=` those of an owner or with a label."""
    chosen = Choice(in_query("owner"), in_query("label"))
    return send_page(START, "Studies", chosen=chosen, studies=read_overviews(storage.engine, chosen))


def _study_page(storage: Storage, savings: SavingsCache) -> bytes:
    study = asked_study(storage)
    like = in_query("like")
    given: Mapping[str, object] = {}
    if like is not None:
        number = int(like) if like.isascii() and like.isdecimal() and len(like) < 10 else -1
        given = _asked_trial(storage, study, number).hparams
    try:
        data = read_study_page(storage, study, savings, given)
    except UnknownStudy as error:
        raise bottle.HTTPError(404, str(error)) from None
    return send_page(STUDY, study.name, query=study_query(study.name), done=_done(), **data)


def _trial_page(storage: Storage) -> bytes:
    study, number = asked_study(storage), trial_number()
    if number is None:
        raise bottle.HTTPError(404, "the address must name a trial: add &trial=NUMBER")
    _asked_trial(storage, study, number)
    data = read_trial_page(storage, study, number, viewer().prefix)
    return send_page(TRIAL, f"Trial {number}", query=study_query(study.name), done=_done(), **data)


def _curves_page(storage: Storage) -> bytes:
    words = {name: in_query(name) for name in ("trials", "show", "count")}
    try:
        asked = parse_selection(words)
    except UsageError as error:
        raise bottle.HTTPError(400, str(error)) from None
    chosen = choice(storage)
    given = {name: text for name, text in words.items() if text is not None}
    source = f"{viewer().prefix}/curves.json{study_query(chosen['study'] or '', **given)}"
    fields = {"show": asked.show, "count": asked.count, "numbers": words["trials"] or "", "most": MOST_TRIALS}
    return send_page(CURVES, "Curves", source=source, **fields, **chosen)


def _curves_json(storage: Storage) -> str:
    study = asked_study(storage)
    known = in_query("known")
    try:
        asked = parse_selection({name: in_query(name) for name in ("trials", "show", "count")})
        numbers = [] if known is None else parse_numbers(known)
    except UsageError as error:
        bottle.response.status = 400
        return send_json({"reason": str(error)})
    return send_json(read_curves_json(storage.engine, study, asked, frozenset(numbers)))


def _activity(storage: Storage) -> dict[str, Any]:
    """Return workers, their compile times and savings, and the latest failures."""
    study = chosen_study(storage)
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


def _plot(storage: Storage, plots: PlotCache, kind: str) -> bytes:
    study = chosen_study(storage)
    if study is None or kind not in KINDS:
        raise bottle.HTTPError(404, f"use /plots/KIND.svg?study=NAME, where KIND is one of {', '.join(KINDS)}")
    bottle.response.content_type = "image/svg+xml"
    bottle.response.set_header("Content-Security-Policy", "default-src 'none';style-src 'unsafe-inline'")
    return plots.svg(study, kind)


def _picture(storage: Storage, study_id: int, number: int, name: str) -> bottle.HTTPResponse:
    study = study_of_id(storage, study_id)
    return send_picture(storage.engine, study, _asked_trial(storage, study, number), name)


def _by_id(storage: Storage, study_id: int, page: str) -> None:
    """Redirect from the id of a study, which Optuna's pages have in their addresses, to one of our pages about it."""
    number = trial_number()
    more = {} if number is None else {"trial": number}
    bottle.redirect(f"/{page}{study_query(study_of_id(storage, study_id).name, **more)}", 303)


def _log(storage: Storage) -> dict[str, Any]:
    """Return the trial in the request, and its last lines.

    Raises:
        HTTPError: There is none of that number.
    """
    study, number = chosen_study(storage), trial_number()
    if study is None or number is None:
        return {"trial": None, "lines": ""}
    trial = _asked_trial(storage, study, number)
    lines = [printable(line) for line in last_lines(storage.engine, trial.trial_id)]
    return {"trial": trial.number, "lines": "\n".join(lines)}


def _groups(storage: Storage, descriptions: Descriptions) -> list[dict[str, Any]]:
    """Return each study with its best checkpoints."""
    study = chosen_study(storage)
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
