"""Settings that end a study early: each mistake has its line."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tuner import OptunaObjective, Space, Study, uniform
from tuner.errors import StudyError


class HParams(Space):
    x: float = uniform(0.0, 1.0)


def make(**settings: Any) -> Study:
    given: dict[str, Any] = {"objective": "acc", "direction": "maximize", "trials": 25, "space": HParams}
    return Study(name="study", **{**given, **settings})


TWO: dict[str, Any] = {"objective": ["acc", "ms"], "direction": None, "directions": ["maximize", "minimize"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "0.9"}, r"target must be a number: got '0.9'"),
        ({"target": True}, r"target must be a number: got True"),
        ({"target": {}}, r"target must be a number: got \{\}"),
        ({"target": math.nan}, r"the target of 'acc' must be a finite number: got nan"),
        ({"target": {"ac": 0.9}}, r"must name objectives of the study, acc: got 'ac'; did you mean 'acc'"),
        ({**TWO, "target": 0.9}, r"such as \{'acc': 0.9, 'ms': 0.9\}, because the study has several objectives"),
        ({"patience": 0}, r"patience must be a number of trials, at least 1: got 0 \(study 'study'\)"),
        ({"patience": 2.5}, r"patience must be a number of trials, at least 1: got 2.5"),
        ({**TWO, "patience": 3}, r"patience needs a study with one objective: study 'study' has acc, ms"),
        ({**TWO, "terminator": "emmr"}, r"terminator needs a study with one objective"),
        ({"patience": 3, "noise": -0.1}, r"noise must be a difference of the objective, at least 0: got -0.1"),
        ({"noise": 0.1}, r"noise has no effect without patience: got noise=0.1"),
        ({"terminator": 3}, r"the terminator must be a name, a mapping or an Optuna terminator: got 3"),
        ({"terminator": "emr"}, r"must be one of best_value_stagnation, emmr, regret_bound: got 'emr'; did you mean"),
        (
            {"terminator": "best_value_stagnation"},
            r"'best_value_stagnation' never ends a study before 32 trials are complete: study 'study' has trials=25",
        ),
        (
            {"terminator": {"name": "best_value_stagnation", "patience": 3}},
            r"terminator 'best_value_stagnation' has no option 'patience': it has max_stagnation_trials",
        ),
        (
            {"terminator": {"name": "best_value_stagnation", "max_stagnation_trials": -5}},
            r"does not accept its options .* must not be negative",
        ),
    ],
)
def test_a_wrong_setting_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        make(**settings)


def test_right_settings_are_taken() -> None:
    assert make(target=1).targets == {"acc": 1.0}
    assert make(**TWO, target={"ms": 3.5}).targets == {"ms": 3.5}
    assert make().targets == {}
    make(patience=3, noise=0.0)
    make(terminator={"name": "best_value_stagnation", "max_stagnation_trials": 10})


def test_they_are_no_part_of_the_studys_record() -> None:
    assert make(target=0.9, patience=3, noise=0.1).record() == make().record()


@pytest.mark.parametrize("name", ["emmr", {"name": "regret_bound", "error": 0.1}])
def test_without_pytorch_the_terminators_that_need_it_are_refused(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(StudyError, match=r"needs PyTorch, which is not installed: run .*\[gp\].* does not need it"):
        make(trials=40, terminator=name)


def test_a_regret_bound_needs_the_error_unless_an_objective_can_report_it() -> None:
    pytest.importorskip("torch")
    with pytest.raises(StudyError, match="needs the error of the objective"):
        make(terminator="regret_bound")
    with pytest.raises(StudyError, match="error of terminator 'regret_bound' must be a number above 0: got 0"):
        make(terminator={"name": "regret_bound", "error": 0})
    make(terminator={"name": "regret_bound", "error": 0.1})
    make(terminator="regret_bound", space=None, train=OptunaObjective(lambda trial: 1.0))
