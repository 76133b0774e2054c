"""A database that falls silent instead of refusing: training goes on, leases are renewed, and Ctrl-C ends a launch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from postgres_server import PASSWORD, ROLE, Server
from silent_proxy import Proxy

from tuner.errors import StorageLost
from tuner.storage import deadlines
from tuner.storage.engine import Patience, new_engine, patient, read, write

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

    with pytest.raises(StorageLost, match="nobody waits"):
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
