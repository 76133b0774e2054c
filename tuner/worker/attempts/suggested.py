"""Stores what a sampler has suggested; in a cohort, for all trials that begin at the same time together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuner.errors import StorageLost

if TYPE_CHECKING:
    from tuner.storage.optuna.storage import Storage
    from tuner.worker.context import WorkerContext


class SuggestedCall:
    """A call that stores the suggestions for a trial, unless `store_together` has done so.

    Args:
        storage: Has the suggestions.
        trial_id: The trial.
    """

    def __init__(self, storage: Storage, trial_id: int) -> None:
        self.storage, self.trial_id = storage, trial_id
        self.error: StorageLost | None = None  # of the attempt to store them with others

    def __call__(self) -> None:
        if self.error is not None:
            raise self.error
        self.storage.flush(self.trial_id)


def store_together(calls: Sequence[SuggestedCall]) -> None:
    """Store the suggestions for several trials in one transaction; if that fails, each call then stores its own.

    They do not wait again for a database that was away for as long as the storage waits.
    """
    try:
        calls[0].storage.flush_together([call.trial_id for call in calls])
    except StorageLost as error:
        for call in calls:
            call.error = error
    except Exception:
        return  # an error of one of them, which its own call raises


def store_suggested(context: WorkerContext, trial_id: int) -> None:
    """Store the suggestions for a trial, in a cohort with those for the other trials.

    Raises:
        LeaseLost: another worker has the trial.
        StorageLost: the database cannot be reached.
    """
    call = SuggestedCall(context.storage, trial_id)
    if not context.is_cohort:
        call()
        return
    future = context.background.submit(call)
    context.background.wait(future, float("inf"))
    future.result()
