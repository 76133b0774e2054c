"""Stores the ends of trials; in a cohort, those of all trials that end at the same time in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuner.errors import StorageLost
from tuner.storage.worker import leases
from tuner.storage.worker.fences import lost_lease
from tuner.storage.worker.leases import Ending

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tuner.worker.context import WorkerContext


class EndCall:
    """A call that stores the end of a trial, unless `end_together` has done so.

    Args:
        engine: The storage's engine, which waits for the database.
        ending: The end.
    """

    def __init__(self, engine: Engine, ending: Ending) -> None:
        self.engine, self.ending = engine, ending
        self.was_held: bool | None = None  # None before it is stored
        self.may_be_stored = False
        self.error: StorageLost | None = None  # of the attempt to store it with others

    def __call__(self) -> None:
        if self.error is not None:
            raise self.error
        if self.was_held is None:
            leases.end(self.engine, self.ending, may_be_stored=self.may_be_stored)
        elif not self.was_held:
            raise lost_lease(self.ending.lease)


def end_together(calls: Sequence[EndCall]) -> None:
    """Store several ends in one transaction; if that fails, each call then stores its own end.

    They do not wait again for a database that was away for as long as their engine waits.
    """
    for call in calls:
        call.may_be_stored = True
    try:
        held = leases.end_together(calls[0].engine, [call.ending for call in calls])
        for call, was_held in zip(calls, held, strict=True):
            call.was_held = was_held
    except StorageLost as error:
        for call in calls:
            call.error = error
    except Exception:
        return  # an error of one of them, which its own call raises


def store_end(context: WorkerContext, ending: Ending) -> None:
    """Store the end of a trial, in a cohort with those of the other trials.

    Raises:
        LeaseLost: another worker has the trial.
        StorageLost: the database cannot be reached.
    """
    call = EndCall(context.engine, ending)
    if not context.is_cohort:
        call()
        return
    future = context.background.submit(call)
    context.background.wait(future, float("inf"))
    future.result()
