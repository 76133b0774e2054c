"""Intervals and ties of repeated trials, against NumPy, scipy, and what happens to trials that are all alike."""

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from tuner.results.confidence import Confirmed, half_width, rank, significant_difference


def table(rows: Any) -> dict[int, dict[int, float | None]]:
    return {trial: {repeat: float(value) for repeat, value in enumerate(row, 1)} for trial, row in enumerate(rows)}


@pytest.mark.parametrize(("trials", "seeds"), [(1, 2), (2, 2), (3, 5), (6, 3)])
def test_an_interval_is_students_of_its_own_values(trials: int, seeds: int) -> None:
    rows = np.random.default_rng(trials).normal(size=(trials, seeds)) * 10.0 ** np.arange(trials)[:, None]
    for trial, one in rank(table(rows), maximize=True).items():
        interval = scipy.stats.t.interval(0.95, seeds - 1, loc=rows[trial].mean(), scale=scipy.stats.sem(rows[trial]))
        assert (one.low, one.high) == pytest.approx(interval)


def test_an_interval_by_hand() -> None:
    """Mean 5, standard deviation 2 of three values; Student's quantile for two degrees of freedom is 4.302653."""
    assert half_width([3.0, 5.0, 7.0]) == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)
    assert (half_width([5.0]), half_width([]), half_width([0.1, 0.1, 0.1])) == (None, None, None)


def test_a_noisier_trial_has_a_wider_interval_than_its_neighbours() -> None:
    rows = np.array([[0.9, 0.901, 0.899], [0.89, 0.95, 0.83]])
    steady, noisy = (one for _, one in sorted(rank(table(rows), maximize=True).items()))
    assert steady.high - steady.low == pytest.approx((noisy.high - noisy.low) / 60)  # type: ignore[operator]
    alone = rank(table(rows[:1]), maximize=True)[0]
    assert (alone.low, alone.high) == (steady.low, steady.high), "whatever else was confirmed"


SPREADS = [(3, 0.0, 0), (3, 3.0, 0), (3, 0.0, 1), (3, 3.0, 1)]
MORE_SPREADS = [(seeds, sd, noise) for seeds in (2, 10) for sd in (0.0, 3.0) for noise in (0, 1)]


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "noise"), [*SPREADS, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE_SPREADS)]
)
def test_intervals_cover_the_mean_of_every_trial_as_often_as_they_promise(
    seeds: int, seed_sd: float, noise: int
) -> None:
    """By simulation, with and without an effect of the seed, with equal and unequal noise."""
    path = Path(__file__).parents[3] / "benchmarks" / "interval_coverage.py"
    script = runpy.run_path(str(path))
    rounds = 400
    shares, _ = script["coverage"](seeds, seed_sd, script["NOISE_SD"][noise], rounds)
    deviation = math.sqrt(0.95 * 0.05 / rounds)
    assert all(abs(share - 0.95) < 3.5 * deviation for share in shares), shares


def test_huge_values_are_ranked() -> None:
    ranked = rank(table([[1e308, 1.2e308, 1.1e308], [-1e308, -1.1e308, -1.2e308]]), maximize=True)
    assert list(ranked) == [0, 1]
    assert [one.mean for one in ranked.values()] == pytest.approx([1.1e308, -1.1e308])
    assert ranked[0].low == pytest.approx(1.1e308 - 4.302653 * 1e307 / math.sqrt(3))
    assert [one.is_tied for one in ranked.values()] == [True, False]


@pytest.mark.parametrize(("trials", "seeds"), [(2, 2), (3, 5), (6, 3)])
def test_the_difference_is_tukeys(trials: int, seeds: int) -> None:
    rows = np.random.default_rng(seeds).normal(size=(trials, seeds)) + np.arange(seeds) * 100
    effects = rows.mean(axis=1, keepdims=True) + rows.mean(axis=0) - rows.mean()
    freedom = (trials - 1) * (seeds - 1)
    noise = ((rows - effects) ** 2).sum() / freedom
    expected = scipy.stats.studentized_range.ppf(0.95, trials, freedom) * math.sqrt(noise / seeds)
    assert significant_difference(rows.tolist()) == pytest.approx(expected)


def test_of_two_trials_it_is_the_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    for shift in np.linspace(0, 3, 30):
        first, second = generator.normal(size=(2, 6)) + generator.normal(size=6) * 10
        second = second - shift
        p: Any = scipy.stats.ttest_rel(first, second).pvalue
        ranked = rank(table([first, second]), maximize=True)
        assert all(one.is_tied for one in ranked.values()) == (p > 0.05)


@pytest.mark.parametrize(("trials", "seeds", "images"), [(5, 3, None), (10, 5, None), (5, 2, 360), (2, 2, 360)])
def test_equal_trials_are_seldom_told_apart(trials: int, seeds: int, images: int | None) -> None:
    """Of trials that differ by chance alone, at most a few in a hundred are told apart, also of counted images."""
    generator, wrong, rounds = np.random.default_rng(1), 0, 600
    for _ in range(rounds):
        if images is None:
            rows = generator.normal(size=(trials, seeds)) + generator.normal(size=seeds) * 3
        else:
            rows = generator.binomial(images, 0.98, size=(trials, seeds)) / images
        wrong += not all(one.is_tied for one in rank(table(rows), maximize=True).values())
    assert wrong / rounds < 0.075  # 5 %, and 2.8 standard deviations of a share of 600 rounds: 0.0089 each


def test_trials_that_differ_are_told_apart() -> None:
    rows = np.array([[0.9, 0.91, 0.92], [0.5, 0.52, 0.51], [0.89, 0.92, 0.91]])
    assert [one.is_tied for one in rank(table(rows), maximize=True).values()] == [True, True, False]
    assert list(rank(table(rows), maximize=False)) == [1, 2, 0]


def test_differences_that_are_equal_by_chance_tell_nothing() -> None:
    """One image of 360 in each of three seeds."""
    rows = [[354 / 360, 351 / 360, 350 / 360], [353 / 360, 350 / 360, 349 / 360]]
    assert [one.is_tied for one in rank(table(rows), maximize=True).values()] == [True, True]
    same = rank(table([[0.9, 0.9], [0.8, 0.8]]), maximize=True)
    assert [(one.low, one.high, one.is_tied) for one in same.values()] == [(None, None, True)] * 2


def test_only_repeats_in_common_are_compared() -> None:
    """The second is better with each seed that both had; the first had more, and luck with them."""
    first = {1: 0.90, 2: 0.90, 3: 0.90, 4: 0.99, 5: 0.99, 6: 0.99}
    ranked = rank({1: first, 2: {1: 0.91, 2: 0.911, 3: 0.9105}}, maximize=True)
    assert list(ranked) == [2, 1]
    assert [one.seeds for one in ranked.values()] == [3, 3]
    assert ranked[1].mean == pytest.approx(0.9)


def test_what_was_not_finite_comes_last_and_is_never_tied() -> None:
    repeats: dict[int, dict[int, float | None]] = {
        1: {1: 0.9, 2: None},
        2: {1: 0.5, 2: 0.6},
        3: {1: None},
        4: {1: 0.1, 2: 0.25},
    }
    for maximize, order in ((True, [2, 4, 1, 3]), (False, [4, 2, 1, 3])):
        ranked = rank(repeats, maximize=maximize)
        assert list(ranked) == order
        assert ranked[1] == Confirmed(2, None, None, None, False, None)
        assert ranked[2].mean == pytest.approx(0.55)


def test_a_single_repeat_tells_nothing_apart() -> None:
    ranked = rank({1: {1: 0.9}, 2: {1: 0.1}}, maximize=True)
    assert list(ranked.values()) == [
        Confirmed(1, 0.9, None, None, True, None),
        Confirmed(1, 0.1, None, None, True, None),
    ]
    assert rank({}, maximize=True) == {}
