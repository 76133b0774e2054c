"""Samplers by name.

A named sampler is created for each trial, with a seed from the study's seed and the trial's number. Any worker that
runs trial 17 therefore draws the same random numbers for it, different trials get different numbers, and a resumed
study does not repeat earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.errors import StudyError, how_to_install
from tuner.search.options import Named, call, split

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Context:
    """Information about the study for a named sampler.

    Attributes:
        study_seed: The study's seed, the same for all trials.
        trial_seed: The trial's seed.
        number: The trial's number.
        distributions: Unconditional parameters; None for a define-by-run space.
        is_conditional: Whether there are conditional parameters as well.
    """

    study_seed: int
    trial_seed: int
    number: int
    distributions: Mapping[str, BaseDistribution] | None
    is_conditional: bool


def _tpe(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import TPESampler

    return call("sampler", "tpe", TPESampler, options, {"seed": context.trial_seed})


def _random(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return call("sampler", "random", RandomSampler, options, {"seed": context.trial_seed})


def _qmc(options: dict[str, object], context: Context) -> BaseSampler:
    from tuner.search.sequences import NumberedQMCSampler

    return call(
        "sampler",
        "qmc",
        NumberedQMCSampler,
        options,
        {"number": context.number, "seed": context.study_seed},
        scramble=True,
        warn_independent_sampling=False,
    )


def _grid(options: dict[str, object], context: Context) -> BaseSampler:
    from tuner.search.sequences import GridSampler

    if context.distributions is None or context.is_conditional:
        raise StudyError("the sampler 'grid' needs a Space class without conditional fields")
    return call(
        "sampler",
        "grid",
        GridSampler,
        options,
        {"distributions": context.distributions, "number": context.number, "seed": context.study_seed},
    )


def _cmaes(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import CmaEsSampler

    from tuner.search.bad_trials import CautiousSampler

    given = {"seed": context.trial_seed}
    sampler = call("sampler", "cmaes", CmaEsSampler, options, given, warn_independent_sampling=False)
    return CautiousSampler(sampler, rejects=True)


def _gp(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import GPSampler

    from tuner.search.bad_trials import CautiousSampler, as_violations

    try:
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise StudyError(f"the sampler 'gp' needs PyTorch, which is not installed: {how_to_install('gp')}") from None
    given = {"seed": context.trial_seed}
    sampler = call("sampler", "gp", GPSampler, options, given, warn_independent_sampling=False)
    return CautiousSampler(sampler, see=as_violations)


def _nsga2(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import NSGAIISampler

    from tuner.search.bad_trials import CautiousSampler

    sampler = call("sampler", "nsga2", NSGAIISampler, options, {"seed": context.trial_seed})
    return CautiousSampler(sampler, rejects=True)


def _nsga3(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import NSGAIIISampler

    from tuner.search.bad_trials import CautiousSampler

    sampler = call("sampler", "nsga3", NSGAIIISampler, options, {"seed": context.trial_seed})
    return CautiousSampler(sampler, rejects=True)


SAMPLERS: dict[str, Callable[[dict[str, Any], Context], BaseSampler]] = {
    "cmaes": _cmaes,
    "gp": _gp,
    "grid": _grid,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "qmc": _qmc,
    "random": _random,
    "tpe": _tpe,
}
"""Name -> a function that takes the options and the trial's context."""


def make_sampler(given: Named | BaseSampler, context: Context) -> BaseSampler:
    """Return the sampler for a trial of a study; an Optuna object is returned unchanged.

    Args:
        given: A name, a mapping with `name` and the sampler's own options, or an Optuna sampler.
        context: The study and the trial.

    Raises:
        StudyError: the name or an option is unknown, the sampler cannot search the space, or a package is missing.
    """
    from optuna.samplers import BaseSampler

    if isinstance(given, BaseSampler):
        return given
    if not isinstance(given, str | dict):
        raise StudyError(f"the sampler must be a name, a mapping or an Optuna sampler: got {given!r}")
    name, options = split("sampler", given, SAMPLERS)
    return SAMPLERS[name](options, context)


WINDOWED = ("tpe", "gp")
"""The samplers that see a window of a large study: those that compare the best trials with the rest."""
