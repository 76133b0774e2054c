"""Measures how a worker spends its time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from typing import Literal

_TELL_EVERY_S = 5.0

Doing = Literal["training", "waiting"]


class TimeUse:
    """Adds up the seconds of a worker's main thread by activity; no second counts twice.

    Args:
        measured: Activities that are timed elsewhere, name -> function that returns the seconds so far. They are
            subtracted from the current activity: a second of compiling in a trial does not count as training.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, measured: Mapping[str, Callable[[], float]], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._measured, self._clock = measured, clock
        self._doing: Doing | None = None
        self._seconds: dict[str, float] = {}
        self._since_s = self._taken_s = clock()
        self._before = {name: seconds() for name, seconds in measured.items()}

    @contextlib.contextmanager
    def doing(self, what: Doing) -> Generator[None]:
        """Count the body as an activity. Time outside of any activity, such as starting, is not counted."""
        self._settle()
        self._doing = what
        try:
            yield
        finally:
            self._settle()
            self._doing = None

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call, by activity."""
        self._settle()
        taken, self._seconds, self._taken_s = self._seconds, {}, self._since_s
        return taken

    def is_due(self) -> bool:
        """Return whether the seconds have not been read for a while."""
        return self._clock() - self._taken_s >= _TELL_EVERY_S

    def _settle(self) -> None:
        now_s = self._clock()
        left_s, self._since_s = now_s - self._since_s, now_s
        for name, seconds in self._measured.items():
            so_far_s = seconds()
            self._add(name, so_far_s - self._before[name])
            left_s -= so_far_s - self._before[name]
            self._before[name] = so_far_s
        if self._doing is not None:
            self._add(self._doing, max(0.0, left_s))  # clocks differ by microseconds

    def _add(self, name: str, seconds: float) -> None:
        if seconds > 0:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
