"""Samplers by name.

A named sampler is created for each trial, with a seed from the study's seed and the trial's number. Any worker that
runs trial 17 therefore draws the same random numbers for it, different trials get different numbers, and a resumed
study does not repeat earlier ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuner.errors import StudyError, how_to_install, nearest
from tuner.search.context import Context, Plan
from tuner.search.options import Named, call, split
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial


def _tpe(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import TPESampler

    from tuner.search.informed import InformedSampler
    from tuner.search.intersection import with_shared_intersection

    given: dict[str, object] = {"seed": context.trial_seed}
    if context.priors:
        from tuner.search.priors import PriorTPESampler

        call("sampler", "tpe", TPESampler, options, given)  # which checks the options
        sampler = PriorTPESampler(context.priors, **options, **given)
    else:
        sampler = call("sampler", "tpe", TPESampler, options, given)
    with_shared_intersection(sampler)
    return InformedSampler(sampler, earlier=context.agreed.earlier) if context.agreed.earlier else sampler


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


def _brute_force(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.distributions import FloatDistribution

    from tuner.search.sequences import ExhaustiveSampler

    floats = [
        name
        for name, several in _domains(context).items()
        if any(isinstance(one, FloatDistribution) and not one.single() for one in several)
    ]
    if floats:
        raise StudyError(
            f"the sampler 'brute_force' needs integers and choices only: {', '.join(floats)} must be fixed, or have "
            "choices instead; or use 'grid' with values"
        )
    return call("sampler", "brute_force", ExhaustiveSampler, options, {"seed": context.trial_seed})


def _cmaes(options: dict[str, object], context: Context) -> BaseSampler:
    return _make_cmaes(options, context, context.agreed.earlier)


def _make_cmaes(options: dict[str, object], context: Context, sources: Sequence[FrozenTrial]) -> BaseSampler:
    """Return CMA-ES; its first distribution is that of the best of the given trials (Nomura et al. 2021)."""
    from optuna.samplers import CmaEsSampler

    from tuner.search.informed import InformedSampler, numbers_of
    from tuner.search.intersection import with_shared_intersection

    given: dict[str, object] = {"seed": context.trial_seed}
    defaults: dict[str, object] = {"warn_independent_sampling": False}
    found = numbers_of(sources, {} if context.is_conditional else context.distributions or {})
    if found and not options.keys() & {"x0", "sigma0", "source_trials", "use_separable_cma"}:
        defaults["source_trials"] = found
    sampler = call("sampler", "cmaes", CmaEsSampler, options, given, **defaults)
    return InformedSampler(with_shared_intersection(sampler), rejects=True)


def _gp(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import GPSampler

    from tuner.search.informed import InformedSampler, as_violations
    from tuner.search.intersection import with_shared_intersection

    try:
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise StudyError(f"the sampler 'gp' needs PyTorch, which is not installed: {how_to_install('gp')}") from None
    given: dict[str, object] = {"seed": context.trial_seed}
    sampler = call("sampler", "gp", GPSampler, options, given, warn_independent_sampling=False)
    return InformedSampler(with_shared_intersection(sampler), see=as_violations, earlier=context.agreed.earlier)


def _nsga2(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import NSGAIISampler

    return _genetic("nsga2", NSGAIISampler, options, context)


def _nsga3(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import NSGAIIISampler

    return _genetic("nsga3", NSGAIIISampler, options, context)


def _genetic(name: str, kind: Any, options: dict[str, object], context: Context) -> BaseSampler:
    from tuner.search.informed import InformedSampler, in_generation
    from tuner.search.intersection import with_shared_intersection

    earlier = in_generation(context.agreed.earlier, kind)
    sampler = call("sampler", name, kind, options, {"seed": context.trial_seed})
    return InformedSampler(with_shared_intersection(sampler), earlier=earlier, rejects=True)


def _partial_fixed(options: dict[str, object], context: Context) -> BaseSampler:
    from optuna.samplers import PartialFixedSampler

    base, fixed = options.pop("base", "tpe"), options.pop("fixed", None)
    form = "{'name': 'partial_fixed', 'fixed': {'width': 64}, 'base': 'tpe'}"
    if options or not isinstance(fixed, Mapping) or not fixed or not isinstance(base, str | dict):
        found = {"fixed": fixed, "base": base, **options}
        raise StudyError(f"the sampler 'partial_fixed' must be {form}, where 'base' is a named sampler: got {found}")
    name, _ = split("sampler", base, SAMPLERS)
    if name in _OWN_POINTS:
        raise StudyError(
            f"the base of 'partial_fixed' cannot be {name!r}: use another base, or fix the hyperparameters with "
            "`fixed` instead of 'partial_fixed'"
        )
    domains = _domains(context)
    for parameter, value in fixed.items():
        if context.distributions is not None and parameter not in domains:
            known = f"the space has {', '.join(domains)}{nearest(str(parameter), domains)}"
            raise StudyError(f"the sampler 'partial_fixed' has no hyperparameter {parameter!r} to fix: {known}")
        several = domains.get(str(parameter), ())
        if several and not any(private.contains(one, value) for one in several):
            raise StudyError(f"'partial_fixed' must fix {parameter} in its domain, {several[0]}: got {value!r}")
    given = {"fixed_params": dict(fixed), "base_sampler": make_sampler(base, context)}
    return call("sampler", "partial_fixed", PartialFixedSampler, {}, given)


def _auto(options: dict[str, object], context: Context) -> BaseSampler:
    from tuner.search.auto import AutoSampler, choose_plan

    plan = context.agreed.plan or choose_plan(context)

    def make(name: str, complete: Sequence[FrozenTrial]) -> BaseSampler:
        sources = complete or context.agreed.earlier
        return _make_cmaes({}, context, sources) if name == "cmaes" else SAMPLERS[name]({}, context)

    given = {"plan": plan, "make": make, "objectives": context.objectives}
    sampler = call("sampler", "auto", AutoSampler, options, given)
    make(plan.first, ())  # so that a missing package is found before a trial
    return sampler


def _hub(options: dict[str, object], context: Context) -> BaseSampler:
    from tuner.search.hub import load_class, split_source

    split_source(options)
    name = options.pop("class", None)
    if context.agreed.module is None:  # a study that is only defined, not run
        return _random({}, context)
    kind = load_class(context.agreed.module, None if name is None else str(name))
    given: dict[str, object] = {"seed": context.trial_seed} if "seed" in inspect.signature(kind).parameters else {}
    return call("sampler", "hub", kind, options, given)


SAMPLERS: dict[str, Callable[[dict[str, Any], Context], BaseSampler]] = {
    "auto": _auto,
    "brute_force": _brute_force,
    "cmaes": _cmaes,
    "gp": _gp,
    "grid": _grid,
    "hub": _hub,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "partial_fixed": _partial_fixed,
    "qmc": _qmc,
    "random": _random,
    "tpe": _tpe,
}
"""Name -> a function that takes the options and the trial's context."""

_OWN_POINTS = ("brute_force", "grid", "partial_fixed")  # they list the points of a space, or do the same


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


def _domains(context: Context) -> dict[str, Sequence[BaseDistribution]]:
    """Return the domains of all parameters; a conditional one may have several. Empty for a define-by-run space."""
    unconditional = {name: (one,) for name, one in (context.distributions or {}).items()}
    return {**unconditional, **context.conditional}


def learns_as(given: object) -> tuple[str | None, Mapping[str, Any]]:
    """Return name and options of the named sampler that learns from trials; None for an Optuna object.

    Args:
        given: What the study has as its sampler. The base of `partial_fixed` counts.
    """
    if isinstance(given, str):
        return given, {}
    if not isinstance(given, Mapping):
        return None, {}
    name = given.get("name")
    if name == "partial_fixed":
        return learns_as(given.get("base", "tpe"))
    return (name if isinstance(name, str) else None), given


def sees_window(given: object, plan: Plan | None) -> bool:
    """Return whether a sampler sees a window of a large study.

    It does if it compares the best trials with the rest.

    Args:
        given: What the study has as its sampler.
        plan: What `auto` has chosen.
    """
    name, _ = learns_as(given)
    if name == "auto" and plan is not None:
        name = plan.later
    return name in ("tpe", "gp")
