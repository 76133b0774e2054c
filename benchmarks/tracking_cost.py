"""What does MLflow tracking cost a trial's training time?

    python benchmarks/tracking_cost.py [--cycles 90] [--json FILE]

Launches one long study with `--mlflow` and lets its mirror run for one second in four (SIGCONT, SIGSTOP), which is how
often it checks for new data by itself. Compares the epochs in that second with those in the seconds before and after
it, for the same trials in the same process. Over longer times, the speed of the machine drifts by more than the cost.
See `README.md` in this folder for the figures.
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

import numpy as np
import sqlalchemy as sa
from storage_overhead import Server
from trials_per_minute import ROOT, machine

from tuner.storage import connect
from tuner.storage.sql.dialect import now_s

STUDY = """
import dataclasses
from tuner.study import load_study
study = dataclasses.replace(
    load_study({file!r}), sampler="random", pruner="none", keep_best=0, epochs=20, trials=100_000
)
study.trainer.loop = "step"
"""


CORES = sorted(os.sched_getaffinity(0))
CYCLE_S, AT_WORK_S = 4.0, 1.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server on the last core, at lower priority than Postgres, as if on another machine."""
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    os.sched_setaffinity(server.pid, CORES[-1:])
    os.setpriority(os.PRIO_PROCESS, server.pid, 10)
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
            except OSError:  # the process has ended
                continue
            if parent == launcher and "track" in words:
                return int(process.name)
        time.sleep(0.1)
    raise SystemExit("the launcher must start a mirror")


def epochs_by(engine: sa.Engine, moments: list[float]) -> list[float]:
    """Return the number of epochs reported by each moment, interpolated between reports."""
    with engine.connect() as connection:
        times = sorted(connection.execute(sa.text("SELECT reported_at_s FROM tuner_reports")).scalars())
    return [float(found) for found in np.interp(moments, times, range(len(times)))]


def measure(folder: Path, url: str, side: str, uri: str, cycles: int) -> dict[str, Any]:
    """Return the rate of epochs while the mirror is stopped, and the cost of the mirror in each cycle."""
    env = {**os.environ, "TUNER_STORAGE": url, "XDG_CACHE_HOME": str(folder / "cache")}
    words = ["launch", "study.py", "--workers", "1", "--set", "optimizer=SGD", "--set", "channels=16"]
    command = [sys.executable, "-m", "tuner", *words, "--mlflow", uri]
    with (folder / f"{side}.log").open("wb") as log:
        launcher = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        try:
            mirror = mirror_of(launcher.pid)
            time.sleep(20.0)  # until programs are compiled and MLflow is imported
            engine = connect(url)
            moments = []
            for pause_s in [CYCLE_S - AT_WORK_S, AT_WORK_S] * cycles + [CYCLE_S - AT_WORK_S]:
                os.kill(mirror, signal.SIGCONT if pause_s == AT_WORK_S else signal.SIGSTOP)
                moments.append(now_s(engine))
                time.sleep(pause_s)
            moments.append(now_s(engine))
            os.kill(mirror, signal.SIGCONT)
            assert launcher.poll() is None, (folder / f"{side}.log").read_text()
            epochs = epochs_by(engine, moments)
            lag = trials_to_send(engine)
            engine.dispose()
        finally:
            launcher.send_signal(signal.SIGINT)
            launcher.wait(60)
    rates = [
        (after - before) / (end - start)
        for (before, after), (start, end) in zip(itertools.pairwise(epochs), itertools.pairwise(moments), strict=True)
    ]
    usual = statistics.mean(rates[::2])
    costs = [
        ((rates[at - 1] + rates[at + 1]) / 2 - rates[at]) / usual * AT_WORK_S / CYCLE_S
        for at in range(1, len(rates), 2)
    ]
    return {"side": side, "epochs_per_s": usual, "costs": costs, "lag": lag}


def trials_to_send(engine: sa.Engine) -> int:
    """Return the number of ended trials that have not been sent completely."""
    query = """
        SELECT count(*) FROM trials LEFT JOIN tuner_mirrored USING (trial_id)
        WHERE state = 'COMPLETE' AND is_ended IS NOT TRUE
    """
    with engine.connect() as connection:
        return connection.execute(sa.text(query)).scalar_one()


def main() -> None:
    parser = argparse.ArgumentParser(description="What does MLflow tracking cost a trial's training time?")
    parser.add_argument("--cycles", type=int, default=90, help="number of cycles of four seconds")
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
            for side, uri in uris.items():
                row = measure(folder, postgres.new_database(), side, uri, arguments.cycles)
                costs = row["costs"]
                error = statistics.stdev(costs) / math.sqrt(len(costs))
                print(
                    f"server {side}: {100 * statistics.mean(costs):+.2f} % of training time, standard error "
                    f"{100 * error:.2f} %, of {len(costs)} cycles; {row['epochs_per_s']:.1f} epochs a second, "
                    f"{row['lag']} trials behind at the end (at most +3 %)",
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
