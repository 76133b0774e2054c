"""Decides which states of an ended trial are kept: its best one, and the last one, from which it can be continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.storage.artifacts import has_more_than_log
from tuner.storage.read.extensions import unneeded
from tuner.storage.read.front import is_worth_keeping
from tuner.storage.read.ranking import is_feasible
from tuner.storage.worker.fences import Lease
from tuner.worker.trainables.trainable import Saved

if TYPE_CHECKING:
    from tuner.worker.context import WorkerContext


@dataclass(frozen=True)
class Kept:
    """The states of an ended trial that are kept: the folder of the best one, and whether the last one is there."""

    best: Path | None = None
    has_last: bool = False


def keep_states(
    context: WorkerContext,
    lease: Lease,
    saved: Saved,
    last: Path,
    values: Sequence[float],
    violations: Mapping[str, float],
) -> Kept:
    """Write the states of a complete trial if it is among the best of the study, or on its front.

    Args:
        context: The context of the worker's trials.
        lease: The trial's lease.
        saved: The trial's checkpoints.
        last: The folder for its last state.
        values: Its values.
        violations: Optuna's numbers for the study's constraints.
    """
    if not context.study.keep_best:
        return Kept()
    if not is_feasible({**context.storage.get_trial(lease.trial_id).constraints, **violations}):
        return Kept()
    ranking = _ranking(context)
    if not is_worth_keeping(context.engine, context.study_id, values, **ranking):
        return Kept()
    may_keep: dict[str, Any] = {**ranking, "keep": context.study.keep_last}
    has_last = is_worth_keeping(context.engine, context.study_id, values, **may_keep) and saved.write_last(last)
    best = saved.write_best()
    return Kept(best, has_last and best is not None)


def remove_unneeded(context: WorkerContext, saved: Saved) -> None:
    """Remove the states of trials that are not among the best any more, if this trial may have replaced one."""
    if has_more_than_log(saved.folder):  # the best checkpoint, or only pictures
        context.files.collect(partial(unneeded, context.engine, context.study_id, **_ranking(context)))


def _ranking(context: WorkerContext) -> dict[str, Any]:
    maximize = [direction == "maximize" for direction in context.study.all_directions]
    return {"keep": context.study.keep_best, "maximize": maximize}
