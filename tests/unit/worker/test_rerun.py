"""Trials of functions and objectives that are trained again: with the study's own end, from the recorded file."""

from __future__ import annotations

from pathlib import Path

import pytest
from storage_tools import opened

import tuner
from tuner.study.file import Settings, load_target
from tuner.study.source import import_file
from tuner.worker import run_worker
from tuner.worker.rerun import open_study, reproduce

FILE = """
from tuner import Space, Study, uniform

class HParams(Space):
    x: float = uniform(0.0, 1.0)

def train(hparams: HParams, trial):
    for epoch in range(3):
        yield {"loss": hparams.x + epoch}
    return hparams.x

def objective(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    trial.report(x, 1)
    return 2 * x

if __name__ == "__main__":
    raise AssertionError("it is imported")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(FILE)
    return path


def test_a_function_that_returns_its_value_comes_back(path: Path, sqlite_url: str) -> None:
    found = load_target(f"{path}:train", Settings(name="own", trials=2, directions=["minimize"], objectives=["loss"]))
    folder = str(path.parent / "artifacts")
    run_worker(found.study, sqlite_url, artifacts=folder, file=str(path), function=found.function)
    with opened(sqlite_url) as storage:
        rerunner = open_study(storage.engine, "own", None, {})
        (compared,) = reproduce(rerunner, 1, lambda report: None)
        x = storage.get_all_trials(1)[1].params["x"]
    assert (compared.metric, compared.epochs, compared.difference) == ("loss", 3, 0.0)
    assert compared.recorded == compared.found == x, "the value that replaced that of the last report"


def test_an_objective_of_optimize_comes_back(path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    objective = import_file(path).objective
    study = tuner.optimize(objective, name="own", trials=2, storage=sqlite_url)
    assert study.best_value == 2 * min(trial.params["x"] for trial in study.trials)
    with opened(sqlite_url) as storage:
        rerunner = open_study(storage.engine, "own", None, {})
        assert rerunner.file == path
        (compared,) = reproduce(rerunner, 0, lambda report: None)
    assert (compared.epochs, compared.difference) == (1, 0.0)
