"""Learning curves: stops a trial that will probably not beat the best one, because its curve says so.

A curve is extrapolated as Domhan et al. 2015 do (https://www.ijcai.org/Proceedings/15/Papers/487.pdf), with one family
of curves instead of eleven, the power law of their table 1: value(t) = a + b * t^-c, with normal noise. Its uncertainty
is computed exactly instead of with a Markov chain: given c, this is linear regression, whose prediction is a
Student's t distribution; the exponents are weighted by their marginal likelihoods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import TrialState

from tuner.errors import StudyError, is_int, is_number

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

FEWEST_REPORTS = 4
"""With fewer, a curve with three parameters and noise says nothing."""
_EXPONENTS = np.geomspace(0.05, 5.0, 100)
_DRAWS = 4000
_ROUNDING = 1e-7
"""The least noise, as a share of the largest value: float32 has about seven digits."""


@dataclass(frozen=True)
class Prediction:
    """The predicted distribution of a value: a mixture of Student's t distributions, one for each exponent.

    Attributes:
        weights: Their probabilities, Float[Array, "exponents"].
        centres: Their centres, in units of the value.
        scales: Their scales, in units of the value.
        freedom: Their degrees of freedom.
    """

    weights: np.ndarray
    centres: np.ndarray
    scales: np.ndarray
    freedom: int

    def below(self, value: float) -> float:
        """Return the probability that the predicted value is below a number."""
        from scipy.special import stdtr

        return float(self.weights @ stdtr(self.freedom, (value - self.centres) / self.scales))


@dataclass(frozen=True)
class _Fit:
    """Curves fitted by linear regression, one for each exponent: value = mean + slope * (fall - mean_fall).

    Attributes:
        last: The last epoch. A fall is 1 at epoch 1 and 0 at the last.
        count: The number of values.
        mean: Their mean.
        mean_falls: The mean falls, Float[Array, "exponents"], as all below.
        slopes: The slopes.
        spreads: The sums of squares of the falls, less their means.
        squares: The sums of squares of the residuals.
        weights: The probabilities of the exponents.
    """

    last: int
    count: int
    mean: float
    mean_falls: np.ndarray
    slopes: np.ndarray
    spreads: np.ndarray
    squares: np.ndarray
    weights: np.ndarray


def _falls(epochs: np.ndarray, last: int) -> np.ndarray:
    """Return the falls at epochs: Float[Array, "exponents epochs"]."""
    end = last ** -_EXPONENTS[:, None]
    return (epochs.astype(np.float64) ** -_EXPONENTS[:, None] - end) / (1 - end)


def _fit(epochs: Sequence[int], values: Sequence[float], last: int) -> _Fit:
    given, falls = np.asarray(values, dtype=np.float64), _falls(np.asarray(epochs), last)
    count, mean, mean_falls = len(given), given.mean(), falls.mean(axis=1)
    spreads = ((falls - mean_falls[:, None]) ** 2).sum(axis=1)
    slopes = ((falls - mean_falls[:, None]) @ (given - mean)) / spreads
    residuals = given - mean - slopes[:, None] * (falls - mean_falls[:, None])
    least = count * (_ROUNDING * max(float(np.abs(given).max()), np.finfo(np.float32).tiny)) ** 2
    squares = (residuals**2).sum(axis=1) + least
    likelihood = -0.5 * np.log(count * spreads) - 0.5 * (count - 2) * np.log(squares)
    weights = np.exp(likelihood - likelihood.max())
    return _Fit(last, count, float(mean), mean_falls, slopes, spreads, squares, weights / weights.sum())


def predict(epochs: Sequence[int], values: Sequence[float], last: int) -> Prediction:
    """Predict what will be reported for a later epoch.

    The priors are flat: on the noise-free value at the last epoch, on the change from epoch 1 to there, and on the
    logarithms of the noise and of the exponent, from 0.05 to 5.

    Args:
        epochs: The epochs of the curve, from 1; at least `FEWEST_REPORTS` different ones.
        values: The finite value of each.
        last: The epoch to predict.
    """
    fit = _fit(epochs, values, last)
    freedom = fit.count - 2
    scales = np.sqrt(fit.squares / freedom * (1 + 1 / fit.count + fit.mean_falls**2 / fit.spreads))
    return Prediction(fit.weights, fit.mean - fit.slopes * fit.mean_falls, scales, freedom)


def any_below(epochs: Sequence[int], values: Sequence[float], last: int, value: float) -> float:
    """Return the probability that at least one later report, up to the last epoch, is below a number.

    Later reports have independent noise around one curve, with the distribution of `predict`. The curve and the noise
    are drawn 4,000 times, always from the same seed, so that the standard error is 0.003 at a probability of 0.05 and
    every worker gets the same result. Given a draw, the probability is exact.

    Args:
        epochs: The epochs of the curve, from 1; at least `FEWEST_REPORTS` different ones.
        values: The finite value of each.
        last: The last epoch, after those of the curve.
        value: The number.
    """
    from scipy.special import log_ndtr

    fit, rng = _fit(epochs, values, last), np.random.default_rng(0)
    at = np.searchsorted(np.cumsum(fit.weights), (np.arange(_DRAWS) + 0.5) / _DRAWS).clip(max=len(_EXPONENTS) - 1)
    noise = np.sqrt(fit.squares[at] / rng.chisquare(fit.count - 2, _DRAWS))
    means = fit.mean + noise * rng.normal(size=_DRAWS) / np.sqrt(fit.count)
    slopes = fit.slopes[at] + noise * rng.normal(size=_DRAWS) / np.sqrt(fit.spreads[at])
    falls = _falls(np.arange(max(epochs) + 1, last + 1), last)[at] - fit.mean_falls[at, None]
    above = (means[:, None] + slopes[:, None] * falls - value) / noise[:, None]
    return float(1 - np.exp(log_ndtr(above).sum(axis=1)).mean())


class CurvePruner(BasePruner):
    """Stops a trial whose probability of a better value than the best complete trial's is small.

    The value of a trial is that of its last epoch, or of its best one. In the second case, the probability is that of
    a later epoch that is better than all epochs of the best trial.

    Args:
        last: The last epoch of a trial.
        min_epochs: The first epoch at which a trial may be stopped; it also needs four reports.
        probability: The probability below which a trial is stopped; above 0 and below 1.
        takes_best: Whether the value of a trial is that of its best epoch.

    Raises:
        StudyError: an option is wrong.
    """

    def __init__(self, last: int, min_epochs: int = 4, probability: float = 0.05, *, takes_best: bool = False) -> None:
        if not is_int(min_epochs) or min_epochs < 1:
            raise StudyError(f"min_epochs of the pruner 'curve' must be an integer of at least 1: got {min_epochs!r}")
        if not is_number(probability) or not 0 < probability < 1:
            raise StudyError(f"probability of the pruner 'curve' must be above 0 and below 1: got {probability!r}")
        self._last, self._min_epochs, self._probability = last, min_epochs, probability
        self._takes_best = takes_best

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or not self._min_epochs <= step < self._last:
            return False
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        curve = _finite(trial.intermediate_values, sign)
        if len(curve) < FEWEST_REPORTS:
            return False
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        value_of = _best_of if self._takes_best else _end_of
        found = [value for one in complete if _is_feasible(one) and (value := value_of(one, sign)) is not None]
        if not found or min(curve.values()) < min(found):
            return False
        epochs = sorted(curve)
        values = [curve[epoch] for epoch in epochs]
        if self._takes_best:
            return any_below(epochs, values, self._last, min(found)) < self._probability
        return predict(epochs, values, self._last).below(min(found)) < self._probability


def _is_feasible(trial: FrozenTrial) -> bool:
    return not any(value > 0 for value in trial.constraints.values())


def _end_of(trial: FrozenTrial, sign: float) -> float | None:
    """Return what a trial has reported at its end; None if it is not finite."""
    step = trial.last_step
    return None if step is None else _finite({step: trial.intermediate_values[step]}, sign).get(step)


def _best_of(trial: FrozenTrial, sign: float) -> float | None:
    """Return the best that a trial has reported; None if nothing is finite."""
    return min(_finite(trial.intermediate_values, sign).values(), default=None)


def _finite(values: Mapping[int, Any], sign: float) -> dict[int, float]:
    return {step: sign * value for step, value in values.items() if step > 0 and np.isfinite(value)}
