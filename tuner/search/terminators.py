"""Optuna's terminators by name: they end a study when it has little left to gain."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tuner.errors import StudyError, how_to_install, is_number
from tuner.search.options import Named, call, split

if TYPE_CHECKING:
    from optuna.terminator import BaseImprovementEvaluator, BaseTerminator

_FEWEST = 20


def _regret_bound(options: dict[str, Any], seed: int) -> BaseTerminator:
    from optuna.terminator import CrossValidationErrorEvaluator, RegretBoundEvaluator, StaticErrorEvaluator, Terminator

    _check_torch("regret_bound")
    error = options.pop("error", None)
    if error is not None and not (is_number(error) and math.isfinite(error) and error > 0):
        raise StudyError(f"the option error of terminator 'regret_bound' must be a number above 0: got {error!r}")
    fewest = options.get("min_n_trials", _FEWEST)
    room: Any = call("terminator", "regret_bound", RegretBoundEvaluator, options, {"seed": seed})
    noise = CrossValidationErrorEvaluator() if error is None else StaticErrorEvaluator(error)
    return Terminator(room, noise, min_n_trials=fewest)


def _emmr(options: dict[str, Any], seed: int) -> BaseTerminator:
    from optuna.terminator import EMMREvaluator, MedianErrorEvaluator, Terminator

    _check_torch("emmr")
    of_error = set(inspect.signature(MedianErrorEvaluator).parameters) - {"paired_improvement_evaluator"}
    given = {name: options.pop(name) for name in of_error & set(options)}
    room: BaseImprovementEvaluator = call("terminator", "emmr", EMMREvaluator, options, {"seed": seed})
    error: Any = call("terminator", "emmr", MedianErrorEvaluator, given, {"paired_improvement_evaluator": room})
    return Terminator(room, error, min_n_trials=given.get("warm_up_trials", 10) + given.get("n_initial_trials", 20))


def _stagnation(options: dict[str, Any], seed: int) -> BaseTerminator:
    from optuna.terminator import BestValueStagnationEvaluator, Terminator

    room: Any = call("terminator", "best_value_stagnation", BestValueStagnationEvaluator, options)
    return Terminator(room, min_n_trials=options.get("max_stagnation_trials", 30) + 2)


TERMINATORS: dict[str, Callable[[dict[str, Any], int], BaseTerminator]] = {
    "best_value_stagnation": _stagnation,
    "emmr": _emmr,
    "regret_bound": _regret_bound,
}
"""Name -> a function that takes the options and the study's seed."""


def make_terminator(given: Named | BaseTerminator, seed: int) -> BaseTerminator:
    """Return the terminator for a name or options; an Optuna object is returned unchanged.

    Args:
        given: A name, a mapping with `name` and the terminator's own options, or an Optuna terminator.
        seed: The study's seed.

    Raises:
        StudyError: the name or an option is unknown, or a package is missing.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.terminator import BaseTerminator

    if isinstance(given, BaseTerminator):
        return given
    if not isinstance(given, str | dict):
        raise StudyError(f"the terminator must be a name, a mapping or an Optuna terminator: got {given!r}")
    name, options = split("terminator", given, TERMINATORS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # Optuna 6 will have it in another package
        try:
            return TERMINATORS[name](options, seed)
        except (TypeError, ValueError) as error:
            raise StudyError(f"terminator {name!r} does not accept its options: {error}") from None


def name_of(given: Named | BaseTerminator) -> str:
    """Return the name of a terminator, or the class of an Optuna object."""
    if isinstance(given, str):
        return given
    return str(given["name"]) if isinstance(given, Mapping) else type(given).__name__


def _check_torch(name: str) -> None:
    try:
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise StudyError(
            f"the terminator {name!r} needs PyTorch, which is not installed: {how_to_install('gp')}; "
            "best_value_stagnation does not need it"
        ) from None
