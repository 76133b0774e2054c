"""How many epochs are trained while the database does not answer, and how long does Ctrl-C take?

python benchmarks/silence.py --json results.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from after_faults import processes_of  # noqa: E402  # pyright: ignore[reportMissingImports]
from postgres_server import PASSWORD, ROLE, Server  # noqa: E402  # pyright: ignore[reportMissingImports]
from silent_proxy import Proxy  # noqa: E402  # pyright: ignore[reportMissingImports]

WAYS = ("healthy", "held", "frozen", "old connections")
PAUSE_S = 0.5
DEADLINE_S = 300.0


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: the condition does not become true.
    """
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError("not so")
        time.sleep(0.05)


def measure(server: Server, way: str, seconds: float, workers: int) -> dict[str, Any]:
    """Launch the tiny study of the tests, make its database stop answering, count epochs, and send SIGINT."""
    folder = Path(tempfile.mkdtemp(prefix="silence-"))
    shutil.copy(TESTS / "tiny_study.py", folder / "tiny.py")
    name = f"silence_{os.getpid()}_{WAYS.index(way)}"
    server.ask(f"CREATE DATABASE {name} OWNER {ROLE}")
    steps = folder / "steps"
    steps.touch()
    with Proxy(server.port) as proxy:
        url = f"postgresql://{ROLE}:{PASSWORD}@127.0.0.1:{proxy.port}/{name}"
        tiny = {"TINY_PAUSE_S": str(PAUSE_S), "TINY_EPOCHS": "100000", "TINY_LOOP": "scan", "TINY_STEPS_FILE": steps}
        env = {
            **os.environ,
            "TUNER_STORAGE": url,
            "PYTHONPATH": str(TESTS),
            **{key: str(value) for key, value in tiny.items()},
        }
        words = [sys.executable, "-m", "tuner", "launch", "tiny.py", "--workers", str(workers)]
        with (folder / "log").open("w") as log:
            launcher = subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=log)

        def epochs() -> list[str]:
            return [line.split()[0] for line in steps.read_text().splitlines()]

        silence = contextlib.ExitStack()
        try:
            wait_until(lambda: min(map(epochs().count, {*epochs()}), default=0) >= 5 and len({*epochs()}) == workers)
            began = len(epochs())
            time.sleep(seconds)
            before = len(epochs()) - began
            if way == "held":
                proxy.hold()
            elif way == "frozen":
                silence.enter_context(server.frozen())
            elif way == "old connections":
                proxy.silence()
            began = len(epochs())
            time.sleep(seconds)
            during = len(epochs()) - began
            began_s = time.monotonic()
            launcher.send_signal(signal.SIGINT)
            status = launcher.wait(DEADLINE_S)
            launcher_s = time.monotonic() - began_s
            wait_until(lambda: not processes_of(url))
            all_s = time.monotonic() - began_s
        finally:
            silence.close()
            proxy.resume()
            if launcher.poll() is None:
                launcher.kill()
    log_lines = (folder / "log").read_text()
    shutil.rmtree(folder)
    server.ask(f"DROP DATABASE {name} WITH (FORCE)")
    return {
        "way": way, "epochs_before": before, "epochs_during": during, "seconds": seconds, "status": status,
        "launcher_s": round(launcher_s, 2), "all_s": round(all_s, 2), "has_traceback": "Traceback" in log_lines,
    }  # fmt: skip


def main() -> None:
    """Measure each way in which a database can stop answering."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds before and during the silence")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--json", type=Path, help="append each result to this file as a JSON line")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="silence-server-"))
    server = Server(folder)
    try:
        for way in arguments.ways:
            row = measure(server, way, arguments.seconds, arguments.workers)
            print(row, flush=True)
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    finally:
        server.stop("immediate")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
