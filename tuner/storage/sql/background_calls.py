"""Calls to the database on a separate thread, so that the caller decides how long to wait for the answer."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol, TypeVar

from tuner.storage.sql.wait_time import Waited, waited, waiting

T = TypeVar("T")
_POLL_S = 0.05


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
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._waited = Waited()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def close(self) -> None:
        """End the thread after its queued calls, without waiting for them."""
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
        while (given := self._calls.get()) is not None:
            future, call = given
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


def aside(call: Callable[[], T]) -> T:
    """Return the result of a read from the database on another thread, so that Ctrl-C ends the wait immediately."""
    background = Background("database")
    try:
        return background.submit(call).result()
    finally:
        background.close()
