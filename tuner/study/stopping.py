"""Checks of the settings that end a study early: `target`, `patience`, `noise` and `terminator`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from tuner.errors import StudyError, is_int, is_number, nearest
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from tuner.study.spec import StudySpec


def targets_of(target: object, objectives: Sequence[str]) -> dict[str, float]:
    """Return the targets by objective; empty without any.

    Raises:
        StudyError: the target is neither a finite number nor a mapping from objectives to such numbers.
    """
    if target is None:
        return {}
    if is_number(target) and len(objectives) == 1:
        target = {objectives[0]: target}
    if not isinstance(target, Mapping) or not target:
        example = "{" + ", ".join(f"{name!r}: 0.9" for name in objectives) + "}"
        needed = "a number" if len(objectives) == 1 else f"a mapping such as {example}, because there are several"
        raise StudyError(f"target must be {needed}: got {target!r}")
    targets = cast("Mapping[Any, Any]", target)
    for name, value in targets.items():
        if name not in objectives:
            hint = nearest(str(name), objectives)
            raise StudyError(f"target must name objectives of the study, {', '.join(objectives)}: got {name!r}{hint}")
        if not is_number(value) or not math.isfinite(value):
            raise StudyError(f"the target of {name!r} must be a finite number: got {value!r}")
    return {str(name): float(value) for name, value in targets.items()}


def check_stopping(study: StudySpec) -> None:
    """Check the settings that end a study early.

    Raises:
        StudyError: one is wrong, needs one objective, or could never end the study.
    """
    name = f"study {study.name!r}"
    targets_of(study.target, study.objectives)
    for setting in ("patience", "terminator"):
        if getattr(study, setting) is not None and len(study.objectives) > 1:
            raise StudyError(f"{setting} needs a study with one objective: {name} has {', '.join(study.objectives)}")
    if study.patience is not None and (not is_int(study.patience) or study.patience < 1):
        raise StudyError(f"patience must be a number of trials, at least 1: got {study.patience!r} ({name})")
    if study.noise is not None and (not is_number(study.noise) or not 0 <= study.noise < math.inf):
        raise StudyError(f"noise must be a difference of the objective, at least 0: got {study.noise!r} ({name})")
    if study.noise is not None and study.patience is None:
        raise StudyError(f"noise has no effect without patience: got noise={study.noise!r} ({name})")
    if study.terminator is not None:
        _check_terminator(study)


def _check_terminator(study: StudySpec) -> None:
    from tuner.search.terminators import name_of

    fewest, given = private.fewest_trials(study.make_terminator()), study.terminator
    name = name_of(given)
    if fewest > study.trials:
        raise StudyError(
            f"the terminator {name!r} never ends a study before {fewest} trials are complete: study {study.name!r} has "
            f"trials={study.trials}; set more trials, or leave it out"
        )
    has_error = isinstance(given, Mapping) and "error" in given
    if name == "regret_bound" and study.kind != "objective" and not has_error:
        raise StudyError(
            "the terminator 'regret_bound' needs the error of the objective, because only an Optuna objective can "
            "report scores of cross-validation: set terminator={'name': 'regret_bound', 'error': 0.01}"
        )
