"""Stores the ends of trials; in a cohort, those of all trials that end at the same time in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuner.storage.worker import leases
from tuner.storage.worker.fences import lost_lease
from tuner.storage.worker.leases import Ending
from tuner.worker.attempts.shared_calls import SharedCall, make_shared, try_together

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tuner.worker.context import WorkerContext


class EndCall(SharedCall):
    """A call that stores the end of a trial.

    Args:
        engine: The storage's engine, which waits for the database.
        ending: The end.
    """

    def __init__(self, engine: Engine, ending: Ending) -> None:
        super().__init__()
        self.engine, self.ending = engine, ending
        self.was_held: bool | None = None  # None before it is stored
        self.may_be_stored = False

    def make(self) -> None:
        """Store the end, unless it is stored."""
        if self.was_held is None:
            leases.end(self.engine, self.ending, may_be_stored=self.may_be_stored)
        elif not self.was_held:
            raise lost_lease(self.ending.lease)


def end_together(calls: Sequence[EndCall]) -> None:
    """Store several ends; see `try_together`."""
    for call in calls:
        call.may_be_stored = True

    def store() -> None:
        held = leases.end_together(calls[0].engine, [call.ending for call in calls])
        for call, was_held in zip(calls, held, strict=True):
            call.was_held = was_held

    try_together(calls, store)


def store_end(context: WorkerContext, ending: Ending) -> None:
    """Store the end of a trial, in a cohort with those of the other trials.

    Raises:
        LeaseLost: another worker has the trial.
        StorageLost: the database cannot be reached.
    """
    make_shared(context, EndCall(context.engine, ending))
