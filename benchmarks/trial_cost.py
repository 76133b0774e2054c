"""What does a trial cost in addition to its compiled programs?

    python benchmarks/trial_cost.py --json results.jsonl

1. Compilations of the training program in 20 trials that differ in traced hyperparameters, and in a second process
   that uses the persistent cache.
2. Seconds of a 20-epoch trial of `studies/digits_mlp.py` outside its compiled programs: `train_model` compared with a
   bare loop that calls the same programs, alternately.
3. Memory of the process during trials with 200 different widths.

See `README.md` in this folder for the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from trials_per_minute import ROOT, machine

from tuner import Space, choice, int_uniform, log_uniform, uniform
from tuner.study import load_study
from tuner.training import Layout
from tuner.training.data.feed import Feed
from tuner.training.hparams import register
from tuner.training.loop.evaluation import eval_metrics
from tuner.training.loop.modes import chunk
from tuner.training.loop.programs import programs
from tuner.training.loop.runtime import use_persistent_cache

STUDY_FILE = ROOT / "studies" / "digits_mlp.py"
TRIALS, EPOCHS, WIDTHS = 20, 20, 200


@functools.cache
def the_study() -> Any:
    """Return the digits study. It is loaded only once, because loading creates new classes."""
    return load_study(str(STUDY_FILE))


def hparams_of(number: int, **static: int) -> Any:
    """Return the hyperparameters of a trial; its number sets the traced ones."""
    rng = np.random.default_rng(number)
    traced = {
        "learning_rate": float(rng.uniform(1e-3, 1e-2)),
        "weight_decay": float(rng.uniform(1e-5, 1e-2)),
        "dropout_rate": float(rng.uniform(0, 0.6)),
        "label_smoothing": float(rng.uniform(0, 0.2)),
    }
    return the_study().space(**traced, **{"width": 64, "depth": 2, **static})


def count_compilations() -> dict[str, int]:
    """Train 20 trials; return the number of compiled programs by name, without those loaded from the cache."""
    compiled: dict[str, int] = {}
    pending: list[bool] = []

    def hit(event: str, **kwargs: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            pending.append(True)

    def add(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            name = str(kwargs.get("fun_name"))
            compiled[name] = compiled.get(name, 0) + (not pending)
            pending.clear()

    jax.monitoring.register_event_listener(hit)
    jax.monitoring.register_event_duration_secs_listener(add)
    use_persistent_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    study = the_study()
    splits = study.data(0)
    for number in range(TRIALS):
        for _ in study.trainer.train_model(hparams_of(number), splits, epochs=EPOCHS, seed=number):
            pass
    return {"training": sum(n for name, n in compiled.items() if "train_step" in name), "all": sum(compiled.values())}


def compilations() -> dict[str, Any]:
    """Count in a first process, and in a second one that uses the cache of the first."""
    with tempfile.TemporaryDirectory(prefix="tuner-benchmark-") as folder:
        env = {**os.environ, "XDG_CACHE_HOME": folder}
        command = [sys.executable, __file__, "--count"]
        outputs = [subprocess.run(command, env=env, capture_output=True, text=True, check=True) for _ in range(2)]
    return {which: json.loads(done.stdout) for which, done in zip(("first", "second"), outputs, strict=True)}


def outside_programs(repeats: int) -> dict[str, Any]:
    """Time `train_model` and a bare loop over the same programs, alternately."""
    study = the_study()
    splits, trainer, layout = study.data(0), study.trainer, Layout()

    def whole(number: int) -> float:
        began = time.perf_counter()
        # Use the same form on both sides, without measuring which is faster.
        training = trainer.train_model(
            hparams_of(number), splits, epochs=EPOCHS, seed=number, choose=lambda program, measure: "scan"
        )
        for _ in training:
            pass
        return time.perf_counter() - began

    feed = Feed(splits.train, layout, 64)
    placed = hparams_of(0)
    register(placed)
    placed = jax.device_put(placed)
    made, first, seed = programs(trainer, placed, layout), feed.first(), jax.device_put(np.uint32(0))

    def bare(number: int) -> float:
        began = time.perf_counter()
        carry = made.init(first, placed, seed, total_steps=EPOCHS * feed.steps)
        totals, position, metrics = carry.totals, carry.position, None
        for _ in range(EPOCHS):
            assert carry.state.key is not None
            order = feed.shuffled(carry.state.key, 0)
            source = feed.resident(order)
            carry = made.steps(source, placed, carry.state, totals, position, count=chunk(feed.steps))
            metrics = eval_metrics(made, layout, placed, splits.validation, carry.state, "scan")
        jax.block_until_ready((carry, metrics))
        return time.perf_counter() - began

    for number in range(3):
        whole(number)
        bare(number)
    times = [(whole(number), bare(number)) for number in range(repeats)]
    one, other = (statistics.median(side) for side in zip(*times, strict=True))
    return {"trial_s": one, "programs_s": other, "outside_s": one - other, "share": (one - other) / one}


class AnyWidth(Space):
    """The space of the digits study, with any width."""

    learning_rate: float = log_uniform(1e-4, 1e-1)
    weight_decay: float = log_uniform(1e-6, 1e-2)
    dropout_rate: float = uniform(0.0, 0.6)
    label_smoothing: float = uniform(0.0, 0.2)
    width: int = int_uniform(1, 1000)
    depth: int = choice(1, 2, 3)


def memory_mb() -> float:
    """Return the process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def widths() -> dict[str, float]:
    """Train one epoch at each of 200 widths; return the memory after some of them, in MB."""
    study = the_study()
    splits = study.data(0)
    small = dataclasses.replace(splits, train=splits.train.take(range(256)))
    values = dataclasses.asdict(hparams_of(0))
    found: dict[str, float] = {}
    for number in range(1, WIDTHS + 1):
        hparams = AnyWidth(**{**values, "width": 8 + number})
        for _ in study.trainer.train_model(hparams, small, epochs=1, seed=0):
            pass
        if number % 40 == 0:
            found[f"after {number}"] = round(memory_mb())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a trial costs in addition to its compiled programs.")
    parser.add_argument("--repeats", type=int, default=30, help="number of trials for each side, alternately")
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures as one JSON line")
    args = parser.parse_args()
    if args.count:
        print(json.dumps(count_compilations()))
        return
    record: dict[str, Any] = {**machine(), "compilations": compilations()}
    print(f"compilations in {TRIALS} trials: {record['compilations']}", flush=True)
    record["outside"] = outside_programs(args.repeats)
    outside = record["outside"]
    parts = ", ".join(f"{name} {1000 * outside[name]:.1f} ms" for name in ("trial_s", "programs_s", "outside_s"))
    print(f"a trial of {EPOCHS} epochs: {parts}, {outside['share']:.1%} outside", flush=True)
    record["memory_mb"] = widths()
    print(f"memory over {WIDTHS} widths, in MB: {record['memory_mb']}", flush=True)
    if args.json:
        with args.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
