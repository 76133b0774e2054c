"""How much memory does a worker use after many trials with different static hyperparameters?

    python benchmarks/worker_memory.py --trials 1000 --json results.jsonl

One worker runs a study in which nearly every trial has a different width, and therefore different programs. Measures
its resident memory and the size of its compile cache on disk, for example after 20, 200 and 1,000 trials.

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

import jax
import jax.numpy as jnp
import numpy as np
from trials_per_minute import machine

from tuner import Space, Study, int_uniform, log_uniform
from tuner.training import ArrayDataset, OptimizerSpec, TrainerModule
from tuner.trial import Event, Stop
from tuner.trial.events import TrialEnded
from tuner.worker import run_worker

AT = (20, 50, 100, 200, 500, 1000, 1500)


class HParams(Space):
    """A space with so many widths that few trials have the same one."""

    learning_rate: float = log_uniform(1e-3, 1e-1)
    width: int = int_uniform(2, 20_000)


class Trainer(TrainerModule):
    """A linear model that is quick to compile, so memory is used mostly for JAX's traces, not for machine code."""

    loop = "step"  # "auto" would compile both forms to measure them

    def init_model(self, hparams: Any) -> Any:
        def init(key: jax.Array, inputs: jax.Array) -> dict[str, jax.Array]:
            return {"weights": jnp.zeros((inputs.shape[1], hparams.width))}

        def apply(params: Any, inputs: jax.Array) -> jax.Array:
            return jnp.sum(inputs @ params["weights"], axis=1)

        return init, apply

    def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
        return OptimizerSpec("sgd", hparams.learning_rate / hparams.width)

    def loss(self, outputs: jax.Array, batch: Any, hparams: Any) -> tuple[jax.Array, dict[str, Any]]:
        return (outputs - batch["targets"]) ** 2, {}


def data(seed: int) -> Any:
    """Return 64 examples, split into training and validation."""
    inputs = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    return ArrayDataset(inputs=inputs, targets=inputs.sum(1)).split(0.25, seed)


def resident_mb() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def size_mb(folder: Path) -> float:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def run(trials: int, folder: Path) -> list[dict[str, Any]]:
    """Run the study in this process; return a row for each number of trials in `AT`."""
    os.environ["XDG_CACHE_HOME"] = str(folder)
    study = Study(
        name="memory", space=HParams, trainer=Trainer(), data=data, objective="loss", direction="minimize", epochs=1,
        trials=trials, sampler="random", pruner="none", keep_best=1,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    ended, began = 0, time.perf_counter()

    def say(event: Event) -> None:
        nonlocal ended
        if not isinstance(event, TrialEnded):
            return
        ended += 1
        if ended in AT or ended == trials:
            sizes = {
                "resident_mb": round(resident_mb()),
                "cache_mb": round(size_mb(folder / "artifacts" / f"compiled-{os.geteuid()}"), 1),
            }
            rows.append({"trials": ended, **sizes, "seconds": round(time.perf_counter() - began)})
            print(json.dumps(rows[-1]), flush=True)

    run_worker(study, f"sqlite:///{folder}/memory.db", artifacts=str(folder / "artifacts"), say=say, stop=Stop())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", help="append the rows to this file as JSON lines")
    options = parser.parse_args()
    print(json.dumps(machine()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = run(options.trials, Path(folder))
    if options.json:
        with open(options.json, "a") as file:
            file.writelines(json.dumps({"benchmark": "worker_memory", **row}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
