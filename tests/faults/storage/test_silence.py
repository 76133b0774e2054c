"""A database that falls silent instead of refusing: training goes on, leases are renewed, and Ctrl-C ends a launch."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from after_faults import check_study_after_faults, endings_of, processes_of
from postgres_server import PASSWORD, ROLE, Server
from silent_proxy import Proxy

from tuner.errors import StorageLost
from tuner.storage.sql import deadlines
from tuner.storage.sql.engine import new_engine
from tuner.storage.sql.retry import Patience, patient, read, write

Wait = Callable[..., Any]


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy, database: str) -> str:
    """The URL of an empty database through the proxy."""
    return f"postgresql://{ROLE}:{PASSWORD}@127.0.0.1:{proxy.port}/{database}"


@pytest.fixture
def engine(through: str) -> Iterator[sa.Engine]:
    engine = new_engine(through)
    yield engine
    engine.dispose()


def one(connection: sa.Connection, _: int = 0) -> int:
    return connection.exec_driver_sql("SELECT 1").scalar_one()


# --- Statements


@pytest.mark.slow
def test_a_statement_on_a_silent_connection_is_given_up_and_made_on_a_new_one(engine: sa.Engine, proxy: Proxy) -> None:
    assert read(engine, one) == 1
    accepted = proxy.accepted
    assert proxy.silence() == 1

    with pytest.raises(StorageLost, match=r"no answer within 0\.5 s"):
        read(patient(engine, Patience(0.0, statement_s=0.5)), one)

    assert read(patient(engine, Patience(60.0, statement_s=0.5)), one) == 1
    assert proxy.accepted == accepted + 1


@pytest.mark.parametrize("place", ["statement", "commit", "rollback", "ping"])
def test_every_call_of_a_connection_has_a_deadline(engine: sa.Engine, proxy: Proxy, place: str) -> None:
    brief = patient(engine, Patience(0.0, statement_s=0.5))
    tried = []

    def work(connection: sa.Connection, tries: int) -> int:
        tried.append(tries)
        if place == "statement":
            proxy.silence()
        one(connection)
        if place == "commit":
            proxy.silence()
        if place == "rollback":
            proxy.silence()
            raise KeyError
        return 1

    if place == "ping":
        assert read(brief, one) == 1
        time.sleep(1.1)  # a connection that has rested is tried first
        proxy.silence()
        assert write(brief, work) == 1, "on another connection"
        return
    with pytest.raises(StorageLost):
        write(brief, work)
    assert tried == [0]
    assert write(patient(engine, Patience(60.0)), one) == 1


def test_a_server_that_does_not_answer_a_new_connection_is_given_up(engine: sa.Engine, proxy: Proxy) -> None:
    proxy.hold()
    with pytest.raises(StorageLost, match="timeout expired"):
        read(patient(engine, Patience(0.0, statement_s=1.0)), one)


def test_who_waits_no_more_is_let_go(engine: sa.Engine, proxy: Proxy) -> None:
    """However long the limit is: somebody has asked the process to end."""
    assert read(engine, one) == 1
    proxy.hold()
    is_over = threading.Event()
    threading.Timer(0.5, is_over.set).start()

    with pytest.raises(StorageLost, match="no answer, and the worker must exit"):
        read(patient(engine, Patience(600.0, is_over.is_set, statement_s=300.0)), one)


def test_a_result_that_keeps_coming_is_waited_for(engine: sa.Engine) -> None:
    """The limit is on silence: a large result over a slow line takes longer, and is no fault."""
    slow = "DO $$ BEGIN FOR i IN 1..30 LOOP RAISE NOTICE 'still here'; PERFORM pg_sleep(0.1); END LOOP; END $$"
    read(patient(engine, Patience(0.0, statement_s=1.0)), lambda connection: connection.exec_driver_sql(slow))


def test_the_limit_of_a_session_is_that_of_its_server_and_some(engine: sa.Engine, through: str) -> None:
    def limit(url: str) -> float:
        engine = new_engine(url)
        try:
            with engine.connect() as connection:
                made = connection.connection.dbapi_connection
                assert isinstance(made, deadlines.Connection)
                return made.limit_s
        finally:
            engine.dispose()

    assert limit(through) == 130.0
    assert limit(f"{through}?options=-c%20statement_timeout%3D5000") == 15.0
    assert limit(f"{through}?options=-c%20statement_timeout%3D10min") == 610.0


def test_nothing_is_watched_while_nothing_is_sent(engine: sa.Engine, wait_until: Wait) -> None:
    for _ in range(100):
        read(engine, one)
    assert deadlines._watcher._statements == set()
    wait_until(lambda: deadlines._watcher._is_resting)
    assert read(engine, one) == 1


# --- Training


class Steps:
    """How far each worker has trained, as the tiny study notes it: without the database."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "steps"
        self.path.touch()
        self.env = {"TINY_STEPS_FILE": str(self.path), "TINY_PAUSE_S": "0.3"}

    def have_passed(self, number: int, workers: int = 1) -> Callable[[], bool]:
        """Return whether each of so many workers has passed so many places since now."""
        before = len(self.path.read_text().splitlines())

        def check() -> bool:
            since = [line.split()[0] for line in self.path.read_text().splitlines()[before:]]
            return len(set(since)) >= workers and min(map(since.count, set(since))) >= number

        return check


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path)


@pytest.fixture
def tuner(tuner_on_sqlite: Any, through: str, tiny_function: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line on the empty database through the proxy."""
    monkeypatch.chdir(tuner_on_sqlite.folder)
    tuner_on_sqlite.env["TUNER_STORAGE"] = through
    return tuner_on_sqlite


def have_reported(server: Server, database: str, workers: int = 1) -> Callable[[], bool]:
    """Return whether trials of so many workers have reported: asked on the server's socket, which is never silent."""

    def check() -> bool:
        try:
            found = server.ask("SELECT count(DISTINCT trial_id) FROM tuner_reports", database=database)
        except psycopg2.Error:
            return False  # there are no tables yet
        return found[0][0] >= workers

    return check


def check_all(server: Server, database: str, output: str, trials: int, epochs: int) -> None:
    """Check that nothing was lost or doubled, and that no trial changed hands."""
    assert "Traceback" not in output, output
    assert PASSWORD not in output
    url = server.url(database)
    check_study_after_faults(url, Path("tuner-artifacts"), trials, epochs=epochs)
    assert endings_of(url) == {number: ["complete"] for number in range(trials)}


@pytest.mark.slow
def test_training_goes_on_while_old_connections_are_silent_and_leases_are_renewed_on_new_ones(
    tuner: Any, proxy: Proxy, server: Server, database: str, steps: Steps, wait_until: Wait
) -> None:
    worker = tuner.start("worker", "tiny.py", **steps.env, TINY_EPOCHS="60", TINY_TRIALS="1", TINY_LEASE_S="8")
    wait_until(have_reported(server, database))
    query = "SELECT expires_at_s FROM tuner_leases"
    assert proxy.silence() >= 1
    before = server.ask(query, database=database)[0][0]
    wait_until(steps.have_passed(5))
    wait_until(lambda: [row for row in server.ask(query, database=database) if row[0] > before])

    output, _ = worker.communicate(timeout=300)

    assert worker.returncode == 0, output
    check_all(server, database, output, 1, 60)


@pytest.mark.slow
@pytest.mark.parametrize("way", [pytest.param("network", marks=pytest.mark.long), "server"])
def test_a_launch_goes_on_through_a_silent_network_and_a_frozen_server(
    tuner: Any, proxy: Proxy, server: Server, database: str, steps: Steps, wait_until: Wait, way: str
) -> None:
    budget = {"TINY_EPOCHS": "60", "TINY_TRIALS": "2", "TINY_LEASE_S": "300"}
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", **steps.env, **budget)
    wait_until(have_reported(server, database, 2))
    if way == "network":
        proxy.hold()
        wait_until(steps.have_passed(12, workers=2))
        proxy.resume()
    else:
        with server.frozen():
            wait_until(steps.have_passed(12, workers=2))

    output, _ = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, output
    check_all(server, database, output, 2, 60)


# --- Ends


@pytest.mark.slow
@pytest.mark.parametrize("way", ["network", pytest.param("server", marks=pytest.mark.long)])
def test_ctrl_c_ends_a_launch_whose_database_is_silent(
    tuner: Any, proxy: Proxy, server: Server, database: str, through: str, steps: Steps, wait_until: Wait, way: str
) -> None:
    budget = {"TINY_EPOCHS": "10000", "TINY_TRIALS": "2"}
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", **steps.env, **budget)
    wait_until(have_reported(server, database, 2))
    with contextlib.ExitStack() as silence:
        if way == "network":
            proxy.hold()
        else:
            silence.enter_context(server.frozen())
        wait_until(steps.have_passed(5, workers=2))
        launcher.send_signal(signal.SIGINT)
        output, _ = launcher.communicate(timeout=300)

        # The database is still silent.
        assert launcher.returncode == 130, output
        assert output.splitlines()[-1].startswith("tuner: stopped with 0 of 2 trials finished"), output
        assert "Traceback" not in output, output
        wait_until(lambda: processes_of(through) == [], 60)
