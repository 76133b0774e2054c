"""Measures how a worker spends its time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from typing import Literal

_TELL_EVERY_S = 5.0

Doing = Literal["training", "waiting"]


class TimeUse:
    """Adds up the seconds of a worker's own thread, each under one name: none counts twice.

    Args:
        measured: What is timed where it happens, name -> seconds so far. It is taken off what the worker is doing
            meanwhile: a second of compiling within a trial is no second of training.
        clock: Tells the time in seconds.
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
        """Count the body as what it is; outside of any, time has no name: starting, saving the best."""
        self._settle()
        self._doing = what
        try:
            yield
        finally:
            self._settle()
            self._doing = None

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call, by name."""
        self._settle()
        taken, self._seconds, self._taken_s = self._seconds, {}, self._since_s
        return taken

    def is_due(self) -> bool:
        """Return whether nobody has taken the seconds for a while."""
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
