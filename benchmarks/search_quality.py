"""Which named samplers beat random search, and do they find what Optuna's own samplers find?

    python benchmarks/search_quality.py --out benchmarks/search_quality.jsonl

Each line of the output is one search: its function, sampler and seed, and its regret after 50 and 200 trials. Searches
that the file has already are not repeated, so the command can be interrupted. At the end it prints a table.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy import stats

from tuner import Space, Study, uniform
from tuner.errors import StudyError

AFTER = (50, 200)
GP_TRIALS = 50


class Branin(Space):
    """The space of `branin`, with priors near one of its minima."""

    x0: float = uniform(-5.0, 10.0, prior=3.0)
    x1: float = uniform(0.0, 15.0, prior=2.5)


class Hartmann(Space):
    """The space of `hartmann`, with priors near its minimum."""

    x0: float = uniform(0.0, 1.0, prior=0.2)
    x1: float = uniform(0.0, 1.0, prior=0.15)
    x2: float = uniform(0.0, 1.0, prior=0.5)
    x3: float = uniform(0.0, 1.0, prior=0.3)
    x4: float = uniform(0.0, 1.0, prior=0.3)
    x5: float = uniform(0.0, 1.0, prior=0.65)


class Rastrigin(Space):
    """The space of `rastrigin`, with priors near its minimum."""

    x0: float = uniform(-4.0, 6.0, prior=0.5)
    x1: float = uniform(-4.0, 6.0, prior=0.5)
    x2: float = uniform(-4.0, 6.0, prior=0.5)
    x3: float = uniform(-4.0, 6.0, prior=0.5)


def branin(x: np.ndarray) -> float:
    b, c, r, t = 5.1 / (4 * math.pi**2), 5 / math.pi, 6.0, 1 / (8 * math.pi)
    return (x[1] - b * x[0] ** 2 + c * x[0] - r) ** 2 + 10 * (1 - t) * math.cos(x[0]) + 10 - 0.397887357729738


ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(x: np.ndarray) -> float:
    return float(-(ALPHA * np.exp(-(A * (x - P) ** 2).sum(axis=1))).sum()) + 3.322368011415515


def rastrigin(x: np.ndarray) -> float:
    return float(10 * len(x) + (x**2 - 10 * np.cos(2 * math.pi * x)).sum())


FUNCTIONS: Mapping[str, tuple[type[Space], Callable[[np.ndarray], float]]] = {
    "branin": (Branin, branin),
    "hartmann6": (Hartmann, hartmann),
    "rastrigin4": (Rastrigin, rastrigin),
}


def without_priors(space: type[Space]) -> type[Space]:
    """Return the same space without priors."""
    made: Any = space
    known: Mapping[str, Any] = made.__domains__
    domains: dict[str, Any] = {name: uniform(one.low, one.high) for name, one in known.items()}
    return type(Space)(space.__name__, (Space,), {"__annotations__": dict.fromkeys(domains, float), **domains})  # pyright: ignore


def make_study(space: Any, sampler: Any, seed: int) -> Study:
    return Study(
        name="quality",
        space=space,
        train=lambda hparams, trial: 0.0,
        objective="loss",
        direction="minimize",
        trials=max(AFTER),
        sampler=sampler,
        seed=seed,
    )


# Name -> the sampler of a study, or a function that makes Optuna's own with a seed; one object for all trials.
SIDES: Mapping[str, Any] = {
    "random": "random",
    "qmc": "qmc",
    "tpe": "tpe",
    "tpe, priors": "tpe",
    "cmaes": "cmaes",
    "nsga2": {"name": "nsga2", "population_size": 20},
    "gp": "gp",
    "Optuna's TPESampler": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "Optuna's CmaEsSampler": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
}


def search(function: str, side: str, seed: int) -> dict[str, Any]:
    """Return the regrets of one search."""
    space, value = FUNCTIONS[function]
    space = space if side == "tpe, priors" else without_priors(space)
    made: Any = SIDES[side]
    study = make_study(space, "random" if callable(made) else made, seed)
    own: Any = made(seed) if callable(made) else None
    found = optuna.create_study(sampler=own)
    regrets, began_s = {}, time.perf_counter()
    for number in range(GP_TRIALS if side == "gp" else max(AFTER)):
        if not callable(made):
            found.sampler = study.make_sampler(number)
        trial = found.ask()
        study.sample(trial)
        found.tell(trial, value(np.array(list(trial.params.values()))))
        if number + 1 in AFTER:
            regrets[str(number + 1)] = found.best_value
    seconds = round(time.perf_counter() - began_s, 2)
    return {"function": function, "sampler": side, "seed": seed, "regret": regrets, "seconds": seconds}


def compare(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the table: the median regret, and by how many powers of ten it is less than that of random search."""
    by: dict[tuple[str, str, str], dict[int, float]] = {}
    for line in lines:
        for after, regret in line["regret"].items():
            by.setdefault((line["function"], after, line["sampler"]), {})[line["seed"]] = regret
    head = "| function | trials | sampler | seeds | median regret | powers of ten less than random |"
    rows = [head, "| --- " * 6 + "|"]
    for (function, after, sampler), regrets in sorted(by.items(), key=lambda one: (one[0][0], int(one[0][1]))):
        random = by.get((function, after, "random"), {})
        gains = [math.log10(random[seed] / regrets[seed]) for seed in sorted(regrets.keys() & random.keys())]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        half = stats.t.ppf(0.975, max(1, len(gains) - 1)) * error
        gain = "" if sampler == "random" else f"{statistics.mean(gains):+.2f} ± {half:.2f}"
        median = statistics.median(regrets.values())
        rows.append(f"| {function} | {after} | {sampler} | {len(regrets)} | {median:.3g} | {gain} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("search_quality.jsonl"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samplers", nargs="*", default=list(SIDES))
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {(line["function"], line["sampler"], line["seed"]) for line in lines}
    for seed in range(given.seeds):
        for function in FUNCTIONS:
            for side in given.samplers:
                if (function, side, seed) in done:
                    continue
                try:
                    line = search(function, side, seed)
                except StudyError as error:  # PyTorch is not installed
                    print(f"{side}: {error}")
                    continue
                lines.append(line)
                with given.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(compare(lines))


if __name__ == "__main__":
    main()
