"""The dashboard as it is served: the real command in a process of its own, asked over HTTP, on Postgres."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
import trustme
from attackers import ON_TLS, PLAIN, attacked, connect, send_a_line, talk
from command_line import Tuner
from dashboard_server import PASSWORD, DashboardServer, make_users, serve
from storage_tools import new_database

from tuner.dashboard.app import make_app, routes
from tuner.results.plots import KINDS
from tuner.storage import open_storage
from tuner.storage.sql.engine import new_engine
from tuner.storage.sql.retry import IMPATIENT, patient

pytestmark = pytest.mark.slow

NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def storage_on_postgres(postgres_server: str) -> str:
    """The URL of a Postgres database for all tests here, with a study of four trials."""
    made = new_database(postgres_server).replace("+psycopg2", "")
    storage = open_storage(made)
    study = optuna.create_study(study_name="small", storage=storage, direction="minimize")
    for x in (0.25, 0.5, 0.75):
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
        trial.report(x, 1)
        study.tell(trial, x)
    study.ask()
    storage.close()
    return made


@pytest.fixture(scope="module")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_users(tmp_path_factory.mktemp("users") / "users")


@pytest.fixture(scope="module")
def dashboard(
    storage_on_postgres: str, users_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DashboardServer]:
    """With a login, below a prefix, behind a proxy that is us."""
    words = ("--users", str(users_file), "--behind-proxy", "--prefix", "/tuner")
    with serve(tmp_path_factory.mktemp("served"), storage_on_postgres, *words, prefix="/tuner") as dashboard:
        yield dashboard


@pytest.fixture(scope="module")
def open_dashboard(storage_on_postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardServer]:
    """Without users, on loopback."""
    with serve(tmp_path_factory.mktemp("open"), storage_on_postgres) as dashboard:
        yield dashboard


def content(url: str) -> dict[str, list[Any]]:
    """Return everything in a database."""
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg2"))
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        found = {name: sorted(map(repr, connection.execute(sa.select(table)))) for name, table in tables.tables.items()}
    engine.dispose()
    assert found["trials"]
    return found


def all_routes(url: str) -> list[tuple[str, str]]:
    """Return method and path of every route that the application has, for a study, trial and file that there are."""
    storage = open_storage(url)
    study_id = storage.get_study_id_from_name("small")
    trial_id = storage.get_all_trials(study_id)[-1]._trial_id
    values = {"study_id": study_id, "trial_id": trial_id, "artifact_id": NOBODY, "history_id": NOBODY}
    values |= {"filename": "bundle.js.LICENSE.txt", "name": "bar.js", "plot_type": "edf", "kind": "edf", "": ""}
    values |= {"number": 0, "page": "study"}
    found = [
        (route.method, re.sub(r"<([^:>]*)[^>]*>", lambda part: str(values[part[1]]), route.rule))
        for route in routes(storage).routes
    ]
    storage.close()
    of_study = ("/plots/", "/study", "/trial", "/curves")
    query = "?study=small&trial=0"
    return [(method, path + query * (path.startswith(of_study) and path != "/studies")) for method, path in found]


def test_the_list_of_routes_is_all_of_them(storage_on_postgres: str) -> None:
    found = all_routes(storage_on_postgres)

    assert {method for method, _ in found} == {"GET", "POST", "PUT", "DELETE"}
    assert len(found) > 35
    assert ("GET", "/workers.json") in found
    assert len({path for _, path in found if re.match(r"/api/studies/\d+/\d+/note", path)}) == 1


def test_nothing_is_answered_to_strangers(dashboard: DashboardServer, storage_on_postgres: str) -> None:
    before = content(storage_on_postgres)

    for method, path in all_routes(storage_on_postgres):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "tuner_session=wrong"}):
            answer = dashboard.ask(method, path, Origin=dashboard.origin, **headers)
            is_public = method == "GET" and path == "/favicon.ico"
            assert answer.status == (200 if is_public else 401), (method, path)
            if not is_public:
                assert set(answer.json) == {"reason"}, "and nothing else is told"
    page = dashboard.ask("GET", "/dashboard/studies/1", Accept="text/html")
    assert (page.status, page.headers["location"]) == (303, "/tuner/login?next=/dashboard/studies/1")
    assert dashboard.ask("GET", "/assets/page.css").status == 200
    assert dashboard.ask("GET", "/../tuner/api/studies").status in (401, 404)
    assert content(storage_on_postgres) == before


@pytest.mark.parametrize("way", ["cookie", "token"])
def test_a_reader_reads_everything_and_changes_nothing(
    dashboard: DashboardServer, storage_on_postgres: str, way: str
) -> None:
    before = content(storage_on_postgres)
    known = {"Cookie": dashboard.cookie("rob")} if way == "cookie" else {"Authorization": "Bearer ci"}

    for method, path in all_routes(storage_on_postgres):
        answer = dashboard.ask(method, path, {} if method != "GET" else None, Origin=dashboard.origin, **known)
        if method == "GET":
            may_be_missing = path.startswith(("/artifacts/", "/pictures/")) or "/plot/" in path
            assert answer.status in (200, 302, 303) or may_be_missing, (
                path,
                answer,
            )
        else:
            assert answer.status == 403, (method, path)
            assert answer.json == {"reason": "readers cannot make changes"}
            assert dashboard.lines()[-1]["event"] == "refused"
    assert content(storage_on_postgres) == before, "and no route that reads writes"


def test_what_another_site_makes_a_browser_send_is_refused(
    dashboard: DashboardServer, storage_on_postgres: str
) -> None:
    before, known = content(storage_on_postgres), dashboard.cookie("ann")

    for method, path in all_routes(storage_on_postgres):
        if method == "GET":
            continue
        for headers in (
            {},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": dashboard.origin, "Sec-Fetch-Site": "cross-site"},
        ):
            answer = dashboard.ask(method, path, {}, Cookie=known, **headers)
            assert answer.status == 403, (method, path, headers)
            assert "must come from a page of the dashboard" in answer.json["reason"]
    assert content(storage_on_postgres) == before
    login = dashboard.log_in("ann", Origin="https://evil.example")
    assert login.status == 403, "nor is anybody logged in from there"
    assert "set-cookie" not in login.headers


def test_an_editor_changes_and_each_change_has_its_line(dashboard: DashboardServer, storage_on_postgres: str) -> None:
    paths = [path for _, path in all_routes(storage_on_postgres)]
    study_id = next(path for path in paths if path.startswith("/api/studies/")).split("/")[3]
    note, cookie = f"/api/studies/{study_id}/note", dashboard.cookie("ann")
    logged_in = dashboard.lines()[-1]

    by_page = dashboard.ask("PUT", note, {"version": 1, "body": "one"}, Cookie=cookie, Origin=dashboard.origin)
    by_script = dashboard.ask("PUT", note, {"version": 2, "body": "two"}, Authorization="Bearer cd")
    in_vain = dashboard.ask("PUT", note, {"version": 2, "body": "again"}, Authorization="Bearer cd")

    assert (by_page.status, by_script.status, in_vain.status) == (204, 204, 409)
    lines = dashboard.lines()[-3:]
    assert [(line["event"], line["user"], line["method"], line["path"], line["status"]) for line in lines] == [
        ("change", "ann", "PUT", note, 204),
        ("change", "cd", "PUT", note, 204),
        ("change", "cd", "PUT", note, 409),
    ]
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert set(lines[0]) == {"time", "event", "user", "method", "path", "status", "address"}
    assert (logged_in["event"], logged_in["user"]) == ("login", "ann")
    detail = dashboard.ask("GET", f"/api/studies/{study_id}", Authorization="Bearer ci")
    assert detail.json["note"] == {"version": 2, "body": "two"}
    assert PASSWORD not in dashboard.audit.read_text()


def test_a_login_gives_a_cookie_that_scripts_and_other_sites_do_not_get(dashboard: DashboardServer) -> None:
    plain = dashboard.log_in("ann")
    secure = dashboard.log_in("ann", X_Forwarded_Proto="https", Origin=dashboard.origin.replace("http:", "https:"))

    assert (plain.status, plain.headers["location"]) == (303, "/tuner/workers")
    value, *attributes = plain.headers["set-cookie"].split("; ")
    assert len(value) > 40
    assert attributes == ["HttpOnly", "SameSite=Strict", "Path=/tuner"]
    assert secure.headers["set-cookie"].split("; ")[1:] == ["HttpOnly", "SameSite=Strict", "Path=/tuner", "Secure"]
    assert secure.headers["set-cookie"].split("; ")[0] != value, "each login is a session of its own"


def test_logging_out_ends_the_session(dashboard: DashboardServer) -> None:
    cookie = dashboard.cookie("rob")
    page = dashboard.ask("GET", "/workers", Cookie=cookie)
    assert page.status == 200
    assert "rob (reader)" in page.text

    assert dashboard.ask("GET", "/logout", Cookie=cookie).status == 404, "a link cannot log anybody out"
    assert dashboard.ask("POST", "/logout", Cookie=cookie, Origin="https://evil.example").status == 403
    out = dashboard.ask("POST", "/logout", Cookie=cookie, Origin=dashboard.origin)

    assert (out.status, out.headers["location"]) == (303, "/tuner/login")
    assert "Max-Age=0" in out.headers["set-cookie"]
    assert dashboard.ask("GET", "/workers", Cookie=cookie).status == 401
    assert [line["event"] for line in dashboard.lines()[-2:]] == ["refused", "logout"]


def test_logins_are_limited_by_user_and_by_address(dashboard: DashboardServer) -> None:
    for number in range(10):  # one user, from many addresses
        assert dashboard.log_in("eve", "wrong password", X_Forwarded_For=f"192.0.2.{number}").status == 401
    refused = dashboard.log_in("eve", X_Forwarded_For="192.0.2.99")
    assert refused.status == 429, "the right password no more than another"
    assert 0 < int(refused.headers["retry-after"]) <= 300

    for number in range(10):  # one address, many users
        assert dashboard.log_in(f"user-{number}", "wrong password", X_Forwarded_For="198.51.100.1").status == 401
    assert dashboard.log_in("ann", X_Forwarded_For="198.51.100.1").status == 429
    assert dashboard.log_in("ann", X_Forwarded_For="198.51.100.2").status == 303, "nobody else is shut out"

    lines = dashboard.lines()[-3:]
    assert [(line["event"], line["status"], line["address"]) for line in lines] == [
        ("login refused", 401, "198.51.100.1"),
        ("refused", 429, "198.51.100.1"),
        ("login", 303, "198.51.100.2"),
    ]
    assert "user-1" not in dashboard.audit.read_text(), "what is no user's name may be a password"


def test_headers_with_underscores_are_not_those_of_the_proxy(dashboard: DashboardServer) -> None:
    forged = "X-Forwarded-For: 203.0.113.7\r\nX_Forwarded_For: 10.0.0.1\r\nSec_Fetch_Site: same-origin\r\n"
    raw = f"POST /tuner/login HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n{forged}\r\n"
    assert talk(dashboard.port, raw.encode()).startswith(b"HTTP/1.1 403 ")
    assert dashboard.lines()[-1]["address"] == "203.0.113.7"


def test_a_proxy_may_have_many_connections(dashboard: DashboardServer) -> None:
    with contextlib.ExitStack() as held:
        several = [held.enter_context(connect(dashboard.port, "127.0.0.1")) for _ in range(60)]
        for one in several:
            send_a_line(one)
        assert dashboard.ask("GET", "/login").status == 200
        assert select.select(several, [], [], 0)[0] == [], "none was ended"


@pytest.mark.parametrize("begin", PLAIN)
def test_clients_that_wait_do_not_stop_the_dashboard(
    open_dashboard: DashboardServer, begin: Callable[[socket.socket], None]
) -> None:
    with attacked(open_dashboard.port, begin, 60):
        assert [open_dashboard.ask("GET", "/api/studies").status for _ in range(5)] == [200] * 5


def test_the_page_after_the_login_may_have_any_letters(dashboard: DashboardServer) -> None:
    page = dashboard.ask("GET", "/caf%C3%A9/%E2%82%AC", Accept="text/html")
    assert (page.status, page.headers["location"]) == (303, "/tuner/login?next=/caf%C3%A9/%E2%82%AC")
    form = {"name": "ann", "password": PASSWORD, "next": "/café/€?a=1&b=2"}
    answer = dashboard.ask("POST", "/login", form=form, Origin=dashboard.origin)
    assert (answer.status, answer.headers["location"]) == (303, "/tuner/caf%C3%A9/%E2%82%AC?a=1&b=2")


def test_every_answer_has_its_headers(dashboard: DashboardServer) -> None:
    known = {"Authorization": "Bearer ci"}
    for path in (
        "/dashboard",
        "/api/studies",
        "/workers",
        "/workers.json",
        "/checkpoints",
        "/plots",
        "/studies",
        "/study?study=small",
        "/trial?study=small&trial=0",
        "/curves?study=small",
        "/curves.json?study=small",
        "/login",
        "/nowhere",
    ):
        headers = dashboard.ask("GET", path, **known).headers
        assert headers["x-frame-options"] == "DENY", path
        assert headers["x-content-type-options"] == "nosniff", path
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert headers["cache-control"] == "no-store", path
        assert "access-control-allow-origin" not in headers, path
    assert dashboard.ask("GET", "/static/bundle.js", **known).headers["cache-control"] == "private, no-cache"
    head = dashboard.ask("HEAD", "/login")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.timezone
def test_times_have_a_zone(dashboard: DashboardServer) -> None:
    known = {"Authorization": "Bearer ci"}
    (study_id,) = [
        row["study_id"]
        for row in dashboard.ask("GET", "/api/studies", **known).json["study_summaries"]
        if row["study_name"] == "small"
    ]
    detail = dashboard.ask("GET", f"/api/studies/{study_id}", **known).json
    for trial in [*detail["trials"][:3], *detail["best_trials"]]:
        start, end = (datetime.datetime.fromisoformat(trial[f"datetime_{name}"]) for name in ("start", "complete"))
        age = datetime.datetime.now(datetime.UTC) - start
        assert start <= end
        assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=20)


def test_plots_are_pictures_and_what_cannot_be_drawn_says_why(dashboard: DashboardServer) -> None:
    known = {"Authorization": "Bearer ci"}
    page = dashboard.ask("GET", "/plots?study=small", **known)
    sources = re.findall(r'src="(/tuner/plots/[^"]+)"', page.text)
    assert sources == [f"/tuner/plots/{kind}.svg?study=small" for kind in KINDS]
    assert "img-src 'self'" in page.headers["content-security-policy"]

    answers = {source: dashboard.ask("GET", source.removeprefix("/tuner"), **known) for source in sources}

    for source, answer in answers.items():
        assert (answer.status, answer.headers["content-type"]) == (200, "image/svg+xml"), source
        assert ElementTree.fromstring(answer.body).tag == "{http://www.w3.org/2000/svg}svg"
    assert "must" not in answers[sources[0]].text, "the history"
    rungs = answers["/tuner/plots/rungs.svg?study=small"].text
    assert "only the pruners asha and hyperband have rungs: study &#x27;small&#x27; has none" in rungs
    assert "Choose a study" in dashboard.ask("GET", "/plots", **known).text
    for path in ("/plots/histories.svg?study=small", "/plots/history.svg", "/plots/history.svg?study=none"):
        assert dashboard.ask("GET", path, **known).status == 404, path


def test_the_front_end_is_whole_below_the_prefix(dashboard: DashboardServer) -> None:
    known = {"Authorization": "Bearer ci"}
    page = dashboard.ask("GET", "/dashboard", **known)

    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sources == [
        *("/tuner/favicon.ico", "/tuner/assets/page.css", "/tuner/assets/bar.js", "/tuner/static/bundle.js"),
    ]
    assert 'data-role="reader"' in page.text
    for source in sources:
        assert dashboard.ask("GET", source.removeprefix("/tuner"), **known).status == 200, source
    plain = dashboard.ask("GET", "/static/bundle.js", **known)
    zipped = dashboard.ask("GET", "/static/bundle.js", Accept_Encoding="gzip", **known)
    assert b'url_prefix:"/tuner/dashboard"' in plain.body
    assert zipped.headers["content-encoding"] == "gzip"
    assert len(zipped.body) < len(plain.body) / 2
    assert dashboard.ask("GET", "/", **known).headers["location"] == "/tuner/studies"
    assert dashboard.ask("GET", "/incompatible-rdb-schema", **known).headers["location"] == "/tuner/dashboard"
    assert dashboard.ask("GET", "x/api/studies", **known).status == 404
    study_id = dashboard.ask("GET", "/api/studies", **known).json["study_summaries"][0]["study_id"]
    by_id = dashboard.ask("GET", f"/of/{study_id}/logs?trial=0", **known)
    assert (by_id.status, by_id.headers["location"]) == (303, "/tuner/logs?study=small&trial=0")


def test_without_users_it_answers_to_this_machine_alone(
    open_dashboard: DashboardServer, storage_on_postgres: str
) -> None:
    before = content(storage_on_postgres)
    assert open_dashboard.ask("GET", "/api/studies").status == 200
    assert open_dashboard.ask("GET", "/workers", Host="localhost:1234").status == 200

    rebound = open_dashboard.ask("GET", "/api/studies", Host="evil.example:8080")
    by_site = open_dashboard.ask(
        "POST", "/api/studies", {"study_name": "s", "directions": ["minimize"]}, Origin="http://evil"
    )

    assert rebound.status == 421
    assert "accepts only loopback names such as localhost: got Host 'evil.example:8080'" in rebound.json["reason"]
    assert by_site.status == 403
    # What only a proxy may say is not believed.
    forwarded = open_dashboard.ask("GET", "/", X_Forwarded_Host="evil.example")
    assert forwarded.headers["location"] == "/studies"
    assert content(storage_on_postgres) == before
    made = open_dashboard.ask("POST", "/api/studies", {"study_name": "made", "directions": ["minimize"]})
    assert made.status == 201, "a script of this machine may"
    assert open_dashboard.lines()[-1]["event"] == "change"
    assert open_dashboard.ask("DELETE", f"/api/studies/{made.json['study_summary']['study_id']}").status == 204
    assert "Log out" not in open_dashboard.ask("GET", "/workers").text


def test_tls_and_an_end_in_good_order(storage_on_postgres: str, users_file: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    made.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    words = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))

    with serve(tmp_path, storage_on_postgres, "--users", str(users_file), *words, tls=tls) as dashboard:
        answer = dashboard.log_in("ann")
        assert answer.status == 303
        assert answer.headers["set-cookie"].endswith("; HttpOnly; SameSite=Strict; Path=/; Secure")
        cookie = answer.headers["set-cookie"].partition(";")[0]
        assert dashboard.ask("GET", "/api/studies", Cookie=cookie).status == 200
        for begin in ON_TLS:
            with attacked(dashboard.port, begin, 60):
                assert [dashboard.ask("GET", "/login").status for _ in range(5)] == [200] * 5, begin
        assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
        dashboard.process.send_signal(signal.SIGTERM)
        assert dashboard.process.wait(timeout=300) == 0


def test_a_database_that_is_away_is_said(sqlite_url: str) -> None:
    storage = open_storage(sqlite_url)
    optuna.create_study(storage=storage)
    app = make_app(storage, None, prefix="", is_behind_proxy=False, audit=logging.Logger("test"))
    storage.close()
    storage.engine = patient(new_engine("postgresql://user:secret@127.0.0.1:1/gone"), IMPATIENT)
    answers = {}
    for path in ("/workers", "/checkpoints", "/api/studies/1"):
        told: list[str] = []
        given = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "HTTP_HOST": "localhost", "wsgi.url_scheme": "http"}
        given |= {"wsgi.errors": io.StringIO(), "wsgi.input": io.BytesIO(), "HTTP_ACCEPT": "text/html"}
        body = b"".join(app(given, lambda status, headers, *_, told=told: told.append(status)))
        answers[path] = told[0][:3], body.decode()
    storage._rdb.remove_session()

    assert {path: status for path, (status, _) in answers.items()} == {
        "/workers": "503",
        "/checkpoints": "503",
        "/api/studies/1": "503",
    }
    assert "cannot reach the storage postgresql" in answers["/workers"][1], answers["/workers"]
    assert "secret" not in str(answers)
    assert "cannot reach the storage postgresql" in json.loads(answers["/api/studies/1"][1])["reason"]


def run(folder: Path, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuner", *words], cwd=folder, input=given, capture_output=True, text=True, timeout=300
    )


def test_users_are_made_by_commands(tmp_path: Path) -> None:
    added = run(tmp_path, "user", "add", "ann", "--role", "editor", "--users", "users", given=f"{PASSWORD}\n")
    token = run(tmp_path, "user", "token", "ci", "--role", "reader", "--users", "users")
    again = run(tmp_path, "user", "token", "ci", "--role", "reader", "--users", "users")
    short = run(tmp_path, "user", "add", "bob", "--role", "editor", "--users", "users", given="short\n")

    assert (added.returncode, added.stdout, added.stderr) == (0, "", "")
    assert (token.returncode, len(token.stdout.strip())) == (0, 43)
    lines = (tmp_path / "users").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["ann", "editor"], ["ci", "reader"]]
    assert token.stdout.strip() not in lines[1]
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "user 'ci' is already in users" in again.stderr
    assert "at least 8 characters" in short.stderr
    assert (tmp_path / "users").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_served_is_said_in_a_line(tmp_path: Path, storage_on_postgres: str) -> None:
    (tmp_path / "key.pem").write_text("no key")
    here = Tuner(tmp_path, storage_on_postgres)
    options = ("dashboard", "--port", "0")
    real = run(tmp_path, *options, "--storage", storage_on_postgres, "--users", "none")
    for words, message in [
        (["--users", "none"], "cannot read the users file none: No such file or directory; create it with"),
        (["--tls-cert", "key.pem", "--tls-key", "key.pem"], "must be a certificate and its key in PEM: got key.pem"),
        (["--audit-log", "no/audit"], "cannot write to the file of --audit-log: no/audit: No such file"),
        (["--host", "192.0.2.1", "--users", "none", "--behind-proxy"], "cannot read the users file none"),
    ]:
        done = here.run_here(*options, *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
        if words == ["--users", "none"]:
            assert (real.returncode, real.stderr) == (2, done.stderr)
