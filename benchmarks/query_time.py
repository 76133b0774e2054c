"""How long do queries on a large study take, compared with Optuna's own commands, on a real Postgres?

    python benchmarks/query_time.py [--trials 50000] [--repeats 3] [--json FILE]

Each query is timed as a whole process. Needs the `test` extra, which includes the server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from storage_overhead import Server, by_worker, fill

from tuner.storage import parse_url

BIN = Path(sys.executable).parent


def commands(url: str) -> dict[str, tuple[list[str], list[str] | None]]:
    """Return our command and Optuna's for each query; None if Optuna has no such command."""
    plain = parse_url(url).driver
    tuner, optuna = str(BIN / "tuner"), str(BIN / "optuna")

    def ours(*words: str) -> list[str]:
        return [tuner, *words, "--storage", url, "--format", "json"]

    def theirs(*words: str) -> list[str]:
        return [optuna, *words, "--storage", plain, "--format", "json"]

    return {
        "best": (ours("best", "sleepy"), theirs("best-trial", "--study-name", "sleepy")),
        "studies": (ours("studies"), theirs("studies")),
        "trials": (ours("trials", "sleepy"), theirs("trials", "--study-name", "sleepy")),
        "trials, the ten best": (ours("trials", "sleepy", "--sort", "value", "--limit", "10"), None),
        "show": (ours("show", "sleepy", "777"), None),
        "compare": (ours("compare", "sleepy"), None),
        "importance": (ours("importance", "sleepy"), None),
    }


def seconds(words: list[str]) -> float:
    """Return the seconds from a command's start to its exit."""
    began_s = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}\n{done.stderr}")
    return time.perf_counter() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tuner-bench-") as folder:
        os.chmod(folder, 0o755)
        server = Server(folder)
        try:
            url = server.new_database()
            by_worker(url, "random", 1)
            fill(url, arguments.trials)
            for _ in range(arguments.repeats):
                for query, sides in commands(url).items():
                    for side, words in zip(("ours", "plain"), sides, strict=True):
                        if words is not None:
                            rows.append({"query": query, "side": side, "s": seconds(words)})
                            print(json.dumps(rows[-1]), flush=True)
        finally:
            server.close()
    for query in dict.fromkeys(row["query"] for row in rows):
        found = {
            side: statistics.median(times)
            for side in ("ours", "plain")
            if (times := [row["s"] for row in rows if (row["query"], row["side"]) == (query, side)])
        }
        ratio = f", plain {found['plain']:.2f} s ({found['plain'] / found['ours']:.1f}x)" if "plain" in found else ""
        print(f"{query} | ours {found['ours']:.2f} s{ratio}")
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
