"""TPE with priors of hyperparameters, whose weight falls with the number of trials (PiBO, Hvarfner et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from tuner.search.context import Prior
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

BETA = 10.0
"""The weight of the prior, divided by the number of ended trials. PiBO uses a tenth of the budget: this is for 100."""
_DEVIATIONS = {"low": 0.5, "medium": 0.25, "high": 0.125}
"""The standard deviation of a prior, as a share of its domain's range, or of the range of its logarithm."""


class Density:
    """A normal distribution around the value of a prior, truncated to the domain.

    Args:
        prior: The prior.
        distribution: The domain of numbers, not of a single one.
    """

    def __init__(self, prior: Prior, distribution: FloatDistribution | IntDistribution) -> None:
        self._scale, self._inverse = (math.log, math.exp) if distribution.log else (float, float)
        half = 0.5 if isinstance(distribution, IntDistribution) else 0.0  # an integer has the numbers that round to it
        self._low, self._high = self._scale(distribution.low - half), self._scale(distribution.high + half)
        self._mean = (self._scale(prior.value) - self._low) / (self._high - self._low)
        self._deviation = _DEVIATIONS[prior.confidence]
        self._distribution = distribution

    def draw(self, rng: np.random.RandomState, size: int) -> np.ndarray:
        """Return values of the domain, Float[Array, "size"]."""
        from scipy.stats import truncnorm

        ends = (-self._mean / self._deviation, (1 - self._mean) / self._deviation)
        unit = truncnorm.ppf(rng.rand(size), *ends, loc=self._mean, scale=self._deviation)
        values = [self._inverse(self._low + (self._high - self._low) * one) for one in unit]
        return np.array([self._nearest(value) for value in values])

    def log_pdf(self, values: np.ndarray) -> np.ndarray:
        """Return the logarithm of the density, up to a constant, Float[Array, "size"]."""
        unit = np.array([(self._scale(value) - self._low) / (self._high - self._low) for value in values])
        return -(((unit - self._mean) / self._deviation) ** 2) / 2

    def _nearest(self, value: float) -> float:
        one = self._distribution
        if isinstance(one, IntDistribution):
            value = one.low + round((value - one.low) / one.step) * one.step
        return min(max(value, one.low), one.high)


def densities(priors: Mapping[str, Prior], space: Mapping[str, BaseDistribution]) -> dict[str, Density]:
    """Return the densities of those parameters of a space that have a prior and more than one value."""
    return {
        name: Density(priors[name], one)
        for name, one in sorted(space.items())
        if name in priors and isinstance(one, FloatDistribution | IntDistribution) and not one.single()
    }


class _Weighted:
    """The density of good trials, with some samples from priors and multiplied by a power of them."""

    def __init__(self, estimator: Any, known: Mapping[str, Density], weight: float) -> None:
        self._estimator, self._known, self._weight = estimator, known, weight

    def sample(self, rng: np.random.RandomState, size: int) -> dict[str, np.ndarray]:
        samples = self._estimator.sample(rng, size)
        count = round(size * self._weight / (1 + self._weight))
        for name, density in self._known.items():
            samples[name][:count] = density.draw(rng, count)
        return samples

    def log_pdf(self, samples: dict[str, np.ndarray]) -> np.ndarray:
        prior = sum(density.log_pdf(samples[name]) for name, density in self._known.items())
        return self._estimator.log_pdf(samples) + self._weight * prior


class PriorTPESampler(TPESampler):
    """TPE, whose start-up trials are drawn from priors, and whose acquisition function is multiplied by them.

    With n ended trials, the acquisition function is multiplied by the prior to the power of 10 / n, as in PiBO. Of the
    candidates, a share of 10 / (10 + n) is drawn from the prior, because TPE only compares those that it has drawn.

    Args:
        priors: The priors of parameters, by name.
        options: Those of `TPESampler`.
    """

    def __init__(self, priors: Mapping[str, Prior], **options: Any) -> None:
        super().__init__(**options)
        self._priors = priors
        self._startup = np.random.RandomState(options.get("seed"))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        known = densities(self._priors, {param_name: param_distribution})
        if known and _count_ended(study) < self._n_startup_trials:
            drawn = known[param_name].draw(self._startup, 1)[0].item()
            return param_distribution.to_external_repr(drawn)
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _build_parzen_estimator(
        self, study: Study, search_space: dict[str, BaseDistribution], trials: list[FrozenTrial], handle_below: bool
    ) -> Any:
        estimator = super()._build_parzen_estimator(study, search_space, trials, handle_below)
        known = densities(self._priors, search_space)
        if not (handle_below and known):
            return estimator
        return _Weighted(estimator, known, BETA / max(1, _count_ended(study)))


def _count_ended(study: Study) -> int:
    return sum(one.state in (TrialState.COMPLETE, TrialState.PRUNED) for one in private.all_trials(study))
