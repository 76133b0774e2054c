"""Which named samplers beat random search, and do they find what Optuna's own samplers find?

    python benchmarks/search_quality.py --out benchmarks/search_quality.jsonl [--only plain digits] [--seeds 10]
    python benchmarks/search_quality.py --out benchmarks/search_quality.jsonl --seeds 0 --readme benchmarks/README.md

Each line of the output is one search: its problem, sampler and seed, and its regret after some numbers of trials.
Searches that the file has are not repeated, so the command can be interrupted. At the end it prints tables, or writes
them into a page between the two lines that name this script.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import CmaEsSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial
from scipy import stats
from search_problems import (
    CONSTRAINED,
    PLAIN,
    SEVERAL,
    Problem,
    Table,
    Unit,
    digits_problems,
    one,
    sphere,
    without_priors,
)

from tuner import Study
from tuner.errors import StudyError
from tuner.storage.optuna import window

Line = dict[str, Any]
POPULATION = 20
WINDOW_TRIALS = 2000
WINDOW_SIDES = ("tpe, window", "tpe, all trials")
TABLE = digits_problems(Table.read())
WINDOWS = {**{name: PLAIN[name] for name in ("branin", "hartmann6")}, "bowl4": Problem(Unit, one(sphere))}
PROBLEMS: Mapping[str, Problem] = {**PLAIN, **CONSTRAINED, **SEVERAL, **TABLE, **WINDOWS}


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to search.

    Attributes:
        sampler: The sampler of a study, or a function that makes Optuna's own from a seed, one object for all trials.
        has_priors: Whether the space has priors.
        is_told: Whether the sampler is told the values of constraints.
        most: The number of trials at most.
    """

    sampler: Any
    has_priors: bool = False
    is_told: bool = True
    most: int = 1000


NSGA2 = {"name": "nsga2", "population_size": POPULATION}
NSGA3 = {"name": "nsga3", "population_size": POPULATION}
GRID = {"name": "grid"}
SIDES: Mapping[str, Side] = {
    "random": Side("random"),
    "qmc": Side("qmc"),
    "tpe": Side("tpe"),
    "tpe, priors": Side("tpe", has_priors=True, most=200),
    "tpe, not told": Side("tpe", is_told=False, most=200),
    "cmaes": Side("cmaes"),
    "nsga2": Side(NSGA2),
    "nsga2, not told": Side(NSGA2, is_told=False),
    "nsga3": Side(NSGA3),
    "grid": Side(GRID),
    "brute_force": Side("brute_force"),
    "gp": Side("gp", most=200),
    "gp, 50 trials": Side("gp", most=50),
    "gp, not told": Side("gp", is_told=False, most=50),
    "auto": Side("auto", most=50),
    "Optuna's TPESampler": Side(lambda seed: TPESampler(seed=seed), most=200),
    "Optuna's CmaEsSampler": Side(lambda seed: CmaEsSampler(seed=seed)),
    "Optuna's NSGAIISampler": Side(lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION)),
    "Optuna's NSGAIIISampler": Side(lambda seed: NSGAIIISampler(seed=seed, population_size=POPULATION)),
}
OF_ONE = ("random", "qmc", "tpe", "nsga2", "Optuna's TPESampler", "Optuna's NSGAIISampler")
OF_NUMBERS = ("cmaes", "Optuna's CmaEsSampler")
OF_SEVERAL = (*OF_ONE, "nsga3", "Optuna's NSGAIIISampler")
TOLD = ("random", "tpe", "tpe, not told", "nsga2", "nsga2, not told", "Optuna's TPESampler")

# Group -> problems, and their sides; cheap groups first.
GROUPS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "plain": (tuple(PLAIN), (*OF_ONE, *OF_NUMBERS, "tpe, priors")),
    "digits": (("digits",), (*OF_ONE, *OF_NUMBERS, "tpe, priors", "grid", "brute_force")),
    "constraints": ((*CONSTRAINED, "digits, small"), TOLD),
    "several": ((*SEVERAL, "digits, loss and size"), OF_SEVERAL),
    "windows": (tuple(WINDOWS), ("tpe, window",)),
    "gp": ((*PLAIN, "digits"), ("gp, 50 trials", "auto")),
    "gp, constraints": ((*CONSTRAINED, "digits, small"), ("gp, 50 trials", "gp, not told")),
    "gp, several": ((*SEVERAL, "digits, loss and size"), ("gp, 50 trials",)),
    "gp, 200": ((*PLAIN, "digits"), ("gp",)),
}


class SharingStorage(InMemoryStorage):
    """Optuna's storage in memory, whose trials share equal distributions, as those of tuner's storage do."""

    def __init__(self) -> None:
        super().__init__()
        self._shared: dict[str, Any] = {}

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, distribution: Any) -> None:
        """Set a parameter; see `optuna.storages.BaseStorage`."""
        shared = self._shared.setdefault(param_name, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, shared)


class WindowedMemory(SharingStorage):
    """The same, whose list of trials is the window that tuner's storage would show to a sampler."""

    def __init__(self) -> None:
        super().__init__()
        self._window, self._known = window.Window([False]), 0

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """Return the trials of the window; see `optuna.storages.BaseStorage`."""
        everything = super().get_all_trials(study_id, deepcopy=False)
        new = [trial for trial in everything[self._known :] if trial.state.is_finished()]
        self._known += len(new)
        self._window.add(new)
        self._window.shrink()
        running = everything[self._known :]
        found = [*self._window.seen, *running]
        return [trial for trial in found if states is None or trial.state in states]


def make_study(problem: Problem, side: Side, seed: int) -> Study:
    """Return a study whose sampler is to be compared."""
    names = [f"y{i}" for i in range(1 if math.isinf(problem.reference[0]) else 2)]
    has_constraint = problem.constraint is not None and side.is_told
    directions: Any = ["minimize"] * len(names)
    return Study(
        name="quality",
        space=problem.space if side.has_priors else without_priors(problem.space),
        train=lambda hparams, trial: 0.0,
        trials=max(problem.trials),
        sampler="random" if callable(side.sampler) else side.sampler,
        seed=seed,
        constraints={"room": "<= 0"} if has_constraint else {},
        objective=names if len(names) > 1 else names[0],
        directions=directions,
    )


class Search:
    """One search, trial by trial.

    Args:
        problem: What is searched.
        side: How.
        seed: The seed of the study.
    """

    def __init__(self, problem: Problem, side: Side, seed: int) -> None:
        self.problem, self.side, self.seed = problem, side, seed
        self.spec = make_study(problem, side, seed)
        self.is_own = callable(side.sampler)
        directions: Any = ["minimize"] * len(self.spec.objectives)
        sampler = side.sampler(seed) if self.is_own else None
        self.found = optuna.create_study(
            storage=None if self.is_own else SharingStorage(), sampler=sampler, directions=directions
        )
        self.feasible: list[tuple[float, ...]] = []
        self.asked = 0

    def run(self, trials: int) -> float:
        """Search until there are so many trials, and return the regret."""
        while self.asked < trials:
            if not self.is_own:
                self.found.sampler = self.spec.make_sampler(self.asked)
            self.asked += 1
            trial = self.found.ask()
            self.spec.sample(trial)
            values, room = self.problem.values(trial.params), -1.0
            if self.problem.constraint is not None:
                room = self.problem.constraint(trial.params)
                if self.side.is_told:
                    trial.set_constraint("room", room)
            self.found.tell(trial, values)
            if room <= 0:
                self.feasible.append(values)
        return self.problem.regret(self.feasible)


def search(name: str, side: str, seed: int) -> list[Line]:
    """Return the regrets of one search."""
    problem, began_s = PROBLEMS[name], time.perf_counter()
    made = Search(problem, SIDES[side], seed)
    regrets = {str(after): made.run(after) for after in problem.trials if after <= SIDES[side].most}
    return [line(name, side, seed, regrets, began_s)]


def search_windows(name: str, seed: int) -> list[Line]:
    """Return two searches by TPE of 2,000 trials: with a window from 1,000 trials on, and with all trials.

    The first 1,000 trials are the same ones.
    """
    began_s, window.SAMPLE = time.perf_counter(), WINDOW_TRIALS // 4
    problem = PROBLEMS[name]
    full, part = Search(problem, SIDES["tpe"], seed), Search(problem, SIDES["tpe"], seed)
    first = full.run(WINDOW_TRIALS // 2)
    part.found = optuna.create_study(storage=WindowedMemory())
    part.found.add_trials(full.found.get_trials(deepcopy=False))
    part.feasible, part.asked = list(full.feasible), full.asked
    last = part.run(WINDOW_TRIALS)
    both = {"tpe, window": last, "tpe, all trials": full.run(WINDOW_TRIALS)}
    half = str(WINDOW_TRIALS // 2)
    return [line(name, side, seed, {half: first, str(WINDOW_TRIALS): end}, began_s) for side, end in both.items()]


def line(name: str, side: str, seed: int, regrets: Mapping[str, float], began_s: float) -> Line:
    """Return a line of the output."""
    seconds = round(time.perf_counter() - began_s, 2)
    return {"problem": name, "sampler": side, "seed": seed, "regret": dict(regrets), "seconds": seconds}


# --- Tables

Regrets = Mapping[int, float]
"""By seed."""


def gain(regrets: Regrets, others: Regrets) -> str:
    """Return by how many powers of ten regrets are less than others: the mean over seeds, with a 95 % interval."""
    gains = [math.log10(others[seed] / regrets[seed]) for seed in sorted(regrets.keys() & others.keys())]
    if len(gains) < 2:
        return ""
    half = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / math.sqrt(len(gains))
    return f"{statistics.mean(gains):+.2f} ± {half:.2f}"


def cell(regrets: Regrets, random: Regrets, seeds: int) -> str:
    """Return the gain over random search, the median regret, and the number of seeds if it is not the usual one."""
    median = f"{statistics.median(regrets.values()):.3g}"
    if regrets == random:
        return median
    few = f", {len(regrets)} of {seeds} seeds" if len(regrets) < seeds else ""
    return f"{gain(regrets, random)} ({median}{few})".strip()


def tables(lines: Iterable[Line]) -> str:
    """Return a table for each problem: a row for each sampler, a column for each number of trials."""
    by: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for one_line in lines:
        side = one_line["sampler"].removesuffix(", 50 trials")
        name = f"{one_line['problem']}, windows" if side in WINDOW_SIDES else one_line["problem"]
        for after, regret in one_line["regret"].items():
            by.setdefault(name, {}).setdefault(side, {}).setdefault(after, {})[one_line["seed"]] = regret
    names = [*PROBLEMS, *(f"{name}, windows" for name in WINDOWS)]
    return "\n\n".join(table(name, by[name]) for name in names if name in by)


def table(name: str, samplers: Mapping[str, Mapping[str, Regrets]]) -> str:
    """Return the table of a problem."""
    seeds = max(len(regrets) for by_size in samplers.values() for regrets in by_size.values())
    sizes = sorted({int(after) for by_size in samplers.values() for after in by_size})
    rows = [[name, *(f"{size} trials" for size in sizes)], ["---"] * (1 + len(sizes))]
    for side in [side for side in (*SIDES, *WINDOW_SIDES) if side in samplers]:
        found = {int(after): regrets for after, regrets in samplers[side].items()}
        base = samplers[WINDOW_SIDES[1] if side in WINDOW_SIDES else "random"]
        cells = [cell(found[size], base[str(size)], seeds) if size in found else "" for size in sizes]
        rows.append([side, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


BEGIN, END = "<!-- search_quality.py: begin -->", "<!-- search_quality.py: end -->"


def write_tables(page: Path, text: str) -> None:
    """Replace the tables of a page."""
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def plan(groups: Sequence[str], seeds: int) -> Iterator[tuple[str, str, int]]:
    """Yield problem, side and seed of each search; those of a group by seed, so that all sides have the same seeds."""
    for group in groups:
        problems, sides = GROUPS[group]
        yield from ((problem, side, seed) for seed in range(seeds) for problem in problems for side in sides)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("search_quality.jsonl"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="GROUP")
    parser.add_argument("--readme", type=Path, help="the page whose tables are replaced")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    lines = [json.loads(text) for text in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {(known["problem"], known["sampler"], known["seed"]) for known in lines}
    for problem, side, seed in plan(given.only, given.seeds):
        if (problem, side, seed) in done:
            continue
        try:
            found = search_windows(problem, seed) if side in WINDOW_SIDES else search(problem, side, seed)
        except StudyError as error:  # PyTorch is not installed
            print(f"{side}: {error}")
            continue
        lines += found
        with given.out.open("a") as file:
            file.writelines(json.dumps(one_line) + "\n" for one_line in found)
    text = tables(lines)
    print(text)
    if given.readme is not None:
        write_tables(given.readme, text)


if __name__ == "__main__":
    main()
