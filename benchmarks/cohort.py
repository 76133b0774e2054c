"""How many more trials per second does a worker train when they share a program?

    taskset -c 0 python benchmarks/cohort.py --json results.jsonl

One worker on one core runs each study with one trial at a time, with 4, 16 and 64 at once, and with `cohort="auto"`, on
a SQLite file: first until all programs are compiled, then as many trials again, which are timed. Random search, no
pruning, so that all ways train the same hyperparameters for the same epochs. The best values must agree.

1. `small`: a regression network with 16 hidden units; 800 examples, 10 epochs.
2. `mlp`: the network of `studies/digits_mlp.py`, 32 wide, 5 epochs.
3. `cnn`: the network of `studies/digits_cnn.py` with SGD, 8 channels, 2 epochs.
4. `control`: policy gradients on a pendulum that is simulated in the program, 10 epochs.

See `README.md` in this folder for the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from trials_per_minute import ROOT, machine

import tuner
from tuner import Space, Study, log_uniform, uniform
from tuner.study import load_study
from tuner.training import ArrayDataset, OptimizerSpec, TrainerModule
from tuner.training.metrics import Mean
from tuner.trial import Event
from tuner.trial.events import CohortChosen, TrialEnded
from tuner.worker import run_worker

WAYS: tuple[Any, ...] = (1, 4, 16, 64, "auto")
SEARCH: dict[str, Any] = {"sampler": "random", "pruner": "none", "keep_best": 0}


class Rate(Space):
    """The space of `small`."""

    learning_rate: float = log_uniform(1e-4, 1e-1)


class Small(nn.Module):
    """One hidden layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(16)(x)))


class Regression(TrainerModule):
    """Least squares."""

    def init_model(self, hparams):
        return Small()

    def init_optimizer(self, hparams, total_steps):
        return OptimizerSpec("adamw", hparams.learning_rate)

    def batch_size(self, hparams):
        return 32

    def loss(self, outputs, batch, hparams):
        return (outputs[:, 0] - batch["labels"]) ** 2, {}


def regression_data(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(1000, 8)).astype(np.float32)
    labels = inputs @ rng.normal(size=8) + np.sin(3 * inputs[:, 0])
    return ArrayDataset(inputs=inputs, labels=labels.astype(np.float32)).split(0.2, seed=seed)


class Control(Space):
    """The space of `control`."""

    learning_rate: float = log_uniform(1e-4, 1e-1)
    exploration: float = uniform(0.1, 1.0)


class Policy(nn.Module):
    """The mean push for cosine, sine and speed of the pendulum."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(16)(x)))[..., 0]


class Pendulum(TrainerModule):
    """Policy gradients (Williams, 1992) with the mean return as baseline; the batch only gives the start angles."""

    horizon = 32

    def init_model(self, hparams):
        return Policy()

    def init_optimizer(self, hparams, total_steps):
        return OptimizerSpec("adam", hparams.learning_rate)

    def batch_size(self, hparams):
        return 32

    def _returns(self, params, angles, key, scale):
        def step(state, key):
            angle, speed = state
            mean: Any = Policy().apply({"params": params}, jnp.stack([jnp.cos(angle), jnp.sin(angle), speed], -1))
            push = jax.lax.stop_gradient(mean + scale * jax.random.normal(key, mean.shape))
            speed = jnp.clip(speed + 0.05 * (15.0 * jnp.sin(angle) + 3.0 * jnp.clip(push, -2.0, 2.0)), -8.0, 8.0)
            angle = angle + 0.05 * speed
            wrapped = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
            return (angle, speed), (-(wrapped**2) - 0.1 * speed**2, -((push - mean) ** 2) / (2 * scale**2))

        keys = jax.random.split(key, self.horizon)
        _, (rewards, logs) = jax.lax.scan(step, (angles, jnp.zeros_like(angles)), keys)
        return rewards.sum(0), logs.sum(0)

    def train_step(self, state, batch, hparams, key):
        def loss(params):
            returns, logs = self._returns(params, batch["inputs"][:, 0], key, hparams.exploration)
            advantage = jax.lax.stop_gradient(returns - returns.mean())
            return -(advantage * logs).mean(), returns

        grads, returns = jax.grad(loss, has_aux=True)(state.params)
        optimizer = self.build_optimizer(hparams, state.total_steps, key)
        return state.apply_gradients(optimizer, grads), {"cost": Mean.of(-returns, batch["weight"])}

    def eval_step(self, state, batch, hparams):
        returns, _ = self._returns(state.params, batch["inputs"][:, 0], jax.random.key(0), 0.01)
        return {"cost": Mean.of(-returns, batch["weight"])}


def angles(seed: int) -> Any:
    inputs = np.random.default_rng(seed).uniform(-np.pi, np.pi, (640, 3)).astype(np.float32)
    return ArrayDataset(inputs=inputs).split(0.2, seed=seed)


def fixed(file: str, epochs: int, **values: Any) -> Study:
    """Return a study of `studies/` with fixed static hyperparameters."""
    study: Any = load_study(str(ROOT / "studies" / file))
    module = sys.modules[study.space.__module__]
    values = {name: getattr(module, value) if isinstance(value, str) else value for name, value in values.items()}
    return dataclasses.replace(study, name=Path(file).stem, epochs=epochs, fixed=values, **SEARCH)


def small() -> Study:
    given: Any = {"space": Rate, "trainer": Regression(), "data": regression_data, "epochs": 10, "trials": 1}
    return Study(name="small", objective="loss", direction="minimize", **given, **SEARCH)


def control() -> Study:
    given: Any = {"space": Control, "trainer": Pendulum(), "data": angles, "epochs": 10, "trials": 1}
    return Study(name="control", objective="cost", direction="minimize", **given, **SEARCH)


STUDIES: dict[str, Callable[[], Study]] = {
    "small": small,
    "mlp": lambda: fixed("digits_mlp.py", 5, width=32, depth=1),
    "cnn": lambda: fixed("digits_cnn.py", 2, optimizer="SGD", channels=8),
    "control": control,
}
TRIALS = {"small": 512, "mlp": 128, "cnn": 128, "control": 256}


def measure(study: Study, trials: int, cohort: Any) -> dict[str, Any]:
    """Run a study twice, the second time with compiled programs; return trials per second of the second run.

    The time of the second run is from the start of its worker to the end of its last trial.
    """
    with tempfile.TemporaryDirectory() as folder:
        url, artifacts = f"sqlite:///{folder}/study.db", f"{folder}/artifacts"
        began_s = time.perf_counter()
        lanes = 1

        def listen(event: Event) -> None:
            nonlocal lanes, ended_s
            if isinstance(event, CohortChosen):
                lanes = event.lanes
            if isinstance(event, TrialEnded):
                ended_s = time.perf_counter()

        ended_s = 0.0
        run_worker(dataclasses.replace(study, trials=trials, cohort=cohort), url, artifacts=artifacts, say=listen)
        first_s, began_s = time.perf_counter() - began_s, time.perf_counter()
        run_worker(dataclasses.replace(study, trials=2 * trials, cohort=cohort), url, artifacts=artifacts, say=listen)
        best = tuner.open_study(study.name, url).best()
        return {
            "cohort": cohort,
            "lanes": lanes,
            "trials_per_s": round(trials / (ended_s - began_s), 2),
            "first_run_s": round(first_s, 1),
            "best": None if best is None or best.values is None else best.values[0],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Trials per second one by one and in cohorts.")
    parser.add_argument("--only", choices=list(STUDIES), help="one of the studies")
    parser.add_argument("--share", type=float, default=1.0, help="the share of the trials to run")
    parser.add_argument("--json", type=Path, help="a file to append the figures to")
    args = parser.parse_args()
    results: dict[str, Any] = {"benchmark": "cohort", **machine()}
    for name in [args.only] if args.only else STUDIES:
        trials = max(2, int(TRIALS[name] * args.share))
        study = STUDIES[name]()
        ways = [measure(study, trials, way) for way in WAYS]
        for way in ways:
            way["ratio"] = round(way["trials_per_s"] / ways[0]["trials_per_s"], 2)
            print(name, json.dumps(way), flush=True)
        results[name] = {"trials": trials, "ways": ways}
    if args.json:
        with args.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
