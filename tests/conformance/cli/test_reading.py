"""Queries, plots and the dashboard on a database of plain Optuna: they create nothing, and SELECT is all they need."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
import sqlalchemy as sa
from command_line import Tuner

import tuner
from tuner.dashboard.app import make_app
from tuner.errors import StorageDenied
from tuner.results.plots import KINDS
from tuner.storage.optuna.storage import Storage
from tuner.storage.sql.zones import UTC

READER = "readsonly"
QUERIES = (
    ("studies",),
    ("trials", "plain", "--where", "x<0.9", "--sort", "value"),
    ("best", "plain", "-n", "3"),
    ("show", "plain", "3"),
    ("compare", "plain", "plain"),
    ("importance", "plain"),
    ("export", "plain", "trials.csv"),
    ("plot", "plain", "history", "--out", "history.svg"),
)
DRAWN = tuple(kind for kind in KINDS if kind not in ("contour", "slice", "parallel"))
"""The plots that read the storage each in their own way, and one of Optuna's."""
PAGES = ("/api/studies", "/api/studies/1", "/csv/1", "/workers", "/workers.json", "/checkpoints?study=plain", "/plots")


def driver_url(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg2:")


def tables(url: str) -> list[str]:
    engine = sa.create_engine(driver_url(url))
    names = sorted(sa.inspect(engine).get_table_names())
    engine.dispose()
    return names


@pytest.fixture
def plain_url(storage_url: str) -> str:
    """A database with a study that plain Optuna has made."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(driver_url(storage_url))
    study = optuna.create_study(storage=storage, study_name="plain", sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2 + trial.suggest_float("y", 0, 1), n_trials=12)
    storage.remove_session()
    storage.engine.dispose()
    return storage_url


@pytest.fixture
def reader_url(plain_url: str) -> Iterator[str]:
    """The same for a role that may only read; of SQLite, whose files have no roles, for everyone."""
    if plain_url.startswith("sqlite"):
        yield plain_url
        return
    url = sa.make_url(plain_url)
    role = f"{READER}_{url.database}"
    owner = sa.create_engine(driver_url(plain_url), isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    yield url.set(username=role, password="x").render_as_string(hide_password=False)
    with owner.connect() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {role}; DROP ROLE {role}")
    owner.dispose()


def test_queries_create_no_tables_and_need_only_select(plain_url: str, reader_url: str, tmp_path: Path) -> None:
    before, shell = tables(plain_url), Tuner(tmp_path, reader_url)
    assert not any(name.startswith("tuner") for name in before)
    for words in QUERIES:
        done = shell.run_here(*words)
        assert (done.returncode, words, done.stderr if done.returncode else "") == (0, words, "")
    opened = tuner.open_study("plain", reader_url)
    theirs = optuna.load_study(study_name="plain", storage=driver_url(plain_url))
    assert opened.best().number == theirs.best_trial.number
    assert set(opened.importance()["hparam"]) == {"x", "y"}
    assert len(opened.curves()) == 0
    assert tables(plain_url) == before


def ask(app: Any, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    """Return status and body of one request."""
    sent, statuses = b"" if body is None else json.dumps(body).encode(), []
    path, _, query = path.partition("?")
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
    setup_testing_defaults(environ)
    environ |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(sent)), "wsgi.input": io.BytesIO(sent)}
    environ |= {"HTTP_ORIGIN": "http://127.0.0.1", "HTTP_HOST": "127.0.0.1", "REMOTE_ADDR": "127.0.0.1"}
    answer = b"".join(app(environ, lambda status, *_: statuses.append(int(status.split()[0]))))
    return statuses[-1], answer


def dashboard_of(url: str) -> tuple[Any, Storage]:
    storage = Storage(url, zone=UTC, creates_tables=False)
    return make_app(storage, None, prefix="", is_behind_proxy=False, audit=logging.Logger("test")), storage


@pytest.mark.parametrize("storage_url", ["postgres"], indirect=True)
@pytest.mark.slow
def test_the_dashboard_shows_a_plain_database_and_creates_no_tables(plain_url: str, reader_url: str) -> None:
    before = tables(plain_url)
    app, storage = dashboard_of(reader_url)
    for path in (*PAGES, *(f"/plots/{kind}.svg?study=plain" for kind in DRAWN)):
        status, _ = ask(app, "GET", path)
        assert (path, status) == (path, 200)
    _, detail = ask(app, "GET", "/api/studies/1")
    assert len(json.loads(detail)["trials"]) == 12
    storage.close()
    assert tables(plain_url) == before


@pytest.mark.slow
def test_changes_in_the_dashboard_still_work_on_a_plain_database(plain_url: str) -> None:
    app, storage = dashboard_of(plain_url)
    before = tables(plain_url)
    status, _ = ask(app, "PUT", "/api/studies/1/3/note", {"body": "seen", "version": 1})
    assert status == 204
    assert tables(plain_url) == before
    assert ask(app, "DELETE", "/api/studies/1", {})[0] == 204
    assert storage.get_all_studies() == []
    storage.close()


def test_the_dashboard_of_an_empty_database_waits_for_its_first_study(storage_url: str) -> None:
    if storage_url.startswith("sqlite"):
        sa.create_engine(storage_url).connect().close()  # creates the file
    app, storage = dashboard_of(storage_url)
    assert json.loads(ask(app, "GET", "/api/studies")[1])["study_summaries"] == []
    assert tables(storage_url) == []
    optuna.create_study(storage=tuner.open_storage(storage_url), study_name="first")
    (found,) = json.loads(ask(app, "GET", "/api/studies")[1])["study_summaries"]
    assert found["study_name"] == "first"
    storage.close()


@pytest.mark.parametrize("storage_url", ["postgres"], indirect=True)
def test_a_reader_that_changes_something_is_refused(reader_url: str) -> None:
    with pytest.raises(StorageDenied, match="permission denied"):
        tuner.open_study("plain", reader_url).enqueue(x=0.5)
