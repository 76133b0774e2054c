"""Calls to the database that a trial waits for, and that the trials of a cohort make together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tuner.errors import StorageLost

if TYPE_CHECKING:
    from tuner.worker.context import WorkerContext


class SharedCall(ABC):
    """A call of one trial, for which there is nothing left to do if `try_together` has made it."""

    def __init__(self) -> None:
        self.error: StorageLost | None = None  # of the attempt to make it with others

    def __call__(self) -> None:
        if self.error is not None:
            raise self.error
        self.make()

    @abstractmethod
    def make(self) -> None:
        """Make the call, or what is left of it."""


def try_together(calls: Sequence[SharedCall], make: Callable[[], None]) -> None:
    """Make several calls in one transaction; if that fails, each of them is then made by itself.

    They do not wait again for a database that was away for as long as their engine waits.
    """
    try:
        make()
    except StorageLost as error:
        for call in calls:
            call.error = error
    except Exception:
        return  # an error of one of them, which its own call raises


def make_shared(context: WorkerContext, call: SharedCall) -> None:
    """Make a call, in a cohort with those of the other trials; raises what the call raises."""
    if not context.is_cohort:
        call()
        return
    future = context.background.submit(call)
    context.background.wait(future, float("inf"))
    future.result()
