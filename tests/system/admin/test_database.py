"""`tuner database`: a real server from pip, started through the command line."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from command_line import Tuner
from database_command import DatabaseCommand, runs

from tuner.admin.database.binaries import find_binaries

WITH_TLS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
# A process of root that becomes another user, and is then like one of that user's own. What it imports late may be in a
# folder of root's, so it first runs a command that is refused.
AS_NOBODY = """
import os, pwd, sys
import typer.main, tuner.cli, tuner.errors
try:
    typer.main.get_command(tuner.cli.app)(["database", "none", "--port", "0"], standalone_mode=False)
except tuner.errors.UsageError:
    pass
account = pwd.getpwnam("nobody")
os.setgroups([]), os.setgid(account.pw_gid), os.setuid(account.pw_uid)
os.chdir("/")
tuner.cli.main()
"""


@pytest.fixture
def command() -> Iterator[DatabaseCommand]:
    made = DatabaseCommand()
    yield made
    made.end()


@pytest.fixture(scope="module")
def running(wait_until: Callable[..., Any]) -> Iterator[DatabaseCommand]:
    """A database that is served while the tests of this module look at it."""
    made = DatabaseCommand()
    made.serve(wait_until)
    yield made
    made.end()


def state_of(path: Path) -> str:
    """Return the state of a cluster as Postgres's own program prints it."""
    program = find_binaries(None, None).program("pg_controldata")
    printed = subprocess.run([program, str(path / "data")], capture_output=True, text=True, check=True).stdout
    (state,) = (line.partition(":")[2].strip() for line in printed.splitlines() if "cluster state" in line)
    return state


# --- A running server


def test_what_it_prints_can_be_used_as_it_is(running: DatabaseCommand) -> None:
    stdout, stderr = running.output()
    assert stdout == f'export TUNER_STORAGE="$(cat {running.path}/url)"\n'
    shell = subprocess.run(
        ["bash", "-c", f'{stdout}printf %s "$TUNER_STORAGE"'], capture_output=True, text=True, check=True
    )
    assert shell.stdout == running.url
    port = sa.make_url(running.url).port
    binaries = find_binaries(None, None)
    assert f"tuner: Postgres {binaries.version} of {binaries.folder} listens on 127.0.0.1, port {port}\n" in stderr
    assert f"ssh -N -L {port}:127.0.0.1:{port} {socket.gethostname()}" in stderr
    password = (running.path / "password").read_text().strip()
    assert password in running.url
    assert password not in stdout + stderr
    assert running.superuser_password not in stdout + stderr + running.url


def test_nobody_else_can_read_a_file(running: DatabaseCommand) -> None:
    for path in [running.path, *running.path.rglob("*")]:
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


def test_every_login_needs_its_password(running: DatabaseCommand) -> None:
    assert running.ask("SELECT current_user") == [("tuner",)]
    assert running.ask_as_superuser("SELECT current_user") == [("postgres",)]
    for user in ("tuner", "postgres"):
        for password in ("wrong", running.superuser_password if user == "tuner" else ""):
            with pytest.raises(psycopg2.OperationalError, match=r"password authentication failed|no password"):
                running.connect(user=user, password=password, dbname="postgres", passfile="/dev/null")
    rules = running.ask_as_superuser("SELECT type, auth_method FROM pg_hba_file_rules")
    assert {type for type, _ in rules} == {"local", "host"}
    assert {method for _, method in rules} == {"scram-sha-256"}
    verifiers = running.ask_as_superuser("SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolcanlogin")
    assert verifiers == [(True,), (True,)]


def test_there_is_no_local_socket_and_only_loopback(running: DatabaseCommand) -> None:
    assert running.ask_as_superuser("SHOW unix_socket_directories") == [("",)]
    assert running.ask_as_superuser("SHOW listen_addresses") == [("127.0.0.1",)]
    assert not [path for path in running.path.rglob("*") if path.is_socket()]
    with pytest.raises(psycopg2.OperationalError, match="No such file"):
        running.connect(host=str(running.path / "data"), password="")


def test_the_role_owns_its_database_and_no_more(running: DatabaseCommand) -> None:
    rights = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
    assert running.ask(f"SELECT {rights} FROM pg_roles WHERE rolname = 'tuner'") == [(False,) * 5]
    owner = running.ask("SELECT datdba::regrole::text FROM pg_database WHERE datname = 'tuner'")
    assert owner == [("tuner",)]
    assert running.ask("SHOW max_connections") == [("200",)]


@pytest.mark.slow
def test_a_second_start_says_where_the_first_listens(running: DatabaseCommand) -> None:
    first = running.started[0]
    line = running.refusal()
    running.started.pop()
    port = sa.make_url(running.url).port
    assert line == (
        f"tuner: {running.path} is in use: its Postgres listens on 127.0.0.1, port {port}, of {socket.gethostname()} "
        f'(process {first.pid} of `tuner database`); use it with export TUNER_STORAGE="$(cat {running.path}/url)"'
    )
    assert running.ask("SELECT 1") == [(1,)]


@pytest.mark.slow
def test_a_port_that_is_taken_is_refused(running: DatabaseCommand, command: DatabaseCommand) -> None:
    port = str(sa.make_url(running.url).port)
    line = command.refusal("--port", port)
    assert line == f"tuner: --port must be one that is free on 127.0.0.1: got {port} (Address already in use)"


# --- What is refused before anything is made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["db", "--port", "70000"], "--port must be 1 to 65535: got 70000"),
        (["db", "--max-connections", "3"], "--max-connections must be 10 to 10000: got 3"),
        (["db", "--host", "no.such.host.invalid"], "--host must be an address of this machine: got 'no.such.host.inv"),
        (["db", "--postgres", "."], "--postgres must be the folder with the programs initdb and postgres, such as"),
        (["."], "must be empty, or one that `tuner database` made: {here} contains 'kept.txt'; pass a folder that"),
        (["kept.txt"], "{here}/kept.txt is a file, not a folder: pass a folder for the database"),
        (["kept.txt/db"], "{here}/kept.txt is a file, not a folder ({here}/kept.txt/db): pass a folder"),
    ],
)
def test_what_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    done = Tuner(tmp_path, "sqlite://").run_here("database", *words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert message.format(here=tmp_path) in line
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
@pytest.mark.slow
def test_without_tls_other_machines_are_refused_with_both_ways(tmp_path: Path, host: str) -> None:
    done = Tuner(tmp_path, "sqlite://").run_here("database", "db", "--host", host, "--port", "5544")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "--host must be a loopback address, because the Postgres from pip was built without TLS" in line
    assert "pass --postgres, the folder with the programs of a Postgres that has TLS" in line
    assert f"at --port 5544, and run `ssh -N -L 5544:127.0.0.1:5544 {socket.gethostname()}` on each other" in line
    assert list(tmp_path.iterdir()) == []


# --- Start, work, stop, start


@pytest.mark.slow
def test_a_study_and_its_password_outlast_a_restart(
    command: DatabaseCommand, tiny_function: Path, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    served = command.serve(wait_until)
    url = command.url
    tuner = Tuner(tmp_path, url)
    launched = tuner.run("launch", "tiny.py", "--workers", "2", "--trials", "4")
    assert launched.returncode == 0, launched.stderr
    server = command.server_process()

    assert command.stop(served, signal.SIGTERM) == 0
    assert "Postgres has stopped; the data remain" in command.output()[1]
    assert not runs(server)
    assert state_of(command.path) == "shut down"
    assert not (command.path / "url").exists()

    again = command.serve(wait_until, "--max-connections", "30")
    assert command.url == url  # the port and the password
    assert [row["complete"] for row in tuner.rows("studies")] == [4]
    assert command.ask("SHOW max_connections") == [("30",)]
    connection = command.connect()  # an open connection does not keep the server from stopping
    assert command.stop(again, signal.SIGINT) == 0
    connection.close()
    assert state_of(command.path) == "shut down"


@pytest.mark.slow
def test_a_stop_during_the_first_start_leaves_a_folder_that_starts(
    command: DatabaseCommand, wait_until: Callable[..., Any]
) -> None:
    served = command.start()
    wait_until(lambda: (command.path / "data.new").exists())
    assert command.stop(served, signal.SIGTERM) == 0
    assert not (command.path / "data").exists()
    half = command.path / "data.new"
    (half / "global").mkdir(parents=True)  # as after SIGKILL
    for path in (half, half / "global"):
        os.chown(path, command.path.stat().st_uid, command.path.stat().st_gid)

    served = command.serve(wait_until)
    assert command.ask("SELECT 1") == [(1,)]
    assert command.stop(served, signal.SIGHUP) == 0  # as when a terminal is closed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux stops the children of a process that was killed")
def test_a_killed_command_takes_its_server_with_it(command: DatabaseCommand, wait_until: Callable[..., Any]) -> None:
    served = command.serve(wait_until)
    url, server = command.url, command.server_process()
    served.kill()
    served.wait()
    served = command.serve(wait_until)  # waits for the first server
    assert not runs(server)
    assert command.url == url
    assert command.stop(served) == 0


@pytest.mark.slow
def test_after_the_death_of_the_server_the_command_fails_and_can_be_run_again(
    command: DatabaseCommand, wait_until: Callable[..., Any]
) -> None:
    served = command.serve(wait_until)
    os.kill(command.server_process(), signal.SIGKILL)
    assert served.wait(300) == 1
    (*_, line) = command.output()[1].splitlines()
    assert line.startswith("tuner: Postgres exited unexpectedly with status -9")
    assert (command.path / "data" / "postmaster.pid").exists()

    served = command.serve(wait_until)
    assert command.ask("SELECT 1") == [(1,)]
    assert command.stop(served) == 0


@pytest.mark.slow
def test_a_stopped_server_and_a_new_password(command: DatabaseCommand, wait_until: Callable[..., Any]) -> None:
    """Another program may stop the server; a password that a user writes into the file is used from the next start."""
    served = command.serve(wait_until)
    old = command.url
    os.kill(command.server_process(), signal.SIGINT)
    assert served.wait(300) == 0

    (command.path / "password").write_text("a new/one@\n")
    with socket.create_server(("127.0.0.1", sa.make_url(old).port or 0)):
        served = command.serve(wait_until)  # the port is taken meanwhile
        ports = [sa.make_url(url).port for url in (old, command.url)]
        assert f"port {ports[0]} is in use, so the database has a new one: {ports[1]}" in command.output()[1]
        assert sa.make_url(command.url).password == "a new/one@"
        assert command.ask("SELECT 1") == [(1,)]
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            command.connect(password=sa.make_url(old).password)
        assert command.stop(served) == 0


@pytest.mark.slow
def test_data_that_cannot_be_used(command: DatabaseCommand, wait_until: Callable[..., Any]) -> None:
    assert command.stop(command.serve(wait_until)) == 0
    data = command.path / "data"
    version, settings = data / "PG_VERSION", data / "postgresql.conf"
    whole = {path: path.read_text() for path in (version, settings)}
    for path, text, message, status in [
        (version, "12\n", "the data of the database need Postgres 12, but this is Postgres ", 2),
        (version, None, f"the data are damaged: {data} has no file PG_VERSION", 1),
        (
            settings,
            f"{whole[settings]}shared_buffers = 'many'\n",
            "Postgres does not start: configuration file ",
            1,
        ),
    ]:
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        assert command.start().wait(300) == status
        stdout, stderr = command.output()
        assert stdout == ""
        (line,) = stderr.splitlines()
        assert message in line
        assert (data / "global").is_dir()
        path.write_text(whole[path])


# --- Users


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="all other tests run as an ordinary user")
def test_an_ordinary_user_needs_no_other_account(command: DatabaseCommand, wait_until: Callable[..., Any]) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(command.parent, nobody.pw_uid, nobody.pw_gid)
    served = command.serve(wait_until, program=(sys.executable, "-c", AS_NOBODY))
    assert {path.lstat().st_uid for path in [command.path, *command.path.rglob("*")]} == {nobody.pw_uid}
    assert command.ask("SELECT 1") == [(1,)]
    assert command.stop(served) == 0

    served = command.serve(wait_until)  # root runs it as the owner of the folder
    assert {path.lstat().st_uid for path in [command.path, *command.path.rglob("*")]} == {nobody.pw_uid}
    assert os.stat(f"/proc/{command.server_process()}").st_uid == nobody.pw_uid
    assert command.stop(served) == 0

    command.path.chmod(0o500)
    command.path = command.parent / "closed" / "db"
    command.path.parent.mkdir(mode=0o700)
    process = command.start(program=(sys.executable, "-c", AS_NOBODY))
    assert process.wait(300) == 2
    assert f"the database's folder cannot be read: {command.path} (Permission denied)" in command.output()[1]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="root alone has to become another user")
def test_root_is_told_which_folder_is_closed(command: DatabaseCommand) -> None:
    command.parent.chmod(0o700)
    line = command.refusal()
    assert f" cannot enter {command.parent}: use another place for {command.path}, run `chmod a+x" in line


# --- TLS


@pytest.fixture
def alone() -> tuple[str, ...]:
    """The command in a network of its own with one address, so that nothing outside can reach its server."""
    words = ("unshare", "--net", "sh", "-c", 'ip link set lo up && ip addr add 192.0.2.77/32 dev lo && exec "$0" "$@"')
    tried = shutil.which("unshare") and subprocess.run([*words, "true"], capture_output=True).returncode
    if tried != 0:
        pytest.skip("only root can make a network")
    return words


CLIENT = """
import sys, psycopg2
url, changes = sys.argv[1], dict(word.split("=", 1) for word in sys.argv[2:])
cursor = psycopg2.connect(url, **changes).cursor()
cursor.execute("SELECT ssl, inet_client_addr() FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
print(*cursor.fetchone())
"""


@pytest.mark.slow
@pytest.mark.skipif(not WITH_TLS, reason="Debian's Postgres is not installed")
def test_other_machines_connect_with_tls_alone(
    command: DatabaseCommand, alone: tuple[str, ...], wait_until: Callable[..., Any]
) -> None:
    words = ("--postgres", str(WITH_TLS[-1]), "--host", "192.0.2.77")
    served = command.serve(wait_until, *words, program=(*alone, sys.executable, "-m", "tuner"))
    assert stat.S_IMODE((command.path / "server.key").stat().st_mode) == 0o600
    url = command.url.replace("+psycopg2", "")
    assert url.endswith("?sslmode=require&channel_binding=require")

    def connect(url: str, *changes: str) -> str:
        inside = ["nsenter", "--target", str(served.pid), "--net", sys.executable, "-c", CLIENT]
        done = subprocess.run([*inside, url, *changes], capture_output=True, text=True, timeout=300)
        return done.stdout or done.stderr.strip().splitlines()[-1]

    assert connect(url) == "True 192.0.2.77\n"
    assert "no pg_hba.conf entry" in connect(url, "sslmode=disable", "channel_binding=prefer")
    assert "password authentication failed" in connect(url, "password=wrong")
    superuser = f"postgresql://postgres:{command.superuser_password}@HOST:{sa.make_url(url).port}/postgres"
    assert "pg_hba.conf rejects connection" in connect(superuser.replace("HOST", "192.0.2.77"))
    assert connect(superuser.replace("HOST", "127.0.0.1"), "sslmode=disable") == "False 127.0.0.1\n"

    key = (command.path / "server.key").read_text()
    assert command.stop(served) == 0
    served = command.serve(wait_until, *words, program=(*alone, sys.executable, "-m", "tuner"))
    assert (command.path / "server.key").read_text() == key
    assert command.stop(served) == 0
