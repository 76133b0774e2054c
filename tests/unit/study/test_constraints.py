"""Constraints on metrics: what a study accepts, what it records, and what they say of a trial's metrics."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import optuna
import pytest

from tuner import OptunaObjective, Space, Study, uniform
from tuner.errors import StudyChanged, StudyError
from tuner.study.constraints import Constraint, check_metrics, parse_constraints

inf, nan = math.inf, math.nan


class HParams(Space):
    x: float = uniform(0.0, 1.0)


def study(**changes: Any) -> Study:
    given: dict[str, Any] = {"name": "one", "space": HParams, "train": lambda hparams, trial: 1.0, "trials": 1}
    return Study(**{**given, "objective": "loss", "direction": "minimize", **changes})


@pytest.mark.parametrize(
    ("text", "expected", "recorded"),
    [
        ("<= 20", Constraint("m", True, 20.0), "<= 20"),
        (">=0.9", Constraint("m", False, 0.9), ">= 0.9"),
        ("  <=  -1e-3 ", Constraint("m", True, -0.001), "<= -0.001"),
        (">= 1_000", Constraint("m", False, 1000.0), ">= 1000"),
    ],
)
def test_the_forms_of_a_constraint(text: str, expected: Constraint, recorded: str) -> None:
    assert parse_constraints({"m": text}, "one") == (expected,)
    assert str(expected) == recorded
    assert parse_constraints({"m": recorded}, "one") == (expected,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"m": "< 20"}, r"must be '<= NUMBER' or '>= NUMBER': got '< 20' for the metric 'm' \(study 'one'\)"),
        ({"m": "20"}, "got '20' for the metric 'm'"),
        ({"m": "<= fast"}, "got '<= fast'"),
        ({"m": "<= nan"}, "got '<= nan'"),
        ({"m": ">= -inf"}, "got '>= -inf'"),
        ({"m": "<= 1 or >= 2"}, "got '<= 1 or >= 2'"),
        ({"m": 20}, "got 20 for the metric 'm'"),
        ({"": "<= 1"}, "a constraint must be on a metric, a text of 1 to 500 characters: got ''"),
        ({3: "<= 1"}, "a constraint must be on a metric, .*: got 3"),
        ({"m\0": "<= 1"}, "a constraint must be on a metric"),
        ({"m" * 501: "<= 1"}, "a constraint must be on a metric"),
        (["m <= 1"], r"constraints must be a mapping from metrics to .*: got \['m <= 1'\] \(study 'one'\)"),
        (None, "constraints must be a mapping"),
    ],
)
def test_what_is_refused(given: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(constraints=given)


def test_an_objective_of_optuna_sets_its_own() -> None:
    objective = OptunaObjective(lambda trial: 1.0)
    with pytest.raises(StudyError, match=r"call trial.set_constraint\(name, value\) in it instead of constraints= on"):
        study(space=None, train=objective, constraints={"m": "<= 1"})
    two: dict[str, Any] = {"objective": ["a", "b"], "direction": None, "directions": ["minimize"] * 2}
    for changes in ({"pruner": {"name": "asha", "metric": "m", "mode": "min"}}, {**two, "pruner": "asha"}):
        with pytest.raises(
            StudyError, match="an Optuna objective can only be pruned by its one objective: got pruner="
        ):
            study(space=None, train=objective, **changes)
    for pruner in (None, "none", {"name": "none"}, optuna.pruners.NopPruner()):
        made = study(space=None, train=objective, **two, pruner=pruner)
        assert isinstance(made.make_pruner(), optuna.pruners.NopPruner)


def test_a_violation_is_positive_if_and_only_if_the_bound_is_passed() -> None:
    chance = random.Random(0)
    numbers = [inf, -inf, 0.0, -0.0, 5e-324, 1e308, -1e308, *(chance.gauss(0, 1) for _ in range(200))]
    for bound in [number for number in numbers if math.isfinite(number)][:60]:
        for value in (*numbers, math.nextafter(bound, inf), math.nextafter(bound, -inf), bound):
            assert (Constraint("m", True, bound).violation(value) <= 0) == (value <= bound)
            assert (Constraint("m", False, bound).violation(value) <= 0) == (value >= bound)
    assert Constraint("m", True, 20.0).violation(23.5) == 3.5
    assert Constraint("m", False, 0.9).violation(0.4) == pytest.approx(0.5)
    assert Constraint("m", False, 0.9).violation(nan) == Constraint("m", True, 0.9).violation(nan) == inf


BOTH = parse_constraints({"latency_ms": "<= 20", "recall": ">= 0.5"}, "one")


@pytest.mark.parametrize("is_complete", [False, True])
def test_metrics_that_are_there_are_checked(is_complete: bool) -> None:
    checked = check_metrics(BOTH, 7, {"latency_ms": 25.0, "recall": 0.75, "loss": 1.0}, is_complete=is_complete)
    assert (checked.violations, checked.problems) == ({"latency_ms": 5.0, "recall": -0.25}, [])
    checked = check_metrics(BOTH, 7, {"latency_ms": nan, "recall": 0.75}, is_complete=is_complete)
    assert checked.violations == {"latency_ms": inf, "recall": -0.25}
    assert checked.problems == ["its metric 'latency_ms' is NaN in epoch 7"]


def test_a_missing_metric_violates_the_constraint_of_a_complete_trial_only() -> None:
    metrics = {"latency": 25.0, "recall": 0.75}
    checked = check_metrics(BOTH, 7, metrics, is_complete=True)
    assert checked.violations == {"latency_ms": inf, "recall": -0.25}
    assert checked.problems == [
        "epoch 7 has no metric 'latency_ms', which has a constraint: it reported latency, recall; did you mean "
        "'latency'?"
    ]
    assert check_metrics(BOTH, 7, metrics, is_complete=False).violations == {"recall": -0.25}
    assert check_metrics(BOTH, 0, {}, is_complete=False).violations == {}


# --- What is recorded


def recorded(made: Study) -> dict[str, Any]:
    return json.loads(json.dumps(made.record()))


def test_constraints_are_part_of_the_study() -> None:
    first = study(constraints={"m": "<= 20", "n": ">= 0.5"})
    assert recorded(first)["constraints"] == {"m": "<= 20", "n": ">= 0.5"}
    study(constraints={"n": ">=0.50", "m": "<= 2e1"}).check_unchanged(recorded(first))
    for constraints, change in (
        ({"m": "<= 25", "n": ">= 0.5"}, "constraints.m was <= 20 and is now <= 25"),
        ({"m": ">= 20", "n": ">= 0.5"}, "constraints.m was <= 20 and is now >= 20"),
        ({"m": "<= 20"}, "constraints.n was >= 0.5 and is now absent"),
        ({}, "constraints.m was <= 20 and is now absent; constraints.n was >= 0.5 and is now absent"),
    ):
        with pytest.raises(StudyChanged, match=f"so its trials cannot be compared: {change};"):
            study(constraints=constraints).check_unchanged(recorded(first))


def test_a_study_of_an_earlier_version_has_none() -> None:
    old = recorded(study())
    assert "constraints" not in old
    study().check_unchanged(old)
    with pytest.raises(StudyChanged, match=r"constraints\.m was absent and is now <= 1;"):
        study(constraints={"m": "<= 1"}).check_unchanged(old)
