"""Stores what a sampler has suggested; in a cohort, for all trials that begin at the same time together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuner.worker.attempts.shared_calls import SharedCall, make_shared, try_together

if TYPE_CHECKING:
    from tuner.storage.optuna.storage import Storage
    from tuner.worker.context import WorkerContext


class SuggestedCall(SharedCall):
    """A call that stores the suggestions for a trial.

    Args:
        storage: Has the suggestions.
        trial_id: The trial.
    """

    def __init__(self, storage: Storage, trial_id: int) -> None:
        super().__init__()
        self.storage, self.trial_id = storage, trial_id

    def make(self) -> None:
        """Store the suggestions, unless they are stored."""
        self.storage.flush(self.trial_id)


def store_suggestions_together(calls: Sequence[SuggestedCall]) -> None:
    """Store the suggestions for several trials; see `try_together`."""
    try_together(calls, lambda: calls[0].storage.flush_together([call.trial_id for call in calls]))


def store_suggested(context: WorkerContext, trial_id: int) -> None:
    """Store the suggestions for a trial, in a cohort with those for the other trials.

    Raises:
        LeaseLost: another worker has the trial.
        StorageLost: the database cannot be reached.
    """
    make_shared(context, SuggestedCall(context.storage, trial_id))
