"""What `tuner export` writes, read back by other libraries."""

import csv
import datetime
import json
import math
import os
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from packaging.requirements import Requirement
from pyarrow import parquet

import tuner
from tuner import load_state, open_study
from tuner.errors import CheckpointError, UnknownStudy, UsageError
from tuner.results.bundle import export_bundle
from tuner.results.export import export_trials
from tuner.results.rows import trial_rows
from tuner.storage import connect
from tuner.study import load_study
from tuner.worker import run_worker

pytestmark = pytest.mark.with_tables

KINDS = ('a, "quoted"\nü', 3, None)


@pytest.fixture
def storage(storage_url: str) -> Iterator[Any]:
    storage = tuner.open_storage(storage_url)
    yield storage
    storage.close()


def fill(storage: Any) -> None:
    study = optuna.create_study(study_name="ours", storage=storage)
    for at, value in enumerate([0.5, math.inf, None]):
        study.enqueue_trial({"kind": KINDS[at]})
        trial = study.ask()
        trial.suggest_float("rate", 1e-5, 1.0)
        trial.suggest_categorical("kind", KINDS)
        if at:
            trial.suggest_int("depth", 1, 3)
        study.tell(trial, value) if value is not None else study.tell(trial, state=optuna.trial.TrialState.FAIL)
    pair = optuna.create_study(study_name="pair", storage=storage, directions=["minimize", "maximize"])
    pair.tell(pair.ask(), [1.0, 2.0])


@pytest.mark.timezone
@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "CSV"])
def test_every_trial_comes_back_from_the_file(storage: Any, storage_url: str, tmp_path: Path, kind: str) -> None:
    fill(storage)
    engine, path = connect(storage_url), tmp_path / f"out.{kind}"
    assert export_trials(engine, "ours", path) == 3

    rows: list[dict[str, Any]]
    if kind == "json":
        rows = json.loads(path.read_text())
    elif kind == "parquet":
        rows = parquet.read_table(path).to_pylist()
    else:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    expected = trial_rows(engine, "ours")
    assert [int(row["number"]) for row in rows] == [0, 1, 2]
    assert [row["outcome"] for row in rows] == ["complete", "complete", "failed"]
    assert [float(row["value"]) for row in rows[:2]] == [0.5, math.inf]
    assert rows[2]["value"] in (None, "")
    assert [float(row["hparams.rate"]) for row in rows] == [row["hparams"]["rate"] for row in expected]
    assert [int(row["hparams.depth"]) for row in rows[1:]] == [row["hparams"]["depth"] for row in expected[1:]]
    kinds = [row["hparams.kind"] for row in rows]
    written = {"json": list(KINDS), "parquet": [json.dumps(one) for one in KINDS]}
    assert kinds == written.get(kind, [KINDS[0], "3", ""])
    for row, trial in zip(rows, storage.get_all_trials(1), strict=True):
        assert row["started"].endswith("Z")
        started = datetime.datetime.fromisoformat(row["started"])
        assert abs((started - trial.datetime_start.astimezone()).total_seconds()) < 0.001
    export_trials(engine, "pair", tmp_path / "pair.csv")
    (row,) = csv.DictReader((tmp_path / "pair.csv").read_text().splitlines())
    assert (row["values.0"], row["values.1"]) == ("1.0", "2.0")
    engine.dispose()


def test_nothing_is_replaced_or_left_half_written(
    storage: Any, storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(storage)
    engine, path = connect(storage_url), tmp_path / "out.json"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"out.json exists already: pass `force` to overwrite it"):
        export_trials(engine, "ours", path)
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_trials(engine, "ours", path, force=True)
    assert path.read_text() == "mine"
    assert [name for name in os.listdir(tmp_path) if not name.startswith("study.db")] == ["out.json"]
    export_trials(engine, "ours", path, force=True)
    assert len(json.loads(path.read_text())) == 3
    old = os.umask(0o027)
    try:
        export_trials(engine, "ours", tmp_path / "new.csv")
    finally:
        os.umask(old)
    assert (tmp_path / "new.csv").stat().st_mode & 0o777 == 0o640

    with pytest.raises(UsageError, match=r"must end in .csv, .json, .parquet or, for one trial, .zip: got 'out.xls'"):
        export_trials(engine, "ours", Path("out.xls"))
    with pytest.raises(UsageError, match=r"cannot write .*out.csv: there is no folder .*nowhere"):
        export_trials(engine, "ours", tmp_path / "nowhere" / "out.csv")
    with pytest.raises(UnknownStudy):
        export_trials(engine, "our", tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()
    engine.dispose()


def test_what_cannot_be_bundled_is_said(storage: Any, storage_url: str, tmp_path: Path) -> None:
    fill(storage)
    optuna.create_study(study_name="empty", storage=storage)
    engine, path = connect(storage_url), tmp_path / "out.zip"
    with pytest.raises(UsageError, match=r"trial 0 of 'ours' has no checkpoint: a study keeps"):
        export_bundle(engine, "ours", path, None)
    with pytest.raises(UsageError, match=r"study 'empty' has no complete trials yet"):
        export_bundle(engine, "empty", path, None)
    with pytest.raises(UnknownStudy, match=r"study 'ours' has no trial 7: it has 0 to 2"):
        export_bundle(engine, "ours", path, 7)
    assert not path.exists()
    engine.dispose()


FUNCTIONS = """
import numpy as np
from tuner import Command, Space, Study, uniform

class HParams(Space):
    x: float = uniform(0.0, 1.0)

def train(hparams, trial):
    yield {"loss": hparams.x}
    (trial.folder / "notes.txt").write_text("kept")
    trial.save({"weights": np.full((2, 3), hparams.x), "parts": [np.arange(4), "text"]})

def forgetful(hparams, trial):
    return hparams.x

program = "import json, sys; json.dump([1], open(sys.argv[1] + '/out.json', 'w')); print(json.dumps({{'loss': 0.5}}))"
common = {"space": HParams, "objective": "loss", "direction": "minimize", "trials": 2}
saved = Study(name="saved", train=train, **common)
unsaved = Study(name="unsaved", train=forgetful, **common)
files = Study(name="files", train=Command(["python3", "-c", program, "{folder}"]), **common)
"""


@pytest.mark.slow
def test_a_bundle_of_a_function_has_its_state_and_one_of_a_command_its_files(
    tuner_on_sqlite: Any, sqlite_url: str, tmp_path: Path
) -> None:
    tuner, file = tuner_on_sqlite, tmp_path / "own.py"
    file.write_text(FUNCTIONS)
    for name in ("saved", "unsaved", "files"):
        study = load_study(f"{file}:{name}")
        run_worker(study, sqlite_url, file=str(file), artifacts=str(tmp_path / "tuner-artifacts"))

    refused = tuner.run_here("export", "unsaved", "unsaved.zip")
    assert refused.returncode == 2
    assert re.fullmatch(r"tuner: trial \d of 'unsaved' has no saved state or files to export: .*\n", refused.stderr)
    assert not (tuner.folder / "unsaved.zip").exists()

    number = tuner.rows("best", "saved")[0]["number"]
    x = tuner.rows("best", "saved")[0]["hparams"]["x"]
    for name, export in (("saved", tuner.run), ("files", tuner.run_here)):
        exported = export("export", name, f"{name}.zip")
        assert exported.returncode == 0, exported.stderr
        with zipfile.ZipFile(tuner.folder / f"{name}.zip") as bundle:
            bundle.extractall(tmp_path / name)
    ran = subprocess.run([sys.executable, "run.py"], cwd=tmp_path / "saved", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        f'trial {number} of saved: {{"x": {x!r}}}',
        "state['weights']: float64[2, 3]",
        "state['parts'][0]: int64[4]",
        "state['parts'][1]: text",
    ]
    state = load_state(tmp_path / "saved" / "checkpoint")
    assert (state["weights"] == x).all()
    assert (tmp_path / "saved" / "files" / "notes.txt").read_text() == "kept"
    assert json.loads((tmp_path / "files" / "checkpoint" / "out.json").read_text()) == [1]
    assert not (tmp_path / "files" / "files").exists(), "once is enough"
    assert not (tmp_path / "files" / "run.py").exists()
    with pytest.raises(CheckpointError, match="no saved state in"):
        load_state(tmp_path / "files" / "checkpoint")


STUDY = """
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import sizes
import yaml

from tuner import Space, Study, log_uniform
from tuner.training import ArrayDataset, TrainerModule

class HParams(Space):
    learning_rate: float = log_uniform(1e-2, 1.0)

class Trainer(TrainerModule):
    loop = "scan"

    def init_model(self, hparams):
        return nn.Dense(sizes.CLASSES)

    def loss(self, outputs, batch, hparams):
        error = ((outputs - batch["targets"]) ** 2).sum(1)
        return error, {"accuracy": jnp.argmax(outputs, 1) == jnp.argmax(batch["targets"], 1)}

def data(seed: int):
    inputs = np.random.default_rng(seed).normal(size=(200, 64)).astype("float32")
    return ArrayDataset(inputs=inputs, targets=np.eye(10, dtype="float32")[inputs[:, :10].argmax(1)]).split(0.2, seed)

study = Study(
    name="own", space=HParams, trainer=Trainer(), data=data, objective="accuracy", direction="maximize", epochs=3,
    trials=2, sampler="random", pruner="none", seed=5,
)
"""


@pytest.mark.slow
def test_a_bundle_runs_where_nothing_else_is(tuner_on_sqlite: Any, sqlite_url: str, tmp_path: Path) -> None:
    tuner, elsewhere = tuner_on_sqlite, tmp_path / "elsewhere"
    study = tmp_path / "own.py"
    study.write_text(STUDY)
    (tmp_path / "sizes.py").write_text("CLASSES = 10\n")
    assert tuner.run("worker", "own.py").returncode == 0
    (best,) = tuner.rows("best", "own")
    inputs = np.random.default_rng(0).normal(size=(5, 64)).astype("float32")
    expected = open_study("own", sqlite_url).load(trust=True).predict(inputs)
    done = tuner.run_here("export", "own", "best.zip")
    assert (done.returncode, done.stderr) == (0, f"tuner: trial {best['number']} of 'own' written to best.zip\n"), (
        done.stderr
    )
    refused = tuner.run_here("export", "own", "trials.csv", "--trial", "1")
    assert (refused.returncode, refused.stderr) == (
        2,
        "tuner: --trial works only with a bundle (.zip): got 'trials.csv'\n",
    )

    with zipfile.ZipFile(tmp_path / "best.zip") as bundle:
        bundle.extractall(elsewhere)
    study.unlink()
    (tmp_path / "sizes.py").unlink()
    (tmp_path / "tuner-artifacts").rename(tmp_path / "gone")
    # With the tuner that the bundle brings, which lies in its folder from here on.
    requirements = (elsewhere / "requirements.txt").read_text().splitlines()
    (wheel,) = [line for line in requirements if "==" not in line]
    assert {Requirement(line).name for line in requirements if line != wheel} >= {"jax", "flax", "PyYAML"}
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", ".", wheel], cwd=elsewhere, check=True, timeout=300)
    where = [sys.executable, "-c", "import tuner; print(tuner.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, capture_output=True, text=True, check=True).stdout.strip()
    assert found == str(elsewhere / "tuner" / "__init__.py")
    ran = subprocess.run(
        [sys.executable, "run.py"], cwd=elsewhere, env=tuner.env, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    lines = [line.replace(",", "").split() for line in ran.stdout.splitlines()]
    assert {line[0] for line in lines} == {"accuracy:", "loss:"}
    assert all(found == recorded for _, found, _, recorded in lines), ran.stdout
    (tmp_path / "gone").rename(tmp_path / "tuner-artifacts")
    refused = tuner.run_here("export", "own", "again.zip")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert re.search(r"is not on this machine: no .*own.py', which was on .+; pass .* as --file", refused.stderr)
    check_predictions(elsewhere, tuner.env, inputs, expected)


def check_predictions(bundle: Path, env: dict[str, str], inputs: Any, expected: Any) -> None:
    """Check predict.py of a bundle, which runs in a copy of the study's file whose data cannot be loaded."""
    study = bundle / "study.py"
    study.write_text(
        study.read_text().replace("def data(seed", "def data(seed: int) -> None:\n    1 / 0\n\ndef _(seed")
    )
    np.save(bundle / "inputs.npy", inputs)
    np.save(bundle / "wrong.npy", inputs[:, :3])

    command = [sys.executable, "predict.py", "inputs.npy"]
    done = subprocess.run(command, cwd=bundle, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "outputs: float32[5, 10] written to predictions.npy\n"
    assert (np.load(bundle / "predictions.npy") == expected).all()
    said = refusal(bundle, "wrong.npy")
    assert "\n" not in said
    assert "cannot predict from float32[5, 3]: " in said
    assert "The batches of the training had: inputs float32[" in refusal(bundle)
    study.unlink()
    said = refusal(bundle, "inputs.npy")
    assert "\n" not in said
    assert "the bundle is not complete: no file " in said


def refusal(bundle: Path, *words: str) -> str:
    """Run predict.py of a bundle in this process; return the line with which it exits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bundle)
        patch.setattr(sys, "argv", ["predict.py", *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path("predict.py", run_name="__main__")
    assert isinstance(ended.value.code, str), "Python prints it and exits with status 1"
    return ended.value.code
