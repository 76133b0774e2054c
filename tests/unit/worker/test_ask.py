"""`ask` and `tell`: trials under leases for loops that live elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from after_faults import table
from optuna.trial import TrialState

import tuner.worker.opening
from tuner import Space, Study, choice, uniform
from tuner.errors import StudyError, StudyStopped, TrialPruned
from tuner.storage.sql.tables import workers

SEARCH = """
from tuner import Space, Study, uniform

class HParams(Space):
    x: float = uniform(0.0, 1.0)

study = Study(name="one", space=HParams, objective="loss", direction="minimize", trials=3, retries=0)
"""


class HParams(Space):
    x: float = uniform(0.0, 1.0)


class Few(Space):
    x: float = choice(0.25, 0.75)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    monkeypatch.setenv("TUNER_STORAGE", f"sqlite:///{tmp_path}/study.db")
    monkeypatch.setenv("TUNER_ARTIFACTS", str(tmp_path / "artifacts"))
    made = new_study()
    yield made
    close(made)


def new_study(**settings: Any) -> Study:
    given = {"objective": "loss", "direction": "minimize", "trials": 3, "retries": 0, "pruner": "none"}
    return Study(name="one", space=HParams, **{**given, **settings})


def close(study: Study) -> None:
    """Do what happens when the process ends."""
    asking: Any = study.__dict__.get("_asker")
    if asking is not None:
        asking.close()


def stored(study: Study) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="one", storage=os.environ["TUNER_STORAGE"]).trials


@pytest.mark.slow
def test_asked_trials_are_told_one_by_one(study: Study) -> None:
    seen = []
    while (trial := study.ask()) is not None:
        seen.append((trial.number, trial.hparams.x))
        study.tell(trial, trial.hparams.x**2)
    trials = stored(study)
    assert [number for number, _ in seen] == [0, 1, 2]
    assert [one.params["x"] for one in trials] == [x for _, x in seen]
    assert [one.value for one in trials] == [x**2 for _, x in seen]
    assert {one.state for one in trials} == {TrialState.COMPLETE}


@pytest.mark.slow
def test_several_trials_may_be_open_at_once(study: Study) -> None:
    first, second, third = (study.ask() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert study.ask() is None, "the caller has the rest of the budget"
    for trial in (second, third, first):
        study.tell(trial, {"loss": float(trial.number), "size": 3})
    assert [one.value for one in stored(study)] == [0.0, 1.0, 2.0]


def test_a_trial_may_report_be_pruned_and_fail(study: Study) -> None:
    study = new_study(pruner=optuna.pruners.ThresholdPruner(upper=1.0))
    reported, pruned, failed = (study.ask() for _ in range(3))
    assert reported is not None
    assert pruned is not None
    assert failed is not None
    reported.report({"loss": 0.5})
    reported.report({"loss": 0.25})
    study.tell(reported)
    with pytest.raises(TrialPruned):
        pruned.report({"loss": 2.0})
    study.tell(pruned)
    study.tell(failed, error=ValueError("no result"))
    close(study)
    trials = stored(study)
    assert [one.state for one in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert trials[0].intermediate_values == {1: 0.5, 2: 0.25}
    assert trials[0].value == 0.25


def test_wrong_calls_are_refused(study: Study) -> None:
    trial = study.ask()
    assert trial is not None
    with pytest.raises(StudyError, match=r"^train reported nothing"):
        study.tell(trial)
    again = study.ask()
    assert again is not None
    assert (again.number, again.hparams) == (trial.number, trial.hparams), "it was given back"
    study.tell(again, 1.0)
    with pytest.raises(StudyError, match=r"^trial 0 was not asked for here, or has been told already"):
        study.tell(again, 1.0)


def test_trials_that_are_not_told_are_given_back_at_the_end(study: Study) -> None:
    trial = study.ask()
    assert trial is not None
    close(study)
    assert [one.state for one in stored(study)] == [TrialState.RUNNING]
    other = new_study()
    again = other.ask()
    assert again is not None
    assert (again.number, again.hparams) == (0, trial.hparams)
    close(other)


@pytest.mark.slow
def test_a_stopped_study_has_no_trials(study: Study) -> None:
    trial = study.ask()
    assert trial is not None
    study.tell(trial, 1.0)
    subprocess.run([sys.executable, "-m", "tuner", "stop", "one"], check=True, capture_output=True)
    with pytest.raises(StudyStopped, match="study 'one' is stopped"):
        study.ask()


@pytest.mark.slow
def test_the_trial_of_a_killed_process_is_asked_again(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    script = f"""
{SEARCH}
import time
import tuner.worker.opening
tuner.worker.opening.LEASE_S = 1.0
trial = study.ask()
trial.report({{"loss": 7.0}})
print(trial.hparams.x, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    x = float(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    monkeypatch.setattr(tuner.worker.opening, "LEASE_S", 300.0)

    def ask() -> Any:
        trial = study.ask()
        assert trial is not None
        if trial.number == 0:
            return trial
        study.tell(trial, 0.0)
        return None

    trial = wait_until(ask)
    assert trial.hparams.x == x
    study.tell(trial, 1.0)
    assert stored(study)[0].intermediate_values == {1: 1.0}


def test_a_caller_that_lives_on_after_the_search_has_left_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    monkeypatch.setenv("TUNER_STORAGE", url)
    monkeypatch.setenv("TUNER_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr("tuner.worker.context._LAST_PATIENCE_S", 0.0)
    few: Any = Study(name="one", space=Few, objective="loss", direction="minimize", trials=20, sampler="grid")
    while (trial := few.ask()) is not None:
        few.tell(trial, trial.hparams.x)
    close(few)
    assert len(stored(few)) == 2
    assert [ended is not None for (ended,) in table(url, workers.c.ended_at_s)] == [True]
