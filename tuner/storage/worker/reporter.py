"""Stores the reports of one trial, or keeps them while the database is down, so that training continues."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sqlalchemy import Engine

from tuner.errors import StorageLost
from tuner.storage.sql.backoff import Backoff
from tuner.storage.sql.retry import tell_away
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.leases import report
from tuner.trial import Report

_LONGEST_PAUSE_S = 15.0


class Reporter:
    """Stores the reports of one trial.

    Args:
        engine: The storage's engine with `PROMPT` patience, so that training does not wait.
        lease: The trial's lease.
        objective: The metric to report to Optuna as well; None with several objectives.
    """

    def __init__(self, engine: Engine, lease: Lease, objective: str | None) -> None:
        self._engine, self._lease, self._objective = engine, lease, objective
        self._kept: dict[int, Report] = {}
        self._pauses, self._next_try_s = Backoff(0.5, _LONGEST_PAUSE_S), 0.0

    def keep(self, several: Iterable[Report]) -> None:
        """Store reports with the next one: those of a checkpoint, whose worker may have died before storing them."""
        self._kept |= {one.epoch: one for one in several}

    def store(self, one: Report) -> bool:
        """Store a report and the kept ones, without waiting; return whether that succeeded.

        Raises:
            LeaseLost: another worker has the trial.
        """
        self.keep([one])
        if time.monotonic() < self._next_try_s:
            return False
        try:
            self._store(self._engine)
        except StorageLost as error:
            tell_away(self._engine, error, f"trial {self._lease.number} continues meanwhile")
            self._next_try_s = time.monotonic() + self._pauses.next_s()
            return False
        self._pauses.reset()
        return True

    def flush(self, engine: Engine) -> None:
        """Store the kept reports, waiting for the database as long as this engine does.

        Raises:
            LeaseLost: another worker has the trial.
            StorageLost: the database cannot be reached.
        """
        if self._kept:
            self._store(engine)

    def _store(self, engine: Engine) -> None:
        report(engine, self._lease, list(self._kept.values()), self._objective)
        self._kept = {}
