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

TRIALS = int(os.environ.get("NINE_TRIALS", "18"))
WAIT_FOR = int(os.environ.get("NINE_WAIT_FOR", "0"))


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    width: int = choice(4, 8, 16)
    depth: int = choice(1, 2, 3)


class Trainer(TrainerModule):
    loop = "step"

    def init_model(self, hparams):
        def init(key, x):
            keys = jax.random.split(key, hparams.depth + 1)
            sizes = [2] + [hparams.width] * hparams.depth + [1]
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
    name="nine", space=HParams, trainer=Trainer(), data=data, objective="loss", direction="minimize", epochs=2,
    trials=TRIALS, sampler="random", pruner="none",
)
'''  # fmt: skip


WITH_TIME = "import os, runpy; os.sched_setscheduler = print; runpy.run_module('tuner', run_name='__main__')"
"""Runs a launch whose process that compiles ahead has time on a busy machine as well."""


@pytest.fixture
def nine(tmp_path: Path, tuner_on_sqlite: Tuner) -> Tuner:
    """The command line, in a folder with a study of nine shapes, without a compiled program."""
    (tmp_path / "nine.py").write_text(STUDY)
    tuner = tuner_on_sqlite
    del tuner.env["JAX_COMPILATION_CACHE_DIR"]
    tuner.env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TUNER_ARTIFACTS": str(tmp_path / "artifacts")}
    return tuner


def shown(tuner: Tuner, count: int) -> list[dict[str, Any]]:
    return [tuner.rows("show", "nine", str(number)) for number in range(count)]


@pytest.mark.without_tables
@pytest.mark.slow
def test_after_compile_only_no_trial_compiles_anything(nine: Tuner) -> None:
    done = nine.run("worker", "nine.py", "--compile-only")
    assert done.returncode == 0, done.stderr
    assert " programs for 9 combinations of static values in " in done.stderr
    assert not (nine.folder / "study.db").exists()
    again = nine.run("worker", "nine.py", "--compile-only")
    assert "compiled 0 programs for 9 combinations" in again.stderr

    done = nine.run("worker", "nine.py")
    assert done.returncode == 0, done.stderr
    trials = shown(nine, 18)
    assert {trial["compilations"] for trial in trials} == {0}
    shapes = {(trial["hparams"]["width"], trial["hparams"]["depth"]) for trial in trials}
    fetching = [trial for trial in trials if trial["programs_fetched"]]
    assert len(fetching) == len(shapes) >= 5
    assert all(trial["compile_saved_s"] >= 0 for trial in fetching)
    assert all(trial["compile_saved_s"] is None for trial in trials if trial not in fetching)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="compiling ahead needs a core that no worker has")
def test_a_launch_compiles_the_later_shapes_while_the_first_trains_and_suggests_the_same(nine: Tuner) -> None:
    nine.run("worker", "nine.py", "--compile-only", TUNER_ARTIFACTS=str(nine.folder / "other"))
    (machine,) = (nine.folder / "other").glob("compiled-*/*")
    programs = [file for file in machine.iterdir() if not file.name.endswith(".lock") and file.name[0] != "."]

    done = subprocess.run(
        [sys.executable, "-c", WITH_TIME, "launch", "nine.py", "--workers", "1"],
        cwd=nine.folder,
        env={**nine.env, "NINE_WAIT_FOR": str(len(programs))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    trials = shown(nine, 18)
    assert trials[0]["compilations"] > 0
    assert [trial["compilations"] for trial in trials[1:]] == [0] * 17
    assert sum(trial["compile_saved_s"] or 0.0 for trial in trials) > 0

    alone = Tuner(nine.folder, f"sqlite:///{nine.folder}/alone.db")
    alone.env |= {"TUNER_ARTIFACTS": str(nine.folder / "artifacts")}
    assert alone.run("worker", "nine.py").returncode == 0
    assert [trial["hparams"] for trial in shown(alone, 18)] == [trial["hparams"] for trial in trials]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--cohort", "4"), "its trials train in cohorts, whose size is part of a program"),
        (
            ("--hosts", "2", "--coordinator", "localhost:1", "--rank", "0"),
            "--compile-only is for programs of one device: leave out --hosts",
        ),
    ],
)
def test_what_cannot_be_compiled_ahead_is_refused(nine: Tuner, words: tuple[str, ...], found: str) -> None:
    done = nine.run("worker", "nine.py", "--compile-only", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert found in done.stderr
