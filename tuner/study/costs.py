"""The costs of a model that a study can measure, as metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from tuner.errors import StudyError, nearest

PARAMETERS, FLOPS, LATENCY = "parameters", "flops", "latency_ms"
COSTS = (PARAMETERS, FLOPS, LATENCY)


def check_measure(measure: object, study: str, *, has_trainer: bool) -> None:
    """Raise StudyError unless these are names of costs, and a study with a trainer if there are any."""
    is_list = isinstance(measure, Sequence) and not isinstance(measure, str)
    names = list(cast("Sequence[object]", measure)) if is_list else []
    wrong = [name for name in names if name not in COSTS]
    if not is_list or wrong or len(set(names)) < len(names):
        found = f"{wrong[0]!r}{nearest(str(wrong[0]), COSTS)}" if wrong else repr(measure)
        raise StudyError(f"measure must be a list of {', '.join(COSTS)}: got {found} (study {study!r})")
    if names and not has_trainer:
        raise StudyError(
            f"measure needs a study with `trainer`: got measure={names!r} (study {study!r}); report these numbers from "
            "your training"
        )


def taken_names(measure: Sequence[str]) -> dict[str, str]:
    """Return the metrics that a trainer must not report if tuner measures them, each with the message for it."""
    return {
        name: f"the trainer reports {name!r} itself, and the study has measure={list(measure)!r}: remove one of them"
        for name in measure
    }
