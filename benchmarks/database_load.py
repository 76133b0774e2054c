"""How much do workers load the database?

    python benchmarks/database_load.py [--workers 8] [--seconds 30] [--json FILE]

Starts a Postgres of its own, and for each row some workers, each a process of `tuner worker`. Their training function
only sleeps and reports four metrics. Once all workers are at work, it measures for some seconds, and divides what it
finds by the number of workers. The last row is `tuner launch` with one worker, that is a launcher and a worker:

- `messages_s`: messages to the server in a second, counted in its log (`log_statement = all`). Statements that are sent
  in one message count as one;
- `commits_s`: transactions that were committed in a second;
- `wal_bytes_s`: bytes in a second that the server wrote ahead, which is what it flushes to its disk, archives and
  replicates;
- `cpu_share`: the share of a core that the server's processes used;
- `connections`, and `private_mb` for each of them: the memory of its process that no other one shares.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg2

STUDY = """
import time

from tuner import Space, Study, uniform


class HParams(Space):
    x: float = uniform(0.0, 1.0)


def train(hparams, trial):
    for epoch in range(1, {reports} + 1):
        time.sleep({pause})
        yield {{"loss": hparams.x, "accuracy": hparams.x, "train_loss": hparams.x, "train_accuracy": hparams.x}}


study = Study(
    name="{name}", space=HParams, train=train, objective="loss", direction="minimize", trials=1_000_000,
    epochs={reports}, sampler="random", pruner="none",
)
"""
LAUNCH = "tuner launch, one worker, no reports"
ROWS = {
    "no reports": (1, 3600.0),
    "a report each 10 s": (360, 10.0),
    "a report each second": (3600, 1.0),
    "10 reports a second": (36000, 0.1),
    "trials of a second, 2 reports each": (2, 0.5),
    LAUNCH: (1, 3600.0),
}
"""The reports of a trial, and the seconds between them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tuner-load-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # as root the server runs as another user
        rows = measure_all(Path(folder), given.workers, given.seconds)
    for row in rows:
        print(json.dumps(row))
    if given.json:
        with given.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def measure_all(folder: Path, workers: int, seconds: float) -> list[dict[str, Any]]:
    database = folder / "database"
    words = [sys.executable, "-m", "tuner", "database", str(database)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (database / "url").exists():
            if server.poll() is not None:
                sys.exit("`tuner database` failed; run it to see why")
            time.sleep(0.1)
        return [Row(folder, name, 1 if name == LAUNCH else workers, seconds).measure() for name in ROWS]
    finally:
        server.terminate()
        server.wait()


class Row:
    """Workers on the server in a folder, and what is measured while they run."""

    def __init__(self, folder: Path, name: str, workers: int, seconds: float) -> None:
        self.folder, self.name, self.workers, self.seconds = folder, name, workers, seconds
        self.url = (folder / "database" / "url").read_text().strip()
        user = psycopg2.extensions.parse_dsn(self.url.replace("+psycopg2", ""))
        password = (folder / "database" / "superuser-password").read_text().strip()
        self.connection = psycopg2.connect(**{**user, "user": "postgres", "password": password})
        self.connection.autocommit = True

    def measure(self) -> dict[str, Any]:
        """Run the workers, and return the row."""
        self.query("ALTER SYSTEM SET log_statement = 'all'")
        self.query("ALTER SYSTEM SET log_line_prefix = '%u %d LINE '")
        self.query("SELECT pg_reload_conf()")
        reports, pause = ROWS[self.name]
        study = "load" + str(list(ROWS).index(self.name))
        (self.folder / "load.py").write_text(STUDY.format(name=study, reports=reports, pause=pause))
        command = ["launch", "load.py", "--no-live"] if self.name == LAUNCH else ["worker", "load.py"]
        words, env = [sys.executable, "-m", "tuner", *command], {**os.environ, "TUNER_STORAGE": self.url}
        with (self.folder / "workers.log").open("w") as log:
            processes = [
                subprocess.Popen(words, cwd=self.folder, env=env, stdout=log, stderr=log) for _ in range(self.workers)
            ]
        try:
            self.wait_for_workers(processes)
            return self.row()
        finally:
            for process in processes:
                process.send_signal(signal.SIGINT)
            for process in processes:
                process.wait()
            self.connection.close()

    def wait_for_workers(self, processes: list[subprocess.Popen[bytes]]) -> None:
        at_work = "SELECT count(DISTINCT worker) FROM tuner_attempts WHERE ended_at_s IS NULL"
        while (
            not self.query("SELECT to_regclass('tuner_attempts') IS NOT NULL")[0][0]
            or self.query(at_work)[0][0] < self.workers
        ):
            if any(process.poll() is not None for process in processes):
                sys.exit(f"a worker ended: {(self.folder / 'workers.log').read_text()[-2000:]}")
            time.sleep(0.5)
        time.sleep(5)

    def row(self) -> dict[str, Any]:
        before = self.counts()
        time.sleep(self.seconds)
        after = self.counts()
        spent = {name: (after[name] - before[name]) / (after["at_s"] - before["at_s"]) for name in before}
        pids = [pid for (pid,) in self.query("SELECT pid FROM pg_stat_activity WHERE usename = 'tuner'")]
        return {
            "row": self.name,
            "workers": self.workers,
            "messages_s": round(spent["messages"] / self.workers, 2),
            "commits_s": round(spent["commits"] / self.workers, 2),
            "wal_bytes_s": round(spent["wal_bytes"] / self.workers),
            "cpu_share": round(spent["cpu_s"] / self.workers, 4),
            "connections": len(pids),
            "private_mb": round(statistics.median(private_bytes(pid) for pid in pids) / 1e6, 1),
        }

    def counts(self) -> dict[str, float]:
        wal = self.query("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float")[0][0]
        commits = self.query("SELECT xact_commit FROM pg_stat_database WHERE datname = 'tuner'")[0][0]
        log = (self.folder / "database" / "log").read_text(errors="replace")
        return {
            "at_s": time.monotonic(),
            "messages": float(sum(line.startswith("tuner tuner LINE LOG:  ") for line in log.splitlines())),
            "commits": float(commits),
            "wal_bytes": wal,
            "cpu_s": self.cpu_s(),
        }

    def cpu_s(self) -> float:
        """Return the seconds that the server's processes have used, with those of its children that have ended."""
        postmaster = int((self.folder / "database" / "data" / "postmaster.pid").read_text().split()[0])
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, rest = stat.parent.name, stat.read_text().rpartition(") ")[2].split()
            except OSError:  # the process has ended
                continue
            if int(pid) == postmaster or int(rest[1]) == postmaster:
                ticks += sum(map(int, rest[11:15] if int(pid) == postmaster else rest[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def query(self, sql: str) -> list[Any]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []


def private_bytes(pid: int) -> int:
    """Return the memory of a process that it shares with no other one."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(row.split()[1]) for row in rows if row.startswith(("Private_Clean:", "Private_Dirty:")))


if __name__ == "__main__":
    main()
