"""What a study's sampler is made from: the context of each trial, and checks of the settings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tuner.errors import SpaceError, StudyError
from tuner.study.domains import Domain, FloatDomain, IntDomain, parameters
from tuner.study.objective import OptunaObjective
from tuner.study.space import is_space
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from tuner.search import Agreed, Context, Prior


class Searched(Protocol):
    """The part of a study that its sampler needs; see `tuner.study.StudySpec`."""

    @property
    def name(self) -> str: ...
    @property
    def space(self) -> Any: ...
    @property
    def fixed(self) -> Mapping[str, Any]: ...
    @property
    def baseline(self) -> Any: ...
    @property
    def train(self) -> Any: ...
    @property
    def seed(self) -> int: ...
    @property
    def objectives(self) -> Sequence[str]: ...
    @property
    def constraints(self) -> Mapping[str, str]: ...
    @property
    def warm_start(self) -> Sequence[str]: ...
    def hparams_of(self, params: Mapping[str, Any]) -> Any: ...
    def sample(self, trial: Any) -> Any: ...


def context_of(study: Searched, number: int, seed: int, agreed: Agreed | None) -> Context:
    """Return the context of a trial's sampler.

    Args:
        study: The study.
        number: The trial's number.
        seed: The seed of its sampler.
        agreed: What is stored with the study; None before it is.
    """
    from tuner.search import Agreed, Context

    distributions: dict[str, BaseDistribution] | None = None
    conditional: dict[str, list[BaseDistribution]] = {}
    priors: dict[str, Prior] = {}
    if is_space(study.space):
        distributions = {}
        for name, domain, when in parameters(study.space):
            domain = domain.only(study.fixed[name]) if name in study.fixed else domain
            if when:
                conditional.setdefault(name, []).append(domain.distribution())
            else:
                distributions[name] = domain.distribution()
            priors |= _prior(name, domain)
    if study.baseline is not None:  # whose trial takes no point of a grid or a sequence
        number = max(0, number - 1)
    return Context(
        study.seed,
        seed,
        number,
        distributions,
        conditional,
        len(study.objectives),
        bool(study.constraints),
        priors,
        agreed or Agreed(),
    )


def _prior(name: str, domain: Domain) -> dict[str, Prior]:
    from tuner.search import Prior

    if not isinstance(domain, FloatDomain | IntDomain) or domain.prior is None:
        return {}
    return {name: Prior(domain.prior, domain.confidence)}


def check_cmaes(sampler: object, objectives: Sequence[str]) -> None:
    """Raise StudyError if a study with several objectives has CMA-ES."""
    from tuner.search import learns_as

    if len(objectives) > 1 and learns_as(sampler)[0] == "cmaes":
        raise StudyError("the sampler 'cmaes' supports only one objective: use tpe, nsga2, random, qmc or grid")


def check_warm_start(study: Searched) -> None:
    """Check the names of earlier studies.

    Raises:
        StudyError: they are not a list of names, or the study has no space in which to check their trials.
    """
    given: Any = study.warm_start
    is_listed = isinstance(given, list | tuple)
    if not is_listed or not all(isinstance(name, str) and name for name in given) or len({*given}) < len(given):
        raise StudyError(f"warm_start must be a list of names of other studies: got {given!r} (study {study.name!r})")
    if study.name in given:
        raise StudyError(f"warm_start must name other studies: got the study's own name, {study.name!r}")
    if given and isinstance(study.train, OptunaObjective):
        raise StudyError(
            f"warm_start needs a search space, which an Optuna objective does not have: queue trials with "
            f"`tuner enqueue --from {given[0]} {study.name}` instead"
        )


def suggested(study: Searched, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return the hyperparameters of a trial with these values, and their distributions; others are dropped.

    Raises:
        SpaceError: one is missing, or its value is outside its domain.
    """
    from optuna.trial import FixedTrial

    study.hparams_of(params)
    trial: Any = FixedTrial(dict(params))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values outside a distribution, which are found below
        study.sample(trial)
    for name, distribution in trial.distributions.items():
        if not private.contains(distribution, trial.params[name]):
            raise SpaceError(f"{name} must be in {distribution}: got {trial.params[name]!r}")
    return trial.params, trial.distributions
