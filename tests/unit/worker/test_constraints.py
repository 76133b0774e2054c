"""Constraints of a study's trials: which epoch counts, what is stored, what samplers and kept states make of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from storage_tools import opened, plain_trials

from tuner import OptunaObjective, Space, Study, Trial, uniform
from tuner.errors import StudyChanged, StudyError
from tuner.results.rows import best_rows, show_row
from tuner.trial import Event
from tuner.trial.events import MetricUnusable
from tuner.worker import run_worker

inf, nan = math.inf, math.nan
LATENCY = {"latency_ms": "<= 20"}


class HParams(Space):
    x: float = uniform(0.0, 1.0)


class Runs:
    """Runs studies, and reads what is stored with plain Optuna."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"sqlite:///{folder}/study.db"
        self.lines: list[str] = []

    def __call__(self, train: Any, **settings: Any) -> list[optuna.trial.FrozenTrial]:
        given = {"objective": "loss", "direction": "minimize", "trials": 1, "pruner": "none", "sampler": "random"}
        study = Study(name="one", **{"space": HParams, "train": train, "retries": 0, **given, **settings})
        run_worker(study, self.url, artifacts=str(self.folder / "artifacts"), say=self._listen)
        return plain_trials(self.url, "one")

    def _listen(self, event: Event) -> None:
        if isinstance(event, MetricUnusable):
            self.lines.append(event.message)

    def best(self) -> list[int]:
        with opened(self.url) as storage:
            return [row["number"] for row in best_rows(storage.engine, "one", None)]

    def kept(self) -> list[int]:
        return sorted(int(path.parent.name) for path in self.folder.rglob("best") if path.is_dir())


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def reporting(*epochs: dict[str, float]) -> Any:
    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        yield from epochs

    return train


# The loss is best in the second epoch, and in the third again.
THREE = reporting(
    {"loss": 3.0, "latency_ms": 10.0}, {"loss": 1.0, "latency_ms": 25.0}, {"loss": 1.0, "latency_ms": 15.0}
)


@pytest.mark.parametrize(
    ("value", "text", "stored"),
    [
        ("last", "<= 20", -5.0),
        ("best", "<= 20", 5.0),
        ("last", ">= 20", 5.0),
        ("best", ">= 20", -5.0),
        ("last", "<= 15", 0),
    ],
)
def test_the_epoch_that_gives_the_value_counts(runs: Runs, value: str, text: str, stored: float) -> None:
    (trial,) = runs(THREE, value=value, constraints={"latency_ms": text})
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 1.0)
    assert trial.constraints == {"latency_ms": stored}
    assert trial.system_attrs["constraints:latency_ms"] == stored
    assert runs.best() == ([] if stored > 0 else [0])
    assert runs.lines == []


def test_a_returned_metric_counts_for_the_last_epoch(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> dict[str, float]:
        trial.report({"loss": 1.0})
        return {"latency_ms": 21.0}

    (trial,) = runs(train, constraints=LATENCY)
    assert trial.constraints == {"latency_ms": 1.0}


@pytest.mark.parametrize(
    ("last", "line"),
    [
        (
            {"loss": 1.0, "latency": 3.0},
            "epoch 2 has no metric 'latency_ms', which has a constraint: it reported loss, latency; did you mean "
            "'latency'?",
        ),
        ({"loss": 1.0, "latency_ms": nan}, "its metric 'latency_ms' is NaN in epoch 2"),
    ],
    ids=["missing", "nan"],
)
def test_a_complete_trial_without_the_metric_is_infeasible_and_says_so_once(
    runs: Runs, last: dict[str, float], line: str
) -> None:
    (trial,) = runs(reporting({"loss": 2.0, "latency_ms": 1.0}, last), constraints=LATENCY)
    assert (trial.state, trial.constraints) == (TrialState.COMPLETE, {"latency_ms": inf})
    assert runs.lines == [f"trial 0 counts as infeasible: {line}"]
    assert runs.best() == []


@pytest.mark.parametrize(
    ("last", "stored"),
    [({"loss": 1.0, "latency_ms": 25.0}, {"latency_ms": 5.0}), ({"loss": 1.0}, {}), ({"loss": nan}, {})],
    ids=["reported", "not reported", "diverged"],
)
@pytest.mark.slow
def test_a_trial_that_ended_early_has_the_constraints_that_it_reported(
    runs: Runs, last: dict[str, float], stored: dict[str, float]
) -> None:
    def train(hparams: HParams, trial: Trial) -> None:
        trial.report(last)
        raise optuna.TrialPruned

    (trial,) = runs(train, constraints=LATENCY)
    assert (trial.state, trial.constraints, runs.lines) == (TrialState.PRUNED, stored, [])


@pytest.mark.slow
def test_a_failed_trial_has_none(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> None:
        trial.report({"loss": 1.0, "latency_ms": 25.0})
        raise RuntimeError("a bug")

    with pytest.raises(Exception, match="a bug"):
        runs(train, constraints=LATENCY)
    (trial, *_) = plain_trials(runs.url, "one")
    assert (trial.state, trial.constraints) == (TrialState.FAIL, {})


def test_states_of_infeasible_trials_are_not_kept(runs: Runs) -> None:
    """The loss falls with the number; even trials are too slow."""

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        yield {"loss": -float(trial.number), "latency_ms": 25.0 if trial.number % 2 == 0 else 15.0}
        trial.save({"number": trial.number})

    runs(train, constraints=LATENCY, trials=7, keep_best=2)
    assert runs.best() == [5, 3, 1]
    assert runs.kept() == [3, 5]
    with opened(runs.url) as storage:
        had_one = [number for number in range(7) if show_row(storage.engine, "one", number)["checkpoint"]]
    assert had_one == [1, 3, 5], "an infeasible trial never wrote one"


def test_a_resumed_study_notices_another_constraint(runs: Runs) -> None:
    runs(THREE, constraints=LATENCY)
    for constraints, change in (({"latency_ms": "<= 30"}, "<= 20 and is now <= 30"), ({}, "<= 20 and is now absent")):
        with pytest.raises(StudyChanged, match=f"constraints.latency_ms was {change}"):
            runs(THREE, constraints=constraints, trials=2)
    assert len(runs(THREE, constraints={"latency_ms": "<=20.0"}, trials=2)) == 2


# --- Set by the training


def test_a_function_sets_constraints_as_an_objective_does(runs: Runs) -> None:
    def train(hparams: HParams, trial: Trial) -> float:
        trial.set_constraint("memory", -1.0)
        trial.set_constraint("memory", 2)  # a later one replaces it
        trial.set_constraint("time", -0.5)
        return 1.0

    (trial,) = runs(train)
    assert trial.constraints == {"memory": 2.0, "time": -0.5}
    assert runs.best() == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("memory", nan, "the constraint 'memory' must not be NaN"),
        ("memory", "a lot", "the metric 'memory' must be a number: got 'a lot'"),
        ("", 1.0, "the name of a constraint must be a text: got ''"),
        ("latency_ms", 1.0, "the constraint 'latency_ms' is one of the study's: use another name"),
    ],
)
def test_what_a_function_cannot_set(runs: Runs, name: str, value: Any, message: str) -> None:
    def train(hparams: HParams, trial: Trial) -> float:
        trial.set_constraint(name, value)
        return 1.0

    with pytest.raises(StudyError, match=message):
        runs(train, constraints=LATENCY)


def test_an_attempt_that_starts_again_sets_its_own_constraints(runs: Runs) -> None:
    """Optuna ignores a second value for a name; the first one is of an attempt that does not count."""
    attempts: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        attempts.append(1.0)
        trial.set_constraint("memory", -5.0 if len(attempts) == 1 else 3.0)
        if len(attempts) == 1:
            trial.set_constraint("first", 1.0)
            raise RuntimeError("a bug")
        return 1.0

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (trial,) = runs(OptunaObjective(objective), space=None, retries=1)
    assert (len(attempts), trial.state, trial.constraints) == (2, TrialState.COMPLETE, {"memory": 3.0})


# --- Samplers


SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {"n_startup_trials": 4},
    "gp": {"n_startup_trials": 4},
    "nsga2": {"population_size": 4, "mutation_prob": 0.1},  # by default it is 1 with one hyperparameter
    "nsga3": {"population_size": 4, "mutation_prob": 0.1},
}


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samplers_suggest_what_they_do_in_plain_optuna_with_the_same_constraints(runs: Runs, name: str) -> None:
    """The loss falls with x, x above 0.5 is too slow, and trial 3 reports no latency."""
    if name == "gp":
        pytest.importorskip("torch")

    def metrics(x: float, number: int) -> dict[str, float]:
        return {"loss": -x, **({} if number == 3 else {"latency_ms": 40.0 * x})}

    def train(hparams: HParams, trial: Trial) -> dict[str, float]:
        return metrics(hparams.x, trial.number)

    count = 10 if name == "gp" else 16
    settings: dict[str, Any] = {"trials": count, "sampler": {"name": name, **SAMPLERS[name]}}
    ours = [trial.params["x"] for trial in runs(train, constraints=LATENCY, **settings)]
    assert len(runs.lines) == 1

    same = Study(name="one", space=HParams, train=train, objective="loss", direction="minimize", **settings)

    def in_optuna(*, is_constrained: bool) -> list[float]:
        study = optuna.create_study()
        found = []
        for number in range(count):
            study.sampler = same.make_sampler(number)
            trial = study.ask()
            x = trial.suggest_float("x", 0.0, 1.0)
            given = metrics(x, number)
            if is_constrained:
                trial.set_constraint("latency_ms", given.get("latency_ms", inf) - 20.0)
            study.tell(trial, given["loss"])
            found.append(x)
        return found

    assert ours == in_optuna(is_constrained=True)
    assert ours != in_optuna(is_constrained=False)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "nsga3"])
def test_a_named_sampler_takes_a_constraints_func(runs: Runs, name: str) -> None:
    def too_large(trial: optuna.trial.FrozenTrial) -> list[float]:
        return [trial.params["x"] - 0.5, -1.0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that Optuna will remove it in version 7 is not said for each trial
        trials = runs(
            reporting({"loss": 1.0, "latency_ms": 1.0}),
            sampler={"name": name, "constraints_func": too_large},
            constraints=LATENCY,
            trials=4,
        )
    for trial in trials:
        assert trial.constraints == {"0": trial.params["x"] - 0.5, "1": -1.0, "latency_ms": -19.0}
    assert runs.best() == [trial.number for trial in trials if trial.params["x"] <= 0.5]
    with pytest.raises(StudyError, match="sampler 'random' has no option 'constraints_func'"):
        runs(THREE, sampler={"name": "random", "constraints_func": too_large})


# --- Pruners


def by_number(number: int) -> Iterator[dict[str, float]]:
    """Three infeasible trials with small losses, then feasible ones with larger losses, the larger the later."""
    is_large = number < 3
    for _ in range(9):
        yield {"loss": 0.1 if is_large else 0.5 + number, "latency_ms": 30.0 if is_large else 10.0}


def numbered(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
    return by_number(trial.number)


def set_by_hand(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
    trial.set_constraint("latency", 10.0 if trial.number < 3 else -10.0)
    return by_number(trial.number)


HALVING = {"name": "asha", "min_resource": 1, "reduction_factor": 3}
MEDIAN = {"name": "median", "n_startup_trials": 1}


@pytest.mark.slow
@pytest.mark.parametrize("pruner", [HALVING, MEDIAN])
@pytest.mark.parametrize(("train", "constraints"), [(numbered, LATENCY), (set_by_hand, {})])
def test_infeasible_trials_do_not_stop_feasible_ones(
    runs: Runs, pruner: Any, train: Any, constraints: dict[str, str]
) -> None:
    found = runs(train, trials=6, epochs=9, pruner=pruner, constraints=constraints)
    states = [trial.state.name for trial in found]
    assert states[3] == "COMPLETE"
    assert states[4:] == ["PRUNED", "PRUNED"]


@pytest.mark.parametrize("pruner", [HALVING, MEDIAN])
def test_without_a_feasible_trial_infeasible_ones_are_compared(runs: Runs, pruner: Any) -> None:
    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        for _ in range(9):
            yield {"loss": 1.0 + trial.number, "latency_ms": 30.0}

    found = runs(train, trials=4, epochs=9, pruner=pruner, constraints=LATENCY)
    assert [trial.state.name for trial in found] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED"]
