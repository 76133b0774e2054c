"""Terminators by name decide as Optuna's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.terminator import (
    BaseTerminator,
    BestValueStagnationEvaluator,
    EMMREvaluator,
    MedianErrorEvaluator,
    RegretBoundEvaluator,
    StaticErrorEvaluator,
    Terminator,
)

from tuner.search.terminators import make_terminator

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def decisions(terminator: BaseTerminator, trials: int) -> list[bool]:
    """Return what a terminator says after each trial of a study."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", -1.0, 1.0) ** 2)
        with warnings.catch_warnings(action="ignore"):
            found.append(terminator.should_terminate(study))
    return found


def of_emmr() -> BaseTerminator:
    room = EMMREvaluator(seed=3)
    return Terminator(room, MedianErrorEvaluator(room, warm_up_trials=2, n_initial_trials=4), min_n_trials=6)


@pytest.mark.parametrize(
    ("given", "theirs", "trials"),
    [
        (
            {"name": "best_value_stagnation", "max_stagnation_trials": 7},
            lambda: Terminator(BestValueStagnationEvaluator(7), min_n_trials=1),
            40,
        ),
        pytest.param(
            {"name": "regret_bound", "error": 0.6, "min_n_trials": 5},
            lambda: Terminator(RegretBoundEvaluator(min_n_trials=5, seed=3), StaticErrorEvaluator(0.6), 5),
            14,
            marks=pytest.mark.slow,
        ),
        pytest.param({"name": "emmr", "warm_up_trials": 2, "n_initial_trials": 4}, of_emmr, 14, marks=pytest.mark.slow),
    ],
)
def test_the_decisions_are_optunas(given: Any, theirs: Callable[[], BaseTerminator], trials: int) -> None:
    if given["name"] != "best_value_stagnation":
        pytest.importorskip("torch")
    found = decisions(make_terminator(given, 3), trials)
    assert found == decisions(theirs(), trials)
    if given["name"] != "emmr":
        assert set(found) == {False, True}


def test_stagnation_is_counted_by_hand() -> None:
    values = [5.0, 4.0, 4.5, 4.5, 4.5, 3.0, 3.5, 3.5, 3.5, 3.5]
    terminator = make_terminator({"name": "best_value_stagnation", "max_stagnation_trials": 3}, 0)
    study, found = optuna.create_study(), []
    for value in values:
        study.tell(study.ask(), value)
        found.append(terminator.should_terminate(study))
    assert found == [False] * 9 + [True]  # the fourth trial after 3.0


def test_an_object_is_used_as_it_is() -> None:
    terminator = Terminator(BestValueStagnationEvaluator(7))
    assert make_terminator(terminator, 0) is terminator
