"""Intervals and ties of repeated trials, against scipy's own tests."""

import math
from typing import Any

import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from tuner.confidence import half_width, rank

values = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(st.lists(values, min_size=2, max_size=9), st.sampled_from([0.8, 0.95, 0.99]))
def test_an_interval_is_students(sample: list[float], level: float) -> None:
    assume(len(set(sample)) > 1)
    low, high = scipy.stats.t.interval(
        level, len(sample) - 1, loc=sum(sample) / len(sample), scale=scipy.stats.sem(sample)
    )
    half = half_width(sample, level)
    assert half is not None
    assert math.isclose(2 * half, high - low, rel_tol=1e-9)


@given(st.integers(2, 6).flatmap(lambda count: st.tuples(*[st.lists(values, min_size=count, max_size=count)] * 3)))
def test_ties_are_those_of_paired_t_tests(samples: tuple[list[float], ...]) -> None:
    repeats = {at: dict(enumerate(sample)) for at, sample in enumerate(samples)}
    ranked = rank(repeats, maximize=True)
    first, *others = ranked

    means = {at: sum(sample) / len(sample) for at, sample in enumerate(samples)}
    assert [means[at] for at in ranked] == pytest.approx(sorted(means.values(), reverse=True))
    assert ranked[first].is_tied
    for other in others:
        differences = [a - b for a, b in zip(samples[first], samples[other], strict=True)]
        assume(max(differences) - min(differences) > 1e-6)
        p: Any = scipy.stats.ttest_rel(samples[first], samples[other]).pvalue
        assume(abs(p - 0.025) > 1e-6)
        assert ranked[other].is_tied == (p > 0.05 / 2), "Bonferroni for two comparisons"


def test_what_was_not_finite_comes_last_and_is_never_tied() -> None:
    repeats = {1: {1: 0.9, 2: None}, 2: {1: 0.5, 2: 0.6}, 3: {1: None}, 4: {1: 0.1, 2: 0.2}}
    for maximize, order in ((True, [2, 4]), (False, [4, 2])):
        ranked = rank(repeats, maximize=maximize)
        assert list(ranked)[:2] == order
        assert [(ranked[trial].mean, ranked[trial].low, ranked[trial].is_tied) for trial in (1, 3)] == [
            (None, None, False)
        ] * 2
        assert ranked[2].mean == pytest.approx(0.55)
        assert ranked[1].seeds == 2


def test_a_single_repeat_tells_nothing_apart() -> None:
    ranked = rank({1: {1: 0.9}, 2: {1: 0.1}}, maximize=True)
    assert [(one.mean, one.low, one.high, one.is_tied) for one in ranked.values()] == [
        (0.9, None, None, True),
        (0.1, None, None, True),
    ]
    assert rank({}, maximize=True) == {}


def test_only_repeats_in_common_are_compared() -> None:
    """The second is worse by the same in each common repeat; its other repeats are of other seeds."""
    ranked = rank({1: {1: 0.5, 2: 0.7, 3: 0.9}, 2: {1: 0.4, 2: 0.6, 3: 0.8, 4: 0.9}}, maximize=True)
    assert list(ranked) == [1, 2]
    assert not ranked[2].is_tied
