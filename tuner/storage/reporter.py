"""The reports of one trial: stored as they come, or kept while the database is away, so that training goes on."""

from __future__ import annotations

import random
import sys
import time

from sqlalchemy import Engine

from tuner.errors import StorageLost
from tuner.storage.engine import IMPATIENT, patient
from tuner.storage.leases import Lease, report
from tuner.trial import Report

_LONGEST_PAUSE_S = 15.0


class Reporter:
    """Stores the reports of one trial.

    Args:
        engine: The storage's engine.
        lease: The trial's.
        objective: The metric that Optuna is told as well; None if there are several objectives.
    """

    def __init__(self, engine: Engine, lease: Lease, objective: str | None) -> None:
        self._engine, self._lease, self._objective = patient(engine, IMPATIENT), lease, objective
        self._kept: list[Report] = []
        self._pause_s, self._next_try_s = 0.0, 0.0

    def store(self, one: Report) -> bool:
        """Store a report and those kept before it, without waiting; return whether that worked.

        Raises:
            LeaseLost: another worker has the trial.
        """
        self._kept.append(one)
        if time.monotonic() < self._next_try_s:
            return False
        try:
            report(self._engine, self._lease, self._kept, self._objective)
        except StorageLost as error:
            if not self._pause_s:
                print(f"tuner: {error}; trial {self._lease.number} goes on meanwhile", file=sys.stderr)
            self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s or 0.5)
            self._next_try_s = time.monotonic() + self._pause_s * random.uniform(0.5, 1.0)
            return False
        self._kept, self._pause_s = [], 0.0
        return True

    def flush(self, engine: Engine) -> None:
        """Store what was kept, waiting for the database as long as this engine does.

        Raises:
            LeaseLost: another worker has the trial.
            StorageLost: the database stays away.
        """
        if self._kept:
            report(engine, self._lease, self._kept, self._objective)
            self._kept = []
