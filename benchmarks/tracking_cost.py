"""What does MLflow tracking cost a trial's training time?

    python benchmarks/tracking_cost.py [--windows 60] [--seconds 4] [--json FILE]

Launches one long study with `--mlflow` and stops and continues its mirror by turns (SIGSTOP, SIGCONT): epochs in
windows with tracking beside epochs in the windows around them without, of the same trials in the same processes.
`README.md` beside this file has the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from storage_overhead import Server
from trials_per_minute import ROOT, machine

from tuner.storage import connect
from tuner.storage.dialect import now_s

STUDY = """
import dataclasses
from tuner.study import load_study
study = dataclasses.replace(
    load_study({file!r}), sampler="random", pruner="none", keep_best=0, epochs=20, trials=100_000
)
study.trainer.loop = "step"
"""


CORES = sorted(os.sched_getaffinity(0))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server on the last core: it stands for one on another machine."""
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    os.sched_setaffinity(server.pid, CORES[-1:])
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return server
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"MLflow's server must start: {(folder / 'server.log').read_text()[-1000:]}")


def mirror_of(launcher: int) -> int:
    """Return the process id of a launcher's mirror."""
    for _ in range(600):
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_text().split("\0")
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # ended meanwhile
                continue
            if parent == launcher and "track" in words:
                return int(process.name)
        time.sleep(0.1)
    raise SystemExit("the launcher must start a mirror")


def reports_between(engine: sa.Engine, edges: list[float]) -> list[int]:
    """Return how many epochs were reported between each two moments."""
    with engine.connect() as connection:
        times = sorted(connection.execute(sa.text("SELECT reported_at_s FROM tuner_reports")).scalars())
    return [sum(start <= at < end for at in times) for start, end in itertools.pairwise(edges)]


def measure(folder: Path, url: str, side: str, uri: str, workers: int, windows: int, window_s: float) -> dict[str, Any]:
    """Return the epochs of each window, the first with the mirror stopped.

    Between a window without tracking and one with it the mirror sends what it missed, which no window counts.
    """
    env = {**os.environ, "TUNER_STORAGE": url, "XDG_CACHE_HOME": str(folder / "cache")}
    words = ["launch", "study.py", "--workers", str(workers), "--set", "optimizer=SGD", "--set", "channels=16"]
    command = [sys.executable, "-m", "tuner", *words, "--mlflow", uri]
    with (folder / f"{side}-{workers}.log").open("wb") as log:
        launcher = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        try:
            mirror = mirror_of(launcher.pid)
            time.sleep(20.0)  # programs are compiled, MLflow is imported
            engine = connect(url)
            edges = []
            for window in range(windows):
                os.kill(mirror, signal.SIGCONT if window % 2 else signal.SIGSTOP)
                if window % 2:
                    time.sleep(window_s)
                edges.append(now_s(engine))
                time.sleep(window_s)
                edges.append(now_s(engine))
            os.kill(mirror, signal.SIGCONT)
            assert launcher.poll() is None, (folder / f"{side}-{workers}.log").read_text()
            counts = reports_between(engine, edges)
            engine.dispose()
        finally:
            launcher.send_signal(signal.SIGINT)
            launcher.wait(60)
    rates = [count / (end - start) for count, (start, end) in zip(counts, itertools.pairwise(edges), strict=True)][::2]
    # Each window with tracking beside the mean of the two around it: the machine's speed drifts.
    costs = [(rates[at - 1] + rates[at + 1]) / 2 / rates[at] - 1 for at in range(1, len(rates) - 1, 2)]
    return {"side": side, "workers": workers, "rates": rates, "costs": costs}


def main() -> None:
    parser = argparse.ArgumentParser(description="What does MLflow tracking cost a trial's training time?")
    parser.add_argument("--windows", type=int, default=61)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a window")
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures as JSON lines")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tuner-tracking-") as scratch:
        folder = Path(scratch)
        if len(CORES) < 2:
            raise SystemExit("two cores are needed: the last is the server's")
        (folder / "study.py").write_text(STUDY.format(file=str(ROOT / "studies" / "digits_cnn.py")))
        port = free_port()
        server = start_server(folder, port)
        os.sched_setaffinity(0, CORES[-1:])
        postgres = Server(scratch)
        os.sched_setaffinity(0, CORES[:-1])  # workers and mirror
        try:
            uris = {"tracked": f"http://127.0.0.1:{port}", "stopped": f"http://127.0.0.1:{free_port()}"}
            for workers in arguments.workers:
                for side, uri in uris.items():
                    row = measure(
                        folder, postgres.new_database(), side, uri, workers, arguments.windows, arguments.seconds
                    )
                    costs = row["costs"]
                    error = statistics.stdev(costs) / math.sqrt(len(costs))
                    print(
                        f"{workers} workers, server {side}: {100 * statistics.mean(costs):+.2f} % of training time, "
                        f"standard error {100 * error:.2f} %, median {100 * statistics.median(costs):+.2f} % of "
                        f"{len(costs)} windows; {statistics.median(row['rates']):.1f} epochs a second (at most +3 %)",
                        flush=True,
                    )
                    if arguments.json:
                        with arguments.json.open("a", encoding="utf-8") as lines:
                            lines.write(json.dumps({**machine(), "question": "tracking_cost", **row}) + "\n")
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
            postgres.close()


if __name__ == "__main__":
    main()
