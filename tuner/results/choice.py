"""Finds the Pareto front of a study with several objectives, and chooses a trial of it by a stated rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tuner.errors import UsageError, nearest
from tuner.storage.read.front import front_of
from tuner.storage.read.queries import StudyRow, TrialRow
from tuner.trial import Outcome

KNEE = "knee"
"""The rule that balances all objectives; see `preferred`."""
_ROUNDING = 1e-9


def pareto_front(trials: Sequence[TrialRow], maximize: Sequence[bool]) -> list[TrialRow]:
    """Return the complete trials that no other one beats in one objective and equals or beats in all, by number.

    Trials that violate a constraint are not in the front and do not beat others.
    """
    values = {
        trial.trial_id: trial.values
        for trial in trials
        if trial.outcome is Outcome.COMPLETE and trial.values is not None and trial.is_feasible is not False
    }
    front = front_of(values, maximize)
    return [trial for trial in trials if trial.trial_id in front]


def no_rule(study: StudyRow) -> UsageError:
    """Return the error for a `prefer` that a study with one objective does not need."""
    return UsageError(f"`prefer` needs several objectives: study {study.name!r} has one")


def preferred(study: StudyRow, front: Sequence[TrialRow], prefer: str | None) -> list[TrialRow]:
    """Return the trials of a Pareto front, the preferred one first.

    By the name of an objective, the trials are ordered by it; of those that are equal in it, the one with the smaller
    sum of scaled objectives is first. `knee` orders by that sum alone: each objective is scaled to 0 for the best and 1
    for the worst of the front. With two objectives, the first is then the trial farthest from the line between both
    ends of the front (Das, 1999, "On characterizing the knee of the Pareto curve").

    Args:
        study: The study.
        front: Its Pareto front, not empty.
        prefer: The name of an objective, or `knee`; None is possible if all trials have the same objectives.

    Raises:
        UsageError: `prefer` is None, or not one of these; or the front has no knee.
    """
    known = [*study.objectives, KNEE]
    if prefer is not None and prefer not in known:
        raise UsageError(f"`prefer` must be one of {', '.join(known)}: got {prefer!r}{nearest(prefer, known)}")
    different = {tuple(trial.values or ()) for trial in front}
    if prefer is None and len(different) > 1:
        raise UsageError(
            f"study {study.name!r} has {len(study.objectives)} objectives, and {len(front)} trials on its Pareto "
            f"front: choose one of the trials of `tuner best` as `trial`, or pass one of {', '.join(known)} as `prefer`"
        )
    sums = _scaled_sums(front, study.maximize)
    if prefer is None or prefer not in study.objectives:
        ordered = sorted(front, key=lambda trial: (sums[trial.number], trial.number))
        _check_knee(study, ordered, sums)
        return ordered
    at = study.objectives.index(prefer)
    sign = -1.0 if study.maximize[at] else 1.0
    return sorted(front, key=lambda trial: (sign * _values(trial)[at], sums[trial.number], trial.number))


def _scaled_sums(front: Sequence[TrialRow], maximize: Sequence[bool]) -> Mapping[int, float]:
    """Return the sum of each trial's objectives, each scaled to 0 for the best and 1 for the worst of the front.

    It is infinite for a trial with an objective that is not finite.
    """
    sums = {trial.number: 0.0 for trial in front}
    for at, larger in enumerate(maximize):
        costs = {trial.number: -_values(trial)[at] if larger else _values(trial)[at] for trial in front}
        finite = [cost for cost in costs.values() if math.isfinite(cost)] or [0.0]
        low = min(finite) / 2  # halved, so that the difference does not overflow
        width = max(finite) / 2 - low or 1.0
        for number, cost in costs.items():
            sums[number] += (cost / 2 - low) / width if math.isfinite(cost) else math.inf
    return sums


def _check_knee(study: StudyRow, ordered: Sequence[TrialRow], sums: Mapping[int, float]) -> None:
    """Raise UsageError if a trial with other objectives is as good as the first."""
    first = ordered[0]
    equal = [trial for trial in ordered if sums[trial.number] <= sums[first.number] + _ROUNDING * len(study.directions)]
    if any(trial.values != first.values for trial in equal):
        numbers = ", ".join(str(number) for number in sorted(trial.number for trial in equal)[:5])
        raise UsageError(
            f"the Pareto front of study {study.name!r} has no knee: trials {numbers} balance the objectives equally "
            f"well; choose one as `trial`, or pass one of {', '.join(study.objectives)} as `prefer`"
        )


def _values(trial: TrialRow) -> list[float]:
    return trial.values or []
