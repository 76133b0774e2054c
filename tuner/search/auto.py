"""The sampler `auto`: chooses a sampler by the search space, the objectives and the number of complete trials.

The rules are those that OptunaHub documents for its AutoSampler.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler
from optuna.trial import TrialState

from tuner.search.context import Context, Plan
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

FEW = 250
"""The number of complete trials from which on `auto` uses its later sampler."""
_MANY_OBJECTIVES = 4


def choose_plan(context: Context) -> Plan:
    """Return the samplers for a study.

    Numbers only: a Gaussian process, then CMA-ES; TPE instead of CMA-ES with constraints. With choices: TPE. Several
    objectives: a Gaussian process, or TPE with choices or with four objectives and more; then NSGA-II, or NSGA-III with
    four and more. A space with conditions, or that is not a `Space` class: TPE. Without PyTorch, TPE replaces the
    Gaussian process.
    """
    if context.distributions is None or context.is_conditional:
        return Plan("tpe", "tpe")
    searched = [one for one in context.distributions.values() if not one.single()]
    has_choices = any(isinstance(one, CategoricalDistribution) for one in searched)
    model = "gp" if importlib.util.find_spec("torch") is not None else "tpe"
    if context.objectives > 1:
        is_many = context.objectives >= _MANY_OBJECTIVES
        return Plan("tpe" if has_choices or is_many else model, "nsga3" if is_many else "nsga2")
    if has_choices or not searched:
        return Plan("tpe", "tpe")
    return Plan(model, "tpe" if context.is_constrained else "cmaes")


class AutoSampler(BaseSampler):
    """Asks the first sampler of a plan while few trials are complete, then the later one.

    Args:
        plan: The plan.
        make: Returns a sampler by name, which may start from complete trials.
        objectives: The number of objectives.
    """

    def __init__(self, plan: Plan, make: Callable[[str, Sequence[FrozenTrial]], BaseSampler], objectives: int) -> None:
        self._plan, self._make, self._objectives = plan, make, objectives
        self._chosen: tuple[int, BaseSampler] | None = None

    def _choose(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        """Return the sampler of a trial, the same until its end."""
        if self._chosen is None or self._chosen[0] != trial.number:
            complete = [one for one in private.all_trials(study) if one.state == TrialState.COMPLETE]
            is_few = len(complete) < FEW
            sampler = self._make(self._plan.first if is_few else self._plan.later, () if is_few else complete[:FEW])
            if is_few and self._objectives > 1:  # they are the first generation of the later sampler
                kind = NSGAIIISampler if self._plan.later == "nsga3" else NSGAIISampler
                key = private.generation_key(kind)
                private.storage_of(study).set_trial_system_attr(private.trial_id(trial), key, 0)
            self._chosen = trial.number, sampler
        return self._chosen[1]

    def reseed_rng(self) -> None:
        if self._chosen is not None:
            self._chosen[1].reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._choose(study, trial).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._choose(study, trial).after_trial(study, trial, state, values)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._choose(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._choose(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._choose(study, trial).sample_independent(study, trial, param_name, param_distribution)
