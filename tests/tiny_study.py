"""A study of seconds for tests: linear regression on made-up data. Environment variables make it slow or wrong."""

import contextlib
import os
import signal
import time
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import tuner.storage.worker.claims
import tuner.worker.loop
from tuner import Space, Study, log_uniform, uniform
from tuner.training import ArrayDataset, Splits, TrainerModule

MODE = os.environ.get("TINY_MODE", "")
KILLED = 0.35438542517570404  # the noise of trial 1
PAUSE_S = float(os.environ.get("TINY_PAUSE_S", "0"))  # after each report
HOLD_FILE = os.environ.get("TINY_HOLD_FILE")  # while it exists, training waits before each report
STEP_S = float(os.environ.get("TINY_STEP_S", "0"))  # after each program but the last

if "TINY_NOTES" in os.environ:  # what this worker was given
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    names = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION", "OMP_NUM_THREADS")
    lines = [f"cores={cores}", *(f"{name}={os.environ.get(name, '')}" for name in names)]
    Path(os.environ["TINY_NOTES"], str(os.getpid())).write_text("\n".join(lines))

# How long a worker waits for a database that is away, and how long its leases last.
for variable in ("PATIENCE_S", "LEASE_S"):
    if f"TINY_{variable}" in os.environ:
        setattr(tuner.worker.loop, variable, float(os.environ[f"TINY_{variable}"]))


def note(line: str) -> None:
    """Note how far a training has come: process, trial, steps."""
    if "TINY_STEPS_FILE" in os.environ:
        with Path(os.environ["TINY_STEPS_FILE"]).open("a") as file:
            file.write(f"{line}\n")


def stop_in_claim(path: Path, claims: int) -> None:
    """Let the first worker that comes to its n-th claim stop itself in the middle of it, its process id in a file."""
    standing, made = tuner.storage.worker.claims._standing, 0

    def standing_or_stop(*args):
        nonlocal made
        made += 1
        found = standing(*args)
        if made == claims:
            with contextlib.suppress(FileExistsError), path.open("x") as file:
                file.write(str(os.getpid()))
                file.flush()
                os.kill(os.getpid(), signal.SIGSTOP)
        return found

    tuner.storage.worker.claims._standing = standing_or_stop


if "TINY_STOPPED_FILE" in os.environ:
    stop_in_claim(Path(os.environ["TINY_STOPPED_FILE"]), claims=2)


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    noise: float = uniform(0.0, 1.0)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)[:, 0]


class Trainer(TrainerModule):
    loop = os.environ.get("TINY_LOOP", "auto")  # pyright: ignore[reportAssignmentType]

    def init_model(self, hparams):
        return Model()

    def loss(self, outputs, batch, hparams):
        errors = (outputs - batch["targets"]) ** 2
        if MODE == "nan":
            errors = jnp.where(hparams.noise > 0.5, jnp.nan, errors)
        return errors, {}

    # All that a worker needs of a training is that it yields reports.
    def train_model(self, hparams, splits, *, epochs, seed, stop=lambda: False, **options):  # pyright: ignore[reportIncompatibleMethodOverride]
        if MODE == "bug":
            raise RuntimeError("planted bug")
        if MODE == "kill" and abs(hparams.noise - KILLED) < 1e-9:
            os.kill(os.getpid(), signal.SIGKILL)
        if MODE == "memory" and hparams.noise > 0.5:
            raise MemoryError("planted")

        def slow_stop():
            note(f"{os.getpid()} {options.get('about', {}).get('trial')} {training.step}")
            time.sleep(STEP_S)
            return stop()

        training = super().train_model(hparams, splits, epochs=epochs, seed=seed, stop=slow_stop, **options)
        for report in training:
            time.sleep(PAUSE_S)
            while HOLD_FILE and Path(HOLD_FILE).exists():
                time.sleep(0.05)
            yield report


def wait_for_others(folder: Path) -> None:
    """Wait, just before the storage is opened, until a file `go` lets all workers go at once."""
    (folder / str(os.getpid())).touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


def data(seed: int) -> Splits:
    if "TINY_START_FOLDER" in os.environ:
        wait_for_others(Path(os.environ["TINY_START_FOLDER"]))
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(200, 3))
    return ArrayDataset(inputs=inputs, targets=inputs @ [1.0, 2.0, 3.0]).split(0.2, seed)


study = Study(
    name="tiny",
    space=HParams,
    trainer=Trainer(),
    data=data,
    objective="loss",
    direction="minimize",
    epochs=int(os.environ.get("TINY_EPOCHS", "3")),
    trials=int(os.environ.get("TINY_TRIALS", "6")),
    sampler="random",
    pruner="none",
    save_every_s=float(os.environ.get("TINY_SAVE_S", "60")),
)
