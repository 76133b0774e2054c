"""Every route by who asks for it: nobody, a reader, an editor, and an editor's browser on another site's page.

A route that is not in the table fails the test, so whoever adds one says who may use it.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import optuna
import pytest
from dashboard_server import PASSWORD, make_users
from optuna.distributions import FloatDistribution
from storage_tools import opened

from tuner.dashboard.actions import ACTIONS
from tuner.dashboard.app import make_app, routes
from tuner.dashboard.users import Users
from tuner.storage.worker.claims import Claimant
from tuner.storage.worker.studies import join, register

ORIGIN, NOWHERE = "http://localhost", "00000000-0000-0000-0000-000000000000"
READ, MISSING = (200, 200), (404, 404)
"""What a reader and an editor get."""


def change(status: int) -> tuple[int, int]:
    return 403, status


S, T = "/api/studies/<study_id:int>", "/actions/<study_id:int>/trials/<number:int>"
A, ARTIFACT = "/actions/<study_id:int>", "<artifact_id:re:[0-9a-fA-F-]+>"
PAGES_BY_ID = "study|trial|curves|workers|checkpoints|plots|logs"
TABLE: dict[tuple[str, str], tuple[int, int]] = {
    ("GET", "/"): (302, 302),
    ("GET", "/studies"): READ,
    ("GET", "/study"): READ,
    ("GET", "/trial"): READ,
    ("GET", "/curves"): READ,
    ("GET", "/curves.json"): READ,
    ("GET", "/workers"): READ,
    ("GET", "/workers.json"): READ,
    ("GET", "/checkpoints"): READ,
    ("GET", "/plots"): READ,
    ("GET", "/plots/<kind:re:[a-z]+>.svg"): READ,
    ("GET", "/logs"): READ,
    ("GET", "/pictures/<study_id:int>/<number:int>/<name>"): MISSING,
    ("GET", f"/of/<study_id:int>/<page:re:{PAGES_BY_ID}>"): (303, 303),
    ("GET", "/assets/<name>"): READ,
    ("POST", f"{A}/stop"): change(200),
    ("POST", f"{A}/resume"): change(200),
    ("POST", f"{A}/trials"): change(200),
    ("POST", f"{A}/enqueue"): change(200),
    ("POST", f"{A}/note"): change(200),
    ("POST", f"{T}/end"): change(200),
    ("POST", f"{T}/retry"): change(200),
    ("POST", f"{T}/note"): change(200),
    # Optuna's
    ("GET", "/dashboard<:re:(/.*)?>"): READ,
    ("GET", "/api/meta"): READ,
    ("GET", "/api/studies"): READ,
    ("POST", "/api/studies"): change(201),
    ("POST", f"{S}/rename"): change(201),
    ("DELETE", S): change(204),
    ("GET", S): READ,
    ("GET", f"{S}/param_importances"): READ,
    ("GET", f"{S}/plot/<plot_type>"): MISSING,
    ("PUT", f"{S}/note"): change(204),
    ("POST", f"{S}/preference"): change(400),
    ("PUT", f"{S}/preference_feedback_component"): change(400),
    ("DELETE", f"{S}/preference/<history_id>"): change(404),
    ("POST", f"{S}/preference/<history_id>"): change(404),
    ("POST", "/api/trials/<trial_id:int>/tell"): change(204),
    ("POST", "/api/trials/<trial_id:int>/user-attrs"): change(204),
    ("POST", f"{S}/<trial_id:int>/skip"): change(400),
    ("PUT", f"{S}/<trial_id:int>/note"): change(204),
    ("GET", "/csv/<study_id:int>"): READ,
    ("GET", "/favicon.ico"): READ,
    ("GET", "/static/<filename:path>"): READ,
    ("GET", "/incompatible-rdb-schema"): (302, 302),
    ("POST", "/incompatible-rdb-schema"): change(302),
    ("GET", f"/artifacts/<study_id:int>/{ARTIFACT}"): (400, 400),
    ("GET", f"/artifacts/<study_id:int>/<trial_id:int>/{ARTIFACT}"): (400, 400),
    ("POST", "/api/artifacts/<study_id:int>/<trial_id:int>"): change(400),
    ("POST", "/api/artifacts/<study_id:int>"): change(400),
    ("DELETE", f"/api/artifacts/<study_id:int>/<trial_id:int>/{ARTIFACT}"): change(400),
    ("DELETE", f"/api/artifacts/<study_id:int>/{ARTIFACT}"): change(400),
    ("POST", "/api/llm/trial_filter_query"): change(400),
    ("POST", "/api/llm/generate_plotly_graph_query"): change(400),
    ("POST", "/api/llm/re_generate_plotly_graph_query"): change(400),
}
"""What a reader and an editor get from each route. Nobody gets 401; another site's page gets 403 for a change."""
PUBLIC = {("GET", "/favicon.ico"), ("GET", "/assets/<name>")}
"""Without a login: what the page of the login needs."""
BODY = {
    "study_name": "new", "directions": ["minimize"], "version": 1, "body": "x", "state": "Fail", "user_attrs": {"a": 1},
}  # fmt: skip
FORM_KIND = "application/x-www-form-urlencoded"
FORM = {"trials": "9", "version": "0", "text": "x", "hparam:x": "0.5"}


@dataclass
class Dashboard:
    """The dashboard with a login, called as the server calls it."""

    app: Any
    storage: Any
    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    cookies: dict[str, str] = field(default_factory=dict[str, str])
    made: int = 0

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = "application/json", **headers: str) -> Any:
        """Send a request; return status, headers and text."""
        path, _, query = path.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": kind,
            "HTTP_HOST": "localhost",
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_NAME": "tuner",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
        }
        told: list[Any] = []
        answer = self.app(environ, lambda status, headers, *_: told.append((status, headers)))
        text = b"".join(answer)
        getattr(answer, "close", lambda: None)()
        status, given = told[-1]
        return int(status[:3]), {name.lower(): value for name, value in given}, text.decode("utf-8", "replace")

    def cookie(self, name: str) -> str:
        """Log in once, and return the cookie."""
        if name not in self.cookies:
            form = urlencode({"name": name, "password": PASSWORD}).encode()
            status, headers, _ = self.ask("POST", "/login", form, FORM_KIND, origin=ORIGIN)
            assert status == 303
            self.cookies[name] = headers["set-cookie"].partition(";")[0]
        return self.cookies[name]

    def study(self) -> dict[str, object]:
        """Make a study with a failed trial, 0, a complete one, and one that runs; return the parts of addresses."""
        self.made += 1
        name, engine = f"study {self.made}", self.storage.engine
        study_id = register(self.storage, engine, name, ["minimize"], {"objective": ["loss"]}).study_id
        claimant = Claimant(study_id, name, trials=5, lease_s=300.0)
        join(engine, claimant, {"host": "here", "pid": 1, "devices": "cpu"})
        study = optuna.load_study(study_name=name, storage=self.storage)
        failed, complete, running = (study.ask({"x": FloatDistribution(0.0, 1.0)}) for _ in range(3))
        study.tell(failed, state=optuna.trial.TrialState.FAIL)
        study.tell(complete, 0.5)
        names = {"filename": "bundle.js.LICENSE.txt", "name": "page.css", "plot_type": "edf", "kind": "history"}
        ids = {"study_id": study_id, "trial_id": running._trial_id, "artifact_id": NOWHERE, "history_id": NOWHERE}
        return {**names, **ids, "number": 0, "page": "study", "study": name, "": ""}

    def address(self, method: str, rule: str, values: dict[str, object]) -> str:
        values = {**values, "number": 2} if rule.endswith("/end") else values
        path = re.sub(r"<([^:>]*)[^>]*>", lambda part: str(values[part[1]]), rule)
        named = method == "GET" and "study_id" not in rule
        return path + (f"?{urlencode({'study': values['study'], 'trial': 0})}" if named else "")

    def send(self, key: tuple[str, str], values: dict[str, object], **headers: str) -> int:
        """Send a request to a route about a study, with a body that fits it; return the status."""
        method, rule = key
        path = self.address(method, rule, values)
        if method == "GET":
            return self.ask(method, path, b"", "", **headers)[0]
        if rule.startswith("/actions/"):
            return self.ask(method, path, urlencode(FORM).encode(), FORM_KIND, **headers)[0]
        return self.ask(method, path, json.dumps({**BODY, "study_name": f"new {self.made}"}).encode(), **headers)[0]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    folder: Path = tmp_path_factory.mktemp("routes")
    users = Users(make_users(folder / "users"))
    audit, handler = logging.Logger("audit"), logging.Handler()
    with opened(f"sqlite:///{folder / 'study.db'}") as storage:
        app = make_app(storage, users, prefix="", is_behind_proxy=False, audit=audit)
        made = Dashboard(app, storage)
        handler.emit = lambda record: made.lines.append(json.loads(record.getMessage()))
        audit.addHandler(handler)
        yield made


def test_the_table_has_every_route(dashboard: Dashboard) -> None:
    found = {(route.method, route.rule) for route in routes(dashboard.storage).routes}
    assert found == TABLE.keys(), "say in the table who may use a new route"
    assert {rule for method, rule in TABLE if method != "GET" and rule.startswith("/actions")} == ACTIONS.keys()


@pytest.mark.parametrize("key", TABLE, ids=" ".join)
def test_each_route_for_each_sender(dashboard: Dashboard, key: tuple[str, str]) -> None:
    reader, editor = TABLE[key]
    is_change = key[0] != "GET"
    values = dashboard.study()
    assert dashboard.send(key, values, authorization="Bearer ci") == reader
    assert dashboard.send(key, values) == (200 if key in PUBLIC else 401)
    assert dashboard.send(key, values, authorization="Bearer nobody") == (200 if key in PUBLIC else 401)
    # A browser with an editor's session, on the page of another site, or without saying on which.
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec_fetch_site": "cross-site"}, {}):
        status = dashboard.send(key, values, cookie=dashboard.cookie("ann"), **headers)
        assert status == (403 if is_change else editor), headers
    assert dashboard.send(key, values, authorization="Bearer cd") == editor
    values = dashboard.study() if is_change else values
    assert dashboard.send(key, values, cookie=dashboard.cookie("ann"), origin=ORIGIN) == editor


@pytest.mark.parametrize("rule", sorted(ACTIONS))
def test_a_refused_action_changes_nothing_and_is_in_the_audit_log(dashboard: Dashboard, rule: str) -> None:
    values = dashboard.study()
    path, body = dashboard.address("POST", rule, values), urlencode(FORM).encode()
    study_id: Any = values["study_id"]

    def content() -> Any:
        trials = dashboard.storage.get_all_trials(study_id)
        return trials, dashboard.storage.get_study_system_attrs(study_id)

    before = content()
    for headers, user in (
        ({}, None),
        ({"authorization": "Bearer ci"}, "ci"),
        ({"cookie": dashboard.cookie("rob"), "origin": ORIGIN}, "rob"),
        ({"cookie": dashboard.cookie("ann"), "origin": "https://evil.example"}, "ann"),
    ):
        status, _, _ = dashboard.ask("POST", path, body, FORM_KIND, **headers)
        assert status == (401 if user is None else 403)
        line = dashboard.lines[-1]
        assert (line["event"], line["user"], line["path"], line["status"]) == ("refused", user, path, status)
    assert content() == before
    status, _, _ = dashboard.ask("POST", path, body, FORM_KIND, authorization="Bearer cd")
    assert status == 200
    line = dashboard.lines[-1]
    assert (line["event"], line["user"], line["path"], line["status"]) == ("change", "cd", path, 200)


def test_an_action_on_an_unknown_study_is_refused_in_json_except_to_a_page(dashboard: Dashboard) -> None:
    status, headers, text = dashboard.ask("POST", "/actions/999999/stop", b"", FORM_KIND, authorization="Bearer cd")
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert json.loads(text) == {"reason": "study_id=999999 is not found"}
    page = dashboard.ask("POST", "/actions/999999/stop", b"", FORM_KIND, authorization="Bearer cd", accept="text/html")
    assert page[0] == 404
    assert "study_id=999999 is not found" in page[2]
    assert page[2].lstrip().startswith("<")


def test_only_an_editor_sees_buttons(dashboard: Dashboard) -> None:
    study = dashboard.study()["study"]
    query = urlencode({"study": study, "trial": 0})
    for path, button in ((f"/study?{query}", 'id="stop"'), (f"/trial?{query}", 'id="retry"')):
        editor = dashboard.ask("GET", path, authorization="Bearer cd")[2]
        reader = dashboard.ask("GET", path, authorization="Bearer ci")[2]
        assert button in editor
        assert "/actions/" in editor
        assert "/actions/" not in reader
        assert 'method="post"' not in reader
