"""Optuna objectives under workers: what Optuna does with the same objective is what is stored."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from storage_tools import plain_trials

from tuner import OptunaObjective, Space, Study, uniform
from tuner.errors import StudyError, StudyStopped
from tuner.trial import Stop
from tuner.worker import run_worker

Objective = Callable[[optuna.Trial], Any]


class Runs:
    """Runs studies of an objective, and reads what is stored with plain Optuna."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"sqlite:///{folder}/study.db"

    def __call__(
        self, function: Objective, *, stop: Stop | None = None, **settings: Any
    ) -> list[optuna.trial.FrozenTrial]:
        given = {"objective": "value", "direction": "minimize", "trials": 1, "retries": 0}
        study = Study(name="one", train=OptunaObjective(function), **{**given, **settings})
        run_worker(study, self.url, artifacts=str(self.folder / "artifacts"), stop=stop)
        return self.trials()

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return plain_trials(self.url, "one")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def suggests_everything(trial: optuna.Trial) -> float:
    kind = trial.suggest_categorical("kind", ["a", "b"])
    x = trial.suggest_float("x", 1e-3, 1.0, log=True)
    y = trial.suggest_float("y", 0.0, 1.0, step=0.25)
    n = trial.suggest_int("n", 1, 5) if kind == "a" else 0
    assert trial.suggest_float("x", 1e-3, 1.0, log=True) == x
    trial.set_user_attr("kind", kind)
    for step in range(4):
        trial.report(x + y + n + 1 / (step + 1), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x + y + n


def summary(trials: list[optuna.trial.FrozenTrial]) -> list[Any]:
    return [
        (
            one.number,
            one.state,
            one.values,
            one.params,
            one.distributions,
            one.intermediate_values,
            {key: value for key, value in one.user_attrs.items() if key != "outcome"},
        )
        for one in trials
    ]


class Numbered(optuna.samplers.RandomSampler):
    """Suggests values that depend only on the trial's number, so that two programs suggest the same."""

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self._rng.rng.seed(trial.number)

    def reseed_rng(self) -> None:
        pass


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_study_is_what_optuna_stores_itself(runs: Runs, direction: Any) -> None:
    theirs = optuna.create_study(direction=direction, sampler=Numbered(), pruner=optuna.pruners.MedianPruner())
    theirs.optimize(suggests_everything, n_trials=20)
    ours = runs(suggests_everything, trials=20, direction=direction, sampler=Numbered())
    assert TrialState.PRUNED in [one.state for one in ours]
    assert summary(ours) == summary(theirs.trials)


def test_the_defaults_are_tpe_and_the_median_pruner() -> None:
    study = Study(
        name="one", train=OptunaObjective(suggests_everything), objective="value", direction="minimize", trials=1
    )
    default = optuna.create_study()
    assert type(study.make_sampler(0)) is type(default.sampler)
    assert type(study.make_pruner()) is type(default.pruner)
    assert vars(study.make_pruner()) == vars(default.pruner)


def test_several_objectives_are_those_that_the_function_returns(runs: Runs) -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0.0, 1.0)
        with pytest.raises(NotImplementedError):
            trial.report(x, 0)
        with pytest.raises(NotImplementedError):
            trial.should_prune()
        return x, 1 - x

    settings = {"objective": ["value_0", "value_1"], "direction": None, "directions": ["minimize", "maximize"]}
    (trial,) = runs(objective, **settings)
    assert trial.values == [trial.params["x"], 1 - trial.params["x"]]


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (None, "an objective must return a number for each objective: got None"),
        ("high", "an objective must return a number for each objective: got 'high'"),
        ([1.0, 2.0], "the study has 1 objectives, and the function returned 2 values"),
    ],
)
def test_a_wrong_result_fails_the_trial(runs: Runs, returned: Any, error: str) -> None:
    with pytest.raises(StudyStopped, match=error):
        runs(lambda trial: returned)
    assert [one.state for one in runs.trials()] == [TrialState.FAIL] * 3


def test_nan_diverges_and_infinity_is_a_value(runs: Runs) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.report(math.nan, 0)
        return math.nan if trial.number == 0 else math.inf

    first, second = runs(objective, trials=2)
    assert (first.state, first.user_attrs["outcome"]) == (TrialState.PRUNED, "diverged")
    assert (second.state, second.value) == (TrialState.COMPLETE, math.inf)


@pytest.mark.slow
def test_a_step_that_was_reported_keeps_its_value(runs: Runs) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.report(1.0, 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trial.report(2.0, 0)
        assert "already reported" in str(caught[0].message)
        for wrong in (("a", 0), (1.0, "b"), (1.0, -1)):
            with pytest.raises((TypeError, ValueError)):
                trial.report(*wrong)  # pyright: ignore[reportArgumentType]
        return 0.0

    (trial,) = runs(objective)
    assert trial.intermediate_values == {0: 1.0}


def test_an_objective_may_end_the_search(runs: Runs) -> None:
    def objective(trial: optuna.Trial) -> float:
        if trial.number == 2:
            trial.study.stop()
        return 0.0

    assert len(runs(objective, trials=10)) == 3


@pytest.mark.slow
def test_a_stopped_trial_starts_again_with_its_hyperparameters(runs: Runs) -> None:
    stop, seen = Stop(), []

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        seen.append(x)
        for step in range(5 if len(seen) == 1 else 2):
            trial.report(x + step, step)
            stop.requested = len(seen) == 1 and step == 2
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    runs(objective, stop=stop)
    (trial,) = runs.trials()
    assert (trial.state, trial.params) == (TrialState.RUNNING, {"x": seen[0]})
    (trial,) = runs(objective)
    assert seen == [trial.value] * 2
    assert trial.intermediate_values == {0: seen[0], 1: seen[0] + 1}


@pytest.mark.slow
def test_the_rungs_of_optunas_pruner_are_cleared_with_the_reports(runs: Runs) -> None:
    stop, calls = Stop(), []

    def objective(trial: optuna.Trial) -> float:
        calls.append(trial.number)
        for step in range(1, 9):
            trial.report(float(step + 100 * len(calls)), step)
            trial.should_prune()
            stop.requested = len(calls) == 1 and step == 4
            if trial.should_prune():
                raise optuna.TrialPruned
        return 0.0

    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2)
    runs(objective, stop=stop, pruner=pruner)
    (trial,) = runs(objective, pruner=pruner)
    stored = {key: value for key, value in trial.system_attrs.items() if key.startswith("completed_rung_")}
    assert all(value > 200 for value in stored.values()), "nothing of the first run is left"


@pytest.mark.slow
def test_suggestions_are_stored_before_the_first_report(runs: Runs, wait_until: Callable[..., Any]) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        wait_until(lambda: runs.trials()[0].params == {"x": x})
        return x

    (trial,) = runs(objective)
    assert trial.state == TrialState.COMPLETE


class HParams(Space):
    x: float = uniform(0.0, 1.0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: OptunaObjective(3), "an Optuna objective must be a function of a trial: got 3"),  # pyright: ignore[reportArgumentType]
        (lambda: OptunaObjective(lambda hparams, trial: 0.0), "an Optuna objective must be a function of a trial"),  # pyright: ignore[reportArgumentType]
        (
            lambda: Study(
                name="one", space=HParams, train=OptunaObjective(suggests_everything), objective="value",
                direction="minimize", trials=1,
            ),
            "an Optuna objective suggests its own hyperparameters: got space=",
        ),
        (
            lambda: Study(
                name="one", train=OptunaObjective(suggests_everything), objective="value", direction="minimize",
                trials=1, value="best",
            ),
            "value='best' needs a training that reports one objective after each epoch",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(StudyError, match=f"^{reason}"):
        make()
