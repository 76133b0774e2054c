"""Trials of functions and objectives that are trained again: with the study's own end, from the recorded file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from storage_tools import opened

import tuner
from tuner.study.file import Settings, load_target
from tuner.study.source import import_file
from tuner.worker import run_worker
from tuner.worker.rerun import Comparison, open_study, reproduce

pytestmark = pytest.mark.with_tables

FILE = """
import tuner
from tuner import Space, uniform

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

def two(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    return x, -x

def changing(trial):
    global calls
    calls += 1
    x = trial.suggest_float("x", 0.0, 1.0)
    trial.report(x, 1)
    return x + 1 + calls

command = tuner.Study(
    name="own",
    space=HParams,
    train=tuner.Command(["echo", '{{"loss": {x}}}']),
    objective="loss",
    direction="minimize",
    trials=1,
)

def returning(hparams: HParams, trial):
    global calls
    calls += 1
    return hparams.x + calls

calls = 0

if __name__ == "__main__":
    raise AssertionError("it is imported")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(FILE)
    return path


@pytest.mark.slow
def test_a_function_that_returns_its_value_comes_back(path: Path, sqlite_url: str) -> None:
    found = load_target(f"{path}:train", Settings(name="own", trials=2, directions=["minimize"], objectives=["loss"]))
    folder = str(path.parent / "artifacts")
    run_worker(found.study, sqlite_url, artifacts=folder, file=str(path), function=found.function)
    with opened(sqlite_url) as storage:
        rerunner = open_study(storage.engine, "own", None, {})
        compared, value = reproduce(rerunner, 1, lambda report: None)
        x = storage.get_all_trials(1)[1].params["x"]
    assert value == Comparison("trial's loss", 0, x, x, 0.0)
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
        compared, value = reproduce(rerunner, 0, lambda report: None)
        x = storage.get_all_trials(1)[0].params["x"]
    assert (compared.epochs, compared.difference) == (1, 0.0)
    assert value == Comparison(f"trial's {compared.metric}", 0, 2 * x, 2 * x, 0.0)


def launch(path: Path, url: str, target: str, **settings: Any) -> None:
    found = load_target(f"{path}:{target}", Settings(**settings))
    folder = str(path.parent / "artifacts")
    run_worker(found.study, url, artifacts=folder, file=str(path), function=found.function)


def test_an_objective_that_reports_nothing_is_compared_by_its_values(path: Path, sqlite_url: str) -> None:
    launch(path, sqlite_url, "two", name="own", trials=1, directions=["minimize", "maximize"])
    with opened(sqlite_url) as storage:
        found = reproduce(open_study(storage.engine, "own", None, {}), 0, lambda report: None)
        x = storage.get_all_trials(1)[0].params["x"]
    assert [(one.epochs, one.recorded, one.found, one.difference) for one in found] == [(0, x, x, 0), (0, -x, -x, 0)]


def test_an_objective_that_returns_another_value_does_not_come_back(path: Path, sqlite_url: str) -> None:
    launch(path, sqlite_url, "changing", name="own", trials=1, directions=["minimize"])
    with opened(sqlite_url) as storage:
        x = storage.get_all_trials(1)[0].params["x"]
        rerunner = open_study(storage.engine, "own", None, {})
        reproduce(rerunner, 0, lambda report: None)
        compared, value = reproduce(rerunner, 0, lambda report: None)
    assert compared.difference == 0
    assert (value.recorded, value.found) == (x + 2, x + 3), "its file was imported again, and called twice"
    assert value.difference == pytest.approx(1 / (x + 3))


def test_a_command_comes_back(path: Path, sqlite_url: str) -> None:
    launch(path, sqlite_url, "command")
    with opened(sqlite_url) as storage:
        found = reproduce(open_study(storage.engine, "own", None, {}), 0, lambda report: None)
        x = storage.get_all_trials(1)[0].params["x"]
    assert found == [Comparison("loss", 1, x, x, 0.0), Comparison("trial's loss", 0, x, x, 0.0)]


def test_a_function_that_returns_another_number_does_not_come_back(path: Path, sqlite_url: str) -> None:
    launch(path, sqlite_url, "returning", name="own", trials=1, directions=["minimize"], objectives=["loss"])
    with opened(sqlite_url) as storage:
        x = storage.get_all_trials(1)[0].params["x"]
        rerunner = open_study(storage.engine, "own", None, {})
        reproduce(rerunner, 0, lambda report: None)
        compared, value = reproduce(rerunner, 0, lambda report: None)
    assert (compared.metric, value.metric) == ("loss", "trial's loss")
    for one in (compared, value):
        assert (one.recorded, one.found) == (x + 1, x + 2)
        assert one.difference == pytest.approx(1 / (x + 2))
