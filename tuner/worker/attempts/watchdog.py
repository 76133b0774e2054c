"""Watches a trial from a thread of its own: how long it takes, and how long it goes without progress."""

from __future__ import annotations

import contextlib
import enum
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from tuner.output.numbers import duration
from tuner.storage.sql.wait_time import waited
from tuner.study import StudySpec

_POLL_S = 0.25
_GRACE_S = 5.0
"""Seconds after a limit within which the trial must check whether to stop: at a report or a stop check."""
_GRACE_SHARE = 0.1
"""The same for a trial that takes too long, as a share of its limit: an epoch may be long."""
_END_S = 60.0
"""Seconds within which the trial must end once it has checked: it saves its state, or ends its processes."""


class Overrun(enum.Enum):
    """Which limit a trial has passed."""

    TIME = "it takes too long"
    STALL = "it makes no progress"


@dataclass(frozen=True)
class Limits:
    """The limits of each trial in seconds; None for no limit."""

    trial_s: float | None = None
    stall_s: float | None = None

    @classmethod
    def of(cls, study: StudySpec) -> Limits:
        """Return the limits of a study's trials."""
        return cls(*(None if one is None else 60 * one for one in (study.trial_minutes, study.stall_minutes)))


class Watchdog:
    """Watches one trial. Time that the trial's thread waits for the database does not count.

    In a cohort, of whose threads one runs at a time, a trial may have several threads: see `idle` and `busy`.

    Created on the thread that trains the trial.

    Args:
        limits: The limits.
        warn: Called once when the trial makes no progress. Called on the thread of the watchdog, like `end`.
        end: Called if the trial has passed a limit and does not end; the watchdog then ends.
    """

    def __init__(self, limits: Limits, warn: Callable[[], None], end: Callable[[Overrun], None]) -> None:
        self._limits, self._warn, self._end = limits, warn, end
        self._waited = waited()
        self._idle_s, self._idle_since_s = 0.0, None
        self._busy = 1  # threads of the trial that are not idle
        self._began_s = self._clock_s()
        self._progress_s: float | None = None
        self._is_over, self._has_noticed = threading.Event(), threading.Event()
        self.earlier_s = 0.0
        """Seconds of the earlier attempts from which the training resumes."""
        self.is_stalled = False
        """Whether the trial has made no progress for too long, and must stop."""
        self.has_ended_trial = False
        """Whether `end` was called."""

    _idle_since_s: float | None

    def _clock_s(self) -> float:
        since_s = self._idle_since_s
        return (time.monotonic() if since_s is None else since_s) - self._idle_s - self._waited.seconds

    @contextlib.contextmanager
    def idle(self) -> Generator[None]:
        """Do not count the time of the body, in which other trials of a cohort train, or other threads of this one."""
        self._rest()
        try:
            yield
        finally:
            self._resume()

    @contextlib.contextmanager
    def busy(self) -> Generator[None]:
        """Count the time of the body, which runs on another thread of the trial while this one is idle."""
        self._resume()
        try:
            yield
        finally:
            self._rest()

    def _rest(self) -> None:
        self._busy -= 1
        if self._busy == 0:
            self._idle_since_s = time.monotonic()

    def _resume(self) -> None:
        if self._idle_since_s is not None:
            self._idle_s += time.monotonic() - self._idle_since_s
            self._idle_since_s = None
        self._busy += 1

    def count(self, seconds: float) -> None:
        """Count seconds of an idle time after all: a program of all trials ran for this one too."""
        self._idle_s -= seconds

    def restart(self) -> None:
        """Count the time from now on."""
        self._began_s = self._clock_s()

    @property
    def seconds(self) -> float:
        """The seconds that the trial has taken."""
        return self.earlier_s + self._clock_s() - self._began_s

    def is_over_time(self) -> bool:
        """Return whether the trial takes too long."""
        return self._limits.trial_s is not None and self.seconds > self._limits.trial_s

    def note_progress(self) -> None:
        """Note that the trial has made progress."""
        self._progress_s = self._clock_s()

    def note_noticed(self) -> None:
        """Note that the trial knows that it must stop, and is ending."""
        self._has_noticed.set()

    def describe(self, overrun: Overrun) -> str:
        """Return which limit the trial has passed, as the end of a sentence about it."""
        limits = self._limits
        if overrun is Overrun.TIME:
            return f"took longer than {duration(limits.trial_s or 0.0)}"
        return f"made no progress for {duration(limits.stall_s or 0.0)}"

    @contextlib.contextmanager
    def watching(self) -> Generator[None]:
        """Watch the trial while the body runs."""
        if self._limits == Limits():
            yield
            return
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    # --- On the thread

    def _watch(self) -> None:
        while not self._is_over.wait(_POLL_S):
            overrun = self._overrun()
            if overrun is None:
                continue
            if overrun is Overrun.STALL:
                self.is_stalled = True
                self._warn()
            if not self._ends_within(self._grace_s(overrun)):
                self.has_ended_trial = True
                self._end(overrun)
            return

    def _overrun(self) -> Overrun | None:
        if self.is_over_time():
            return Overrun.TIME
        if self._limits.stall_s is None or self._progress_s is None:
            return None
        return Overrun.STALL if self._clock_s() - self._progress_s > self._limits.stall_s else None

    def _grace_s(self, overrun: Overrun) -> float:
        if overrun is Overrun.TIME:
            return max(_GRACE_S, _GRACE_SHARE * (self._limits.trial_s or 0.0))
        return _GRACE_S

    def _ends_within(self, grace_s: float) -> bool:
        """Wait for the end of the trial, longer once it has noticed that it must stop; return whether it came."""
        end_s = self._clock_s() + grace_s
        while not self._has_noticed.is_set() and self._clock_s() < end_s:
            if self._is_over.wait(_POLL_S):
                return True
        return self._is_over.wait(_END_S if self._has_noticed.is_set() else 0.0)
