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


def predict(epochs: Sequence[int], values: Sequence[float], last: int) -> Prediction:
    """Predict what will be reported for a later epoch.

    The priors are flat: on the noise-free value at the last epoch, on the change from epoch 1 to there, and on the
    logarithms of the noise and of the exponent, from 0.05 to 5.

    Args:
        epochs: The epochs of the curve, from 1; at least `FEWEST_REPORTS` different ones.
        values: The finite value of each.
        last: The epoch to predict.
    """
    given = np.asarray(values, dtype=np.float64)
    at = np.asarray(epochs, dtype=np.float64)
    count, freedom = len(given), len(given) - 2
    end = last ** -_EXPONENTS[:, None]
    # 1 at epoch 1, and 0 at the last: the intercept is the value at the last epoch, whose row is (1, 0).
    falls = (at ** -_EXPONENTS[:, None] - end) / (1 - end)
    mean_fall, mean_value = falls.mean(axis=1), given.mean()
    spread = ((falls - mean_fall[:, None]) ** 2).sum(axis=1)
    slope = ((falls - mean_fall[:, None]) @ (given - mean_value)) / spread
    centres = mean_value - slope * mean_fall
    residuals = given - centres[:, None] - slope[:, None] * falls
    least = count * (_ROUNDING * max(float(np.abs(given).max()), np.finfo(np.float32).tiny)) ** 2
    squares = (residuals**2).sum(axis=1) + least
    scales = np.sqrt(squares / freedom * (1 + 1 / count + mean_fall**2 / spread))
    likelihood = -0.5 * np.log(count * spread) - 0.5 * freedom * np.log(squares)
    weights = np.exp(likelihood - likelihood.max())
    return Prediction(weights / weights.sum(), centres, scales, freedom)


class CurvePruner(BasePruner):
    """Stops a trial whose probability of ending better than the best complete trial is small.

    Args:
        last: The last epoch of a trial.
        min_epochs: The first epoch at which a trial may be stopped; it also needs four reports.
        probability: The probability below which a trial is stopped; above 0 and below 1.

    Raises:
        StudyError: an option is wrong.
    """

    def __init__(self, last: int, min_epochs: int = 4, probability: float = 0.05) -> None:
        if not is_int(min_epochs) or min_epochs < 1:
            raise StudyError(f"min_epochs of the pruner 'curve' must be an integer of at least 1: got {min_epochs!r}")
        if not is_number(probability) or not 0 < probability < 1:
            raise StudyError(f"probability of the pruner 'curve' must be above 0 and below 1: got {probability!r}")
        self._last, self._min_epochs, self._probability = last, min_epochs, probability

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or not self._min_epochs <= step < self._last:
            return False
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        curve = _finite(trial.intermediate_values, sign)
        if len(curve) < FEWEST_REPORTS:
            return False
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ends = [end for one in complete if (end := _end_of(one, sign)) is not None]
        if not ends or min(curve.values()) < min(ends):
            return False
        epochs = sorted(curve)
        predicted = predict(epochs, [curve[epoch] for epoch in epochs], self._last)
        return predicted.below(min(ends)) < self._probability


def _end_of(trial: FrozenTrial, sign: float) -> float | None:
    """Return what a trial has reported at its end; None if it is not finite or the trial violates a constraint."""
    step, constraints = trial.last_step, trial.constraints
    if step is None or any(value > 0 for value in constraints.values()):
        return None
    return _finite({step: trial.intermediate_values[step]}, sign).get(step)


def _finite(values: Mapping[int, Any], sign: float) -> dict[int, float]:
    return {step: sign * value for step, value in values.items() if step > 0 and np.isfinite(value)}
