"""Stores the reports of one trial, or keeps them while the database is down, so that training continues."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from sqlalchemy import Engine

from tuner.errors import StorageLost
from tuner.storage.sql.backoff import Backoff
from tuner.storage.sql.retry import tell_away
from tuner.storage.worker.fences import Lease, lost_lease
from tuner.storage.worker.leases import parts_of, report, report_together
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
        self.engine, self.lease, self.objective = engine, lease, objective
        self.kept: dict[int, Report] = {}
        self._pauses, self._next_try_s = Backoff(0.5, _LONGEST_PAUSE_S), 0.0
        self._stored_together: set[int] = set()
        self._is_lost = False

    def keep(self, several: Iterable[Report]) -> None:
        """Store reports with the next one: those of a checkpoint, whose worker may have died before storing them."""
        self.kept |= {one.epoch: one for one in several}

    def store(self, one: Report) -> bool:
        """Store a report and the kept ones, without waiting; return whether that succeeded.

        Raises:
            LeaseLost: another worker has the trial.
        """
        if self._is_lost:
            raise lost_lease(self.lease)
        if one.epoch in self._stored_together:
            self._stored_together.discard(one.epoch)
            return True
        self.keep([one])
        return self.store_kept()

    def is_stored(self, one: Report) -> bool:
        """Return whether a report was stored together with those of other trials."""
        return one.epoch in self._stored_together and not self._is_lost

    def store_kept(self) -> bool:
        """Store the kept reports, without waiting; return whether that succeeded.

        Raises:
            LeaseLost: another worker has the trial.
        """
        if self._is_lost:
            raise lost_lease(self.lease)
        if not self.kept:
            return True
        if time.monotonic() < self._next_try_s:
            return False
        try:
            self._store(self.engine)
        except StorageLost as error:
            self.note_away(error)
            return False
        self._pauses.reset()
        return True

    def note_away(self, error: StorageLost) -> None:
        """Note that the database cannot be reached, so that the next tries are later."""
        tell_away(self.engine, error, f"trial {self.lease.number} continues meanwhile")
        self._next_try_s = time.monotonic() + self._pauses.next_s()

    def is_due(self) -> bool:
        """Return whether there are kept reports that `store_kept` would try to store now."""
        return bool(self.kept) and not self._is_lost and time.monotonic() >= self._next_try_s

    def note_stored(self, *, was_held: bool) -> None:
        """Note that the kept reports were stored together with those of other trials."""
        self._is_lost, self.kept = not was_held, {}

    def note_stored_one(self, one: Report) -> None:
        """Note that a report was among those, so that `store` has nothing to do."""
        self._stored_together.add(one.epoch)

    def flush(self, engine: Engine) -> None:
        """Store the kept reports, waiting for the database as long as this engine does.

        Raises:
            LeaseLost: another worker has the trial.
            StorageLost: the database cannot be reached.
        """
        if self.kept:
            self._store(engine)

    def take_last(self, engine: Engine) -> list[Report]:
        """Return the last of the kept reports, which the caller stores; the others are stored first, as in `flush`."""
        several = list(self.kept.values())
        parts = list(parts_of(several))
        last = list(parts[-1]) if parts else []
        self.kept = {one.epoch: one for one in several[: len(several) - len(last)]}
        self.flush(engine)
        return last

    def _store(self, engine: Engine) -> None:
        report(engine, self.lease, list(self.kept.values()), self.objective)
        self.kept = {}


def store_together(several: Sequence[tuple[Reporter, Report]]) -> None:
    """Store a report of each of several trials, and the kept ones, in one transaction.

    `Reporter.store` of such a report then only returns how that went.
    """
    for reporter, one in several:
        reporter.keep([one])
    if store_kept_together([reporter for reporter, _ in several]):
        for reporter, one in several:
            reporter.note_stored_one(one)


def store_kept_together(reporters: Sequence[Reporter]) -> bool:
    """Store the kept reports of several trials in one transaction, without waiting; return whether that succeeded.

    `Reporter.store_kept` of these then only returns how that went.
    """
    first = reporters[0]
    given = [(reporter.lease, list(reporter.kept.values())) for reporter in reporters]
    try:
        were_held = report_together(first.engine, given, first.objective)
    except StorageLost as error:
        for reporter in reporters:
            reporter.note_away(error)
        return False
    for reporter, was_held in zip(reporters, were_held, strict=True):
        reporter.note_stored(was_held=was_held)
    return True
