"""How long do trials wait for the compiler if the programs of other shapes are compiled before they are needed?

    python benchmarks/compile_ahead.py --json results.jsonl

The network of `studies/digits_mlp.py` has nine shapes. Random search with 27 trials runs three times with one worker,
each time with an empty compile cache: as `tuner worker`, which compiles what it needs; as `tuner launch --workers 1`,
which also compiles the other shapes on a free core; and as `tuner worker` after `tuner worker --compile-only`. All
three train the same hyperparameters; the values must agree. The second way needs two cores.

Printed are the seconds in which trials compiled (`compile_s`) and what the cache saved them (`compile_saved_s`), for
the first trial and for all later ones, and the seconds from the start of the command to its end.

See `README.md` in this folder for the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trials_per_minute import ROOT, machine

TRIALS = 27
OPTIONS = ("--trials", str(TRIALS), "--sampler", "random", "--pruner", "none", "--seed", "0")
WAYS = {
    "worker": (("worker",),),
    "launch": (("launch", "--workers", "1"),),
    "compiled before": (("worker", "--compile-only"), ("worker",)),
}


def tuner(folder: Path, *words: str) -> str:
    """Run the command line in a folder; return what it prints on stdout."""
    env = {**os.environ, "TUNER_STORAGE": f"sqlite:///{folder}/study.db", "TUNER_ARTIFACTS": str(folder / "artifacts")}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    env["XDG_CACHE_HOME"] = str(folder / "cache")
    return subprocess.run(
        [sys.executable, "-m", "tuner", *words], env=env, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def measure(commands: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """Run the study; return its figures and the values of its trials."""
    study = str(ROOT / "studies" / "digits_mlp.py")
    with tempfile.TemporaryDirectory(prefix="tuner-benchmark-") as name:
        folder = Path(name)
        wall_s = 0.0
        for command, *words in commands:
            began_s = time.perf_counter()
            tuner(folder, command, study, *OPTIONS, *words)
            wall_s = time.perf_counter() - began_s  # of the last, which trains
        show = ("show", "digits_mlp")
        shown = [json.loads(tuner(folder, *show, str(number), "--format", "json")) for number in range(TRIALS)]
    first, later = shown[0], shown[1:]
    return {
        "first_compile_s": round(first["compile_s"], 1),
        "later_compile_s": round(sum(one["compile_s"] for one in later), 1),
        "later_saved_s": round(sum(one["compile_saved_s"] or 0.0 for one in later), 1),
        "later_compiled": sum(one["compilations"] for one in later),
        "wall_s": round(wall_s, 1),
        "values": [one["value"] for one in shown],
    }


def main() -> None:
    """Measure the three ways; print the figures and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="append the results to this file")
    options = parser.parse_args()
    found = {way: measure(commands) for way, commands in WAYS.items()}
    values = [one.pop("values") for one in found.values()]
    assert all(one == values[0] for one in values), "the three ways must train the same trials"
    print(json.dumps(found, indent=2))
    if options.json:
        with options.json.open("a") as file:
            print(json.dumps({**machine(), **found}), file=file)


if __name__ == "__main__":
    main()
