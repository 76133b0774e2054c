"""Storage URLs: which are accepted, where the default comes from, and that no message ever holds a password."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuner.errors import StorageURLError, UsageError
from tuner.output.sanitize import hide_password
from tuner.storage import DEFAULT_URL, parse_url, storage_url

ENVIRONMENT = "TUNER_STORAGE"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def refusal(url: str) -> str:
    """Return the message with which a URL is refused."""
    with pytest.raises(StorageURLError, match="storage") as caught:
        parse_url(url)
    return str(caught.value)


# --- Which URLs are accepted


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///tuner.db",
        "sqlite:///a file with spaces.db",
        "sqlite:///tuner.db?timeout=5",
        "sqlite:///./tuner.db",
        "sqlite:///../tuner.db",
    ],
)
def test_a_sqlite_file_is_taken_as_it_is(url: str) -> None:
    assert parse_url(url).driver == url


def test_an_absolute_sqlite_file_has_four_slashes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"

    assert url.startswith("sqlite:////")
    assert parse_url(url).driver == url


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
@pytest.mark.parametrize(
    "rest",
    [
        "me:secret@db.example.org:5432/tuner",
        "me:secret@db.example.org/tuner",
        "me@db.example.org/tuner",
        "db.example.org/tuner",
        "me:se%40cr%2Fet%3A@db/tuner",
        "me:secret@[::1]:5432/tuner",
        "me:secret@db/tuner?sslmode=require",
        "me@db/tuner?password=secret",
        "/tuner",
        "/tuner?host=/run/postgresql",
        "me:secret@/tuner?host=/run/postgresql",
        "?service=shared",
    ],
)
def test_postgres_goes_to_psycopg2_by_any_of_its_names(scheme: str, rest: str) -> None:
    assert parse_url(f"{scheme}://{rest}").driver == f"postgresql+psycopg2://{rest}"


# --- Which are refused, and why


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", r"must be sqlite:///FILE or postgresql\+psycopg2://USER:PASSWORD@HOST:PORT/DATABASE: got ''"),
        ("tuner.db", "must be sqlite:///FILE or .*: got 'tuner.db'"),
        ("/var/lib/tuner.db", "must be sqlite:///FILE or .*: got '/var/lib/tuner.db'"),
        ("sqlite", "must be sqlite:///FILE or .*: got 'sqlite'"),
        ("sqlite:tuner.db", "must be sqlite:///FILE or .*: got 'sqlite:tuner.db'"),
        ("sqlite:/tuner.db", "must be sqlite:///FILE or .*: got 'sqlite:/tuner.db'"),
        ("://", "must be sqlite:///FILE or .*: got '' in '://'"),
        ("mysql://me:secret@db/tuner", r"got 'mysql' in 'mysql://me:\*\*\*@db/tuner'"),
        ("postgresql+psycopg://me:secret@db/tuner", r"got 'postgresql\+psycopg' in"),
        ("postgresq://me:secret@db/tuner", "got 'postgresq' in"),  # codespell:ignore postgresq
        ("sqlite+aiosqlite:///tuner.db", r"got 'sqlite\+aiosqlite' in"),
        ("http://me:secret@db/tuner", "got 'http' in"),
        ("sqlite://", "must be a file, sqlite:///FILE, because workers share it: got 'sqlite://'"),
        ("sqlite:///", "must be a file, .*: got 'sqlite:///'"),
        ("sqlite://tuner.db", "must be a file, .*: got 'sqlite://tuner.db'"),
        ("sqlite:///:memory:", "must be a file, .*: got 'sqlite:///:memory:'"),
        ("sqlite:///missing/tuner.db", "the folder of the SQLite storage does not exist: 'missing'"),
        ("sqlite:////missing/deep/tuner.db", "does not exist: '/missing/deep' .*'sqlite:////missing/deep/tuner.db'"),
        ("sqlite:///missing/tuner.db?timeout=5", "does not exist: 'missing'"),
        ("sqlite:///a\nb/tuner.db", r"does not exist: 'a\\nb'"),
        ("postgresql://", "must name a database: got 'postgresql://'"),
        ("postgresql:///", "must name a database"),
        ("postgresql://db.example.org", "must name a database"),
        ("postgresql://db.example.org/", "must name a database"),
        ("postgresql://me:secret@db", r"must name a database: got 'postgresql://me:\*\*\*@db'"),
        ("postgresql://me:secret@db:5432", "must name a database"),
        ("postgresql://me:secret@db/?sslmode=require", "must name a database"),
        ("postgresql://me:secret@db:port/tuner", r"got 'postgresql://me:\*\*\*@db:port/tuner' \(.*'port'\)"),
        ("postgresql://me:secret@a:1,b:2/tuner", r"got 'postgresql://me:\*\*\*@a:1,b:2/tuner' \("),
        ("postgresql://me:sec:ret/secret@db", "escaped, as %40"),
    ],
)
def test_a_url_that_cannot_be_a_storage_is_refused(url: str, reason: str) -> None:
    with pytest.raises(StorageURLError, match=reason) as caught:
        parse_url(url)

    message = str(caught.value)
    assert "secret" not in message
    assert "\n" not in message
    assert isinstance(caught.value, UsageError)  # exit status 2


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///:memory:?cache=shared",
        "sqlite:///?cache=shared",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite:///file::memory:?uri=true",
    ],
)
def test_a_database_in_memory_is_refused_however_it_is_written(url: str) -> None:
    assert "must be a file" in refusal(url)


# --- Where the URL comes from


def test_the_given_url_wins_over_the_environment_and_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage_url(None).text == DEFAULT_URL == "sqlite:///tuner.db"

    monkeypatch.setenv(ENVIRONMENT, "postgresql://me@db/tuner")
    assert storage_url(None).text == "postgresql://me@db/tuner", "as it was written"
    assert storage_url("").text == "postgresql://me@db/tuner"
    assert storage_url("sqlite:///mine.db").text == "sqlite:///mine.db"

    monkeypatch.setenv(ENVIRONMENT, "")
    assert storage_url(None).text == DEFAULT_URL


def test_a_parsed_url_is_frozen_and_shows_no_password() -> None:
    url = parse_url("postgresql://me:se{cret@db/tuner")
    assert url.text == "postgresql://me:se{cret@db/tuner"
    assert (url.driver, url.file) == ("postgresql+psycopg2://me:se{cret@db/tuner", None)
    assert url.for_optuna == "postgresql+psycopg2://me:se{{cret@db/tuner"
    assert str(url) == f"{url}" == "postgresql://me:***@db/tuner"
    assert "cret" not in repr(url)
    assert parse_url(url) is url is storage_url(url)
    with pytest.raises(dataclasses.FrozenInstanceError):
        url.text = ""  # pyright: ignore[reportAttributeAccessIssue]


def test_a_sqlite_url_knows_its_file_and_whether_it_is_new(tmp_path: Path) -> None:
    url = parse_url(f"sqlite:///{tmp_path}/a.db?timeout=5")
    assert url.file == tmp_path / "a.db"
    assert url.is_new_file()
    url.file.touch()
    assert not url.is_new_file()
    assert not parse_url("postgresql://me@db/tuner").is_new_file()


def test_a_wrong_url_is_refused_wherever_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageURLError, match=r"got 'given\.db'"):
        storage_url("given.db")

    monkeypatch.setenv(ENVIRONMENT, "environment.db")
    with pytest.raises(StorageURLError, match=r"got 'environment\.db'"):
        storage_url(None)


def test_choosing_a_url_creates_nothing(tmp_path: Path) -> None:
    storage_url(None)

    assert list(tmp_path.iterdir()) == []


# --- Passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@db/tuner", "postgresql://me:***@db/tuner"),
        ("postgresql+psycopg2://me:secret@db:5432/tuner", "postgresql+psycopg2://me:***@db:5432/tuner"),
        ("postgresql://me:secret@db", "postgresql://me:***@db"),
        ("postgresql://:secret@db/tuner", "postgresql://:***@db/tuner"),
        ("postgresql://me:secret@/tuner?host=/run", "postgresql://me:***@/tuner?host=/run"),
        ("postgresql://me:secret@[::1]:5432/tuner", "postgresql://me:***@[::1]:5432/tuner"),
        ("postgresql://me:se@cr@et@db/tuner", "postgresql://me:***@db/tuner"),
        ("postgresql://me:se:cr:et@db/tuner", "postgresql://me:***@db/tuner"),
        ("postgresql://me:/se/cret/@db/tuner", "postgresql://me:***@db/tuner"),
        ("postgresql://me:se?cr#et&@db/tuner", "postgresql://me:***@db/tuner"),
        ("postgresql://me:se%40cr%2Fet@db/tuner", "postgresql://me:***@db/tuner"),
        ("postgresql://me@db/tuner?password=secret", "postgresql://me@db/tuner?password=***"),
        ("postgresql://me@db/tuner?a=1&password=se@cr:et&b=2", "postgresql://me@db/tuner?a=1&password=***&b=2"),
        ("postgresql:///tuner?sslpassword=secret", "postgresql:///tuner?sslpassword=***"),
        ("postgresql://me:secret@db/tuner?password=secret", "postgresql://me:***@db/tuner?password=***"),
        ("no route to postgresql://me:secret@db/tuner, again", "no route to postgresql://me:***@db/tuner, again"),
        ("'postgresql://me:secret@db/tuner'", "'postgresql://me:***@db/tuner'"),
        ("(storage postgresql://me:secret@db/tuner)", "(storage postgresql://me:***@db/tuner)"),
        ("ask me@home of postgresql://me:secret@db/t for it", "ask me@home of postgresql://me:***@db/t for it"),
        ("one://a:secret@b\ntwo://c:secret@d", "one://a:***@b\ntwo://c:***@d"),
        ("one://a:secret@b two://c:secret@d", "one://a:***@b two://c:***@d"),
        ("host=db user=me password=secret port=1", "host=db user=me password=*** port=1"),
        ("PGPASSWORD=secret tuner launch", "PGPASSWORD=*** tuner launch"),
    ],
)
def test_the_password_is_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert hide_password(text) == shown
    assert hide_password(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sqlite:///tuner.db",
        "postgresql://db/tuner",
        "postgresql://me@db/tuner",
        "postgresql://db:5432/tuner",
        "postgresql://me@db:5432/tuner?sslmode=require",
        "http://127.0.0.1:8080/",
        "at 12:30 mail me@example.org: it failed",
    ],
)
def test_a_text_without_a_password_stays_as_it_is(text: str) -> None:
    assert hide_password(text) == text


visible = st.characters(exclude_categories=["C", "Z"])


@settings(deadline=None, max_examples=200)
@given(password=st.text(visible, min_size=1), before=st.sampled_from(["", "storage ", "'"]))
def test_any_password_without_blanks_is_hidden(password: str, before: str) -> None:
    shown = hide_password(f"{before}postgresql://me:{password}@db:5432/tuner")

    assert shown == f"{before}postgresql://me:***@db:5432/tuner"


SHAPES = [
    ("postgresql://me:", "@db"),
    ("postgresql://me:", "@db:port/tuner"),
    ("postgresql://me:", "@db:5432/?a=b"),
    ("oracle://me:", "@db/tuner"),
    ("sqlite://me:", "@db"),
    ("me:", "@db/tuner"),
    ("postgresql:me:", "@db/tuner"),
    ("postgresql:/me:", "@db/tuner"),
]


@settings(deadline=None, max_examples=300)
@given(
    inside=st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "://" not in text),
    shape=st.sampled_from(SHAPES),
)
@example(inside="@", shape=SHAPES[5])
@example(inside=" @", shape=SHAPES[0])
@example(inside="@/", shape=SHAPES[0])
@example(inside="\n@", shape=SHAPES[5])
def test_no_refusal_shows_any_part_of_a_password(inside: str, shape: tuple[str, str]) -> None:
    before, after = shape

    assert "SECRET" not in refusal(f"{before}SECRET{inside}SECRET{after}")


@pytest.mark.parametrize(
    "password", ["se@cret", "se cret", "se/@cret", "se@/cret", "se?@cret", "se@:cret", "se:@cret", "@", "a@b@c"]
)
def test_what_would_end_a_password_early_must_be_escaped(password: str) -> None:
    with pytest.raises(StorageURLError, match="escaped, as %40") as caught:
        parse_url(f"postgresql://me:{password}@db/tuner")

    assert "cret" not in str(caught.value)
    assert parse_url("postgresql://me:se%40cret%20@db/tuner").driver.endswith("@db/tuner")


def test_a_user_name_may_hold_an_at_sign() -> None:
    assert hide_password(parse_url("postgresql://me@corp:secret@db/tuner").driver).endswith("//me@corp:***@db/tuner")


def test_an_at_sign_in_a_query_password_is_hidden() -> None:
    assert hide_password("postgresql://db:5432/tuner?password=a@b") == "postgresql://db:5432/tuner?password=***"


def test_a_quoted_password_is_hidden() -> None:
    assert hide_password("host=db password='my secret' port=1") == "host=db password=*** port=1"


@pytest.mark.parametrize(
    "text", ["{'password': 'secret'}", "password = secret", '"password":"secret"', "Password: secret"]
)
def test_a_password_is_hidden_however_it_is_written(text: str) -> None:
    assert "secret" not in hide_password(text)
    assert "***" in hide_password(text)
