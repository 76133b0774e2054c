"""Target and patience, on results worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tuner import Space, Study, uniform
from tuner.results.confidence import single_difference
from tuner.results.stopping import at_target, without_progress
from tuner.storage.read.ranking import Result


class HParams(Space):
    x: float = uniform(0.0, 1.0)


def make(**settings: Any) -> Study:
    given: dict[str, Any] = {"objective": "acc", "direction": "maximize", "trials": 100, "space": HParams}
    return Study(name="study", **{**given, **settings})


def results(*values: float | None, infeasible: int | None = None) -> list[Result]:
    """Return trials that ended in this order, with one objective; None for a pruned one."""
    return [Result(at, None if one is None else (one,), at != infeasible) for at, one in enumerate(values)]


@pytest.mark.parametrize(
    ("direction", "values", "number"),
    [
        ("maximize", (0.5, 0.89, None, 0.9, 0.95), 3),  # the target itself is enough
        ("maximize", (0.5, None, math.nan), None),
        ("minimize", (0.95, 0.91, 0.5), 2),
        ("minimize", (), None),
    ],
)
def test_the_first_trial_at_the_target_ends_the_study(
    direction: Any, values: tuple[float | None, ...], number: int | None
) -> None:
    end = at_target(results(*values), make(direction=direction, target=0.9))
    assert (None if end is None else end.trial) == number
    assert end is None or end.why.startswith(f"trial {number} reached the target 0.9 with acc 0.")


def test_a_trial_that_violates_a_constraint_does_not_reach_the_target() -> None:
    assert at_target(results(0.99, infeasible=0), make(target=0.9)) is None


def test_one_trial_must_reach_the_targets_of_all_objectives() -> None:
    study = make(
        objective=["acc", "ms"], direction=None, directions=["maximize", "minimize"], target={"acc": 0.9, "ms": 5}
    )
    trials = [Result(0, (0.95, 9.0), True), Result(1, (0.5, 1.0), True), Result(2, (0.92, 5.0), True)]
    assert at_target(trials[:2], study) is None
    end = at_target(trials, study)
    assert end is not None
    assert end.why == "trial 2 reached the target 0.9, 5 with acc 0.92, ms 5"


def ends(*values: float | None, measured: float | None = None, **settings: Any) -> bool:
    return without_progress(results(*values), make(**settings), measured) is not None


def test_patience_counts_the_trials_since_the_best_one() -> None:
    assert not ends(0.5, 0.4, None, 0.3, patience=4)
    assert ends(0.5, 0.4, None, 0.3, 0.5, patience=4)
    assert not ends(0.5, 0.4, None, 0.3, 0.6, patience=4)
    assert not ends(0.5, 0.4, None, 0.3, 0.2, 0.6, patience=4)  # an earlier pause is over
    assert ends(0.5, 0.6, 0.7, direction="minimize", patience=2)
    assert not ends(None, None, None, patience=2)  # there is nothing to improve on yet


def test_an_improvement_within_the_noise_does_not_count_but_small_ones_add_up() -> None:
    assert ends(0.50, 0.51, 0.52, patience=2, noise=0.025)
    assert not ends(0.50, 0.51, 0.53, patience=2, noise=0.025)
    assert ends(0.50, 0.51, 0.52, patience=2, measured=0.05)
    assert not ends(0.50, 0.51, 0.52, patience=2, measured=0.05, noise=0.005)  # the setting has precedence


def test_the_reason_says_where_the_noise_is_from() -> None:
    def why(measured: float | None, **settings: Any) -> str:
        end = without_progress(results(0.5, 0.4), make(patience=1, **settings), measured)
        assert end is not None
        return end.why.removeprefix("the latest 1 trials were not better than acc 0.5 of trial 0")

    assert why(0.01) == " by more than the noise (0.01, measured by `tuner confirm`)"
    assert why(0.01, noise=0.0) == " by more than the noise (0, as set)"
    assert why(None).startswith("; any difference counts, because neither `noise` nor `tuner confirm`")


def test_the_noise_of_single_trainings_is_students_least_significant_difference() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5))
    repeats = {trial: dict(enumerate(row.tolist())) for trial, row in enumerate(rows)}
    # Of a one-way layout, whose mean square within groups is also that of scipy's F test.
    within = (rows.var(axis=1, ddof=1)).mean()
    between = 5 * rows.mean(axis=1).var(ddof=1)
    assert stats.f_oneway(*rows).statistic == pytest.approx(between / within)
    expected = stats.t.ppf(0.975, 12) * math.sqrt(2 * within)
    assert single_difference(repeats) == pytest.approx(expected)


def test_noise_is_unknown_without_two_repeats_of_a_trial_or_without_any() -> None:
    assert single_difference({}) is None
    assert single_difference({1: {0: 0.5}, 2: {0: 0.7}}) is None
    assert single_difference({1: {0: 0.5, 1: None}}) is None
    assert single_difference({1: {0: 0.5, 1: 0.5}}) is None
    assert single_difference({1: {0: 0.0, 1: 1.0, 2: None}}) == pytest.approx(stats.t.ppf(0.975, 1))


def test_in_one_of_twenty_pairs_of_equal_trials_the_difference_is_larger() -> None:
    chance = np.random.default_rng(1)
    exceeded = []
    for _ in range(2000):
        repeats = {0: dict(enumerate(chance.normal(size=4).tolist()))}
        first, second = chance.normal(size=2)
        limit = single_difference(repeats)
        assert limit is not None
        exceeded.append(abs(first - second) > limit)
    assert np.mean(exceeded) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 2000))
