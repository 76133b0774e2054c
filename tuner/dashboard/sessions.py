"""Sessions and failed login attempts. Both are kept in memory, so a restart logs everyone out."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from tuner.dashboard.users import User

IDLE_S = 2 * 3600.0
"""Seconds without a request after which a session ends; an open page sends a request every few seconds."""
LONGEST_S = 12 * 3600.0
"""Seconds after its login at which a session ends."""


@dataclass
class _Session:
    user: User
    began_s: float
    used_s: float


class Sessions:
    """Sessions by their random ids.

    Args:
        clock: Returns monotonic seconds.

    Concurrency: safe from many threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}

    def begin(self, user: User) -> str:
        """Return the id of a new session."""
        now_s, key = self._clock(), secrets.token_urlsafe(32)
        with self._lock:
            self._sessions = {old: one for old, one in self._sessions.items() if not _has_ended(one, now_s)}
            self._sessions[key] = _Session(user, now_s, now_s)
        return key

    def find(self, key: str, now_user: Callable[[str], User | None]) -> User | None:
        """Return the user of a session; None if it has ended.

        Args:
            key: The session's id.
            now_user: Name -> the current user. A session ends when its user's password changes.
        """
        now_s = self._clock()
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                return None
            user = now_user(session.user.name)
            if _has_ended(session, now_s) or user is None or user.secret != session.user.secret:
                del self._sessions[key]
                return None
            session.used_s = now_s
            return user

    def end(self, key: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(key, None)


def _has_ended(session: _Session, now_s: float) -> bool:
    return now_s - session.used_s >= IDLE_S or now_s - session.began_s >= LONGEST_S


class Attempts:
    """Limits failures to `limit` in `window_s` seconds, for each key.

    An attempt counts from its start, so that parallel attempts are limited like consecutive ones. A successful attempt
    does not count.

    Args:
        limit: The number of attempts that may fail.
        window_s: Seconds for which a failed attempt counts.
        clock: Returns monotonic seconds.

    Concurrency: safe from many threads.
    """

    MOST_KEYS = 10_000

    def __init__(self, limit: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        self._times: dict[Hashable, deque[float]] = {}

    def begin(self, *keys: Hashable) -> float:
        """Count an attempt for each key and return 0; if none is allowed, only return the seconds to wait."""
        now_s = self._clock()
        with self._lock:
            several = [self._recent(key, now_s) for key in keys]
            wait_s = max(
                (times[0] + self.window_s - now_s for times in several if len(times) >= self.limit), default=0.0
            )
            if wait_s <= 0.0:
                self._make_room(now_s)
                for key, times in zip(keys, several, strict=True):
                    times.append(now_s)
                    self._times[key] = times
            return max(wait_s, 0.0)

    def succeed(self, *keys: Hashable) -> None:
        """Remove the last attempt of each key, because it succeeded."""
        with self._lock:
            for key in keys:
                times = self._times.get(key)
                if times:
                    times.pop()

    def _recent(self, key: Hashable, now_s: float) -> deque[float]:
        times = self._times.get(key) or deque()
        while times and now_s - times[0] >= self.window_s:
            times.popleft()
        return times

    def _make_room(self, now_s: float) -> None:
        """Forget old attempts; with thousands of invented names, the oldest are removed first."""
        if len(self._times) < self.MOST_KEYS:
            return
        self._times = {key: times for key, times in self._times.items() if self._recent(key, now_s)}
        while len(self._times) >= self.MOST_KEYS:
            del self._times[next(iter(self._times))]
