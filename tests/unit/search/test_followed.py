"""Which metrics a study's pruner follows, and what is refused."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from tuner.errors import StudyError
from tuner.search import PRUNERS, Followed, followed_metrics, make_pruner

ONE: Any = (("accuracy",), ("maximize",))
TWO: Any = (("accuracy", "seconds"), ("maximize", "minimize"))
NEEDS: dict[str, dict[str, Any]] = {"threshold": {"upper": 1.0}}


@pytest.mark.parametrize("pruner", ["asha", {"name": "median"}, optuna.pruners.MedianPruner()])
def test_a_pruner_follows_the_objective(pruner: Any) -> None:
    assert followed_metrics(pruner, *ONE) == Followed(("accuracy",), (True,))


@pytest.mark.parametrize("name", sorted({*PRUNERS} - {"none", "pbt"}))
def test_every_pruner_can_follow_another_metric(name: str) -> None:
    given = {"name": name, "metric": "val_loss", "mode": "min", **NEEDS.get(name, {})}
    assert followed_metrics(given, *ONE) == Followed(("val_loss",), (False,), "val_loss")
    plain = make_pruner({"name": name, **NEEDS.get(name, {})}, 9)
    assert type(make_pruner(given, 9)) is type(plain)
    assert given["metric"] == "val_loss", "the caller's mapping stays as it is"


def test_the_direction_of_an_objective_is_known() -> None:
    assert followed_metrics({"name": "asha", "metric": "accuracy"}, *ONE) == Followed(("accuracy",), (True,))
    of_two = followed_metrics({"name": "asha", "metric": "seconds"}, *TWO)
    assert of_two == Followed(("seconds",), (False,), "seconds")
    assert followed_metrics({"name": "asha", "metric": "speed", "mode": "max"}, *TWO).maximize == (True,)


def test_asha_and_hyperband_follow_several_objectives() -> None:
    for name in ("asha", "hyperband"):
        for pruner in (name, {"name": name}):
            assert followed_metrics(pruner, *TWO) == Followed(("accuracy", "seconds"), (True, False))


def test_values_are_taken_from_a_report() -> None:
    metrics = {"accuracy": 0.5, "val_loss": 2.0, "seconds": 3.0}
    assert followed_metrics("asha", *TWO).of(metrics) == (0.5, 3.0)
    assert followed_metrics({"name": "asha", "metric": "val_loss", "mode": "min"}, *TWO).of(metrics) == (2.0,)


@pytest.mark.parametrize(
    ("pruner", "study", "message"),
    [
        ({"name": "asha", "metric": "val_loss"}, ONE, "needs mode='min' or mode='max': got only metric='val_loss'"),
        ({"name": "asha", "mode": "min"}, ONE, "must be the name of a reported metric: got None with mode='min'"),
        ({"name": "asha", "metric": 3, "mode": "min"}, ONE, "must be the name of a reported metric: got 3 with"),
        ({"name": "asha", "metric": "", "mode": "min"}, ONE, "must be the name of a reported metric: got ''"),
        ({"name": "asha", "metric": "x", "mode": "up"}, ONE, "mode must be 'min' or 'max': got 'up' for the metric"),
        ({"name": "asha", "metric": "x", "mode": ["min"]}, ONE, r"mode must be 'min' or 'max': got \['min'\]"),
        ({"name": "asha", "metric": "accuracy", "mode": "min"}, ONE, "objective 'accuracy' has direction 'maximize'"),
        ({"name": "none", "metric": "x", "mode": "min"}, ONE, "'none' prunes nothing: remove metric='x'"),
        ({"name": "pbt", "metric": "x", "mode": "min"}, ONE, "'pbt' compares trials by the objective: remove metric"),
        ({"name": "pbt", "every": 1}, TWO, "only the pruners asha and hyperband compare several objectives"),
        ({"name": "wilcoxon", "metric": "x", "mode": "min"}, TWO, "best one, which only one objective has: remove"),
        ("median", TWO, "only the pruners asha and hyperband compare several objectives: got pruner='median'"),
        (optuna.pruners.MedianPruner(), TWO, "only the pruners asha and hyperband compare several objectives"),
        ({"name": "asha", "min_resource": "auto"}, TWO, "several objectives, min_resource must be a number of epochs"),
        ({"name": "hyperband", "max_resource": "auto"}, TWO, "max_resource must be a number of epochs: got 'auto'"),
    ],
)
def test_what_is_refused(pruner: Any, study: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        followed_metrics(pruner, *study)


def test_a_wrapped_pruner_follows_what_the_outer_one_does() -> None:
    with pytest.raises(StudyError, match="metric and mode belong to the pruner 'patient', not to the one that it wr"):
        make_pruner({"name": "patient", "wrapped": {"name": "median", "metric": "x"}}, 9)
