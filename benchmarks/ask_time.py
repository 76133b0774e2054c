"""How long does TPE need for a suggestion in a study with many trials, and how good is it?

    python benchmarks/ask_time.py [--trials 1000 10000 50000] [--asks 5] [--json FILE]
    python benchmarks/ask_time.py --quality [--seeds 10]

Times: one trial is created and four hyperparameters are suggested, once the trials are read. tuner makes a sampler for
each trial, as its workers do. Next to it is Optuna with one `TPESampler` on `RDBStorage` and in memory, on the same
trials in SQLite.

Quality: 700 trials with a window from 300 trials on, next to TPE that sees all trials, from the same seeds. The regret
is the best value minus the minimum, which is 0. A smaller window than that of the product shows what windows cost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage

import tuner
from tuner.search.view import SamplerView
from tuner.storage.optuna import window
from tuner.storage.optuna.storage import WindowedStorage

NAMES = ("a", "b", "c", "d")
SPACE = dict.fromkeys(NAMES, FloatDistribution(0.0, 1.0))
CHUNK = 5000


class Four(tuner.Space):
    """The space of the measured studies."""

    a: float = tuner.uniform(0.0, 1.0)
    b: float = tuner.uniform(0.0, 1.0)
    c: float = tuner.uniform(0.0, 1.0)
    d: float = tuner.uniform(0.0, 1.0)


def fill(path: Path, count: int) -> None:
    """Create a study with ended trials in SQLite: four of five complete, the others pruned after a report."""
    storage = tuner.open_storage(f"sqlite:///{path}")
    study_id = optuna.create_study(storage=storage, study_name="large")._study_id
    tables = sa.MetaData()
    tables.reflect(storage.engine, only=["trials", "trial_params", "trial_values", "trial_intermediate_values"])
    rng, text = random.Random(0), distribution_to_json(SPACE["a"])
    now = sa.func.current_timestamp()
    with storage.engine.begin() as connection:
        for start in range(0, count, CHUNK):
            numbers = range(start, min(count, start + CHUNK))
            states = {number: "PRUNED" if number % 5 == 0 else "COMPLETE" for number in numbers}
            connection.execute(
                tables.tables["trials"].insert().values(datetime_start=now, datetime_complete=now),
                [{"trial_id": n + 1, "number": n, "study_id": study_id, "state": state} for n, state in states.items()],
            )
            points = {number: {name: rng.random() for name in NAMES} for number in numbers}
            connection.execute(
                tables.tables["trial_params"].insert(),
                [
                    {"trial_id": n + 1, "param_name": name, "param_value": value, "distribution_json": text}
                    for n, point in points.items()
                    for name, value in point.items()
                ],
            )
            values = {number: sphere(point) for number, point in points.items()}
            kind = "FINITE"
            connection.execute(
                tables.tables["trial_values"].insert(),
                [
                    {"trial_id": n + 1, "objective": 0, "value": values[n], "value_type": kind}
                    for n, state in states.items()
                    if state == "COMPLETE"
                ],
            )
            connection.execute(
                tables.tables["trial_intermediate_values"].insert(),
                [
                    {"trial_id": n + 1, "step": 1, "intermediate_value": values[n], "intermediate_value_type": kind}
                    for n in numbers
                ],
            )
    storage.close()


def ask_s(storage: BaseStorage, asks: int, sampler_of: Callable[[int], BaseSampler]) -> tuple[float, float, float]:
    """Return the seconds of the first suggestion, which reads the trials, and the median of the others.

    The third is the median of the processor's time, which hardly depends on what else runs on the machine.
    """
    seconds, of_processor = [], []
    for number in range(asks + 1):
        study = optuna.load_study(study_name="large", storage=storage, sampler=sampler_of(number))
        began_s, began = time.perf_counter(), time.process_time()
        trial = study.ask()
        point = {name: trial.suggest_float(name, 0.0, 1.0) for name in NAMES}
        seconds.append(time.perf_counter() - began_s)
        of_processor.append(time.process_time() - began)
        study.tell(trial, sphere(point))
    return seconds[0], statistics.median(seconds[1:]), statistics.median(of_processor[1:])


def in_memory(path: Path) -> InMemoryStorage:
    """Return a copy of the study in memory."""
    trials = optuna.load_study(study_name="large", storage=RDBStorage(f"sqlite:///{path}")).trials
    storage = InMemoryStorage()
    optuna.create_study(storage=storage, study_name="large").add_trials(trials)
    return storage


def times(counts: list[int], asks: int) -> list[dict[str, Any]]:
    """Return the milliseconds of a suggestion for each number of trials and each storage."""
    rows = []
    train: Any = lambda hparams, trial: 0.0  # noqa: E731
    spec = tuner.Study(name="large", space=Four, train=train, objective="loss", direction="minimize", trials=1)
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            path = Path(folder) / f"{count}.db"
            fill(path, count)
            ours = tuner.open_storage(f"sqlite:///{path}")
            seen: Any = SamplerView(WindowedStorage(ours))  # pyright: ignore[reportArgumentType]
            storages: dict[str, Callable[[], Any]] = {
                "tuner": lambda seen=seen: seen,
                "optuna, RDBStorage": lambda path=path: RDBStorage(f"sqlite:///{path}"),
                "optuna, in memory": lambda path=path: in_memory(path),
            }
            for name, make in storages.items():
                own = TPESampler(seed=0)
                first, ask, own_s = ask_s(
                    make(), asks, spec.make_sampler if name == "tuner" else lambda _, own=own: own
                )
                found = {"ask_ms": 1e3 * ask, "processor_ms": 1e3 * own_s, "first_ms": 1e3 * first}
                rows.append({"trials": count, "storage": name, **found})
                text = f"{1e3 * ask:8.1f} ms, {1e3 * own_s:8.1f} of the processor, the first {1e3 * first:8.0f} ms"
                print(f"{count:>6} trials  {name:<20} {text}", flush=True)
            ours.close()
    return rows


# --- Quality


def sphere(point: Mapping[str, float]) -> float:
    """A bowl with its minimum, 0, at 0.3 in each dimension."""
    return sum((value - 0.3) ** 2 for value in point.values())


def rastrigin(point: Mapping[str, float]) -> float:
    """A bowl with many local minima; the global one, 0, is at 0.3 in each dimension."""
    scaled = [8 * (value - 0.3) for value in point.values()]
    return sum(x * x - 10 * math.cos(2 * math.pi * x) + 10 for x in scaled)


def rosenbrock(point: Mapping[str, float]) -> float:
    """A curved valley; the minimum, 0, is at 0.75 in each dimension."""
    scaled = [4 * value - 2 for value in point.values()]
    return sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in itertools.pairwise(scaled))


def regret(function: Callable[[Mapping[str, float]], float], seed: int, trials: int, *, is_windowed: bool) -> float:
    """Return the best value that TPE finds."""
    with tempfile.TemporaryDirectory() as folder:
        storage = tuner.open_storage(f"sqlite:///{folder}/tuner.db")
        seen: Any = WindowedStorage(storage) if is_windowed else storage
        study = optuna.create_study(storage=seen, study_name="quality", sampler=TPESampler(seed=seed))
        study.optimize(lambda trial: function({name: trial.suggest_float(name, 0.0, 1.0) for name in NAMES}), trials)
        best = study.best_value
        storage.close()
    return best


def quality(seeds: int, trials: int = 700, window_from: int = 150) -> list[dict[str, Any]]:
    """Return the regrets with a window and with all trials, for three functions."""
    window.SAMPLE = window_from
    rows = []
    for function in (sphere, rastrigin, rosenbrock):
        pairs = [
            [regret(function, seed, trials, is_windowed=is_windowed) for is_windowed in (True, False)]
            for seed in range(seeds)
        ]
        logs = [math.log10(windowed) - math.log10(full) for windowed, full in pairs]
        mean, error = statistics.mean(logs), statistics.stdev(logs) / math.sqrt(seeds)
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        rows.append({"function": function.__name__, "pairs": pairs, "mean_log10": mean, "standard_error": error})
        print(
            f"{function.__name__:<10} median regret {medians[0]:.3g} with a window, {medians[1]:.3g} with all trials; "
            f"mean difference of log10 {mean:+.2f} +- {error:.2f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--asks", type=int, default=5)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = quality(given.seeds) if given.quality else times(given.trials, given.asks)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
