"""Priors of hyperparameters: a good one helps, a wrong one is overcome, and without any TPE is Optuna's."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from scipy import stats

from tuner import Space, Study, int_uniform, log_uniform, uniform
from tuner.errors import SpaceError
from tuner.search import Prior
from tuner.search.priors import Density, PriorTPESampler, densities
from tuner.study import trial_seed


def space_with(near_rate: float | None, near_shift: float | None, confidence: Any = "medium") -> type[Space]:
    class Searched(Space):
        rate: float = log_uniform(1e-6, 1.0, prior=near_rate, confidence=confidence)
        shift: float = uniform(-5.0, 5.0, prior=near_shift, confidence=confidence)
        width: int = int_uniform(1, 64)

    return Searched


def make_study(space: Any, seed: int = 0, **settings: Any) -> Study:
    given: dict[str, Any] = {"trainer": SimpleNamespace(train_model=None), "data": lambda seed: None, "epochs": 3}
    given |= {"objective": "loss", "direction": "minimize", "trials": 9, "name": "priors", "sampler": "tpe"}
    return Study(space=space, seed=seed, **{**given, **settings})


def loss(params: dict[str, Any]) -> float:
    """The best is rate 1e-3, shift 1 and width 16, with the value 0."""
    return (math.log10(params["rate"]) + 3) ** 2 + (params["shift"] - 1) ** 2 / 4 + (params["width"] - 16) ** 2 / 400


def best(space: type[Space], seed: int, trials: int) -> float:
    study = make_study(space, seed)
    search = optuna.create_study()
    for number in range(trials):
        search.sampler = study.make_sampler(number)
        trial = search.ask()
        study.sample(trial)
        search.tell(trial, loss(trial.params))
    return search.best_value


@pytest.mark.slow
def test_a_good_prior_helps() -> None:
    without = np.array([best(space_with(None, None), seed, 15) for seed in range(10)])
    with_prior = np.array([best(space_with(2e-3, 0.5), seed, 15) for seed in range(10)])
    better = without - with_prior
    assert better.mean() > 3 * better.std(ddof=1) / math.sqrt(len(better)), better


@pytest.mark.slow
def test_a_wrong_prior_is_overcome_by_trial_100() -> None:
    wrong = space_with(3e-6, -4.0, "high")
    random = [loss_of_random(seed, 100) for seed in range(4)]
    found = {trials: [best(wrong, seed, trials) for seed in range(4)] for trials in (15, 100)}
    assert np.median(found[15]) > 1  # it did mislead
    assert np.median(found[100]) < min(0.3, np.median(random))


def loss_of_random(seed: int, trials: int) -> float:
    rng = np.random.RandomState(seed)
    drawn = (
        {"rate": 10 ** rng.uniform(-6, 0), "shift": rng.uniform(-5, 5), "width": rng.randint(1, 65)}
        for _ in range(trials)
    )
    return min(map(loss, drawn))


# --- The density

RANGE = FloatDistribution(1e-5, 1e-1, log=True)


@pytest.mark.parametrize(("confidence", "share"), [("low", 0.5), ("medium", 0.25), ("high", 0.125)])
def test_starting_values_follow_a_truncated_normal_distribution(confidence: Any, share: float) -> None:
    drawn = Density(Prior(3e-4, confidence), RANGE).draw(np.random.RandomState(0), 4000)
    unit = (np.log10(drawn) + 5) / 4
    mean = (math.log10(3e-4) + 5) / 4
    exact = stats.truncnorm((0 - mean) / share, (1 - mean) / share, loc=mean, scale=share)
    assert stats.kstest(unit, exact.cdf).pvalue > 0.01
    assert stats.kstest(unit, "uniform").pvalue < 1e-6


def test_integers_have_the_probability_of_the_numbers_that_round_to_them() -> None:
    density = Density(Prior(2, "high"), IntDistribution(1, 3))
    drawn = density.draw(np.random.RandomState(0), 3000)
    # The domain is 0.5 to 3.5, so its standard deviation is 3 / 8.
    exact = stats.truncnorm(-1.5 * 8 / 3, 1.5 * 8 / 3, loc=2, scale=3 / 8)
    expected = [exact.cdf(at + 0.5) - exact.cdf(at - 0.5) for at in (1, 2, 3)]
    assert [np.mean(drawn == at) for at in (1, 2, 3)] == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 3000))


def test_the_logarithm_of_the_density_is_that_of_a_normal_distribution() -> None:
    density = Density(Prior(1e-3, "medium"), RANGE)
    found = density.log_pdf(np.array([1e-3, 1e-2, 1e-5]))
    by_hand = stats.norm.logpdf([0.5, 0.75, 0.0], 0.5, 0.25) - stats.norm.logpdf(0.5, 0.5, 0.25)
    assert found == pytest.approx(by_hand)


def test_only_numbers_that_are_searched_have_a_density() -> None:
    space = {
        "rate": RANGE,
        "one": FloatDistribution(2.0, 2.0),
        "kind": CategoricalDistribution(("a", "b")),
        "other": IntDistribution(1, 3),
    }
    priors = {name: Prior(1e-3, "low") for name in ("rate", "one", "kind")}
    assert list(densities(priors, space)) == ["rate"]
    steps = Density(Prior(20, "low"), IntDistribution(10, 40, step=10)).draw(np.random.RandomState(0), 50)
    assert set(steps) == {10, 20, 30, 40}


# --- In TPE


class Fake:
    """An estimator of good trials, whose samples are 1, and whose density is 1 at all points."""

    def sample(self, rng: Any, size: int) -> dict[str, Any]:
        return {"rate": np.ones(size), "other": np.full(size, 7.0)}

    def log_pdf(self, samples: dict[str, Any]) -> Any:
        return np.zeros(len(samples["rate"]))


@pytest.mark.parametrize(("ended", "drawn"), [(10, 12), (30, 6), (110, 2), (1000, 0)])
def test_the_weight_of_a_prior_falls_with_the_number_of_trials(
    ended: int, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TPESampler, "_build_parzen_estimator", lambda *_: Fake())
    search = optuna.create_study()
    search.add_trials([optuna.create_trial(value=1.0) for _ in range(ended)])
    sampler = PriorTPESampler({"rate": Prior(1e-3, "medium")}, seed=1)
    space: Any = {"rate": FloatDistribution(1e-6, 1.0, log=True), "other": FloatDistribution(0, 9)}
    assert isinstance(sampler._build_parzen_estimator(search, space, [], handle_below=False), Fake)
    below = sampler._build_parzen_estimator(search, space, [], handle_below=True)
    samples = below.sample(np.random.RandomState(0), 24)
    # A share of 10 / (10 + n), by hand: 24 / 2, 24 / 4, 24 / 12, 24 / 101.
    assert (samples["rate"] != 1.0).sum() == drawn
    assert (samples["other"] == 7.0).all()
    # PiBO: the acquisition function times the prior to the power of beta / n.
    found = below.log_pdf({"rate": np.array([1e-3, 1e-6])})
    assert found == pytest.approx([0.0, -(((0.0 - 0.5) / 0.25) ** 2) / 2 * 10 / ended])


def suggested(study: Study, make: Callable[[int], Any], trials: int = 25) -> list[dict[str, Any]]:
    search = optuna.create_study()
    for number in range(trials):
        search.sampler = make(number)
        trial = search.ask()
        study.sample(trial)
        search.tell(trial, loss(trial.params))
    return [trial.params for trial in search.trials]


def test_without_priors_suggestions_are_optunas() -> None:
    study = make_study(space_with(None, None))
    expected = suggested(study, lambda number: TPESampler(seed=trial_seed(0, number, "sampler")))
    assert suggested(study, study.make_sampler) == expected
    assert suggested(make_study(space_with(1e-3, None)), make_study(space_with(1e-3, None)).make_sampler) != expected


def test_other_samplers_ignore_priors() -> None:
    for name in ("random", "cmaes"):
        without, with_prior = (make_study(space_with(rate, None), sampler=name) for rate in (None, 1e-3))
        assert suggested(without, without.make_sampler, 9) == suggested(with_prior, with_prior.make_sampler, 9)


# --- In the definition of a study


def test_a_prior_is_no_part_of_the_definition_and_does_not_fix_anything() -> None:
    without, with_prior = make_study(space_with(None, None)), make_study(space_with(1e-3, 2.0, "high"))
    assert without.record() == with_prior.record()
    with_prior.check_unchanged(without.record())
    fixed = make_study(space_with(1e-3, 2.0), fixed={"rate": 0.5})
    assert {params["rate"] for params in suggested(fixed, fixed.make_sampler, 5)} == {0.5}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: log_uniform(1e-5, 1e-1, prior=1.0), r"the prior must be in log_uniform\(1e-05, 0.1\): got 1.0"),
        (lambda: uniform(0, 1, prior=cast("Any", "x")), "the prior must be in .*: got 'x'"),
        (lambda: uniform(0, 1, prior=math.nan), "the prior must be in .*: got nan"),
        (lambda: int_uniform(2, 8, step=2, prior=3), "the prior must be in .*: got 3"),
        (
            lambda: uniform(0, 1, prior=0.5, confidence=cast("Any", "sure")),
            "'medium' or 'high': got 'sure'",
        ),
    ],
)
def test_a_wrong_prior_is_refused(make: Any, reason: str) -> None:
    with pytest.raises(SpaceError, match=f"Wrong.x: .*{reason}"):

        class Wrong(Space):  # pyright: ignore[reportUnusedClass]
            x: object = make()


def test_a_confidence_without_a_prior_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"a prior needs a prior: got confidence='high' in uniform\(0.0, 1.0\)"):
        type("HParams", (Space,), {"__annotations__": {"x": float}, "x": uniform(0, 1, confidence="high")})
