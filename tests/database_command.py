"""`tuner database` as tests start it: a folder that the server's account can enter, and the command's output."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import sqlalchemy as sa
from command_line import users_environment

from tuner.admin.database.binaries import find_binaries

HEEDS_SIGHUP = (
    "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
)
"""Runs a program that ends at SIGHUP, also if the tests run below nohup."""


class DatabaseCommand:
    """A folder of a database, and the commands that serve it."""

    def __init__(self) -> None:
        # Not below pytest's folder: as root the server runs as another user, who may not enter that.
        self.parent = Path(tempfile.mkdtemp(prefix="tuner-served-"))
        self.parent.chmod(0o711)
        if os.geteuid() == 0:
            for folder in find_binaries(None, None).folder.parents:  # nor one that is root's alone
                folder.chmod(folder.stat().st_mode | 0o011)
        self.path = self.parent / "db"
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, program: tuple[str, ...] = (sys.executable, "-m", "tuner")) -> subprocess.Popen[str]:
        """Start the command; its output goes to files."""
        output = self.parent / f"output-{len(self.started)}"
        with output.open("w") as stdout, output.with_suffix(".errors").open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", HEEDS_SIGHUP, *program, "database", str(self.path), *words],
                env=users_environment(), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, text=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def output(self) -> tuple[str, str]:
        """Return what the latest command printed on stdout and on stderr."""
        path = self.parent / f"output-{len(self.started) - 1}"
        return path.read_text(), path.with_suffix(".errors").read_text()

    def refusal(self, *words: str) -> str:
        """Run a command that must be refused; return its only line."""
        process = self.start(*words)
        assert process.wait(300) == 2, self.output()
        stdout, stderr = self.output()
        assert stdout == ""
        (line,) = stderr.splitlines()
        return line

    def serve(self, wait_until: Callable[..., Any], *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start the command, and wait until it serves."""
        process = self.start(*words, **options)

        def is_serving() -> bool:
            assert process.poll() is None, self.output()
            return self.output()[0] != ""

        wait_until(is_serving)
        return process

    def stop(self, process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> int:
        process.send_signal(number)
        return process.wait(300)

    @property
    def url(self) -> str:
        return (self.path / "url").read_text().strip()

    @property
    def superuser_password(self) -> str:
        return (self.path / "superuser-password").read_text().strip()

    def connect(self, **changes: Any) -> Any:
        """Connect as the owner, with some changes; as the role that owns the database, unless `user` is given."""
        url = sa.make_url(self.url)
        given = {"host": url.host, "port": url.port, "user": url.username, "password": url.password}
        return psycopg2.connect(**{**given, "dbname": url.database, **dict(url.query), **changes})

    def ask(self, query: str, **changes: Any) -> list[tuple[Any, ...]]:
        connection = self.connect(**changes)
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()
        finally:
            connection.close()

    def ask_as_superuser(self, query: str) -> list[tuple[Any, ...]]:
        return self.ask(query, user="postgres", password=self.superuser_password, dbname="postgres")

    def server_process(self) -> int:
        return int((self.path / "data" / "postmaster.pid").read_text().split()[0])

    def end(self) -> None:
        """Kill what still runs, and remove the folder."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # the server is stopped with it
                process.wait(300)
        shutil.rmtree(self.parent)


def runs(process: int) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
