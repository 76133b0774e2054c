"""Checks of the settings that end a study early: `target`, `patience`, `noise` and `terminator`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from tuner.errors import StudyError, is_int, is_number, nearest
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna.terminator import BaseTerminator


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
        needed = (
            "a number"
            if len(objectives) == 1
            else f"a mapping such as {example}, because the study has several objectives"
        )
        raise StudyError(f"target must be {needed}: got {target!r}")
    targets = cast("Mapping[Any, Any]", target)
    for name, value in targets.items():
        if name not in objectives:
            hint = nearest(str(name), objectives)
            raise StudyError(f"target must name objectives of the study, {', '.join(objectives)}: got {name!r}{hint}")
        if not is_number(value) or not math.isfinite(value):
            raise StudyError(f"the target of {name!r} must be a finite number: got {value!r}")
    return {str(name): float(value) for name, value in targets.items()}


def check_stopping(
    name: str, objectives: Sequence[str], *, target: object, patience: object, noise: object, terminator: object
) -> None:
    """Check the settings that end a study early.

    Raises:
        StudyError: one is wrong, needs one objective, or has no effect.
    """
    about = f"study {name!r}"
    targets_of(target, objectives)
    for setting, given in (("patience", patience), ("terminator", terminator)):
        if given is not None and len(objectives) > 1:
            raise StudyError(f"{setting} needs a study with one objective: {about} has {', '.join(objectives)}")
    if patience is not None and (not is_int(patience) or patience < 1):
        raise StudyError(f"patience must be a number of trials, at least 1: got {patience!r} ({about})")
    if noise is not None and (not is_number(noise) or not 0 <= noise < math.inf):
        raise StudyError(f"noise must be a difference of the objective, at least 0: got {noise!r} ({about})")
    if noise is not None and patience is None:
        raise StudyError(f"noise has no effect without patience: got noise={noise!r} ({about})")


def check_terminator(
    study: str, given: object, terminator: BaseTerminator, trials: int, *, can_report_scores: bool
) -> None:
    """Check that a terminator could end a study.

    Args:
        study: The study's name.
        given: The terminator as the study has it.
        terminator: The terminator.
        trials: The study's number of trials.
        can_report_scores: Whether its trials can report scores of cross-validation to Optuna.

    Raises:
        StudyError: it needs more trials, or an error.
    """
    from tuner.search.terminators import name_of

    fewest, name = private.fewest_trials(terminator), name_of(cast("Any", given))
    if fewest > trials:
        raise StudyError(
            f"the terminator {name!r} never ends a study before {fewest} trials are complete: study {study!r} has "
            f"trials={trials}; set more trials, or leave it out"
        )
    if name == "regret_bound" and not can_report_scores and not (isinstance(given, Mapping) and "error" in given):
        raise StudyError(
            "the terminator 'regret_bound' needs the error of the objective, because only an Optuna objective can "
            "report scores of cross-validation: set terminator={'name': 'regret_bound', 'error': 0.01}"
        )
