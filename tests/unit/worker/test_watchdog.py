"""When a trial has passed a limit, and when its end is taken out of its hands."""

from __future__ import annotations

import threading

import pytest

from tuner.storage.sql.wait_time import waiting
from tuner.worker.attempts import watchdog
from tuner.worker.attempts.watchdog import Limits, Overrun, Watchdog

LONG_S = 30.0
"""How long a test waits for what must happen."""


class Watched:
    """A watchdog that notes what it says and does, on a clock that only the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trial_s: float | None, stall_s: float | None) -> None:
        self.now_s, self.polls = 100.0, threading.Semaphore(0)
        monkeypatch.setattr(watchdog.time, "monotonic", self._time)
        monkeypatch.setattr(watchdog, "_POLL_S", 0.001)
        self.warned, self.ended = threading.Event(), threading.Event()
        self.endings: list[Overrun] = []
        self.dog = Watchdog(Limits(trial_s, stall_s), self.warned.set, self._end)
        check = self.dog._overrun

        def counted() -> Overrun | None:
            self.polls.release()
            return check()

        monkeypatch.setattr(self.dog, "_overrun", counted)

    def _time(self) -> float:
        self.polls.release()
        return self.now_s

    def _end(self, overrun: Overrun) -> None:
        self.endings.append(overrun)
        self.ended.set()

    def let_it_check(self) -> None:
        """Wait until the thread has checked at least once since now."""
        while self.polls.acquire(blocking=False):
            pass
        for _ in range(10):  # a check counts itself, and reads the clock at most four times
            assert self.polls.acquire(timeout=LONG_S)


@pytest.fixture
def stalling(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch, None, 60.0)


def test_the_time_without_progress_counts_from_the_first(stalling: Watched) -> None:
    with stalling.dog.watching():
        stalling.now_s += 10_000
        stalling.let_it_check()
        assert not stalling.dog.is_stalled
        stalling.dog.note_progress()
        stalling.now_s += 59
        stalling.dog.note_progress()
        stalling.now_s += 59
        stalling.let_it_check()
        assert not stalling.dog.is_stalled
        stalling.now_s += 2
        assert stalling.warned.wait(LONG_S)
        assert stalling.dog.is_stalled
        assert not stalling.ended.is_set()
        stalling.now_s += 6
        assert stalling.ended.wait(LONG_S)
    assert (stalling.endings, stalling.dog.has_ended_trial) == ([Overrun.STALL], True)


def test_a_trial_that_knows_that_it_must_stop_has_longer(stalling: Watched) -> None:
    with stalling.dog.watching():
        stalling.dog.note_progress()
        stalling.now_s += 61
        assert stalling.warned.wait(LONG_S)
        stalling.dog.note_noticed()
        stalling.now_s += 50
        assert not stalling.ended.wait(0.3)
    assert (stalling.endings, stalling.dog.has_ended_trial) == ([], False)


def test_waiting_for_the_database_does_not_count(stalling: Watched) -> None:
    with stalling.dog.watching():
        stalling.dog.note_progress()
        with waiting():
            stalling.now_s += 600
            stalling.let_it_check()
        assert not stalling.dog.is_stalled
        assert stalling.dog.seconds == 0.0
        stalling.now_s += 61
        assert stalling.warned.wait(LONG_S)


def test_a_trial_that_takes_too_long_has_a_tenth_of_the_limit_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, 3600.0, None)
    watched.dog.earlier_s = 1800.0
    with watched.dog.watching():
        watched.now_s += 1800
        assert not watched.dog.is_over_time()
        watched.now_s += 1
        assert watched.dog.is_over_time()
        watched.let_it_check()
        watched.now_s += 359
        watched.let_it_check()
        assert not watched.ended.is_set()
        watched.now_s += 2
        assert watched.ended.wait(LONG_S)
    assert watched.endings == [Overrun.TIME]
    assert not watched.warned.is_set()


def test_without_limits_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, before = Watched(monkeypatch, None, None), threading.active_count()
    with watched.dog.watching():
        watched.now_s += 1e6
        assert threading.active_count() == before
        assert not watched.dog.is_over_time()
