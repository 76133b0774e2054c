"""How close do many workers on one Postgres come to the ideal rate?

    python benchmarks/many_workers.py [--launches 4] [--workers 16] [--seconds 2] [--trials 960]

Starts a Postgres, and several launches of one study at the same time. Its training function only sleeps, so the
processes do not compete for the cores while they train, and never import JAX. Prints, as JSON:

- `share_of_ideal`: trials that ended while all workers were at work, divided by what that many workers would end if a
  trial took only its sleep;
- `connections`: the most connections that the server had;
- `longest_wait_s`, `median_wait_s`: seconds between the end of a worker's trial and the start of its next one, on the
  database's clock: the end of one transaction, a claim, and what the worker does in between.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg2

STUDY = """
import sys
import time

from tuner import Space, Study, uniform


class HParams(Space):
    x: float = uniform(0.0, 1.0)


def train(hparams, trial):
    for epoch in range(1, 3):
        time.sleep({seconds} / 2)
        yield {{"loss": hparams.x / epoch}}
    assert "jax" not in sys.modules


study = Study(
    name="many", space=HParams, train=train, objective="loss", direction="minimize", trials={trials}, epochs=2,
    sampler="random", pruner="none",
)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--launches", type=int, default=4)
    parser.add_argument("--workers", type=int, default=16, help="workers of each launch")
    parser.add_argument("--seconds", type=float, default=2.0, help="what a trial sleeps")
    parser.add_argument("--trials", type=int, default=960)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tuner-many-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # as root the server runs as another user
        print(json.dumps(measure(Path(folder), given), indent=2))


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    database = folder / "database"
    words = [sys.executable, "-m", "tuner", "database", str(database), "--max-connections", "300"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (database / "url").exists():
            if server.poll() is not None:
                sys.exit("`tuner database` failed; run it to see why")
            time.sleep(0.1)
        url = (database / "url").read_text().strip()
        run(folder, url, given)
        return results(url, given)
    finally:
        server.terminate()
        server.wait()


_connections = 0


def run(folder: Path, url: str, given: argparse.Namespace) -> None:
    """Run the launches to their end, and count the server's connections meanwhile."""
    (folder / "many.py").write_text(STUDY.format(seconds=given.seconds, trials=given.trials))
    command = [sys.executable, "-m", "tuner", "launch", "many.py", "--workers", str(given.workers), "--no-live"]
    env = {**os.environ, "TUNER_STORAGE": url}
    over = threading.Event()
    counter = threading.Thread(target=count_connections, args=(url, over))
    counter.start()
    with (folder / "log").open("w") as log:
        launches = [
            subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log) for _ in range(given.launches)
        ]
        statuses = [launch.wait() for launch in launches]
    over.set()
    counter.join()
    if any(statuses):
        sys.exit(f"a launch failed: {(folder / 'log').read_text()[-2000:]}")


def count_connections(url: str, over: threading.Event) -> None:
    global _connections
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    with connection.cursor() as cursor:
        while not over.wait(0.5):
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'tuner' AND pid != pg_backend_pid()")
            found = cursor.fetchone()
            _connections = max(_connections, found[0] if found else 0)
    connection.close()


def results(url: str, given: argparse.Namespace) -> dict[str, Any]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    with connection.cursor() as cursor:
        cursor.execute("SELECT worker, started_at_s, ended_at_s FROM tuner_attempts ORDER BY worker, started_at_s")
        rows = cursor.fetchall()
    connection.close()
    by_worker: dict[str, list[tuple[float, float]]] = {}
    for worker, start_s, end_s in rows:
        by_worker.setdefault(worker, []).append((start_s, end_s))
    count = given.launches * given.workers
    if len(rows) != given.trials or len(by_worker) != count:
        sys.exit(f"{len(rows)} attempts of {len(by_worker)} workers: expected {given.trials} of {count}")
    begin_s = max(spans[0][0] for spans in by_worker.values())
    end_s = min(spans[-1][1] for spans in by_worker.values())
    waits = [after[0] - before[1] for spans in by_worker.values() for before, after in itertools.pairwise(spans)]
    ended = sum(begin_s < end <= end_s for spans in by_worker.values() for _, end in spans)
    return {
        "workers": count,
        "trials": given.trials,
        "sleep_s": given.seconds,
        "all_at_work_s": round(end_s - begin_s, 1),
        "share_of_ideal": round(ended * given.seconds / (count * (end_s - begin_s)), 3),
        "connections": _connections,
        "median_wait_s": round(statistics.median(waits), 3),
        "longest_wait_s": round(max(waits), 3),
    }


if __name__ == "__main__":
    main()
