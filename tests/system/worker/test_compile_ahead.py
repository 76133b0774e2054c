"""Programs that are compiled before a trial needs them, by `tuner worker --compile-only` and during a launch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Tuner

STUDY = '''
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tuner import Space, Study, choice, log_uniform
from tuner.training import ArrayDataset, TrainerModule

TRIALS = int(os.environ.get("THREE_TRIALS", "6"))
WAIT_FOR = int(os.environ.get("THREE_WAIT_FOR", "0"))


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    width: int = choice(4, 8, 16)


class Trainer(TrainerModule):
    loop = "step"

    def init_model(self, hparams):
        def init(key, x):
            keys, sizes = jax.random.split(key), [2, hparams.width, 1]
            return [jax.random.normal(k, (n, m)) / n for k, n, m in zip(keys, sizes, sizes[1:])]

        def apply(params, x):
            for weights in params[:-1]:
                x = jnp.tanh(x @ weights)
            return (x @ params[-1])[:, 0]

        return init, apply

    def loss(self, outputs, batch, hparams):
        return (outputs - batch["targets"]) ** 2, {}

    def on_training_epoch_end(self, state, hparams, epoch, metrics):
        deadline_s = time.monotonic() + 400
        while programs() < WAIT_FOR and time.monotonic() < deadline_s:
            time.sleep(0.2)
        return {}


def programs():
    folders = Path(os.environ["TUNER_ARTIFACTS"]).glob("compiled-*/*")
    files = [file.name for each in folders for file in each.iterdir()]
    return sum(not (name.endswith(".lock") or name.startswith(".")) for name in files)


def data(seed):
    x = np.random.default_rng(seed).normal(size=(40, 2)).astype("float32")
    return ArrayDataset(inputs=x, targets=x.sum(1)).split(0.2, seed)


study = Study(
    name="three", space=HParams, trainer=Trainer(), data=data, objective="loss", direction="minimize", epochs=2,
    trials=TRIALS, sampler="random", pruner="none", seed=2,
)
'''  # fmt: skip


WITH_TIME = "import os, runpy; os.sched_setscheduler = print; runpy.run_module('tuner', run_name='__main__')"
"""Runs a launch whose process that compiles ahead has time on a busy machine as well."""


@pytest.fixture
def three(tmp_path: Path, tuner_on_sqlite: Tuner) -> Tuner:
    """The command line, in a folder with a study of three shapes, without a compiled program."""
    (tmp_path / "three.py").write_text(STUDY)
    tuner = tuner_on_sqlite
    del tuner.env["JAX_COMPILATION_CACHE_DIR"]
    tuner.env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TUNER_ARTIFACTS": str(tmp_path / "artifacts")}
    return tuner


def shown(tuner: Tuner, count: int) -> list[dict[str, Any]]:
    return [tuner.rows("show", "three", str(number)) for number in range(count)]


@pytest.mark.without_tables
@pytest.mark.slow
def test_after_compile_only_no_trial_compiles_anything(three: Tuner) -> None:
    done = three.run("worker", "three.py", "--compile-only")
    assert done.returncode == 0, done.stderr
    assert " programs for 3 combinations of static values in " in done.stderr
    assert not (three.folder / "study.db").exists()
    again = three.run("worker", "three.py", "--compile-only")
    assert "compiled 0 programs for 3 combinations" in again.stderr

    done = three.run("worker", "three.py")
    assert done.returncode == 0, done.stderr
    trials = shown(three, 6)
    assert {trial["compilations"] for trial in trials} == {0}
    shapes = {trial["hparams"]["width"] for trial in trials}
    fetching = [trial for trial in trials if trial["programs_fetched"]]
    assert len(fetching) == len(shapes) == 3
    assert all(trial["compile_saved_s"] >= 0 for trial in fetching)
    assert all(trial["compile_saved_s"] is None for trial in trials if trial not in fetching)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="compiling ahead needs a core that no worker has")
def test_a_launch_compiles_the_later_shapes_while_the_first_trains_and_suggests_the_same(three: Tuner) -> None:
    three.run("worker", "three.py", "--compile-only", TUNER_ARTIFACTS=str(three.folder / "other"))
    (machine,) = (three.folder / "other").glob("compiled-*/*")
    programs = [file for file in machine.iterdir() if not file.name.endswith(".lock") and file.name[0] != "."]

    done = subprocess.run(
        [sys.executable, "-c", WITH_TIME, "launch", "three.py", "--workers", "1"],
        cwd=three.folder,
        env={**three.env, "THREE_WAIT_FOR": str(len(programs))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    trials = shown(three, 6)
    assert trials[0]["compilations"] > 0
    assert [trial["compilations"] for trial in trials[1:]] == [0] * 5
    assert sum(trial["compile_saved_s"] or 0.0 for trial in trials) > 0

    alone = Tuner(three.folder, f"sqlite:///{three.folder}/alone.db")
    alone.env |= {"TUNER_ARTIFACTS": str(three.folder / "artifacts")}
    assert alone.run("worker", "three.py").returncode == 0
    assert [trial["hparams"] for trial in shown(alone, 6)] == [trial["hparams"] for trial in trials]


@pytest.mark.slow
def test_what_cannot_be_compiled_ahead_is_refused(three: Tuner) -> None:
    words = ("worker", "three.py", "--compile-only")
    done = three.run(*words, "--cohort", "4")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "its trials train in cohorts, whose size is part of a program" in done.stderr
    done = three.run_here(*words, "--hosts", "2", "--coordinator", "localhost:1", "--rank", "0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--compile-only is for programs of one device: leave out --hosts" in done.stderr
