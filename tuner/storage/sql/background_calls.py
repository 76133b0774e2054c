"""Calls to the database on a separate thread, so that the caller decides how long to wait for the answer."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from tuner.storage.sql.wait_time import Waited, waited, waiting

T = TypeVar("T")
_POLL_S = 0.05


@dataclass(frozen=True, order=True)
class _Call:
    due_s: float
    order: int
    future: Future[Any] = field(compare=False)
    call: Callable[[], Any] = field(compare=False)


class Caller(Protocol):
    """Makes calls on another thread: a `Background`, or one that makes several of them together."""

    def submit(self, call: Callable[[], T]) -> Future[T]: ...
    def wait(
        self, future: Future[Any], database_s: float, seconds: float = float("inf"), is_over: Callable[[], bool] = bool
    ) -> bool: ...


class Background:
    """A thread that makes calls one after another, in order.

    It is a daemon thread: a process can exit without waiting for a database that does not answer.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._later: list[_Call] = []  # a heap; used on the thread
        self._order = itertools.count()
        self._waited = Waited()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call."""
        return self.submit_later(call, 0.0)

    def submit_later(self, call: Callable[[], T], seconds: float) -> Future[T]:
        """Queue a call to be made after so many seconds, unless its future is cancelled before."""
        future: Future[T] = Future()
        due_s = time.monotonic() + seconds if seconds > 0 else 0.0
        self._calls.put(_Call(due_s, next(self._order), future, call))
        return future

    def close(self) -> None:
        """End the thread after its queued calls, without waiting for them; later ones are not made."""
        self._calls.put(None)

    def wait(
        self, future: Future[Any], database_s: float, seconds: float = float("inf"), is_over: Callable[[], bool] = bool
    ) -> bool:
        """Wait for a call; return whether it is finished. Signal handlers run during the wait.

        Args:
            future: The call.
            database_s: Seconds that the thread may wait for the database; computing does not count.
            seconds: Seconds to wait in total.
            is_over: Called from time to time; True ends the wait.
        """
        began_s, waited_s = time.monotonic(), self._waited.seconds
        with waiting():
            while not future.done():
                left_s = min(
                    database_s - (self._waited.seconds - waited_s), seconds - (time.monotonic() - began_s), _POLL_S
                )
                if left_s <= 0 or is_over():
                    break
                with contextlib.suppress(FutureTimeout):
                    future.exception(timeout=left_s)
        return future.done()

    def _run(self) -> None:
        self._waited = waited()
        while (given := self._next()) is not None:
            if given.due_s > time.monotonic():
                heapq.heappush(self._later, given)
                continue
            if not given.future.set_running_or_notify_cancel():
                continue
            try:
                given.future.set_result(given.call())
            except BaseException as error:
                given.future.set_exception(error)

    def _next(self) -> _Call | None:
        """Return the next call, when it is due or was queued for later; None at the end."""
        while self._later:
            left_s = self._later[0].due_s - time.monotonic()
            if left_s <= 0:
                return heapq.heappop(self._later)
            with contextlib.suppress(queue.Empty):
                return self._calls.get(timeout=left_s)
        return self._calls.get()


def aside(call: Callable[[], T]) -> T:
    """Return the result of a read from the database on another thread, so that Ctrl-C ends the wait immediately."""
    background = Background("database")
    try:
        return background.submit(call).result()
    finally:
        background.close()
