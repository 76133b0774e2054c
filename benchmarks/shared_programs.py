"""How much compiling does it save that workers share their programs?

    python benchmarks/shared_programs.py --json results.jsonl

Eight processes start together, and each trains `studies/digits_mlp.py` for one epoch with width 32 and depth 1:
once with one artifacts folder for all, and once with a folder for each. Printed are the programs that JAX compiled, the
CPU seconds of all processes, and the seconds until the last one had finished. JAX is imported once, before they start.

See `README.md` in this folder for the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from trial_cost import hparams_of, the_study
from trials_per_minute import machine

from tuner.training.loop.runtime import CompileClock, use_persistent_cache

WORKERS = 8


def train(artifacts: Path) -> dict[str, int]:
    """Train for one epoch; return how many programs were compiled and fetched."""
    use_persistent_cache(artifacts)
    clock = CompileClock()
    study = the_study()
    # With a given form no time is measured, so that all processes need the same programs.
    for _ in study.trainer.train_model(
        hparams_of(0, width=32, depth=1), study.data(0), epochs=1, seed=0, choose=lambda *_: "scan"
    ):
        pass
    return {"compiled": clock.count, "fetched": clock.fetched}


def together(folders: list[Path]) -> dict[str, Any]:
    """Start a process for each folder; return the sums over all, and the seconds until the last had finished."""
    began_s, children = time.perf_counter(), {}
    for number, folder in enumerate(folders):
        result = folder / f"result-{number}"
        folder.mkdir(exist_ok=True)
        if (pid := os.fork()) == 0:
            result.write_text(json.dumps(train(folder)))
            os._exit(0)
        children[pid] = result
    cpu_s, counts = 0.0, {"compiled": 0, "fetched": 0}
    for pid, result in children.items():
        _, _, usage = os.wait4(pid, 0)
        cpu_s += usage.ru_utime + usage.ru_stime
        for name, count in json.loads(result.read_text()).items():
            counts[name] += count
    return {**counts, "cpu_s": round(cpu_s, 1), "wall_s": round(time.perf_counter() - began_s, 1)}


def main() -> None:
    """Measure both sides; print the figures and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="append the results to this file")
    options = parser.parse_args()
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    the_study()  # imports all that the processes need
    record: dict[str, Any] = machine()
    with tempfile.TemporaryDirectory(prefix="tuner-benchmark-") as name:
        folder = Path(name)
        record["shared"] = together([folder / "one"] * WORKERS)
        record["apart"] = together([folder / f"apart-{number}" for number in range(WORKERS)])
    print(json.dumps({side: record[side] for side in ("shared", "apart")}, indent=2))
    if options.json:
        with options.json.open("a") as file:
            print(json.dumps(record), file=file)


if __name__ == "__main__":
    main()
