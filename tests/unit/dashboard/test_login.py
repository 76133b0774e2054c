"""The dashboard's door, part by part: users, sessions, limits, where a request comes from, what may be served."""

from __future__ import annotations

import io
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tuner.dashboard.layout import Viewer
from tuner.dashboard.login import Login
from tuner.dashboard.optuna_page import below_prefix
from tuner.dashboard.pages import CHECKPOINTS, WORKERS, login_page
from tuner.dashboard.request import is_loopback_name, page_after_login, read_body, read_request
from tuner.dashboard.serve import Serving, check_serving
from tuner.dashboard.sessions import IDLE_S, LONGEST_S, Attempts, Sessions
from tuner.dashboard.users import (
    Role,
    User,
    Users,
    add_user,
    hash_password,
    hash_token,
    new_token,
    parse_users,
    read_users,
)
from tuner.errors import UsageError
from tuner.web.address import network_of

ANN = User("ann", Role.EDITOR, "$argon2id$a")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# Users


@pytest.mark.slow
def test_a_users_file_is_made_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    path, token = tmp_path / "users", new_token()
    add_user(path, "ann", Role.EDITOR, hash_password("correct horse"))
    path.write_text(path.read_text().rstrip("\n"))  # as an editor may leave it
    add_user(path, "ci", Role.READER, hash_token(token))

    users = Users(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "correct horse" not in path.read_text()
    assert token not in path.read_text()
    assert users.with_password("ann", "correct horse") == users.named("ann")
    assert users.with_password("ann", "correct horsf") is None
    assert users.with_password("nobody", "correct horse") is None
    assert users.with_password("ci", token) is None, "a token is no password"
    assert users.with_token(token) == users.named("ci")
    assert users.with_token(new_token()) is None
    assert {user.role for user in read_users(path).values()} == {Role.EDITOR, Role.READER}


def test_a_file_that_others_may_read_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "users"
    add_user(path, "ci", Role.READER, hash_token("t"))
    read_users(path)
    assert capsys.readouterr().err == ""

    path.chmod(0o640)
    read_users(path)

    assert "can be read by others (mode 640); run chmod 600" in capsys.readouterr().err


def test_a_change_of_the_file_counts_at_once_and_a_broken_one_lets_nobody_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "users"
    add_user(path, "ci", Role.READER, hash_token("one"))
    users = Users(path)

    add_user(path, "cd", Role.READER, hash_token("two"))
    assert users.with_token("two") is not None
    path.write_text("ci owner x\n")
    assert users.with_token("one") is None
    assert "nobody can log in to the dashboard now: invalid line " in capsys.readouterr().err
    path.unlink()
    assert users.named("ci") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ann editor", "invalid line 1"),
        ("# people\n\nann admin $argon2id$x", "invalid line 3"),
        ("ann editor secret", "invalid line 1"),
        ("ann editor $argon2id$x\nann reader token:1", "user 'ann' is listed twice in FILE: remove line 2"),
    ],
)
def test_lines_that_are_none_are_refused_without_their_secret(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        parse_users(text, "FILE")
    assert "argon2id" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_names_and_passwords_must_be_some(tmp_path: Path) -> None:
    add_user(tmp_path / "users", "ann", Role.READER, hash_token("t"))
    with pytest.raises(UsageError, match=r"user 'ann' is already in .*users: remove that line"):
        add_user(tmp_path / "users", "ann", Role.EDITOR, hash_token("u"))
    with pytest.raises(UsageError, match=r"letters, digits and \. _ @ -: got 'a b'"):
        add_user(tmp_path / "users", "a b", Role.EDITOR, hash_token("u"))
    with pytest.raises(UsageError, match="at least 8 characters: got 7"):
        hash_password("1234567")
    with pytest.raises(UsageError, match=r"cannot read the users file .*none: No such file"):
        Users(tmp_path / "none")
    (tmp_path / "empty").touch(0o600)
    with pytest.raises(UsageError, match=r"the users file .*empty has no users"):
        Users(tmp_path / "empty")


# Sessions and limits


def test_a_session_ends_when_it_rests_when_it_is_old_and_when_its_password_changes() -> None:
    clock = Clock()
    sessions, users = Sessions(clock), {"ann": ANN}
    rested, old, changed = (sessions.begin(ANN) for _ in range(3))
    assert len({rested, old, changed}) == 3

    clock.now_s += IDLE_S - 1
    assert sessions.find(old, users.get) == sessions.find(changed, users.get) == ANN
    clock.now_s += 1
    assert sessions.find(rested, users.get) is None
    users["ann"] = User("ann", Role.READER, ANN.secret)
    found = sessions.find(old, users.get)
    assert found is not None
    assert found.role is Role.READER, "a new role counts at once"
    assert sessions.find(changed, {"ann": User("ann", Role.EDITOR, "$argon2id$b")}.get) is None
    assert sessions.find(changed, users.get) is None, "and it stays ended"
    while clock.now_s < 1000.0 + LONGEST_S - IDLE_S:
        clock.now_s += IDLE_S - 1
        assert sessions.find(old, users.get) is not None
    clock.now_s = 1000.0 + LONGEST_S
    assert sessions.find(old, users.get) is None


def test_a_session_of_a_user_that_is_gone_or_that_logged_out_ends() -> None:
    sessions = Sessions(Clock())
    gone, out = sessions.begin(ANN), sessions.begin(ANN)
    sessions.end(out)
    assert sessions.find(gone, {}.get) is None
    assert sessions.find(out, {"ann": ANN}.get) is None
    assert sessions.find("made up", {"ann": ANN}.get) is None


def test_only_so_many_attempts_may_fail_in_a_while() -> None:
    clock = Clock()
    attempts = Attempts(3, 60.0, clock)

    for _ in range(3):
        assert attempts.begin("a") == 0.0
        clock.now_s += 10.0
    assert attempts.begin("a") == 30.0, "until the first is a minute old"
    assert attempts.begin("b") == 0.0
    assert attempts.begin("c", "a") == 30.0
    clock.now_s += 30.0
    assert attempts.begin("a") == 0.0
    attempts.succeed("a")
    assert attempts.begin("a") == 0.0, "one that succeeded does not count"
    assert attempts.begin("a") > 0.0


def test_names_made_up_by_the_thousand_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attempts, "MOST_KEYS", 5)
    clock = Clock()
    attempts = Attempts(1, 60.0, clock)
    for name in range(20):
        attempts.begin(name)
    assert len(attempts._times) == 5
    assert attempts.begin(19) > 0.0


# Requests


def environ(**more: str) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/tuner/api/studies",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "REMOTE_ADDR": "10.0.0.9",
        "HTTP_HOST": "tuner.example",
        **more,
    }


def test_what_is_forwarded_is_believed_of_the_nearest_proxy_alone() -> None:
    forwarded = {"HTTP_X_FORWARDED_FOR": "1.1.1.1, 2.2.2.2", "HTTP_X_FORWARDED_PROTO": "https"}
    given = environ(**forwarded, HTTP_X_FORWARDED_HOST="evil.example")

    direct, proxied = read_request(dict(given), "/tuner", False), read_request(given, "/tuner", True)

    assert (direct.address, direct.scheme, direct.host) == ("10.0.0.9", "http", "tuner.example")
    assert (proxied.address, proxied.scheme, proxied.host) == ("2.2.2.2", "https", "tuner.example")
    assert not [name for name in given if "FORWARDED" in name], "libraries believe these from anybody"


@pytest.mark.parametrize(
    ("path", "prefix", "below"),
    [
        ("/tuner/api", "/tuner", "/api"),
        ("/tuner", "/tuner", ""),
        ("/tunerx", "/tuner", None),
        ("/api", "/tuner", None),
        ("/api", "", "/api"),
    ],
)
def test_paths_are_below_the_prefix(path: str, prefix: str, below: str | None) -> None:
    assert read_request(environ(PATH_INFO=path), prefix, False).path == below


@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        ({}, None),
        ({"HTTP_ORIGIN": "http://tuner.example"}, True),
        ({"HTTP_ORIGIN": "HTTP://Tuner.Example"}, True),
        ({"HTTP_ORIGIN": "https://tuner.example"}, False),
        ({"HTTP_ORIGIN": "http://tuner.example:81"}, False),
        ({"HTTP_ORIGIN": "http://tuner.example.evil.example"}, False),
        ({"HTTP_ORIGIN": "null"}, False),
        ({"HTTP_SEC_FETCH_SITE": "same-origin"}, True),
        ({"HTTP_SEC_FETCH_SITE": "same-site", "HTTP_ORIGIN": "http://tuner.example"}, False),
        ({"HTTP_SEC_FETCH_SITE": "none"}, False),
    ],
)
def test_pages_of_ours_are_told_from_others(headers: dict[str, str], is_ours: bool | None) -> None:
    assert read_request(environ(**headers), "", False).is_from_our_pages is is_ours


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True),
        ("localhost:8080", True),
        ("127.0.0.1:8080", True),
        ("127.0.0.2", True),
        ("[::1]:8080", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.1", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_names_of_loopback(host: str, is_ours: bool) -> None:
    assert is_loopback_name(host) is is_ours


def test_attempts_from_one_ipv6_network_count_together() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("unix") == "unix"


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("/workers", "/workers"),
        ("//evil.example", "/studies"),
        ("/\\evil.example", "/studies"),
        ("https://evil.example", "/studies"),
        ("", "/studies"),
        ("/a\r\nSet-Cookie: x", "/studies"),
        ("/a\0", "/studies"),
        ("/a\u2028b", "/studies"),
        ("/\u20ac/\u00e9", "/%E2%82%AC/%C3%A9"),
        ("/a%20b?x=1&y=%26#z", "/a%20b?x=1&y=%26#z"),
        ('/"<>', "/%22%3C%3E"),
    ],
)
def test_a_login_leads_to_our_own_pages(asked: str, shown: str) -> None:
    assert page_after_login(asked) == shown


def test_a_body_whose_end_is_missing_is_none() -> None:
    given = environ(CONTENT_LENGTH="200000")
    given["wsgi.input"] = io.BytesIO(b"x" * 200_000)
    assert read_body(given) == b"x" * 200_000
    given["wsgi.input"] = io.BytesIO(b"x" * 199_999)
    with pytest.raises(EOFError, match="the request ended 1 bytes before its Content-Length"):
        read_body(given)
    assert read_body(environ()) == b""


def test_an_address_is_known_by_what_the_door_says_of_it() -> None:
    """The door, called without a server: a method that nobody knows is refused to readers, and told."""
    lines: list[str] = []
    audit = logging.Logger("test")
    told = logging.Handler()
    told.emit = lambda record: lines.append(record.getMessage())
    audit.addHandler(told)

    class Known:
        def with_token(self, token: str) -> User | None:
            return User(token, Role(token), "") if token in list(Role) else None

    passed: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        passed.append(environ["REQUEST_METHOD"])
        start_response("200 OK", [("Access-Control-Allow-Origin", "*"), ("Content-Security-Policy", "default-src x")])
        return [b""]

    users: Any = Known()
    door = Login(app, users, prefix="", is_behind_proxy=False, audit=audit)
    answers: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"):
        for role in Role:
            given = environ(REQUEST_METHOD=method, HTTP_AUTHORIZATION=f"Bearer {role}")
            answer: list[Any] = []

            def begin(status: str, headers: Any, *_: Any, answer: Any = answer) -> None:
                answer.append((status, dict(headers)))

            list(door(given, begin))  # pyright: ignore[reportArgumentType]
            answers[method, role] = answer[0]

    refused = {method for (method, role), (status, _) in answers.items() if role == "reader" and status[:3] == "403"}
    assert refused == {"POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"}
    assert all(status == "200 OK" for (_, role), (status, _) in answers.items() if role == "editor")
    assert len(passed) == 3 + 9
    events = [json.loads(line) for line in lines]
    assert [(line["event"], line["user"]) for line in events] == [("refused", "reader"), ("change", "editor")] * 6
    headers = answers["GET", "editor"][1]
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["Content-Security-Policy"] == "default-src x;frame-ancestors 'none'"


# What may be served


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"host": "0.0.0.0"}, r"any address but loopback needs a login: got `host` 0\.0\.0\.0 without `users`"),
        ({"host": "::"}, "any address but loopback needs a login"),
        ({"host": "192.0.2.1", "behind_proxy": True}, "any address but loopback needs a login"),
        ({"behind_proxy": True}, "a proxy lets others in, so it needs a login"),
        ({"host": "0.0.0.0", "users": Path("users")}, "passwords would be sent unencrypted"),
        ({"tls_cert": Path("cert.pem")}, "`tls_cert` and `tls_key` must be passed together"),
        ({"prefix": "tuner"}, "`prefix` must be a path such as /tuner: got 'tuner'"),
        ({"prefix": '/"><script>'}, "`prefix` must be a path"),
        ({"prefix": "//evil.example"}, "`prefix` must be a path"),
        ({"host": "no.such.name.invalid"}, "`host` must be an address of this machine"),
        ({"port": 65536}, "`port` must be 1 to 65535, or 0 for a free one: got 65536"),
    ],
)
def test_what_is_refused_before_anything_listens(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_serving(Serving(**given))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"host": "::1"},
        {"host": "127.0.0.2"},
        {"host": "localhost"},
        {"users": Path("users")},
        {"host": "0.0.0.0", "users": Path("users"), "behind_proxy": True},
        {"host": "0.0.0.0", "users": Path("users"), "tls_cert": Path("c"), "tls_key": Path("k")},
    ],
)
def test_what_may_be_served(given: dict[str, Any]) -> None:
    assert check_serving(Serving(**given)) == Serving(**given)
    assert check_serving(Serving(**given, prefix="/a/b/")).prefix == "/a/b"


def test_the_front_end_finds_its_addresses_below_a_prefix() -> None:
    import optuna_dashboard

    script = Path(optuna_dashboard.__file__).parent.joinpath("public", "bundle.js").read_text(encoding="utf-8")

    changed = below_prefix(script, "/tuner")

    assert "${this.baseURL}/api" not in changed
    assert changed.count("`/tuner/api/") == script.count("`${this.baseURL}/api/") > 20
    assert 'url_prefix:"/tuner/dashboard"' in changed
    assert "`/csv/" not in changed
    assert "`/artifacts/" not in changed
    with pytest.raises(UsageError, match="`prefix` does not work with this version of optuna-dashboard"):
        below_prefix("const nothing = 1", "/tuner")


# Pages


def test_pages_escape_what_comes_from_elsewhere() -> None:
    nasty = "<script>alert(1)</script>\"'&"
    viewer = Viewer("", nasty, nasty)
    head = {"studies": [nasty], "study": nasty, "query": "?study=%3Cscript%3E"}
    failure = {"ago_s": 1.0, "study": nasty, "trial": 0, "worker": nasty, "ending": nasty, "error": f"x\n{nasty}"}
    numbers = dict.fromkeys(("unseen_s", "train_s", "compile_s", "saved_s", "lease_rest_s"), 1.0)
    words = dict.fromkeys(("worker", "study", "host", "devices", "state"), nasty)
    worker = {**numbers, **words, "pid": 1, "trial": 0, "epoch": 1, "metrics": {nasty: nasty}, "deaths": 0}
    worker |= {"trials": 1, "compilations": 1}
    row = {"trial": 0, "value": 1.0, "curve": [], "about": None, "checkpoint": nasty}
    savings = {"at_work": 1, "compile_s": 1.0, "saved_s": 1.0}

    pages = [
        WORKERS.render(viewer, nasty, **head, workers=[worker], failures=[failure], **savings),
        CHECKPOINTS.render(viewer, nasty, **head, groups=[{"study": nasty, "objective": nasty, "rows": [row]}]),
        login_page("", nasty, nasty),
    ]

    for page in pages:
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page


def test_a_users_file_is_not_made_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write the users file .*: No such file or directory"):
        add_user(tmp_path / "no" / "users", "ann", Role.READER, hash_token("t"))
    assert os.listdir(tmp_path) == []
