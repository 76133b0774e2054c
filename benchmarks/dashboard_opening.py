"""How long does the dashboard take to open a large study, compared with plain optuna-dashboard, on a real Postgres?

    python benchmarks/dashboard_opening.py [--trials N] [--json FILE]

Needs the `test` extra, which includes the server.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from storage_overhead import Server, by_worker, fill

from tuner.storage import parse_url

# The same as `optuna-dashboard URL`, but with the same server on both sides, so that servers are not compared.
PLAIN = """
import sys, optuna, optuna_dashboard
from cheroot.wsgi import Server
server = Server(("127.0.0.1", 0), optuna_dashboard.wsgi(optuna.storages.RDBStorage(sys.argv[1])))
server.prepare()
print(f"on http://127.0.0.1:{server.bind_addr[1]}/", file=sys.stderr, flush=True)
server.serve()
"""


def commands(url: str) -> dict[str, list[str]]:
    return {
        "plain": [sys.executable, "-c", PLAIN, parse_url(url).driver],
        "ours": [sys.executable, "-m", "tuner", "dashboard", "--port", "0", "--storage", url],
    }


def open_study(port: int) -> tuple[float, int, str]:
    """Request the whole study like the page; return the seconds until the last byte, the bytes, and a digest.

    The digest is computed from the parsed answer, so that the order of keys does not matter.
    """
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
    connection.request("GET", "/api/studies/1?after=0")
    answer = connection.getresponse()
    body = answer.read()
    seconds = time.perf_counter() - began
    connection.close()
    assert answer.status == 200, body[:500]
    detail = json.loads(body)
    del detail["has_intermediate_values"]  # for large studies, ours tells the front-end not to draw a curve per trial
    told = json.dumps(detail, sort_keys=True)
    return seconds, len(body), hashlib.sha256(told.encode()).hexdigest()


def measure(words: list[str]) -> list[tuple[float, int, str]]:
    """Start a dashboard and open the study twice: the second request may use a cache."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = re.search(r":(\d+)/", next(line for line in process.stderr if "http://127.0.0.1:" in line))
        assert found is not None
        return [open_study(int(found[1])) for _ in range(2)]
    finally:
        process.kill()
        process.communicate()


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
                for side, words in commands(url).items():
                    for time_of, (seconds, size, digest) in zip(("first", "again"), measure(words), strict=True):
                        rows.append({"side": side, "time": time_of, "s": seconds, "bytes": size, "digest": digest})
                        print(json.dumps(rows[-1]), flush=True)
        finally:
            server.close()
    assert len({row["digest"] for row in rows}) == 1, "both sides must tell the same"
    for time_of in ("first", "again"):
        plain, ours = (
            statistics.median(row["s"] for row in rows if row["side"] == side and row["time"] == time_of)
            for side in ("plain", "ours")
        )
        print(f"{time_of} | plain {plain:.2f} s, ours {ours:.2f} s ({plain / ours:.1f}x)")
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
