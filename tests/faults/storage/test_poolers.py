"""Storages behind PgBouncer in transaction mode, where each transaction may have another connection to the server."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from optuna.study import StudyDirection
from postgres_server import PASSWORD, ROLE, Server

from tuner.errors import StorageLost
from tuner.storage import open_storage
from tuner.storage.optuna.storage import Storage
from tuner.storage.sql import prepared_statements
from tuner.storage.sql.engine import new_engine
from tuner.storage.sql.retry import PROMPT, Patience, patient, read, write
from tuner.storage.sql.tables import reports
from tuner.storage.worker import claims, leases
from tuner.storage.worker.fences import Lease
from tuner.trial import Outcome, Report

Wait = Callable[..., Any]
PROGRAM = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


class Pooler:
    """PgBouncer in front of a server, with so many connections to it."""

    def __init__(self, server: Server, folder: Path, *, mode: str, size: int) -> None:
        assert PROGRAM is not None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        target = f"host=127.0.0.1 port={server.port} user={ROLE} password={PASSWORD}"
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
            f"unix_socket_dir =\nauth_type = any\npool_mode = {mode}\ndefault_pool_size = {size}\n"
        )
        user = ["-u", "nobody"] if getpass.getuser() == "root" else []
        words = [PROGRAM, *user, str(folder / "pgbouncer.ini")]
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(words, stdout=self.log, stderr=self.log)

    def answers(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            return True
        return False

    def url(self, database: str) -> str:
        return f"postgresql://{ROLE}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def pooler(request: pytest.FixtureRequest, server: Server, wait_until: Wait) -> Iterator[Pooler]:
    """PgBouncer with one connection to the server, in transaction mode unless a test says otherwise."""
    if PROGRAM is None:
        pytest.skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
    folder = Path(tempfile.mkdtemp(prefix="tuner-pooler-"))  # pytest's folders are shut to its user
    folder.chmod(0o755)
    pooler = Pooler(server, folder, **{"mode": "transaction", "size": 1, **getattr(request, "param", {})})
    try:
        wait_until(pooler.answers)
        yield pooler
    finally:
        pooler.end()
        shutil.rmtree(folder)


@pytest.fixture
def through(pooler: Pooler, database: str) -> str:
    """The URL of an empty database through the pooler."""
    return pooler.url(database)


@contextlib.contextmanager
def opened(url: str) -> Iterator[Storage]:
    storage = open_storage(url)
    try:
        yield storage
    finally:
        storage.close()


def as_text(dialect: str, text: str) -> Any:
    return sa.text(text)


def run(engine: sa.Engine, name: str, text: str, **values: Any) -> Any:
    what = prepared_statements.Statement(name, as_text, (text,))
    return read(engine, lambda connection: prepared_statements.run(connection, what, values).scalar())


@pytest.mark.slow
def test_no_client_runs_a_statement_that_another_has_prepared(through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody notices the pooler: names of statements say what they do."""
    monkeypatch.setattr(prepared_statements, "_texts", {})
    monkeypatch.setattr(prepared_statements, "_servers_prepare", True)
    monkeypatch.setattr("tuner.storage.sql.engine._is_pooled", lambda connection: False)
    one, two = new_engine(through), new_engine(through)
    try:
        assert run(two, "b", "SELECT 'second'") == "second"
        with one.connect() as connection:
            connection.exec_driver_sql("DEALLOCATE ALL")  # as another session of the server, which two did not prepare
        assert run(one, "a", "SELECT 'first'") == "first"
        assert run(two, "b", "SELECT 'second'") == "second"
    finally:
        one.dispose()
        two.dispose()


@pytest.mark.parametrize("patience", [Patience(0.0), PROMPT], ids=["impatient", "prompt"])
@pytest.mark.slow
def test_a_statement_that_the_pooler_lost_is_run_again_without_preparing(
    through: str, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared_statements, "_texts", {})
    monkeypatch.setattr(prepared_statements, "_servers_prepare", True)
    monkeypatch.setattr("tuner.storage.sql.engine._is_pooled", lambda connection: False)
    engine = patient(new_engine(through), patience)
    try:
        assert run(engine, "a", "SELECT 1") == 1
        with engine.connect() as connection:
            connection.exec_driver_sql("DEALLOCATE ALL")
        assert run(engine, "a", "SELECT 1") == 1
        assert not prepared_statements._servers_prepare
    finally:
        engine.dispose()


@pytest.mark.parametrize("pooler", [{"size": 1}, {"size": 3}], indirect=True, ids=["one", "three"])
@pytest.mark.slow
def test_two_clients_run_trials_at_once(through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and writes of two clients, each statement of which must be its own: nothing is lost or doubled."""
    monkeypatch.setattr(prepared_statements, "_servers_prepare", True)
    errors: list[BaseException] = []
    with opened(through) as first, opened(through) as second:
        study_id = first.create_new_study([StudyDirection.MINIMIZE], "pooled")

        def work(storage: Storage, name: str) -> None:
            try:
                claimant = claims.Claimant(study_id, name, trials=40, lease_s=300.0)
                while isinstance(lease := claims.claim(storage.engine, claimant), Lease):
                    leases.report(storage.engine, lease, [Report(1, 1, {"loss": float(lease.number)})], "loss")
                    storage.set_trial_user_attr(lease.trial_id, "by", name)
                    leases.tell(storage.engine, lease, Outcome.COMPLETE, [float(lease.number)], {"worker": name})
                    found = {one.number: one for one in storage.get_all_trials(study_id)}[lease.number]
                    assert (found.value, found.user_attrs["by"]) == (float(lease.number), name)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=pair) for pair in ((first, "one"), (second, "two"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert errors == []
        told = first.get_all_trials(study_id)
        assert [one.number for one in told] == list(range(40)), "the budget is exact"
        assert [one.value for one in told] == [float(number) for number in range(40)]
        assert {one.user_attrs["by"] for one in told} == {"one", "two"}
        stored = read(first.engine, lambda c: c.execute(sa.select(reports.c.trial_id)).all())
        assert len(stored) == 40


def test_nothing_is_left_in_the_servers_session_for_the_next_client(through: str) -> None:
    names = (
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "default_transaction_isolation",
    )
    with opened(through) as storage:
        storage.get_all_studies()
        plain = psycopg2.connect(through)  # gets the same connection to the server: there is one
        try:
            plain.autocommit = True
            with plain.cursor() as cursor:
                found = []
                for name in names:
                    cursor.execute(f"SHOW {name}")
                    found += cursor.fetchone() or ()
                cursor.execute("SELECT count(*) FROM pg_prepared_statements")
                assert cursor.fetchone() == (0,)
        finally:
            plain.close()
    assert found == ["0", "0", "0", "read committed"]


def test_a_transaction_has_its_limits_and_its_isolation_though_the_session_has_none(
    through: str, server: Server, database: str
) -> None:
    server.ask(f"ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read'")
    server.ask(f"ALTER DATABASE {database} SET lock_timeout = '7s'")
    engine = new_engine(through)
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_isolation")
    try:
        show = [f"SHOW {name}" for name in names]
        found = write(engine, lambda connection, _: [connection.exec_driver_sql(one).scalar_one() for one in show])
    finally:
        engine.dispose()
    assert found == ["2min", "7s", "30s", "read committed"]


def test_an_option_that_pgbouncer_refuses_is_told_at_once_however_patient_the_caller(through: str) -> None:
    engine = patient(new_engine(f"{through}?options=-c%20statement_timeout%3D5000"), Patience(300.0))
    try:
        with pytest.raises(StorageLost, match="unsupported startup parameter"):
            read(engine, lambda connection: connection.exec_driver_sql("SELECT 1").all())
    finally:
        engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize(
    # In session mode each client has a connection to the server: two for a worker, one for the launcher.
    "pooler",
    [
        pytest.param({}, id="transaction"),
        pytest.param({"mode": "session", "size": 5}, id="session", marks=pytest.mark.long),
    ],
    indirect=True,
)
def test_a_launch_through_pgbouncer_is_as_any(
    tuner_on_sqlite: Any, through: str, url: str, tiny_function: Path
) -> None:
    tuner = tuner_on_sqlite
    tuner.env["TUNER_STORAGE"] = through

    done = tuner.run("launch", "tiny.py", "--workers", "2", TINY_TRIALS="6")

    assert done.returncode == 0, done.stderr
    assert "cannot reach the storage" not in done.stderr
    tuner.env["TUNER_STORAGE"] = url
    assert [row["outcome"] for row in tuner.rows("trials", "tiny")] == ["complete"] * 6
