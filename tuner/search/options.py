"""Reads a study's sampler or pruner: `"tpe"`, `{"name": "tpe", "n_startup_trials": 20}`, or an object."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tuner.errors import StudyError, nearest

Named = str | Mapping[str, Any]


def split(kind: str, given: Named, known: Collection[str]) -> tuple[str, dict[str, Any]]:
    """Return name and options of a named sampler or pruner.

    Raises:
        StudyError: the name is unknown; the message lists the known names.
    """
    options = {"name": given} if isinstance(given, str) else dict(given)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in known:
        hint = nearest(name, known) if isinstance(name, str) else "; pass a name, or {'name': ..., option: value}"
        raise StudyError(f"the {kind} must be one of {', '.join(sorted(known))}: got {name!r}{hint}")
    return name, options


def call(
    kind: str,
    name: str,
    make: Callable[..., object],
    options: Mapping[str, object],
    given: Mapping[str, object] | None = None,
    **defaults: object,
) -> Any:
    """Call `make` with the given arguments, and with the options instead of the defaults.

    Args:
        kind: `sampler` or `pruner`, for messages.
        name: Its name, for messages.
        make: The constructor.
        options: The options from the study.
        given: Arguments that the study cannot set, such as the trial's seed.
        defaults: Defaults of arguments that it can set.

    Raises:
        StudyError: `make` does not have an option, or rejects its value.
    """
    from optuna.exceptions import ExperimentalWarning

    given = given or {}
    known = [parameter for parameter in _arguments_of(make) if parameter not in ("self", *given)]
    for option in options:
        if option not in known:
            raise StudyError(
                f"{kind} {name!r} has no option {option!r}: it has {', '.join(known) or 'none'}{nearest(option, known)}"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # the user chose it by name
            warnings.filterwarnings("ignore", "`constraints_func` has been deprecated", FutureWarning)
            return make(**{**defaults, **options, **given})
    except (TypeError, ValueError) as error:
        raise StudyError(f"{kind} {name!r} does not accept its options {dict(options)}: {error}") from None


@functools.lru_cache(maxsize=64)
def _arguments_of(make: Callable[..., object]) -> tuple[str, ...]:
    return tuple(inspect.signature(make).parameters)  # slow, and asked for each trial
