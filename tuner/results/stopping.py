"""Why a study ends before its budget is used up: at its target, or without progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.output.numbers import as_text
from tuner.storage.read.ranking import Result
from tuner.storage.worker.studies import find_end

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tuner.study import StudySpec


@dataclass(frozen=True)
class End:
    """Why a study has ended before its budget was used up; recorded with it.

    Attributes:
        rule: The setting that ended it: `target`, `patience` or `terminator`.
        why: The reason, as text.
        trial: The trial that ended it; None if it was no single one.
    """

    rule: str
    why: str
    trial: int | None

    def describe(self, study: str) -> str:
        """Return in one line why a study has ended, and how to continue it."""
        return (
            f"study {study!r} has ended: {self.why}; to continue, change or remove its {self.rule} and launch it again"
        )


def recorded_end(engine: Engine, study_id: int) -> End | None:
    """Return why a study has ended; None if no rule has ended it."""
    found = find_end(engine, study_id)
    return None if found is None else End(**found)


def at_target(results: Sequence[Result], study: StudySpec) -> End | None:
    """Return why the study ends if a feasible complete trial has reached all targets."""
    if not study.targets:
        return None
    maximize = dict(zip(study.objectives, (one == "maximize" for one in study.all_directions), strict=True))
    for result in results:
        if result.values is None or not result.is_feasible:
            continue
        values = dict(zip(study.objectives, result.values, strict=True))
        if all(
            values[name] >= target if maximize[name] else values[name] <= target
            for name, target in study.targets.items()
        ):
            reached = ", ".join(f"{name} {as_text(values[name])}" for name in study.targets)
            asked = ", ".join(as_text(target) for target in study.targets.values())
            return End("target", f"trial {result.number} reached the target {asked} with {reached}", result.number)
    return None


def without_progress(results: Sequence[Result], study: StudySpec, measured: float | None) -> End | None:
    """Return why the study ends if its latest trials did not improve on the best one by more than the noise.

    Args:
        results: The ended trials in the order in which they ended.
        study: The study, which has a patience.
        measured: The noise that `tuner confirm` has measured; None if it has not.
    """
    assert study.patience is not None
    noise = study.noise if study.noise is not None else measured or 0.0
    sign = 1.0 if study.all_directions[0] == "maximize" else -1.0
    best: Result | None = None
    since = 0
    for result in results:
        if _is_better(result, best, sign, noise):
            best, since = result, 0
        elif best is not None:
            since += 1
    if best is None or best.values is None or since < study.patience:
        return None
    better = f"better than {study.objectives[0]} {as_text(best.values[0])} of trial {best.number}"
    if study.noise is None and measured is None:
        better += "; any difference counts, because neither `noise` nor `tuner confirm` says how large the noise is"
    else:
        source = "as set" if study.noise is not None else "measured by `tuner confirm`"
        better += f" by more than the noise ({as_text(noise)}, {source})"
    return End("patience", f"the latest {since} trials were not {better}", None)


def _is_better(result: Result, best: Result | None, sign: float, noise: float) -> bool:
    if result.values is None or not result.is_feasible:
        return False
    return best is None or best.values is None or sign * (result.values[0] - best.values[0]) > noise
