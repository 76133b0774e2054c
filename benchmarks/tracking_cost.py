"""What does MLflow tracking cost a trial's training time?

    python benchmarks/tracking_cost.py --json results.jsonl

Launches the same study by turns without tracking, with `--mlflow` to a server, and with `--mlflow` to a server that is
not there; the same trials with the same hyperparameters, each run a storage of its own. `README.md` beside this file
has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from trials_per_minute import ROOT, machine

from tuner.storage import connect
from tuner.storage.queries import find_study, read_trials

SIDES = ("without", "tracked", "server stopped")
STUDY = """
import dataclasses
from tuner.study import load_study
study = dataclasses.replace(
    load_study({file!r}), sampler="random", pruner="none", keep_best=0, epochs={epochs}, trials={trials}
)
study.trainer.loop = "step"  # else each run measures which is faster, and may find another
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server, behind everything else: it stands for one on another machine."""
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(["nice", "-n", "19", *command], stdout=log, stderr=log)
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return server
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"MLflow's server must start: {(folder / 'server.log').read_text()[-1000:]}")


def launch(folder: Path, name: str, uri: str | None) -> tuple[dict[int, float], float]:
    """Run the study once.

    Returns:
        The seconds that each trial trained, without each worker's first; and the processor's seconds of the whole
        command with all its processes, which other load changes less.
    """
    url = f"sqlite:///{folder / name}.db"
    env = {**os.environ, "TUNER_STORAGE": url, "XDG_CACHE_HOME": str(folder / "cache")}
    env.pop("MLFLOW_TRACKING_URI", None)
    words = ["launch", "study.py", "--workers", "2", "--set", "optimizer=SGD", "--set", "channels=8"]
    command = [sys.executable, "-m", "tuner", *words, *(["--mlflow", uri] if uri else [])]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    engine = connect(url)
    trials = read_trials(engine, find_study(engine, "digits_cnn"))
    engine.dispose()
    seen: set[str] = set()
    seconds = {}
    for trial in trials:
        if trial.record["worker"] in seen:
            seconds[trial.number] = trial.record["train_s"]
        seen.add(trial.record["worker"])
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="What does MLflow tracking cost a trial's training time?")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures as one JSON line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tuner-tracking-") as scratch:
        folder = Path(scratch)
        file = str(ROOT / "studies" / "digits_cnn.py")
        (folder / "study.py").write_text(STUDY.format(file=file, epochs=arguments.epochs, trials=arguments.trials))
        port = free_port()
        uris = {
            "without": None,
            "tracked": f"http://127.0.0.1:{port}",
            "server stopped": f"http://127.0.0.1:{free_port()}",
        }
        server = start_server(folder, port)
        try:
            launch(folder, "warm", None)  # fills the compile cache
            found: dict[str, list[dict[int, float]]] = {side: [] for side in SIDES}
            cpu: dict[str, list[float]] = {side: [] for side in SIDES}
            for repeat in range(arguments.repeats):
                turn = repeat % len(SIDES)
                for side in (*SIDES[turn:], *SIDES[:turn]):
                    seconds, cpu_s = launch(folder, f"{side.replace(' ', '-')}-{repeat}", uris[side])
                    found[side].append(seconds)
                    cpu[side].append(cpu_s)
        finally:
            server.terminate()
            server.wait()
    medians = {side: [statistics.median(run.values()) for run in found[side]] for side in SIDES}
    ratios = {}
    for side in SIDES[1:]:
        # A trial against itself, in the same repeat: the machine's speed changes from one to the next.
        pairs = [
            run[number] / plain[number]
            for run, plain in zip(found[side], found["without"], strict=True)
            for number in run.keys() & plain.keys()
        ]
        ratios[side] = statistics.median(pairs)
        print(
            f"{side:15} {100 * (ratios[side] - 1):+.1f} % of training time (median of {len(pairs)} pairs; at most +3 %)"
        )
    for side in SIDES:
        print(
            f"{side:15} {statistics.median(medians[side]):.3f} s a trial; runs {[round(s, 3) for s in medians[side]]}"
        )
        print(f"{'':15} {statistics.median(cpu[side]):.1f} s of processor a launch; {[round(s, 1) for s in cpu[side]]}")
    if arguments.json:
        record = {**machine(), "question": "tracking_cost", "ratios": ratios, "medians_s": medians, "cpu_s": cpu}
        with arguments.json.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
