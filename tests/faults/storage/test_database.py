"""A database that goes away, cuts off, locks or refuses: training goes on, and nothing is lost, doubled or told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import sqlalchemy as sa
from after_faults import check_study_after_faults, endings_of, processes_of, table
from postgres_server import PASSWORD, ROLE, Server
from sqlalchemy.exc import DBAPIError

from tuner.errors import StorageDenied, StorageLost
from tuner.search.followed import Followed
from tuner.search.halving import AshaPruner
from tuner.storage import connect, open_storage
from tuner.storage.optuna.storage import Storage
from tuner.storage.sql.engine import new_engine
from tuner.storage.sql.retry import Patience, patient, read, write
from tuner.storage.sql.tables import reports, trial_intermediate_values
from tuner.trial import Report
from tuner.worker.attempts.judge import Judge

Wait = Callable[..., Any]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where the commands are, and leave their checkpoints."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tuner(tuner_on_sqlite: Any, url: str, tiny_function: Path) -> Any:
    """The command line on the empty database, with the tiny study in its folder."""
    tuner_on_sqlite.env["TUNER_STORAGE"] = url
    return tuner_on_sqlite


@pytest.fixture
def any_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty storage of the kind that a test names."""
    return request.getfixturevalue({"sqlite": "sqlite_url", "postgres": "url"}[request.param])


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """An engine with patience on the empty database."""
    engine = patient(new_engine(url), Patience(20.0))
    yield engine
    engine.dispose()


# --- What must hold after every fault


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    engine = connect(url)
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]
    finally:
        engine.dispose()


def count(url: str, name: str) -> int:
    """Return how many rows a table has; none while it does not exist."""
    found = rows_or_none(url, f"SELECT count(*) FROM {name}")
    return found[0][0] if found else 0


def rows_or_none(url: str, query: str) -> list[tuple[Any, ...]]:
    try:
        return rows(url, query)
    except (StorageLost, DBAPIError):
        return []


def has_reports(url: str, number: int) -> Callable[[], bool]:
    return lambda: count(url, "tuner_reports") >= number


def check(
    url: str, output: str, trials: int, *, epochs: int = 3, keeps_best: int = 3, endings: Sequence[str] = ("complete",)
) -> None:
    """Check what must hold after every fault, and that no trial changed hands and no password was told.

    Args:
        url: The storage.
        output: All that the commands wrote.
        trials: The budget.
        epochs: The study's.
        keeps_best: How many of the best must have their checkpoint.
        endings: How the attempts of each trial ended.
    """
    assert PASSWORD not in output
    assert "Traceback" not in output, output
    assert " died (" not in output, output
    check_study_after_faults(url, Path("tuner-artifacts"), trials, epochs=epochs, keeps_best=keeps_best)
    assert endings_of(url) == {number: list(endings) for number in range(trials)}
    points = trial_intermediate_values.c
    told = {(trial, epoch): value for trial, epoch, value in table(url, points.trial_id, points.step, points[3])}
    stored = table(url, reports.c.trial_id, reports.c.epoch, reports.c.metrics)
    assert told == {(trial, epoch): json.loads(metrics)["loss"] for trial, epoch, metrics in stored}


_OUTAGE = re.compile(
    r"^(?:tuner: \[(\d)\] )?tuner: .*cannot reach the storage.*?(continues meanwhile|waiting for it|$)"
)


def outages(output: str) -> list[tuple[str, str]]:
    """Return the lines about a database that does not answer, each as the worker's number and what it said of it."""
    found = [_OUTAGE.search(line) for line in output.splitlines()]
    return [(one[1], "not renewed" if "not renewed" in one[0] else one[2]) for one in found if one is not None]


class Steps:
    """How far each worker has trained, as the tiny study notes it: without the database."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "steps"
        self.path.touch()

    def seen(self) -> list[tuple[int, int, int]]:
        """Return (process, trial, step) in their order."""
        lines = self.path.read_text().splitlines()
        return [cast("tuple[int, int, int]", tuple(int(word) for word in line.split())) for line in lines]

    def have_passed(self, number: int, workers: int) -> Callable[[], bool]:
        """Return whether each of so many workers has passed so many places since now."""
        before = len(self.seen())

        def check() -> bool:
            since = [process for process, *_ in self.seen()[before:]]
            return len(set(since)) >= workers and min(since.count(process) for process in set(since)) >= number

        return check


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path)


# --- A server that goes away


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", pytest.param("immediate", marks=pytest.mark.long)])
def test_training_goes_on_through_a_restart(tuner: Any, server: Server, url: str, wait_until: Wait, mode: str) -> None:
    # Short trials, so that each restart comes between the claim of one and its end, whose calls wait.
    short = {"TINY_PAUSE_S": "0.1", "TINY_EPOCHS": "1", "TINY_TRIALS": "24"}
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", **short)
    for _ in range(3):
        stored = count(url, "tuner_reports")
        wait_until(has_reports(url, stored + 3))
        server.restart(mode)

    output, _ = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, output
    check(url, output, 24, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pause_s", "epochs", "places"),
    [(0.5, 17, 10), pytest.param(2.0, 36, 30, marks=pytest.mark.long)],
    ids=["5 s", "60 s"],
)
def test_trials_train_on_while_the_server_is_away(
    tuner: Any, server: Server, url: str, steps: Steps, wait_until: Wait, pause_s: float, epochs: int, places: int
) -> None:
    slow = {"TINY_PAUSE_S": str(pause_s), "TINY_EPOCHS": str(epochs), "TINY_TRIALS": "2"}
    start = steps.path.with_name("start")
    start.mkdir()
    notes = {"TINY_STEPS_FILE": str(steps.path), "TINY_START_FOLDER": str(start)}
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", **slow, **notes)
    wait_until(lambda: len(list(start.iterdir())) == 2)
    (start / "go").touch()  # together, so that neither is near its end when the server goes
    wait_until(lambda: len(set(rows_or_none(url, "SELECT trial_id FROM tuner_reports"))) == 2)
    server.stop()
    try:
        wait_until(steps.have_passed(places, workers=2))
    finally:
        server.start()

    output, _ = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, output
    check(url, output, 2, epochs=epochs)
    lines = Counter(outages(output))
    assert set(lines.values()) == {1}, "a worker says once that its reports wait, and once that its lease does"
    assert {number for number, _ in lines} == {"0", "1"}, "whichever of the two fails first"
    assert {said for _, said in lines} <= {"continues meanwhile", "not renewed"}


@pytest.mark.slow
def test_workers_whose_connections_are_cut_off_again_and_again_lose_nothing(
    tuner: Any, server: Server, database: str, url: str, wait_until: Wait
) -> None:
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", TINY_PAUSE_S="0.2", TINY_TRIALS="11")
    wait_until(has_reports(url, 2))
    ended, reports = 0, 0
    for _ in range(3):
        reports = count(url, "tuner_reports")
        ended += server.cut_off(database)
        wait_until(has_reports(url, reports + 2))
    while ended < 10 and launcher.poll() is None:
        ended += server.cut_off(database)

    output, _ = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, output
    assert ended >= 10
    check(url, output, 11)


@pytest.mark.slow
def test_a_database_that_goes_away_before_a_pruning_decision_does_not_hold_training_up(
    server: Server, database: str, url: str
) -> None:
    # The database stays away until it is decided: who waited for it would wait longer than a test may take.
    storage = Storage(url, Patience(3600.0))
    storage.engine = waiting = patient(storage.engine, Patience(3600.0))
    study = optuna.create_study(storage=storage, pruner=AshaPruner(min_resource=1))
    trial = study.ask()
    ours = SimpleNamespace(followed=Followed(("loss",), (False,)), all_constraints=())
    context = SimpleNamespace(storage=storage, pruning_study=study, study=ours, must_end=lambda: False)
    judge = Judge(cast("Any", context), trial)
    with server.refused(database):
        assert not judge.is_hopeless(Report(1, 1, {"loss": 0.5}))

    assert storage.engine is waiting, "what else it does is waited for again"
    assert not judge.is_hopeless(Report(2, 2, {"loss": 0.5})), "it is the best so far"
    assert rows(url, "SELECT rung, value FROM tuner_rungs") == [(0, 0.5)]
    storage.close()


@pytest.mark.slow
def test_a_worker_whose_database_stays_away_ends_and_another_goes_on_with_its_trial(
    tuner: Any, tiny_study: Path, server: Server, database: str, url: str, wait_until: Wait
) -> None:
    slow = {"TINY_PAUSE_S": "0.3", "TINY_EPOCHS": "8", "TINY_TRIALS": "1", "TINY_SAVE_S": "0", "TINY_LEASE_S": "4"}
    env = {**slow, "TINY_PATIENCE_S": "1", "TINY_LOOP": "scan"}
    first = tuner.start("worker", "tiny.py", **env)
    wait_until(has_reports(url, 2))
    with server.refused(database):
        output, _ = first.communicate(timeout=300)

    assert first.returncode == 75
    last = output.splitlines()[-1]
    assert re.fullmatch(r"tuner: cannot reach the storage .*\*\*\*@.* check the storage URL", last)
    assert "Traceback" not in output
    second = tuner.start("worker", "tiny.py", **env)
    more, _ = second.communicate(timeout=300)
    assert second.returncode == 0, more
    first_epoch = re.search(r"trial 0, epoch (\d+)", more)
    assert first_epoch is not None
    assert int(first_epoch[1]) > 2, "from its checkpoint, which it saved after each epoch"
    check(url, output + more, 1, epochs=8, endings=["died", "complete"])


# --- A server that cuts off one of them


@pytest.mark.slow
def test_a_worker_that_is_stopped_in_a_transaction_does_not_stop_the_others(
    tuner: Any, server: Server, database: str, url: str, tmp_path: Path, wait_until: Wait
) -> None:
    server.ask(f"ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '1s'")
    note = tmp_path / "stopped"
    slow = {"TINY_PAUSE_S": "0.2", "TINY_TRIALS": "10"}
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", **slow, TINY_STOPPED_FILE=str(note))
    wait_until(lambda: note.exists() and note.read_text())
    stopped = int(note.read_text())
    try:
        wait_until(lambda: "State:\tT" in Path(f"/proc/{stopped}/status").read_text())
        ended = "SELECT count(*) FROM tuner_records"
        before = rows(url, ended)[0][0]
        # One under way when the first was stopped, and one that was claimed after.
        wait_until(lambda: rows(url, ended)[0][0] >= before + 2)
    finally:
        os.kill(stopped, signal.SIGCONT)

    output, _ = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, output
    check(url, output, 10)
    by_worker = rows(
        url,
        "SELECT count(*) FROM tuner_records JOIN tuner_workers ON tuner_workers.worker = tuner_records.worker "
        f"WHERE pid = {stopped}",
    )
    assert by_worker[0][0] >= 2, "one before it was stopped, and others afterwards"


@pytest.mark.slow
def test_a_worker_takes_no_more_than_two_connections(tuner: Any, server: Server, database: str, url: str) -> None:
    server.ask(f"ALTER DATABASE {database} CONNECTION LIMIT 2")
    worker = tuner.start("worker", "tiny.py", TINY_PAUSE_S="0.1", TINY_TRIALS="3", TINY_LEASE_S="1")
    # Not the server's own processes: it may vacuum meanwhile.
    query = (
        "SELECT pid, application_name, state FROM pg_stat_activity "
        "WHERE datname = %s AND backend_type = 'client backend'"
    )
    seen: list[list[tuple[int, str, str | None]]] = []
    while worker.poll() is None:
        seen.append(cast("list[tuple[int, str, str | None]]", server.ask(query, database)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(0.03)

    output, _ = worker.communicate(timeout=300)

    assert worker.returncode == 0, output
    # A connection is listed from its start on, and has its name when it can take statements.
    assert {name for several in seen for _, name, state in several if state not in (None, "starting")} == {"tuner"}
    assert max(map(len, seen)) <= 2, "one to work, one to renew leases"
    assert outages(output) == [], "a third would have been refused"
    check(url, output, 3)


# --- A SQLite file that is locked

_LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.long
@pytest.mark.slow
def test_workers_wait_for_a_sqlite_file_that_another_process_locks(
    tuner_on_sqlite: Any, sqlite_url: str, tiny_function: Path, steps: Steps, wait_until: Wait
) -> None:
    tuner = tuner_on_sqlite
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", TINY_PAUSE_S="0.3")
    wait_until(has_reports(sqlite_url, 3))
    words = [sys.executable, "-c", _LOCK, sqlite_url.removeprefix("sqlite:///")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as locker:
        assert locker.stdin is not None
        assert locker.stdout is not None
        assert locker.stdout.readline() == "locked\n"
        began = count(sqlite_url, "tuner_reports")
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.wait(15)
        assert count(sqlite_url, "tuner_reports") == began, "it was locked"
        locker.stdin.close()

    output, _ = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, output
    check(sqlite_url, output, 6)


# --- Twenty at once on an empty database

_CROWD = """
import multiprocessing, os, sys, time
import optuna
from tuner.storage import open_storage
from tuner.storage.worker.claims import Claimant, NoTrial, claim
from tuner.storage.worker.leases import report, tell
from tuner.storage.worker.studies import register
from tuner.storage.optuna import storage as optuna_storage
from tuner.trial import Outcome, Report

optuna.logging.set_verbosity(optuna.logging.WARNING)

def work(barrier, url, trials):
    barrier.wait()
    storage = open_storage(url)
    study = register(storage, storage.engine, "tiny", ["minimize"], {"epochs": 1})
    claimant = Claimant(study.study_id, str(os.getpid()), trials=trials, lease_s=60.0)
    while (lease := claim(storage.engine, claimant)) is not NoTrial.DONE:
        if lease is NoTrial.WAIT:
            time.sleep(0.05)
            continue
        report(storage.engine, lease, [Report(1, 1, {"loss": 0.5})], "loss")
        tell(storage.engine, lease, Outcome.COMPLETE, [0.5], {})
    storage.close()

if __name__ == "__main__":
    forking = multiprocessing.get_context("fork")
    barrier = forking.Barrier(int(sys.argv[2]))
    several = [forking.Process(target=work, args=(barrier, sys.argv[1], 30)) for _ in range(int(sys.argv[2]))]
    for one in several:
        one.start()
    for one in several:
        one.join()
    sys.exit(max(abs(one.exitcode) for one in several))
"""


def check_tables(url: str) -> None:
    """Check that tables and study were made once."""
    made = ("version_info", "alembic_version", "tuner_alembic_version", "studies", "tuner_budgets", "study_directions")
    assert {name: count(url, name) for name in made} == dict.fromkeys(made, 1)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("any_url", ["sqlite", "postgres"], indirect=True)
def test_several_processes_start_at_once_on_an_empty_storage(any_url: str) -> None:
    done = subprocess.run([sys.executable, "-c", _CROWD, any_url, "8"], capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    check_tables(any_url)
    check(any_url, "", 30, epochs=1, keeps_best=0)


@pytest.mark.long
@pytest.mark.parametrize("any_url", ["sqlite", "postgres"], indirect=True)
def test_twenty_workers_start_at_once_on_an_empty_storage(
    any_url: str, tuner_on_sqlite: Any, tiny_study: Path, tmp_path: Path, wait_until: Wait
) -> None:
    folder = tmp_path / "start"
    folder.mkdir()
    tuner_on_sqlite.env["TUNER_STORAGE"] = any_url
    env = {"TINY_START_FOLDER": str(folder), "TINY_TRIALS": "30", "TINY_EPOCHS": "1"}
    workers = [tuner_on_sqlite.start("worker", "tiny.py", **env) for _ in range(20)]
    wait_until(lambda: len(list(folder.iterdir())) == 20)
    (folder / "go").touch()

    outputs = [worker.communicate(timeout=300)[0] for worker in workers]

    assert [worker.returncode for worker in workers] == [0] * 20, outputs
    assert not any(outages(output) for output in outputs)
    check_tables(any_url)
    check(any_url, "".join(outputs), 30, epochs=1)


# --- Conflicts: what the server rolls back is done again


@pytest.fixture
def two_rows(engine: sa.Engine) -> sa.Engine:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE counts (id integer PRIMARY KEY, n integer NOT NULL)")
        connection.exec_driver_sql("INSERT INTO counts VALUES (1, 0), (2, 0)")
    return engine


def at_once(*works: Callable[[], Any]) -> None:
    """Call several functions, each in a thread; raise what one raises."""
    errors: list[BaseException] = []

    def run(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    if errors:
        raise errors[0]


@pytest.mark.slow
def test_of_two_transactions_in_a_deadlock_both_succeed(two_rows: sa.Engine) -> None:
    meet, tried = threading.Barrier(2), []

    def change(first: int, second: int) -> None:
        def work(connection: sa.Connection, tries: int) -> None:
            tried.append(tries)
            connection.exec_driver_sql(f"UPDATE counts SET n = n + 1 WHERE id = {first}")
            if not tries:
                meet.wait(300)
            connection.exec_driver_sql(f"UPDATE counts SET n = n + 1 WHERE id = {second}")

        write(patient(two_rows, Patience(0.0)), work)

    at_once(lambda: change(1, 2), lambda: change(2, 1))

    assert sorted(tried) == [0, 0, 1]
    assert read(two_rows, lambda c: c.exec_driver_sql("SELECT id, n FROM counts ORDER BY id").all()) == [(1, 2), (2, 2)]


def test_a_transaction_that_cannot_be_serialized_is_repeated(two_rows: sa.Engine) -> None:
    meet, tried = threading.Barrier(2), []

    def add() -> None:
        def work(connection: sa.Connection, tries: int) -> None:
            tried.append(tries)
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            n = connection.exec_driver_sql("SELECT n FROM counts WHERE id = 1").scalar_one()
            if not tries:
                meet.wait(300)
            connection.exec_driver_sql(f"UPDATE counts SET n = {n + 1} WHERE id = 1")

        write(patient(two_rows, Patience(0.0)), work)

    at_once(add, add)

    assert sorted(tried)[:2] == [0, 0]
    assert len(tried) > 2
    assert read(two_rows, lambda c: c.exec_driver_sql("SELECT n FROM counts WHERE id = 1").scalar_one()) == 2


# --- What a URL, a role or a database sets itself

_LIMITS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")


def limits(url: str) -> list[str]:
    """Return the session's limits, as a worker has them."""
    engine = new_engine(url)
    try:
        return read(engine, lambda c: [c.exec_driver_sql(f"SHOW {name}").scalar_one() for name in _LIMITS])
    finally:
        engine.dispose()


def test_limits_are_ours_where_nobody_set_any(url: str) -> None:
    assert limits(url) == ["2min", "30s", "30s"]


def test_limits_of_the_url_the_role_and_the_database_stay(server: Server, database: str, url: str) -> None:
    assert limits(f"{url}?options=-c%20statement_timeout=1234") == ["1234ms", "30s", "30s"]
    server.ask(f"ALTER ROLE {ROLE} IN DATABASE {database} SET statement_timeout = '77s'")
    server.ask(f"ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '9s'")
    assert limits(url) == ["77s", "30s", "9s"]


def test_a_limit_that_was_set_before_ends_a_statement(url: str) -> None:
    engine = new_engine(f"{url}?options=-c%20statement_timeout=50")
    with pytest.raises(StorageLost, match="canceling statement due to statement timeout"):
        read(engine, lambda connection: connection.exec_driver_sql("SELECT pg_sleep(5)").all())
    engine.dispose()


# --- Who may connect, and what is told of it


def refusal(tuner: Any, url: str) -> str:
    """Return what `tuner studies` says of a storage that it cannot reach."""
    done = tuner.run("studies", TUNER_STORAGE=url)
    assert done.returncode == 75
    assert done.stdout == ""
    assert PASSWORD not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.slow
def test_a_server_without_encryption_is_refused_in_one_line_where_the_url_requires_it(tuner: Any, url: str) -> None:
    told = refusal(tuner, f"{url}?sslmode=require")

    assert told.startswith("tuner: cannot reach the storage ")
    assert "server does not support SSL, but SSL was required" in told


def test_a_wrong_password_is_refused_at_once_however_patient_the_caller(server: Server, database: str) -> None:
    engine = patient(new_engine(server.url(database, password="wr0ng-Thumb")), Patience(3600.0))

    with pytest.raises(StorageLost, match="password authentication failed") as caught:
        read(engine, lambda connection: connection.exec_driver_sql("SELECT 1").all())

    assert "wr0ng" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_password_is_refused_at_once_however_patient_the_caller(server: Server, database: str) -> None:
    engine = patient(new_engine(f"postgresql://{ROLE}@127.0.0.1:{server.port}/{database}"), Patience(3600.0))

    with pytest.raises(StorageLost, match="no password supplied"):
        read(engine, lambda connection: connection.exec_driver_sql("SELECT 1").all())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["password file", "service file"])
def test_a_password_or_all_may_come_from_a_file(
    tuner: Any, server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    path = tmp_path / "secrets"
    if way == "password file":
        path.write_text(f"127.0.0.1:{server.port}:{database}:{ROLE}:{PASSWORD}\n")
        path.chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(path))
        storage = f"postgresql://{ROLE}@127.0.0.1:{server.port}/{database}"
    else:
        place = f"host=127.0.0.1\nport={server.port}\ndbname={database}\nuser={ROLE}\npassword={PASSWORD}\n"
        path.write_text(f"[shared]\n{place}")
        monkeypatch.setenv("PGSERVICEFILE", str(path))
        storage = "postgresql:///?service=shared"

    open_storage(storage).close()

    assert limits(storage)[0] == "2min"
    assert count(storage, "version_info") == 1


@pytest.mark.slow
def test_the_password_of_a_storage_is_nowhere_but_where_it_was_given(
    tuner: Any, server: Server, database: str, url: str, wait_until: Wait, tmp_path: Path
) -> None:
    launcher = tuner.start("launch", "tiny.py", "--workers", "1", TINY_PAUSE_S="0.2", TINY_TRIALS="2")
    wait_until(has_reports(url, 2))
    running = processes_of(url)
    lines = [Path(f"/proc/{process}/cmdline").read_bytes() for process in running]
    server.cut_off(database)

    output, _ = launcher.communicate(timeout=300)

    assert len(running) >= 2, "the launcher and its worker"
    assert not any(PASSWORD.encode() in line for line in lines)
    assert "***@127.0.0.1" in output
    check(url, output, 2)
    assert not any(PASSWORD in value for value in texts(server, database))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(PASSWORD.encode() in path.read_bytes() for path in files)


def texts(server: Server, database: str) -> list[str]:
    """Return every row of every table of a database, as text."""
    tables = server.ask("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=database)
    assert len(tables) > 15
    return [text for (table,) in tables for (text,) in server.ask(f"SELECT t::text FROM {table} t", database=database)]


# --- A disk


@pytest.mark.parametrize("code", ["53100", "53200", "58030"])
def test_a_server_without_room_is_waited_for(engine: sa.Engine, capsys: pytest.CaptureFixture[str], code: str) -> None:
    text = "could not extend file: No space left on device"
    fail = f"DO $$ BEGIN RAISE EXCEPTION '{text}' USING ERRCODE = '{code}'; END $$"

    def work(connection: sa.Connection, tries: int) -> int:
        return connection.exec_driver_sql(fail if tries < 2 else "SELECT 1").rowcount

    assert write(engine, work) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert text in first
    assert ("the storage's disk is full" in first) == (code == "53100")
    assert first.endswith("; waiting for it")
    assert second == "tuner: the storage answers again"


@pytest.fixture
def file(sqlite_url: str) -> Iterator[sa.Engine]:
    """An engine with patience on a SQLite file that has a table and may not grow."""
    engine = patient(new_engine(sqlite_url), Patience(30.0))
    write(engine, lambda connection, _: connection.exec_driver_sql("CREATE TABLE texts (text TEXT)"))
    yield engine
    engine.dispose()


def write_much(connection: sa.Connection, _: int = 0) -> None:
    connection.exec_driver_sql("INSERT INTO texts VALUES (?)", ("x" * 100_000,))


def limit_pages(engine: sa.Engine, pages: int) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


def test_a_full_sqlite_file_is_waited_for(file: sa.Engine, capsys: pytest.CaptureFixture[str]) -> None:
    limit_pages(file, 4)

    def work(connection: sa.Connection, tries: int) -> int:
        if tries == 2:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000")
        write_much(connection)
        return tries

    assert write(file, work) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"tuner: the storage's disk is full: sqlite:///.* \(database or disk is full\); .*", first)
    assert second == "tuner: the storage answers again"
    assert read(file, lambda c: c.exec_driver_sql("SELECT count(*) FROM texts").scalar_one()) == 1


def test_a_sqlite_file_that_becomes_read_only_is_waited_for_and_one_that_is_so_is_not(
    file: sa.Engine, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(connection: sa.Connection, tries: int) -> int:
        connection.exec_driver_sql(f"PRAGMA query_only = {int(tries < 2)}")
        try:
            write_much(connection)
        finally:
            connection.exec_driver_sql("PRAGMA query_only = 0")
        return tries

    assert write(file, work) == 2
    assert "attempt to write a readonly database" in capsys.readouterr().err
    other = patient(new_engine(sqlite_url), Patience(600.0))
    with pytest.raises(StorageDenied, match="readonly"):
        write(other, lambda connection, _: work(connection, 0))
    other.dispose()


@pytest.mark.slow
def test_a_launch_waits_while_the_disk_under_the_database_is_full(
    tuner_on_sqlite: Any, tiny_function: Path, small_disk: Path, wait_until: Wait
) -> None:
    tuner, url = tuner_on_sqlite, f"sqlite:///{small_disk / 'study.db'}"
    tuner.env["TUNER_STORAGE"] = url
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", TINY_TRIALS="20", TINY_PAUSE_S="0.3")
    wait_until(has_reports(url, 2))
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    assert launcher.stdout is not None
    lines = []
    for line in launcher.stdout:
        lines.append(line)
        if "disk is full" in line or "disk I/O error" in line:
            break
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)

    rest, _ = launcher.communicate(timeout=300)

    output = "".join(lines) + rest
    assert launcher.returncode == 0, output
    assert "; waiting for it" in output or "continues meanwhile" in output or "cannot renew the lease" in output
    check(url, output, 20)
