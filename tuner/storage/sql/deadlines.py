"""Client-side deadlines for a server that does not answer: the socket is closed without contacting the server.

libpq waits for an answer without end, and to cancel a statement is one more message to the same server. So a thread
watches all statements of a process, and shuts the socket of one whose server has sent nothing for too long; the
statement then fails as on any broken connection. Only our own connections are watched.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, cast

import psycopg2
import psycopg2.extensions

_TICK_S = 0.25
_LAST_S = 2.0
"""Seconds that a statement may still take when its caller no longer waits."""
_TCP_INFO_LENGTH, _LAST_DATA_AT = 104, 52
"""The position in Linux's `struct tcp_info` of the milliseconds since data last arrived."""


class _Limits(threading.local):
    seconds = math.inf
    is_over: Callable[[], bool] | None = None


_limits = _Limits()


@contextlib.contextmanager
def limit(seconds: float, is_over: Callable[[], bool] | None = None) -> Generator[None]:
    """Limit how long each statement of this thread waits for a server that sends nothing, during the body.

    Args:
        seconds: The limit; the connection's own limit applies as well.
        is_over: Called from time to time; once it returns True, a statement has two seconds left.
    """
    before = _limits.seconds, _limits.is_over
    _limits.seconds, _limits.is_over = seconds, is_over
    try:
        yield
    finally:
        _limits.seconds, _limits.is_over = before


def connect_timeout(default_s: float) -> int:
    """Return the seconds that this thread's limit leaves for connecting, in the form that libpq needs."""
    return max(2, math.ceil(min(default_s, _limits.seconds)))


@dataclass(eq=False)
class _Statement:
    """A running statement.

    Attributes:
        descriptor: A duplicate of the socket's: libpq may close its own, and another file may reuse the number.
        began_s: When it was sent.
        seconds: Seconds without an answer after which it is cut off.
        is_over: See `limit`.
        end_s: When it is cut off in any case, because its caller no longer waits.
        was_cut: Whether its socket was shut.
    """

    descriptor: int
    began_s: float
    seconds: float
    is_over: Callable[[], bool] | None
    end_s: float = math.inf
    was_cut: bool = False

    def is_late(self, now_s: float) -> bool:
        if self.end_s == math.inf and self.is_over is not None and self.is_over():
            self.end_s = now_s + _LAST_S
        if now_s >= self.end_s:
            return True
        return now_s >= self.began_s + self.seconds and _silent_s(self.descriptor) >= self.seconds

    def cut(self) -> None:
        self.was_cut = True
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.descriptor)) as shared:
            shared.shutdown(socket.SHUT_RDWR)  # wakes the thread that is waiting on it


def _silent_s(descriptor: int) -> float:
    """Return the seconds since a socket last received data; infinite if the system does not provide them."""
    if sys.platform != "linux":
        return math.inf
    try:
        with socket.socket(fileno=os.dup(descriptor)) as shared:
            if shared.family not in (socket.AF_INET, socket.AF_INET6):
                return math.inf
            told = shared.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LENGTH)
    except OSError:
        return math.inf
    return struct.unpack_from("I", told, _LAST_DATA_AT)[0] / 1000


class _Watcher:
    """The thread that watches statements: it checks twice a second while statements run."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._statements: set[_Statement] = set()
        self._is_resting = True
        self._thread: threading.Thread | None = None

    def add(self, statement: _Statement) -> None:
        with self._changed:
            self._statements.add(statement)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="database-deadlines", daemon=True)
                self._thread.start()
            if self._is_resting:
                self._is_resting = False
                self._changed.notify()

    def remove(self, statement: _Statement) -> None:
        with self._changed:
            self._statements.discard(statement)
        os.close(statement.descriptor)

    def _watch(self) -> None:
        while True:
            time.sleep(_TICK_S)
            with self._changed:
                if not self._statements:
                    self._is_resting = True
                    self._changed.wait_for(lambda: not self._is_resting)
                now_s = time.monotonic()
                # Under the lock, so that the waiting thread cannot continue and close the descriptor.
                for statement in self._statements:
                    if not statement.was_cut and statement.is_late(now_s):
                        statement.cut()


_watcher = _Watcher()


def _forget() -> None:
    """Reset after a fork: the child has neither the thread nor the statements."""
    global _watcher
    _watcher = _Watcher()


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def _watched(connection: Connection) -> Generator[None]:
    if connection.closed:
        yield  # the thread raises the error
        return
    seconds = min(connection.limit_s, _limits.seconds)
    statement = _Statement(os.dup(connection.fileno()), time.monotonic(), seconds, _limits.is_over)
    watcher = _watcher
    watcher.add(statement)
    try:
        yield
    except psycopg2.Error as error:
        if not statement.was_cut:
            raise
        connection.close()
        why = (
            f"no answer within {seconds:g} s" if statement.end_s == math.inf else "no answer, and the worker must exit"
        )
        raise psycopg2.OperationalError(why) from error
    finally:
        watcher.remove(statement)


class Cursor(psycopg2.extensions.cursor):
    """A cursor whose statements have a client-side deadline."""

    def execute(self, query: Any, vars: Any = None) -> None:
        with _watched(cast(Connection, self.connection)):
            super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        with _watched(cast(Connection, self.connection)):
            super().executemany(query, vars_list)


class Connection(psycopg2.extensions.connection):
    """A connection whose statements have a client-side deadline.

    Attributes:
        limit_s: Seconds without an answer after which a statement is cut off.
    """

    limit_s = 130.0

    def commit(self) -> None:
        with _watched(self):
            super().commit()

    def rollback(self) -> None:
        with _watched(self):
            super().rollback()
