"""Tests that are given a Postgres server by TUNER_TEST_POSTGRES use it, and leave nothing there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import check_given

ROOT = Path(__file__).resolve().parents[3]
ROLE = "tuner_given"
INNER = """
from databases import new_database

def test_inner(postgres_server, postgres_url):
    print("made", new_database(postgres_server))
    print("made", postgres_url)
"""


@pytest.fixture
def admin(own_postgres_server: str) -> Iterator[sa.Connection]:
    """A connection to a server that has another superuser, by whom tests know that they were given it."""
    url = sa.make_url(own_postgres_server).set(drivername="postgresql+psycopg2")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {ROLE} LOGIN SUPERUSER")
        yield connection
        connection.exec_driver_sql(f"DROP ROLE {ROLE}")
    engine.dispose()


def run_inner(folder: Path, given: str) -> subprocess.CompletedProcess[str]:
    """Run a test in a pytest of its own, with the project's fixtures."""
    (folder / "test_inner.py").write_text(INNER)
    words = ["-c", str(ROOT / "pyproject.toml"), "-p", "conftest", "-p", "no:cacheprovider", "-n", "0", "-s"]
    paths = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(folder / "test_inner.py")],
        cwd=folder,
        env={**os.environ, "TUNER_TEST_POSTGRES": given, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def names(connection: sa.Connection) -> set[str]:
    return set(connection.exec_driver_sql("SELECT datname FROM pg_database").scalars())


@pytest.mark.slow
def test_tests_make_their_databases_on_a_given_server_and_remove_them(
    admin: sa.Connection, own_postgres_server: str, tmp_path: Path
) -> None:
    before = names(admin)

    done = run_inner(
        tmp_path, sa.make_url(own_postgres_server).set(username=ROLE).render_as_string(hide_password=False)
    )

    assert done.returncode == 0, done.stdout
    made = [sa.make_url(line.removeprefix("made ")) for line in done.stdout.splitlines() if line.startswith("made ")]
    assert [url.username for url in made] == [ROLE, ROLE]
    assert not {url.database for url in made} & before
    assert len({url.database for url in made}) == 2
    assert names(admin) <= before, "other tests may have removed theirs"


MUST = "TUNER_TEST_POSTGRES must be like postgresql+psycopg2://USER:PASSWORD@HOST:PORT/postgres"


@pytest.mark.parametrize("given", ["sqlite:///study.db", "localhost:5432", "postgresql://postgres@localhost"])
def test_what_is_no_server_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=re.escape(MUST)):
        check_given(given)


@pytest.mark.slow
def test_tests_that_are_given_no_server_fail(tmp_path: Path) -> None:
    done = run_inner(tmp_path, "sqlite:///study.db")
    assert done.returncode == 1
    assert MUST in done.stdout
