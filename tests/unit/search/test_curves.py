"""The pruner `curve`: what it predicts, how often that is right, and which trials it stops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from scipy import stats

from tuner import Space, Study, uniform
from tuner.errors import StudyError
from tuner.search import TrialPruner, followed_metrics, make_pruner
from tuner.search.curves import _EXPONENTS, any_below, predict


class Rate(Space):
    rate: float = uniform(0.0, 1.0)


RNG = np.random.default_rng(0)


def falling(a: float, b: float, c: float, epochs: int = 20) -> list[float]:
    return [a + b * epoch**-c for epoch in range(1, epochs + 1)]


# --- Predictions


def test_it_is_linear_regression_for_each_exponent() -> None:
    """The reference: textbook formulas with the design matrix, whose first column is 1, for each exponent."""
    epochs, last = np.array([1, 2, 3, 5, 8]), 20
    values = np.array([3.0, 2.1, 1.9, 1.2, 1.25])
    weights, distributions = [], []
    for c in _EXPONENTS:
        design = np.stack([np.ones(5), (epochs**-c - last**-c) / (1 - last**-c)], axis=1)
        inverse = np.linalg.inv(design.T @ design)
        beta, (squares,), *_ = np.linalg.lstsq(design, values)
        new = np.array([1.0, 0.0])
        scale = math.sqrt(squares / 3 * (1 + new @ inverse @ new))
        distributions.append(stats.t(3, loc=new @ beta, scale=scale))
        weights.append(squares ** (-3 / 2) / math.sqrt(np.linalg.det(design.T @ design)))
    predicted = predict(epochs.tolist(), values.tolist(), last)
    for value in (0.0, 0.7, 1.2):
        wanted = np.average([one.cdf(value) for one in distributions], weights=weights)
        assert predicted.below(value) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("seen", "last"), [(4, 20), (6, 20), (10, 20), (8, 60), (20, 60)])
def test_intervals_cover_as_often_as_they_say(seen: int, last: int) -> None:
    """2,000 noisy power laws: 90 % intervals cover 88 to 91 %, and 5 % tails have 2 to 7 % of the values.

    The standard deviation of a coverage is 0.7 points, that of a tail 0.5; three of each are allowed.
    """
    rng = np.random.default_rng(0)
    places: list[float] = []
    for _ in range(2000):
        a, b, c = rng.normal(), math.exp(rng.normal()), math.exp(rng.uniform(math.log(0.2), math.log(2.5)))
        noise = b * math.exp(rng.uniform(math.log(0.003), math.log(0.05)))
        epochs = np.arange(1, seen + 1)
        values = a + b * epochs**-c + noise * rng.normal(size=seen)
        end = a + b * last**-c + noise * rng.normal()
        places.append(predict(epochs.tolist(), values.tolist(), last).below(end))
    found = np.array(places)
    assert 0.86 < np.mean((found > 0.05) & (found < 0.95)) < 0.93
    assert np.mean(found < 0.05) < 0.07
    assert np.mean(found > 0.95) < 0.09


def test_a_curve_without_noise_is_continued() -> None:
    curve = falling(0.5, 2.0, 0.8)
    predicted = predict(list(range(1, 16)), curve[:15], 20)
    assert predicted.below(curve[-1] - 0.02) < 0.02
    assert predicted.below(curve[-1] + 0.02) > 0.98


def test_a_constant_curve_stays_where_it_is() -> None:
    predicted = predict([1, 2, 3, 4], [0.1] * 4, 20)
    assert predicted.below(0.0999) < 1e-6
    assert predicted.below(0.1001) > 1 - 1e-6


@pytest.mark.parametrize(("seen", "bar"), [(4, 0.9), (8, 0.7), (15, 0.58)])
def test_with_one_epoch_left_any_later_epoch_is_that_epoch(seen: int, bar: float) -> None:
    curve = list(np.array(falling(0.5, 1.0, 1.0)[:seen]) + 0.03 * np.random.default_rng(seen).normal(size=seen))
    epochs = list(range(1, seen + 1))
    wanted = predict(epochs, curve, seen + 1).below(bar)
    assert 0.01 < wanted < 0.99
    error = math.sqrt(wanted * (1 - wanted) / 4000)
    assert any_below(epochs, curve, seen + 1, bar) == pytest.approx(wanted, abs=4 * error)


def test_any_of_several_later_epochs_is_likelier_than_each_and_than_their_sum_is_not() -> None:
    curve = list(np.array(falling(0.5, 1.0, 1.0)[:8]) + 0.03 * np.random.default_rng(0).normal(size=8))
    epochs, bar = list(range(1, 9)), 0.5
    each = [predict(epochs, curve, last).below(bar) for last in range(9, 21)]
    found = any_below(epochs, curve, 20, bar)
    assert max(each) < found < min(1.0, sum(each))


@pytest.mark.slow
def test_the_probability_of_any_later_epoch_is_right_for_simulated_curves() -> None:
    """Power laws that are known for six epochs: a share of those with a probability near p beats the bar, at most p.

    The flat priors are wider than the simulated curves, so that large probabilities are a little too large.
    """
    rng = np.random.default_rng(1)
    told, beaten = [], []
    for _ in range(1500):
        a, b, c = rng.normal(), math.exp(rng.normal()), math.exp(rng.uniform(math.log(0.2), math.log(2.5)))
        noise = b * math.exp(rng.uniform(math.log(0.003), math.log(0.05)))
        curve = a + b * np.arange(1, 21) ** -c + noise * rng.normal(size=20)
        bar = curve[:6].min() - b * rng.uniform(0.0, 0.3)
        told.append(any_below(list(range(1, 7)), curve[:6].tolist(), 20, float(bar)))
        beaten.append(bool(curve[6:].min() < bar))
    probabilities, came = np.array(told), np.array(beaten)
    for low, high in ((0.0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 1.0)):
        part = (probabilities >= low) & (probabilities <= high)
        assert part.sum() > 100
        share = came[part].mean()
        assert probabilities[part].mean() - 0.15 < share < probabilities[part].mean() + 0.03


# --- Decisions


def stopped(
    curve: Mapping[int, float] | Sequence[float],
    ended: Sequence[Mapping[int, float] | Sequence[float]],
    *,
    direction: Any = "minimize",
    pruner: Any = "curve",
    violation: float | None = None,
    value_of: Literal["last", "best"] = "last",
) -> int | None:
    """Return the epoch at which a trial with this curve is stopped, after others have ended."""
    study = optuna.create_study(direction=direction, pruner=make_pruner(pruner, 20, value_of))
    for other in ended:
        reports = _by_epoch(other)
        constraints = {} if violation is None else {"constraints": [violation]}
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                value=value if math.isfinite(value := list(reports.values())[-1]) else 0.0,
                intermediate_values=reports,
                system_attrs=constraints,
            )
        )
    trial = study.ask()
    asked = TrialPruner(study, trial)
    for epoch, value in _by_epoch(curve).items():
        if asked.should_prune(epoch, value):
            return epoch
    return None


def _by_epoch(curve: Mapping[int, float] | Sequence[float]) -> dict[int, float]:
    return dict(curve) if isinstance(curve, Mapping) else dict(enumerate(curve, start=1))


GOOD, BAD = falling(0.1, 1.0, 1.0), falling(2.0, 1.0, 1.0)


def test_it_stops_a_hopeless_trial_as_soon_as_it_may() -> None:
    assert stopped(BAD, [GOOD]) == 4
    assert stopped(BAD, [GOOD], pruner={"name": "curve", "min_epochs": 9}) == 9
    assert stopped(GOOD, [BAD]) is None
    assert stopped(BAD, [BAD, GOOD]) == 4, "the best counts"


def test_a_larger_objective_is_better_if_the_study_says_so() -> None:
    mirrored = [[-value for value in curve] for curve in (GOOD, BAD)]
    assert stopped(mirrored[1], [mirrored[0]], direction="maximize") == 4
    assert stopped(mirrored[0], [mirrored[1]], direction="maximize") is None
    assert stopped(GOOD, [BAD], direction="maximize") == 4


def test_a_slow_trial_that_may_still_win_goes_on() -> None:
    slow = falling(-1.0, 3.0, 0.3)
    assert slow[9] > 2 * slow[-1]
    assert stopped(slow, [falling(0.25, 1.0, 1.0)]) is None


def test_without_a_complete_trial_nothing_is_stopped() -> None:
    assert stopped(BAD, []) is None
    assert stopped(BAD, [GOOD], violation=1.0) is None, "a trial that violates a constraint is no bar"
    assert stopped(BAD, [GOOD], violation=0.0) == 4
    assert stopped(BAD, [[*GOOD[:-1], math.nan]]) is None


def test_short_curves_and_missing_values() -> None:
    every_fifth = {epoch: BAD[epoch - 1] for epoch in (5, 10, 15, 20)}
    assert stopped(every_fifth, [GOOD]) is None, "its fourth report is the last"
    every_third = {epoch: BAD[epoch - 1] for epoch in (3, 6, 9, 12, 15)}
    assert stopped(every_third, [GOOD]) == 12
    with_nan = {**_by_epoch(BAD[:6]), 2: math.nan, 3: math.inf}
    assert stopped(with_nan, [GOOD]) == 6, "four finite values"


def test_the_probability_is_that_of_the_option() -> None:
    epochs, noisy = list(range(1, 21)), list(np.array(BAD) + 0.05 * RNG.normal(size=20))
    bar = 1.9
    for probability in (0.01, 0.2):
        at = stopped(noisy, [[bar] * 20], pruner={"name": "curve", "probability": probability})
        wanted = [
            epoch for epoch in range(4, 20) if predict(epochs[:epoch], noisy[:epoch], 20).below(bar) < probability
        ]
        assert at == next(iter(wanted), None)


# Falls to 0.2 at epoch 5, then rises to 1.7 at epoch 20: a model that overfits.
OVERFITTING = [*falling(0.0, 1.0, 1.0, 5), *(0.2 + 0.1 * epoch for epoch in range(1, 16))]


def test_the_value_of_the_best_epoch_is_compared_with_best_epochs() -> None:
    """Ended at 1.7 with its best at 0.2: a trial that goes to 0.6 beats its end and not its best."""
    middling = falling(0.5, 1.0, 0.9)
    assert stopped(middling, [OVERFITTING]) is None
    assert stopped(middling, [OVERFITTING], value_of="best") is not None
    better = falling(0.05, 1.0, 0.9)
    assert stopped(better, [OVERFITTING], value_of="best") is None


def test_a_trial_that_may_be_better_before_its_end_goes_on_if_the_best_epoch_counts() -> None:
    """Noise of 0.1 around 0.5 for 16 epochs: the last is rarely below 0.3, one of all more often."""
    noisy = [0.5 + 0.1 * (-1) ** epoch for epoch in range(1, 21)]
    pruner = {"name": "curve", "probability": 0.1}
    assert stopped(noisy, [[0.25] * 20], pruner=pruner) is not None
    first = stopped(noisy, [[0.25] * 20], pruner=pruner, value_of="best")
    assert first is None or first > (stopped(noisy, [[0.25] * 20], pruner=pruner) or 0)
    mirrored = [-value for value in noisy]
    assert stopped(mirrored, [[-0.25] * 20], pruner=pruner, value_of="best", direction="maximize") == first


def test_a_pruner_that_wraps_it_and_a_study_pass_on_which_epoch_counts() -> None:
    wrapped = {"name": "patient", "wrapped": "curve", "patience": 0}
    middling = falling(0.5, 1.0, 0.9)
    middling[5:] = [middling[4] + 0.001 * epoch for epoch in range(1, 16)]  # it is only asked of trials that stagnate
    assert stopped(middling, [OVERFITTING], pruner=wrapped, value_of="best") is not None
    assert stopped(middling, [OVERFITTING], pruner=wrapped) is None
    settings: dict[str, Any] = {"name": "s", "space": Rate, "train": lambda hparams, trial: 0.0, "trials": 3}
    settings |= {"objective": "loss", "direction": "minimize", "epochs": 20}
    for value in ("last", "best"):
        made: Any = Study(**settings, pruner="curve", value=value).make_pruner()
        assert made._takes_best == (value == "best")
        followed = {"name": "curve", "metric": "size", "mode": "min"}
        other: Any = Study(**settings, pruner=followed, value=value).make_pruner()
        assert not other._takes_best


def test_it_follows_another_metric_and_one_objective_only() -> None:
    given = {"name": "curve", "metric": "val_loss", "mode": "min"}
    assert followed_metrics(given, ["accuracy"], ["maximize"]).metric == "val_loss"
    make_pruner(given, 20)
    with pytest.raises(StudyError, match="only the pruners asha and hyperband compare several objectives"):
        followed_metrics("curve", ["a", "b"], ["maximize", "minimize"])


@pytest.mark.parametrize(
    ("options", "epochs", "message"),
    [
        ({}, None, "the pruner 'curve' needs to know how long a trial trains: set epochs"),
        ({"min_epochs": 0}, 20, "min_epochs of the pruner 'curve' must be an integer of at least 1: got 0"),
        ({"probability": 1.0}, 20, "probability of the pruner 'curve' must be above 0 and below 1: got 1.0"),
        ({"probability": math.nan}, 20, "probability of the pruner 'curve' must be above 0 and below 1: got nan"),
    ],
)
def test_wrong_options(options: dict[str, Any], epochs: int | None, message: str) -> None:
    with pytest.raises(StudyError) as raised:
        make_pruner({"name": "curve", **options}, epochs)
    assert str(raised.value) == message
