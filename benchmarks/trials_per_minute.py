"""How many trials per minute does `tuner launch` run, compared with the usual script?

    python benchmarks/trials_per_minute.py --json results.jsonl

Runs the same study (`studies/digits_mlp.py`) alternately with `tuner launch` and with `usual_script.py`. If width and
depth are free, it also runs `tuner launch usual_script.py:objective`, which is the unchanged objective of the script on
two workers. Each run is a separate process on the same cores, with a new SQLite file and an empty compile cache. See
`README.md` in this folder for details of the comparison.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.storage import connect
from tuner.storage.read.queries import TrialRow, find_study, read_trials

ROOT = Path(__file__).resolve().parent.parent
STUDY_FILE = ROOT / "studies" / "digits_mlp.py"
FIXED = {"width": 64, "depth": 2}
SCRIPT = ROOT / "benchmarks" / "usual_script.py"
SIDES = ("tuner", "script", "objective")
SPACES = ("fixed", "free")
_TIMEOUT_S = 600
_UNPRUNED = """
import dataclasses
from tuner.study import load_study
study = dataclasses.replace(load_study({file!r}), pruner="none")
"""


@dataclass(frozen=True)
class Run:
    """One command from start to exit.

    Attributes:
        side: `tuner`, `script`, `objective` for the script's objective through `tuner launch`, or `cohort K`.
        space: `fixed` or `free` width and depth.
        seconds: From the process's start to its exit.
        before_seconds: From the process's start until the first trial starts.
        after_seconds: From the end of the last trial to the process's exit.
        trials: Trials finished.
        epochs: Epochs reported.
        warm_seconds: From the earliest start of any worker's second trial to the end of the last trial.
        warm_trials: Trials without the first one of each worker.
        warm_epochs: Epochs of those trials.
        workers: Workers that ran a trial.
        compile_seconds: Spent compiling, summed over all workers; known only for `tuner`.
        best: The best value.
    """

    side: str
    space: str
    seconds: float
    before_seconds: float
    after_seconds: float
    trials: int
    epochs: int
    warm_seconds: float
    warm_trials: int
    warm_epochs: int
    workers: int
    compile_seconds: float | None
    best: float

    @property
    def trials_a_minute(self) -> float:
        """Including the start and the exit of the command."""
        return 60 * self.trials / self.seconds

    @property
    def epochs_a_minute(self) -> float:
        """Including the start and the exit of the command."""
        return 60 * self.epochs / self.seconds

    @property
    def warm_trials_a_minute(self) -> float:
        """Without the first trial of each worker."""
        return 60 * self.warm_trials / self.warm_seconds

    @property
    def warm_epochs_a_minute(self) -> float:
        """Without the first trial of each worker."""
        return 60 * self.warm_epochs / self.warm_seconds


@dataclass(frozen=True)
class Comparison:
    """One line of the result: a rate of `Run`, and the target for its ratio to the script's rate."""

    question: str
    space: str
    rate: str
    target: float | None = None
    side: str = "tuner"


COMPARISONS = (
    Comparison("1. fixed, without first trials: trials", "fixed", "warm_trials_a_minute", 8),
    Comparison("   the same: epochs", "fixed", "warm_epochs_a_minute"),
    Comparison("2. fixed, whole command: trials", "fixed", "trials_a_minute", 3),
    Comparison("   the same: epochs", "fixed", "epochs_a_minute"),
    Comparison("3. free, whole command: trials", "free", "trials_a_minute", 2),
    Comparison("   the same: epochs", "free", "epochs_a_minute"),
    Comparison("4. the script's objective, 2 workers: trials", "free", "trials_a_minute", side="objective"),
    Comparison("   the same: epochs", "free", "epochs_a_minute", side="objective"),
    Comparison("   without first trials: epochs", "free", "warm_epochs_a_minute", side="objective"),
)
"""`fixed` and `free` refer to width and depth; all rates are per minute."""


def comparisons_of(cohort: str) -> tuple[Comparison, ...]:
    """Return the comparisons for `tuner launch --cohort`."""
    side = f"cohort {cohort}"
    return (
        Comparison(f"fixed, {side}, without first trials: trials", "fixed", "warm_trials_a_minute", side=side),
        Comparison(f"fixed, {side}, whole command: trials", "fixed", "trials_a_minute", side=side),
        Comparison("   the same: epochs", "fixed", "epochs_a_minute", side=side),
    )


def command(side: str, space: str, url: str, trials: int, pruner: str, folder: Path) -> list[str]:
    """Return the command of one run."""
    if side == "script":
        fixed = [f"--{name}={value}" for name, value in FIXED.items()] if space == "fixed" else []
        return [sys.executable, str(SCRIPT), f"--storage={url}", f"--trials={trials}", f"--pruner={pruner}", *fixed]
    fixed = [f"--set={name}={value}" for name, value in FIXED.items()] if space == "fixed" else []
    file = str(STUDY_FILE)
    if side == "objective":
        # Use the rungs of the study's `asha` for 20 epochs: an objective does not have a number of epochs.
        asha = json.dumps({"name": "asha", "min_resource": 3})
        fixed = ["--name=digits_mlp", "--direction=maximize", "--sampler=tpe", "--workers=2"]
        fixed.append(f"--pruner={asha if pruner == 'asha' else 'none'}")
        return [
            sys.executable,
            "-m",
            "tuner",
            "launch",
            f"{SCRIPT}:objective",
            f"--storage={url}",
            *fixed,
            f"--trials={trials}",
        ]
    if pruner == "none":
        file = str(folder / "unpruned.py")
        Path(file).write_text(_UNPRUNED.format(file=str(STUDY_FILE)), encoding="utf-8")
    if side.startswith("cohort "):
        fixed.append(f"--cohort={side.removeprefix('cohort ')}")
    return [sys.executable, "-m", "tuner", "launch", file, f"--storage={url}", f"--trials={trials}", *fixed]


def environment(folder: Path) -> dict[str, str]:
    """Return an environment for CPUs, with an empty compile cache and without the caller's settings."""
    dropped = ("JAX_", "XLA_", "TUNER_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return {**env, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder / "cache"), "TZ": "UTC"}


def run_once(side: str, space: str, trials: int, pruner: str) -> Run:
    """Run one command to its end and read the results from its database.

    Raises:
        SystemExit: the command failed or ran a wrong number of trials; the message has its output.
    """
    with tempfile.TemporaryDirectory(prefix="tuner-benchmark-") as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'study.db'}"
        words = command(side, space, url, trials, pruner, folder)
        began, began_s = datetime.datetime.now(datetime.UTC), time.perf_counter()
        done = subprocess.run(
            words, env=environment(folder), cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
        seconds = time.perf_counter() - began_s
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        engine = connect(url)
        try:
            rows = read_trials(engine, find_study(engine, "digits_mlp"), with_reports=True)
        finally:
            engine.dispose()
    if sum(row.outcome.uses_budget for row in rows) != trials:
        raise SystemExit(f"{' '.join(words)} must run {trials} trials: it ran {len(rows)}\n{done.stdout}{done.stderr}")
    return summarise(side, space, began, seconds, rows)


def summarise(side: str, space: str, began: datetime.datetime, seconds: float, rows: Sequence[TrialRow]) -> Run:
    """Return the figures of one run, computed from its trials."""
    by_worker: dict[str, list[TrialRow]] = {}
    for row in rows:
        by_worker.setdefault(row.record.worker or "", []).append(row)
    warm = [row for group in by_worker.values() for row in sorted(group, key=_started)[1:]]
    if not warm:
        raise SystemExit("no worker ran two trials: give more --trials")
    ends = [_utc(row.completed) for row in rows if row.completed is not None]
    compiled = [row.record.compile_s for row in rows if row.record.compile_s is not None]
    before_seconds = (min(map(_started, rows)) - began).total_seconds()
    return Run(
        side=side,
        space=space,
        seconds=seconds,
        before_seconds=before_seconds,
        after_seconds=seconds - before_seconds - (max(ends) - min(map(_started, rows))).total_seconds(),
        trials=len(rows),
        epochs=sum(len(row.reports) for row in rows),
        warm_seconds=(max(ends) - min(map(_started, warm))).total_seconds(),
        warm_trials=len(warm),
        warm_epochs=sum(len(row.reports) for row in warm),
        workers=len(by_worker),
        compile_seconds=sum(compiled) if compiled else None,
        best=max(row.values[0] for row in rows if row.values),
    )


def _started(row: TrialRow) -> datetime.datetime:
    assert row.started is not None
    return _utc(row.started)


def _utc(time: datetime.datetime) -> datetime.datetime:
    """Return a time with a zone. Plain Optuna may give a time without a zone, which is UTC because `TZ` is UTC."""
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def describe(run: Run) -> str:
    """Return a line that describes one run."""
    compiled = "" if run.compile_seconds is None else f", compiling {run.compile_seconds:.1f} s"
    return (
        f"{run.side:<9} {run.space:<5} {run.trials} trials, {run.epochs} epochs in {run.seconds:.1f} s, "
        f"{run.before_seconds:.1f} before and {run.after_seconds:.1f} after; "
        f"without first ones {run.warm_trials} trials, {run.warm_epochs} epochs in {run.warm_seconds:.2f} s; "
        f"{run.workers} worker{'s' if run.workers > 1 else ''}{compiled}; best {run.best:.4f}"
    )


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the rates of both sides, their medians, and the ratio of the medians for each comparison."""
    lines = []
    cohorts = dict.fromkeys(run.side.removeprefix("cohort ") for run in runs if run.side.startswith("cohort "))
    for comparison in (*COMPARISONS, *(one for cohort in cohorts for one in comparisons_of(cohort))):
        rates = {
            side: [getattr(run, comparison.rate) for run in runs if (run.side, run.space) == (side, comparison.space)]
            for side in (comparison.side, "script")
        }
        if all(rates.values()):
            medians = {side: statistics.median(found) for side, found in rates.items()}
            ratio = medians[comparison.side] / medians["script"]
            lines.append({**dataclasses.asdict(comparison), "rates": rates, "medians": medians, "ratio": ratio})
    return lines


def print_table(lines: Sequence[dict[str, Any]]) -> None:
    """Print the comparisons: median [lowest-highest] of each side."""
    print(f"\n{'width and depth ..., per minute':<46} {'tuner launch':>20} {'script':>20} {'ratio':>8}  target")
    for line in lines:
        cells = [
            f"{line['medians'][side]:.0f} [{min(line['rates'][side]):.0f}-{max(line['rates'][side]):.0f}]"
            for side in (line["side"], "script")
        ]
        target = f">= {line['target']}x" if line["target"] else ""
        print(f"{line['question']:<46} {cells[0]:>20} {cells[1]:>20} {line['ratio']:>7.1f}x  {target}")


def machine() -> dict[str, Any]:
    """Return the properties of the machine and the versions that affect the figures."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True
    )
    info = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (info.read_text(encoding="utf-8").splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "cpu": models[0] if models else platform.processor(),
        "cores": sorted(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "optuna")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Trials per minute of `tuner launch` and of the usual script.")
    parser.add_argument("--repeats", type=int, default=3, help="number of runs for each command, alternately")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--pruner", choices=["asha", "none"], default="asha", help="none: both train the same epochs")
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=SPACES, help="width and depth: fixed or free")
    parser.add_argument("--cohorts", nargs="+", default=[], metavar="K", help="also `tuner launch --cohort K`")
    parser.add_argument("--cores", type=int, default=2, help="number of cores that each side may use")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures as one JSON line")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])

    record = {**machine(), "trials": args.trials, "pruner": args.pruner, "repeats": args.repeats}
    print(", ".join(f"{key} {value}" for key, value in record.items()), flush=True)
    runs = []
    for space in args.spaces:
        for _ in range(args.repeats):
            cohorts = [f"cohort {cohort}" for cohort in args.cohorts]
            for side in SIDES if space == "free" else (*SIDES[:2], *cohorts):
                runs.append(run_once(side, space, args.trials, args.pruner))
                print(describe(runs[-1]), flush=True)
    lines = compare(runs)
    print_table(lines)
    if args.json:
        record = {**record, "comparisons": lines, "runs": [dataclasses.asdict(run) for run in runs]}
        with args.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
