"""Requests that no front-end sends, to every route of the dashboard: a clear line, never a traceback or a 5xx."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes
from xml.etree import ElementTree

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from storage_tools import new_database

from tuner.dashboard.actions import ACTIONS
from tuner.dashboard.api_checks import FIELDS, WITHOUT_BODY
from tuner.dashboard.app import make_app
from tuner.output.cells import plain_cell
from tuner.results.plots import KINDS
from tuner.storage import open_storage

# bottle leaves a file open of which an impossible range is asked.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

MATH = "$\\frac{"
IDS = ["0", "-1", "7777", "2147483647", "2147483648", "999999999", str(2**63), "9" * 5000, "%EF%BC%91", "1e3", "0x1"]
TEXTS = [
    *("%00", "a%00b", "%FF%FE", "%ED%A0%80", "%E2%82%AC", "%0D%0ASet-Cookie:x", "..%2F..%2Fetc%2Fpasswd", "../../x"),
    *("%3Cscript%3E", "%7B%7B1%7D%7D", "%25s%25n", "'", "x" * 5000, "%F0%9F%98%80", ";", "%"),
]
DEEP = "[" * 100_000
JSONS = [
    *("null", "true", "-1", "0", "1.5", "1e999", "NaN", "-Infinity", "2147483648", "9" * 400, "9" * 5000, '""', '"x"'),
    *('"a\\u0000b"', '"\\ud800"', '"=1+1"', '"a\\r\\nb"', '"€"', json.dumps("x" * 600), "[]", "[1]", "[null]", '["x"]'),
    *("[[]]", "[-1]", "[99]", "[1e400]", "{}", '{"x": 1}', '{"": 1}', '{"a\\u0000": 1}', '{"\\ud800": 1}'),
    *('{"a": "\\ud800"}', json.dumps({"x" * 600: 1})),
    *(DEEP, DEEP[:900] + "]" * 900, '{"a": ' * 70 + "1" + "}" * 70),
]
QUERY = ("study", "after", "trial_ids", "next", "trial", "trials", "known", "show", "like", "done")
READ_BY = {
    "/studies": ("owner", "label"),
    "/checkpoints": ("study",),
    "/plots/<kind:re:[a-z]+>.svg": ("study",),
    "/api/studies/<study_id:int>/plot/<plot_type>": ("after",),
}
"""What routes read in a query that take long to answer; all others are asked with each name."""
MAINLY_POSTGRES = [pytest.param("sqlite", marks=pytest.mark.long), "postgres"]
"""Postgres refuses texts and numbers that SQLite stores."""
RAW_BODIES = [b"", b"null", b"[]", b"[1]", b'"x"', b"{", b"\xff\xfe", b"\0", DEEP.encode(), b"a=b&c=d", b"1" * 5000]
KINDS_OF_BODY = [
    *("application/json", "APPLICATION/JSON; charset=x", "text/plain", "", "multipart/form-data", "\xff"),
    *("multipart/form-data; boundary=" + "x" * 300, "application/x-www-form-urlencoded"),
    "application/json; charset=utf-16",
]
HEADERS = {
    "HTTP_ACCEPT": ["text/html", "\xff", ";;;", "x" * 5000],
    "HTTP_ACCEPT_ENCODING": ["gzip", "\xff", ""],
    "HTTP_RANGE": ["bytes=" + "9" * 5000 + "-", "bytes=5-1", "bytes=-", "x", "bytes=0-0,5-6"],
    "HTTP_IF_MODIFIED_SINCE": ["Mon, 99 Xxx 99999 99:99:99 GMT", "\xff", "9" * 5000],
    "HTTP_IF_NONE_MATCH": ["*", "\xff"],
    "HTTP_COOKIE": ["tuner_session=\xff", "=;=", "a" * 5000, "tuner_session"],
    "HTTP_AUTHORIZATION": ["Bearer", "Bearer \xff", "Basic %%%"],
    "HTTP_ORIGIN": ["http://[", "\xff", "null"],
    "HTTP_SEC_FETCH_SITE": ["", "\xff"],
    "HTTP_HOST": ["", "[", "localhost:x", "\xff", "localhost:99999999"],
}
STUDIES = ["plain", "=1+1", "a\r\nSet-Cookie: x=1", "€ & ü", "q\"uo'te;", MATH, "../../etc", "x" * 512, "<script>", " "]
NAMES = ["=x", "a\nb", "$x_{", "<b>", "€", "x y", "-1", "@"]


@dataclass
class Told:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Asked:
    """The dashboard, called as the server calls it."""

    app: Any
    storage: Any
    records: list[logging.LogRecord]

    def ask(self, method: str, path: str, body: bytes = b"", **environ: str) -> Told:
        """Send a request; nothing may fail, and nothing of its answer may be more than one answer."""
        path, _, query = path.partition("?")
        given = {
            "REQUEST_METHOD": method,
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/json",
            "HTTP_HOST": "localhost",
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_NAME": "tuner",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            **environ,
        }
        self.records.clear()
        told: list[Any] = []
        answer = self.app(given, lambda status, headers, *_: told.append((status, headers)))
        text = b"".join(answer)
        getattr(answer, "close", lambda: None)()
        status, headers = told[-1]
        what = (method, path[:100], query[:100], body[:100], environ, status, text[:300])
        assert int(status[:3]) < 500, what
        assert given["wsgi.errors"].getvalue() == "", what
        assert [record.getMessage() for record in self.records if record.levelno >= logging.ERROR] == [], what
        for name, value in headers:
            assert not re.search("[\r\n\0]", name + value), what
            assert (name + value).encode("latin-1"), what
        kept = {name.lower(): value for name, value in headers}
        if status[0] == "4" and kept["content-type"] == "application/json":
            (reason,) = json.loads(text).values() if len(json.loads(text)) == 1 else [json.loads(text)["reason"]]
            assert reason, what
            assert len(reason.splitlines()) == 1, what
            assert len(reason) < 400, what
        return Told(int(status[:3]), kept, text)

    def study(self, name: str) -> int:
        return self.storage.get_study_id_from_name(name)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """The dashboard over a database with studies of hostile names."""
    url = f"sqlite:///{tmp_path_factory.mktemp('hostile') / 'study.db'}"
    if request.param == "postgres":
        url = new_database(request.getfixturevalue("postgres_server")).replace("+psycopg2", "")
    storage = open_storage(url)
    names = [*STUDIES, "a\0b"] if request.param == "sqlite" else STUDIES  # Postgres stores no NUL
    for name in names:
        _fill(optuna.create_study(study_name=name, storage=storage, directions=["minimize"]))
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record)
    logging.getLogger().addHandler(handler)
    app = make_app(storage, None, prefix="", is_behind_proxy=False, audit=logging.Logger("audit"))
    yield Asked(app, storage, records)
    logging.getLogger().removeHandler(handler)
    storage.close()


def _fill(study: optuna.Study) -> None:
    domains: dict[str, Any] = {name: FloatDistribution(-1.0, 1.0) for name in NAMES}
    domains["choice"] = CategoricalDistribution(["=cmd", "-0.5", "a\r\nb", None])
    attributes = {"=key": "=1+1", "k": "\ud800", "list": ["=1", {"a": 1}], "new\nline": "a\rb", "number": -0.5}
    for place, choice in enumerate(domains["choice"].choices):
        chosen = {**{name: -0.5 + place / 10 for name in NAMES}, "choice": choice}
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=-1.5 + place,
                params=chosen,
                distributions=domains,
                user_attrs=attributes,
                intermediate_values={1: 0.5, 2: float("nan")},
            )
        )
    study.ask()


def routes(asked: Asked) -> list[tuple[str, str]]:
    app = asked.app.app.app.app
    return [(route.method, route.rule) for route in app.routes]


def paths(rule: str, study: str, trial: str, text: str) -> str:
    """Return a route's address with values for its parts."""
    values = {"study_id": study, "trial_id": trial, "number": trial, "artifact_id": "00-00", "": "/" + text}
    return re.sub(r"<([^:>]*)[^>]*>", lambda part: values.get(part[1], text), rule)


def test_every_route_that_changes_something_has_its_checks(asked: Asked) -> None:
    changing = {key for key in routes(asked) if key[0] != "GET"}
    ours = {("POST", rule) for rule in ACTIONS}
    assert changing == FIELDS.keys() | WITHOUT_BODY | ours, (
        "what a new version of optuna-dashboard adds needs its checks"
    )


def test_ids_of_all_kinds(asked: Asked) -> None:
    there = str(asked.study("plain"))
    trial = str(asked.storage.get_all_trials(int(there))[0]._trial_id)
    answers = {
        (method, paths(rule, study, number, "edf"))
        for method, rule in routes(asked)
        if "_id:int" in rule
        for one in IDS
        for study, number in ((one, one), (there, one), (one, trial))
    }
    # Wide digits are digits, here those of the first study.
    kept = {("DELETE", f"/api/studies/{there}"), ("DELETE", "/api/studies/%EF%BC%91")}
    for method, path in sorted(answers - kept):
        told = asked.ask(method, path, b"{}")
        if there not in path.split("/") and "%EF%BC%91" not in path:
            assert told.status in (400, 404, 405), (method, path, told)
    huge = asked.ask("GET", f"/api/studies/{2**70}")
    assert (huge.status, json.loads(huge.body)) == (404, {"reason": f"study_id={str(2**70)[:20]} is not found"})


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.slow
@pytest.mark.parametrize("asked", MAINLY_POSTGRES, indirect=True)
def test_text_of_all_kinds_in_addresses(asked: Asked, text: str) -> None:
    there = str(asked.study("plain"))
    assert {("GET", rule) for rule in READ_BY} <= set(routes(asked))
    for method, rule in routes(asked):
        if method == "GET" or "history" in rule:
            asked.ask(method, paths(rule, there, "1", text), b"{}")
            asked.ask(method, f"{paths(rule, there, '1', 'edf')}/{text}", b"{}")
        if method == "GET":
            for name in READ_BY.get(rule, QUERY):
                asked.ask(method, f"{paths(rule, there, '1', 'edf')}?{name}={text}")
    for method in ("BREW", "TRACE", "PATCH", "\xff", ""):
        asked.ask(method, f"/{text}")


@pytest.mark.parametrize("after", [*IDS, "-1", "", "1,2", "%00", "1_0"])
def test_numbers_of_all_kinds_in_queries(asked: Asked, after: str) -> None:
    there = asked.study("plain")
    for query in (f"after={after}", f"after={after}&x=1", f"trial_ids={after}", f"trial_ids=1,{after}"):
        asked.ask("GET", f"/api/studies/{there}?{query}")
        asked.ask("GET", f"/csv/{there}?{query}")


@pytest.mark.parametrize("key", sorted(FIELDS), ids=" ".join)
def test_bodies_of_all_kinds(asked: Asked, key: tuple[str, str]) -> None:
    method, rule = key
    fields = {
        "study_name": "x",
        "directions": ["minimize"],
        "version": 99,
        "body": "x",
        "mode": "ChooseWorst",
        "clicked": 0,
        "candidates": [0, 1],
        "output_type": "note",
        "state": "Fail",
        "values": [1.0],
        "user_attrs": {"a": 1},
    }
    good = {name: fields[name] for name in FIELDS[key] if name in fields}
    if method == "DELETE":
        good["remove_associated_artifacts"] = True
    study = trial = None
    for number, text in enumerate(JSONS):
        for name in FIELDS[key]:
            if study is None or trial is None:
                study = optuna.create_study(storage=asked.storage, study_name=f"{rule}-{name}-{number}")
                study.ask()
                trial = study.ask()
            others = {**good, "study_name": f"new {number}"} if "study_name" in good else good
            rest = json.dumps({other: value for other, value in others.items() if other != name})[1:-1]
            body = f'{{{rest}{", " * bool(rest)}"{name}": {text}}}'.encode()
            told = asked.ask(method, paths(rule, str(study._study_id), str(trial._trial_id), ""), body)
            if told.status < 300:
                asked.ask("GET", f"/api/studies/{study._study_id}")
                asked.ask("GET", f"/csv/{study._study_id}")
                study = trial = None
    if method != "DELETE":
        study = optuna.create_study(storage=asked.storage, study_name=f"raw {rule}")
        path = paths(rule, str(study._study_id), str(study.ask()._trial_id), "")
        for raw in RAW_BODIES:
            for kind in KINDS_OF_BODY:
                assert asked.ask(method, path, raw, CONTENT_TYPE=kind).status in range(400, 410)
    listed = json.loads(asked.ask("GET", "/api/studies").body)
    assert all(0 < len(study["study_name"]) <= 512 for study in listed["study_summaries"])


FORMS = [
    *(b"text=%00", b"text=%ff&version=0", b"text=\xff&version=0", b"text=x&version=" + b"9" * 5000, b"version=0&text="),
    *(b"trials=0", b"trials=-1", b"trials=1e3", b"trials=" + b"9" * 5000, b"trials=%EF%BC%91", b"trials=4294967296"),
    *(b"hparam:a=1", b"hparam:%3Cb%3E=nan", b"hparam:-1=x", b"hparam:=1", b"hparam:choice=None", b"hparam:-1=0.5"),
    *(
        b"&".join(b"a=%d" % at for at in range(5000)),
        b"a" * (2 << 20),
        b"=",
        b"&&&",
        b"%",
        b"text=%F0%9F%98%80&version=0",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted(ACTIONS))
@pytest.mark.parametrize("asked", MAINLY_POSTGRES, indirect=True)
def test_forms_of_all_kinds(asked: Asked, rule: str) -> None:
    study = optuna.create_study(storage=asked.storage, study_name=f"forms of {rule}")
    _fill(study)
    path = paths(rule, str(study._study_id), "0", "")
    for form in [*FORMS, *RAW_BODIES]:
        answers = [
            asked.ask("POST", path, form, CONTENT_TYPE="application/x-www-form-urlencoded", HTTP_ACCEPT=accept)
            for accept in ("text/html", "application/json")
        ]
        if min(told.status for told in answers) < 400:
            asked.ask("GET", f"/study?study={quote(study.study_name)}")
    for kind in KINDS_OF_BODY:
        if not kind.startswith("application/x-www"):
            told = asked.ask("POST", path, b"text=x&version=0&trials=3", CONTENT_TYPE=kind)
            assert (told.status, b"the body must be a form" in told.body) == (400, True)
    assert asked.ask("GET", f"/study?study={quote(study.study_name)}").status == 200


def test_values_that_are_nested_too_deeply_are_refused(asked: Asked) -> None:
    study = optuna.create_study(storage=asked.storage, study_name="deep")
    path = f"/api/trials/{study.ask()._trial_id}/user-attrs"
    for depth, status in ((60, 204), (64, 400), (900, 400), (50_000, 400)):
        body = '{"user_attrs": {"a": ' + "[" * depth + "]" * depth + "}}"
        told = asked.ask("POST", path, body.encode())
        assert told.status == status, depth
        assert status == 204 or "the body must not be nested deeper than 64" in told.body.decode()


def test_what_has_ended_is_not_changed(asked: Asked) -> None:
    trial = asked.storage.get_all_trials(asked.study("plain"))[0]
    told = [
        asked.ask("POST", f"/api/trials/{trial._trial_id}/tell", b'{"state": "Fail"}'),
        asked.ask("POST", f"/api/trials/{trial._trial_id}/user-attrs", b'{"user_attrs": {"a": 1}}'),
    ]
    assert [answer.status for answer in told] == [409, 409]
    assert "has ended" in json.loads(told[0].body)["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["sqlite"], indirect=True)  # the database has no part in it
@pytest.mark.parametrize("name", sorted(HEADERS))
def test_headers_of_all_kinds(asked: Asked, name: str) -> None:
    there = str(asked.study("plain"))
    for value in HEADERS[name]:
        for method, rule in routes(asked):
            if method == "GET" and "svg" not in rule:
                path = paths(rule, there, "1", "bundle.js")
                asked.ask(method, f"{path}?owner=nobody" if rule == "/studies" else path, b"", **{name: value})


@pytest.mark.parametrize("asked", ["sqlite"], indirect=True)  # the database has no part in it
@pytest.mark.slow
def test_bodies_where_none_belongs(asked: Asked) -> None:
    there = asked.study("plain")
    for kind in KINDS_OF_BODY:
        for raw in RAW_BODIES:
            for path in (f"/api/studies/{there}", "/workers.json", f"/csv/{there}"):
                asked.ask("GET", path, raw, CONTENT_TYPE=kind)


def names(asked: Asked) -> list[str]:
    return [study.study_name for study in asked.storage.get_all_studies() if study.study_name in (*STUDIES, "a\0b")]


@pytest.mark.slow
@pytest.mark.parametrize("asked", MAINLY_POSTGRES, indirect=True)
def test_studies_of_all_names_are_shown(asked: Asked) -> None:
    for name in names(asked):
        query = "study=" + quote(name, safe="")
        detail = json.loads(asked.ask("GET", f"/api/studies/{asked.study(name)}").body)
        assert (detail["name"], len(detail["trials"])) == (name, 5)
        asked.storage.set_study_system_attr(asked.study(name), "dashboard:note_ver", 1)
        asked.storage.set_study_system_attr(asked.study(name), "dashboard:note_str:0", "<script>alert(1)</script>")
        pages = ("/workers", "/workers.json", "/checkpoints", "/plots", "/logs", "/study", "/curves", "/curves.json")
        for page in (*pages, "/trial?trial=0", "/trial?trial=4", "/study?like=0", "/logs?trial=0"):
            told = asked.ask("GET", f"{page}{'&' if '?' in page else '?'}{query}", HTTP_ACCEPT="text/html")
            assert told.status == 200, (name, page)
            assert b"<script>alert" not in told.body
        picture = asked.ask("GET", f"/plots/history.svg?{query}")
        assert ElementTree.fromstring(picture.body).tag == "{http://www.w3.org/2000/svg}svg"
    told = asked.ask("GET", "/studies", HTTP_ACCEPT="text/html")
    assert told.status == 200
    assert b"<script>alert" not in told.body


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["sqlite"], indirect=True)  # the database has no part in it
@pytest.mark.parametrize("kind", KINDS)
def test_every_plot_of_hostile_names_is_a_picture(asked: Asked, kind: str) -> None:
    told = asked.ask("GET", f"/plots/{kind}.svg?study={quote(MATH, safe='')}")
    assert told.status == 200
    assert ElementTree.fromstring(told.body).tag == "{http://www.w3.org/2000/svg}svg"


def test_csv_files_have_no_formulas_and_read_back_equal(asked: Asked) -> None:
    for name in names(asked):
        told = asked.ask("GET", f"/csv/{asked.study(name)}")
        assert told.status == 200
        assert told.headers["content-type"] == "text/csv; charset=utf-8"
        disposition = told.headers["content-disposition"]
        assert re.fullmatch(r"attachment; filename=\"[^\"]*\"; filename\*=UTF-8''[!-~]+", disposition), name
        rows = list(csv.reader(io.StringIO(told.body.decode(), newline="")))
        for cell in (cell for row in rows for cell in row):
            assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n") or float(cell) is not None, cell
        assert rows[0][:3] == ["Number", "State", "Value"]
        trials = asked.storage.get_all_trials(asked.study(name))
        for row, trial in zip(rows[1:], trials, strict=True):
            found = dict(zip(rows[0], map(plain_cell, row), strict=True))
            assert found["Value"] == ("" if trial.values is None else repr(trial.value))
            for param in (*NAMES, "choice"):
                value = trial.params.get(param)
                assert found[f"Param {param}"] == ("" if value is None else str(value))
            if trial.user_attrs:
                assert found["UserAttribute =key"] == "=1+1"
                assert found["UserAttribute new\nline"] == "a\rb"
                assert found["UserAttribute number"] == "-0.5"
                assert found["UserAttribute k"] == "\\ud800"
    some = asked.ask("GET", f"/csv/{asked.study('plain')}?trial_ids=1,%203").body.decode()
    assert [row[0] for row in csv.reader(io.StringIO(some, newline=""))] == ["Number", "1", "3"]
