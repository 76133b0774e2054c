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


def lock_twice():
    """Wait in C for ever: signals do not interrupt this wait, and no handler of Python runs."""
    mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def block():
    """Note the process, and do not return while a file `go` is missing."""
    (FOLDER / "blocked").write_text(str(os.getpid()))
    try:
        while not (FOLDER / "go").exists():
            if "in_c" in HANGS:
                lock_twice()
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
