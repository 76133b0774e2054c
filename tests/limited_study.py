"""Studies of all kinds but a trainer, for tests of limits. $HANGS names the place where trial 0 never returns."""

import ctypes
import os
import time
from pathlib import Path

from tuner import Command, OptunaObjective, Space, Study, uniform

FOLDER = Path(__file__).parent
HANGS = os.environ.get("HANGS", "")


class HParams(Space):
    rate: float = uniform(0.0, 1.0)


def block_in_c():
    """Wait in C for a shell that ends after this process: signals do not interrupt it, and no handler of Python runs.

    The shell creates the file `blocked`, so that this process is already in C when it appears.
    """
    me = os.getpid()
    line = f"exec >/dev/null 2>&1; touch '{FOLDER}/blocked'; while kill -0 {me} 2>/dev/null; do sleep 0.2; done"
    ctypes.CDLL(None).system(line.encode())


def compile_for_minutes():
    """Compile a program with JAX that takes minutes; nothing is cached."""
    import jax
    import jax.numpy as jnp

    def program(x):
        for count in range(5000):
            x = jnp.sort(x * count)[::-1] + jnp.cumsum(x)
        return x

    lowered = jax.jit(program).lower(jnp.ones(16))
    (FOLDER / "blocked").touch()
    lowered.compile()


def block():
    """Create a file `blocked`, and do not return while a file `go` is missing."""
    try:
        if "in_c" in HANGS:
            block_in_c()
        if "compiling" in HANGS:
            compile_for_minutes()
        (FOLDER / "blocked").touch()
        while not (FOLDER / "go").exists():
            time.sleep(0.05)
    finally:
        (FOLDER / "finally").touch()


def train(hparams, trial):
    yield {"score": 1.0}
    if trial.number == 0 and "train" in HANGS:
        block()
    yield {"score": 2.0}


def data(seed):
    block()


def never_ends(hparams, trial):
    while True:
        time.sleep(0.1)
        trial.report({"score": 1.0})


def asks(hparams, trial):
    trial.report({"score": 1.0})
    while not trial.should_stop():
        time.sleep(0.1)
    return 9.0


def objective(trial):
    rate = trial.suggest_float("rate", 0.0, 1.0)
    step = 0
    while not trial.should_prune():
        trial.report(rate, step)
        step += 1
        time.sleep(0.1)
    return 9.0


common = {"objective": "score", "direction": "maximize", "trials": 2, "sampler": "random", "pruner": "none"}
ours = {"space": HParams, **common}
hanging = Study(name="hanging", train=train, **ours)
generator = Study(name="generator", train=never_ends, **ours)
asking = Study(name="asking", train=asks, **ours)
optuna = Study(name="optuna", train=OptunaObjective(objective), **common)
# The sleeping child is in the command's process group, and would outlive a killed shell.
shell = """echo '{{"score": 1.0}}'; sleep 600 & wait"""
command = Study(name="command", train=Command(shell, shell=True), **ours)

if "import" in HANGS:
    block()
