"""Writes of a running trial for which its training does not wait: suggested hyperparameters and its log."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tuner.errors import StorageLost
from tuner.storage.sql.retry import PROMPT, hurried
from tuner.storage.worker import leases
from tuner.storage.worker.fences import Lease
from tuner.worker.attempts.reports import GATHER_S

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tuner.worker.context import WorkerContext


class LaterWrites:
    """Stores what a trial suggests and prints, on the thread that stores reports.

    Args:
        context: The context of the worker's trials.
        lease: The trial's lease.

    Attributes:
        log: The last lines of the trial's log, if they are not stored yet.
    """

    def __init__(self, context: WorkerContext, lease: Lease) -> None:
        self._context, self._lease = context, lease
        self._is_flush_queued = False
        self.log: Sequence[str] | None = None

    def flush_later(self) -> None:
        """Store suggested hyperparameters soon."""
        if self._is_flush_queued:
            return
        self._is_flush_queued = True
        background, gatherer = self._context.background, self._context.gatherer
        if gatherer is None:
            background.submit(self.flush_queued)
        else:
            gatherer.submit_later(self.flush_queued, GATHER_S)

    def flush_queued(self) -> None:
        """Store suggested hyperparameters now, if that was asked for; does not wait for a database that is down."""
        if not self._is_flush_queued:
            return
        self._is_flush_queued = False
        try:
            with hurried(PROMPT):
                self._context.storage.flush(self._lease.trial_id)
        except StorageLost:
            self._is_flush_queued = True  # they are stored with a later report, or at the end

    def write_log(self, lines: Sequence[str]) -> None:
        """Store the last lines of the trial's log soon, else with its end."""
        self.log = list(lines)
        self._context.background.submit(partial(self.store_log, self._context.prompt_engine))

    def keep_log(self, lines: Sequence[str]) -> None:
        """Store the last lines of the trial's log with its end."""
        self.log = lines

    def store_log(self, engine: Engine) -> None:
        """Store the last lines of the trial's log now, if they are not stored yet."""
        lines = self.log
        if lines is None:
            return
        leases.store_log(engine, self._lease, lines)
        if self.log is lines:
            self.log = None
