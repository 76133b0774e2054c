"""Measures how long each thread waits for databases. Threads that renew leases do not delay trials."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator


class Waited:
    """The seconds that a thread has waited; any thread may read them."""

    def __init__(self) -> None:
        self._so_far: tuple[float, float | None] = (0.0, None)  # ended waits, start of the current one

    @property
    def seconds(self) -> float:
        """The seconds, including those of the current wait."""
        before_s, since_s = self._so_far
        return before_s + (0.0 if since_s is None else time.monotonic() - since_s)

    @contextlib.contextmanager
    def counted(self) -> Generator[None]:
        """Count the body; nested bodies are counted once."""
        before_s, since_s = self._so_far
        if since_s is not None:
            yield
            return
        self._so_far = before_s, time.monotonic()
        try:
            yield
        finally:
            self._so_far = self.seconds, None


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.waited = Waited()


_of_thread = _OfThread()


def waiting() -> contextlib.AbstractContextManager[None]:
    """Count the body as time that this thread waits for a database."""
    return _of_thread.waited.counted()


def waited() -> Waited:
    """Return the wait times of this thread."""
    return _of_thread.waited


def database_s() -> float:
    """Return the seconds that this thread has waited for databases, including those that are down."""
    return _of_thread.waited.seconds
