"""Every command of the command line as a Postgres role that lacks rights: one line, or the work that needs none."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import databases
import optuna
import pytest
import sqlalchemy as sa
import typer

from tuner.cli import app
from tuner.storage.artifacts import study_folder

PASSWORD = "s3cret-Word"
READ, WRITE, CHECK, SEND = "reads", "writes", "checks rights", "reads, and writes once there is a model"
JOBS = "reads, and needs a job of an engine"
CONTINUE = "reads, and writes once there is a last state"

COMMANDS: dict[str, tuple[str, str]] = {
    "launch": (WRITE, "tiny.py --workers 1 --trials 99"),
    "worker": (WRITE, "tiny.py --trials 99"),
    "studies": (READ, ""),
    "trials": (READ, "tiny"),
    "best": (READ, "tiny"),
    "show": (READ, "tiny 0"),
    "watch": (READ, "tiny"),
    "scale": (JOBS, "tiny 2"),
    "logs": (JOBS, "tiny"),
    "compare": (READ, "tiny tiny"),
    "importance": (READ, "tiny"),
    "replay": (READ, "tiny --pruner median"),
    "plot": (READ, "tiny history --out history.png --force"),
    "export": (READ, "tiny trials.csv --force"),
    "reproduce": (READ, "tiny {complete}"),
    "confirm": (WRITE, "tiny -n 1 --seeds 1"),
    "enqueue": (WRITE, "tiny learning_rate=0.01"),
    "retry": (WRITE, "tiny {diverged}"),
    "label": (WRITE, "tiny vision"),
    "extend": (CONTINUE, "tiny --epochs 4"),
    "migrate": (WRITE, "tiny --file wider.py"),
    "stop": (WRITE, "tiny"),
    "stop --trial": (WRITE, "{complete} tiny"),
    "resume": (WRITE, "tiny"),
    "delete": (WRITE, "tiny --yes"),
    "gc": (READ, "tiny --keep 99"),
    "doctor": (CHECK, "--format json"),
    "mcp": (READ, "--read-only"),
    "upgrade": (READ, ""),
    "dashboard": (READ, "--port 0"),
    "track": (WRITE, "tiny --tensorboard board --once"),
    "register": (SEND, "tiny --mlflow http://127.0.0.1:1"),
}
"""What each command does with the tables, and its words. `gc` removes files; `upgrade` has nothing to do."""

STUDY = """
import math
from tuner import Space, Study, log_uniform, uniform

class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    noise: float = uniform(0.0, 1.0)

# Without training; some diverge.
def train(hparams, trial):
    for epoch in (1, 2):
        yield {"loss": math.nan if hparams.noise > 0.8 else hparams.learning_rate / epoch}

study = Study(
    name="tiny", space=HParams, train=train, objective="loss", direction="minimize", epochs=2, trials=24,
    sampler="random", pruner="none", keep_best=0,
)
"""

# Forks one process for each command: the imports would take a minute.
RUN = """
import json, os, signal, sys, time, traceback
import mcp.server, optuna, optuna_dashboard
import tuner.results.plots, tuner.storage.optuna.storage, tuner.worker.loop, tuner.worker.rerun, tuner.dashboard
import tuner.tracking.mirror
from tuner.cli import main

def run(words, storage):
    os.environ["TUNER_STORAGE"] = storage
    sys.argv = ["tuner", *words]
    for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    try:
        main()
        status = 0
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

for line in sys.stdin:
    asked = json.loads(line)
    for name in ("stdout", "stderr"):
        open(name, "w").close()
    if (pid := os.fork()) == 0:
        run(asked["words"], asked["storage"])
    is_told = False
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if not is_told and "press Ctrl-C to stop" in open("stderr").read():
            os.kill(pid, signal.SIGTERM)
            is_told = True
        time.sleep(0.01)
    said = {name: open(name, errors="replace").read() for name in ("stdout", "stderr")}
    print(json.dumps({"status": os.waitstatus_to_exitcode(ended[1]), **said}), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What a command did."""

    status: int
    stdout: str
    stderr: str


class Shell:
    """Runs commands in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RUN],
            cwd=folder,
            env={**os.environ, "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, storage: str, *words: str) -> Done:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"words": words, "storage": storage}), file=self.process.stdin, flush=True)
        return Done(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def commands_of(command: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """Yield the commands of a command line, those of groups with the group's name before theirs."""
    if not hasattr(command, "commands"):
        yield " ".join(names), command
        return
    for name, inner in command.commands.items():
        yield from commands_of(inner, *names, name)


WITH_STORAGE = {
    name: command
    for name, command in commands_of(typer.main.get_command(app))
    if any(parameter.name == "storage" for parameter in command.params)
}


@dataclass(frozen=True)
class Place:
    """A server with a study in one of its databases, whose owner the tests are."""

    shell: Shell
    server: str
    url: str
    numbers: dict[str, int]

    def words(self, name: str) -> list[str]:
        """Return a command and its arguments."""
        return [*name.split(), *COMMANDS[name][1].format(**self.numbers).split()]

    def runs(self, name: str, role: str, url: str | None = None) -> Done:
        """Run a command as a role, on the study's database or another."""
        given = sa.make_url(url or self.url).set(drivername="postgresql", username=role, password=PASSWORD)
        return self.shell.run(given.render_as_string(hide_password=False), *self.words(name))


@pytest.fixture(scope="module")
def place(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("rights")
    (folder / "tiny.py").write_text(STUDY)
    (folder / "wider.py").write_text(STUDY.replace("uniform(0.0, 1.0)", "uniform(0.0, 2.0)"))
    made = databases.new_database(postgres_server)
    url = made.replace("postgresql+psycopg2:", "postgresql:", 1)
    shell = Shell(folder)
    try:
        done = shell.run(url, "worker", "tiny.py")
        assert done.status == 0, done.stderr
        rows = json.loads(shell.run(url, "trials", "tiny", "--format", "json").stdout)
        numbers = {row["outcome"]: row["number"] for row in reversed(rows)}
        assert numbers.keys() == {"complete", "diverged"}
        yield Place(shell, postgres_server, url, numbers)
    finally:
        shell.close()
        databases.drop_database(postgres_server, made)


def execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements as the owner of all; return the rows of the last one, if it has any."""
    rows: list[tuple[Any, ...]] = []
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg2"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            done = connection.exec_driver_sql(statement)
            rows = [tuple(row) for row in done] if done.returns_rows else []
    engine.dispose()
    return rows


@pytest.fixture
def role(place: Place) -> Iterator[str]:
    """A role that may log in, and has no rights but those of every role."""
    name = f"role_{os.urandom(4).hex()}"
    execute(place.url, f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    yield name
    execute(place.url, f"DROP OWNED BY {name}")
    execute(place.server, f"DROP ROLE {name}")


DENIED = r"the database user is not allowed to read and write the storage's tables: '[^\n]*'; [^\n]*grant[^\n]*"
ABSENT = r"no study 'tiny' in this storage: it has none"


def test_every_command_that_takes_a_storage_is_tried() -> None:
    assert {name.partition(" --")[0] for name in COMMANDS} == WITH_STORAGE.keys()


def check_said(done: Done) -> list[str]:
    """Return what a command said beside what a launch says first; check that it shows neither code nor secrets."""
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert not re.search(r"SELECT .* FROM|INSERT INTO|UPDATE .* SET|DELETE FROM|\[SQL", said)
    assert PASSWORD not in said
    return [line for line in done.stderr.splitlines() if not line.startswith("tuner: tiny.py with 1 worker on ")]


def check_refused(done: Done, form: str = DENIED) -> None:
    """Check that a command said one line of a form, and did nothing."""
    (line,) = check_said(done)
    assert re.fullmatch(f"tuner: {form}", line)
    assert (done.status, done.stdout) == (2, "")


def check_found(done: Done, right: str) -> None:
    """Check that `tuner doctor` finds the missing right."""
    check_said(done)
    assert done.status == 1
    found = {row["check"]: (row["status"], row["found"]) for row in json.loads(done.stdout)}
    assert found["storage"][0] == "fail"
    assert re.fullmatch(DENIED, found["storage"][1])
    assert right in found["storage"][1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("right", [pytest.param("no USAGE on a schema", marks=pytest.mark.long), "no SELECT on"])
def test_without_any_right_every_command_is_refused_in_one_line(place: Place, role: str, right: str) -> None:
    if "USAGE" in right:
        execute(place.url, "REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    try:
        for name in COMMANDS:
            done = place.runs(name, role)
            if name == "doctor":
                check_found(done, right)
            else:
                check_refused(done)
    finally:
        execute(place.url, "GRANT USAGE ON SCHEMA public TO PUBLIC")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_with_the_right_to_read_queries_work_and_all_else_is_refused_in_one_line(place: Place, role: str) -> None:
    execute(place.url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    ((identity,),) = execute(place.url, "SELECT identity FROM tuner_budgets")
    kept = study_folder(place.shell.folder / "tuner-artifacts", "tiny", identity) / "kept"
    kept.mkdir(parents=True)

    for name, (kind, _) in COMMANDS.items():
        done = place.runs(name, role)
        if kind == READ:
            assert (done.status, name, done.stderr if done.status else "") == (0, name, "")
            assert "is not allowed" not in "".join(check_said(done))
        elif kind == WRITE:
            check_refused(done)
        elif kind == CHECK:
            check_found(done, "no INSERT on")
        elif kind == JOBS:
            check_refused(done, "(the study|study 'tiny') has no job on a cluster.*")
        elif kind == CONTINUE:
            check_refused(done, ".*keep_last.*")
        else:
            check_refused(done, ".*has a function instead of a trainer.*")  # after the reading

    assert kept.exists(), "nothing was deleted"


MAKES_TABLES = ("launch", "worker", "track")
"""The commands that make the tables that are missing; `upgrade` makes ours where those of Optuna exist."""


@pytest.fixture
def other_url(place: Place) -> Iterator[str]:
    """A database where only its owner may make tables."""
    made = databases.new_database(place.server)
    url = made.replace("postgresql+psycopg2:", "postgresql:", 1)
    execute(url, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield url
    databases.drop_database(place.server, made)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_where_no_table_exists_those_that_would_make_them_are_refused_in_one_line(
    place: Place, role: str, other_url: str
) -> None:
    for name in COMMANDS:
        done = place.runs(name, role, other_url)
        if name in MAKES_TABLES:
            check_refused(done)
        elif name == "doctor":
            check_found(done, "no CREATE on schema public")
        elif name in ("studies", "mcp"):
            assert (done.status, check_said(done)) == (0, [])
        elif name == "dashboard":
            assert (done.status, len(check_said(done))) == (0, 1), "it waits for the first study"
        elif name == "upgrade":
            check_refused(done, "nothing to upgrade in .*: it has no tables")
        else:
            check_refused(done, ABSENT)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_where_only_optunas_tables_exist_those_that_would_make_ours_are_refused_in_one_line(
    place: Place, role: str, other_url: str
) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = sa.make_url(other_url).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    storage = optuna.storages.RDBStorage(made)
    optuna.create_study(storage=storage, study_name="tiny").add_trial(optuna.create_trial(value=0.5))
    storage.engine.dispose()
    rights = [f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {role}" for kind in ("TABLES", "SEQUENCES")]
    execute(other_url, *rights)

    for name in sorted(COMMANDS.keys() - {"watch"}):  # it follows a study of another tool until it is interrupted
        done = place.runs(name, role, other_url)
        if name in (*MAKES_TABLES, "upgrade"):
            check_refused(done)
        elif name == "doctor":
            check_found(done, "no CREATE on schema public")
        elif done.status != 0:
            check_refused(done, ".*")
        else:
            check_said(done)
