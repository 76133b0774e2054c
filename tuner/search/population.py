"""The settings of population-based training, as a pruner; its rules are in `tuner.study.population`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna.pruners import BasePruner

from tuner.errors import is_int, is_number

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_MOST_QUANTILE = 0.5  # a trial that copies cannot be one that is copied


class PopulationPruner(BasePruner):
    """The settings of population-based training; it prunes nothing.

    Args:
        every: Epochs between two comparisons; > 0.
        quantile: The share of trials that copy others, and of those that they copy; in (0, 0.5].
        resample: The chance that a hyperparameter is drawn again from its domain instead of perturbed; in [0, 1].
        perturb: The factors of which one is applied to a hyperparameter that is perturbed; > 0.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        every: int,
        quantile: float = 0.25,
        resample: float = 0.25,
        perturb: Sequence[float] = (0.8, 1.25),
    ) -> None:
        if not is_int(every) or every < 1:
            raise ValueError(f"every must be a number of epochs, at least 1: got {every!r}")
        if not is_number(quantile) or not 0 < quantile <= _MOST_QUANTILE:
            raise ValueError(f"quantile must be above 0 and at most {_MOST_QUANTILE}: got {quantile!r}")
        if not is_number(resample) or not 0 <= resample <= 1:
            raise ValueError(f"resample must be a probability: got {resample!r}")
        if isinstance(perturb, str) or not perturb or not all(is_number(one) and one > 0 for one in perturb):
            raise ValueError(f"perturb must be factors above 0, such as (0.8, 1.25): got {perturb!r}")
        self.every, self.quantile, self.resample, self.perturb = every, quantile, resample, tuple(perturb)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return False."""
        return False


# --- Exploit
