"""Looks at the parameters of an author's function, to find out whether it takes the hyperparameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tuner.errors import StudyError
from tuner.study.objective import takes

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def takes_hparams(function: Callable[..., Any], what: str, first: str) -> bool:
    """Return whether a function takes the hyperparameters as its second argument.

    It does if it has a second parameter without a default, or one called `hparams`. Other parameters with defaults keep
    them.

    Args:
        function: `data` of a study, or `inputs` of a trainer, bound to it.
        what: What the function is, for the message.
        first: The name of the first argument, for the message.

    Raises:
        StudyError: the function takes no argument, or needs other ones.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return False
    given = list(signature.parameters.values())
    by_position = [each for each in given if each.kind in _BY_POSITION]
    needed = [each for each in by_position if each.default is each.empty]
    is_variable = any(each.kind is each.VAR_POSITIONAL for each in given)
    is_more = any(each.kind is each.KEYWORD_ONLY and each.default is each.empty for each in given)
    if len(needed) > 2 or is_more or not (by_position or is_variable):
        names = [each.replace(annotation=each.empty) for each in given]
        shown = signature.replace(parameters=names, return_annotation=signature.empty)
        raise StudyError(f"{what} must take ({first}) or ({first}, hparams): got {shown}")
    return len(needed) == 2 or any(each.name == "hparams" for each in by_position[1:2])


def check_function(function: Any) -> None:
    """Raise StudyError unless this is a training function, of `(hparams, trial)`."""
    if not callable(function) or inspect.isclass(function):
        raise StudyError(
            f"train must be a function of (hparams, trial), a Command or an OptunaObjective: got {function!r}"
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise StudyError(f"train must not be an async function: got {function!r}")
    if not takes(function, 2):
        raise StudyError(f"train must be a function of (hparams, trial): got {inspect.signature(function)}")
