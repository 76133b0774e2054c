"""Trainings that are killed or stopped in the middle: others go on from their checkpoints, to the same bits."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from tuner.storage import connect
from tuner.storage.sql.tables import leases, trial_intermediate_values
from tuner.training.saved.checkpoints import read

ROOT = Path(__file__).parents[3]

_TRAINER = """
import hashlib, os, signal, sys
import flax.linen as nn
import jax
import numpy as np
import optax
import orbax.checkpoint
from tuner import Space, log_uniform
from tuner.training import ArrayDataset, Checkpoints, Splits, Training, TrainerModule
from tuner.training.loop import modes
from tuner.training.loop.runtime import use_persistent_cache

class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1.0)

class Model(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(1)(nn.Dropout(0.3, deterministic=not train)(nn.relu(x)))[:, 0]

class Trainer(TrainerModule):
    def __init__(self, loop):
        self.loop = loop

    def init_model(self, hparams):
        return Model()

    def loss(self, outputs, batch, hparams):
        return optax.squared_error(outputs, batch["targets"]), {}

    def batch_size(self, hparams):
        return 8

    def ema_decay(self, hparams):
        return 0.9

def train(loop, folder):
    use_persistent_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    modes._CHUNK = 2
    inputs = np.random.default_rng(0).normal(size=(80, 4))
    data = ArrayDataset(inputs=inputs, targets=inputs.sum(1)).split(0.2, 0)
    checkpoints = None if folder == "none" else Checkpoints(folder, every_s=0.0)
    asked = []

    def stop():
        if not asked:
            print("at", training.step, flush=True)
        asked.append(1)
        return False

    training = Training(Trainer(loop), HParams(learning_rate=0.1), data, epochs=6, seed=3, checkpoints=checkpoints,
                        stop=stop)
    for _ in training:
        pass
    digest = hashlib.sha256(repr(training.reports).encode())
    for tree in (training.state, training.best.state):
        for leaf in jax.tree.leaves(tree):
            is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    print("done", digest.hexdigest(), flush=True)

for line in sys.stdin:
    loop, folder = line.split()
    if (pid := os.fork()) == 0:
        train(loop, folder)
        os._exit(0)
    print("pid", pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


class Zygote:
    """A process that has everything imported; for each line it is given it forks one that trains."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _TRAINER],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def train(self, loop: str, folder: Path | str, kill_after_s: float | None = None) -> tuple[int, str | None]:
        """Train; return the step after the first program, and the digest of the end unless it was killed before."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        print(loop, folder, file=stdin, flush=True)
        pid, first, digest = 0, 0, None
        while (line := stdout.readline()) != "ended\n":
            assert line, "the zygote has ended"
            word, value = line.split()
            if word == "pid":
                pid = int(value)
            elif word == "at":
                first = int(value)
                if kill_after_s is not None:
                    threading.Event().wait(kill_after_s)
                    with contextlib.suppress(ProcessLookupError):  # it was faster
                        os.kill(pid, signal.SIGKILL)
            else:
                digest = value
        return first, digest


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path / "cache")
    yield zygote
    os.killpg(zygote.process.pid, signal.SIGKILL)
    zygote.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    "rounds",
    [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.long])],
)
@pytest.mark.parametrize("loop", [pytest.param("step", marks=pytest.mark.long), "scan"])
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    loop: str, rounds: int, zygote: Zygote, tmp_path: Path
) -> None:
    _, expected = zygote.train(loop, "none")
    assert expected is not None
    chance, kills = random.Random(rounds), 0
    for number in range(rounds):
        digest, firsts = None, []
        while digest is None:
            delay_s = chance.uniform(0.0, 0.3) if len(firsts) < 2 else None
            first, digest = zygote.train(loop, tmp_path / f"{number}", delay_s)
            firsts.append(first)
        assert digest == expected, number
        assert firsts == sorted(firsts)
        kills += len(firsts) - 1
    assert kills


# Through the service.


def steps_of(path: Path) -> dict[str, list[int]]:
    """Return by worker the steps after each of its programs, in its first trial."""
    found: dict[str, list[int]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        pid, trial, step = line.split()
        if trial == "0":
            found.setdefault(pid, []).append(int(step))
    return found


def count(url: str, table: sqlalchemy.Table) -> int:
    engine = connect(url)
    try:
        with engine.connect() as connection:
            return connection.execute(sqlalchemy.select(sqlalchemy.func.count()).select_from(table)).scalar_one()
    finally:
        engine.dispose()


def check_same_as_quiet(tuner: Any, tmp_path: Path, trials: int, **env: str) -> None:
    """Check that nothing is doubled or left over, and that values are those of a study without a fault."""
    rows = tuner.rows("trials", "tiny")
    url = tuner.env["TUNER_STORAGE"]
    assert [(row["number"], row["outcome"]) for row in rows] == [(number, "complete") for number in range(trials)]
    assert count(url, leases) == 0
    assert count(url, trial_intermediate_values) == trials * int(env["TINY_EPOCHS"])
    best = sorted(tmp_path.glob("tuner-artifacts/*/*"))
    assert [path.name for path in best] == [str(number) for number in range(trials)]
    assert all(set(os.listdir(path)) - {"log.txt"} == {"best"} for path in best)
    tuner.env["TUNER_STORAGE"] = f"sqlite:///{tmp_path / 'quiet.db'}"
    quiet = {name: value for name, value in env.items() if not name.endswith("_S")}
    assert tuner.run("worker", "tiny.py", **quiet).returncode == 0
    expected = tuner.rows("trials", "tiny")
    assert [(row["hparams"], row["value"]) for row in rows] == [(row["hparams"], row["value"]) for row in expected]


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_workers_trial_is_resumed_from_its_checkpoint(
    tuner_on_sqlite: Any, tiny_study: Path, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    tuner, notes = tuner_on_sqlite, tmp_path / "steps"
    slow = {"TINY_EPOCHS": "6", "TINY_TRIALS": "1", "TINY_LOOP": "step"}
    slow |= {"TINY_SAVE_S": "0", "TINY_STEP_S": "0.15", "TINY_STEPS_FILE": str(notes)}
    launcher = tuner.start("launch", "tiny.py", "--workers", "1", **slow)
    (victim,) = wait_until(lambda: [pid for pid, steps in steps_of(notes).items() if steps[-1] >= 11])
    os.kill(int(victim), signal.SIGKILL)

    output, _ = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, output
    assert "died (killed by SIGKILL)" in output
    before, after = steps_of(notes).values()
    assert before[-1] >= 11
    assert before[-1] - 1 <= after[0] <= before[-1] + 1, "not from the first step, none left out"
    assert after[-1] == 6 * 3 - 1
    check_same_as_quiet(tuner, tmp_path, 1, **slow)


@pytest.mark.slow
def test_a_stopped_worker_saves_in_mid_epoch_and_another_goes_on_from_there(
    tuner_on_sqlite: Any, tiny_study: Path, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    tuner, notes = tuner_on_sqlite, tmp_path / "steps"
    env = {"TINY_EPOCHS": "3", "TINY_TRIALS": "1", "TINY_LOOP": "step", "TINY_STEPS_FILE": str(notes)}
    first = tuner.start("worker", "tiny.py", **env, TINY_STEP_S="1")
    wait_until(lambda: any(steps[-1] == 4 for steps in steps_of(notes).values()))
    first.send_signal(signal.SIGTERM)

    output, _ = first.communicate(timeout=300)

    assert first.returncode == 130
    assert "trial 0: released" in output
    (folder,) = tmp_path.glob("tuner-artifacts/*/0")
    _, record = read(folder)
    assert (record["kind"], record["epoch"], record["position"], len(record["reports"])) == ("latest", 2, 1, 1)
    second = tuner.run("worker", "tiny.py", **env)
    assert second.returncode == 0, second.stderr
    assert list(steps_of(notes).values()) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    check_same_as_quiet(tuner, tmp_path, 1, **env)
