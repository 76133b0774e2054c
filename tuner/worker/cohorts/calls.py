"""The calls to the database of the trials of a cohort: those that all trials make at once share transactions."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from tuner.storage.sql.background_calls import Background
from tuner.storage.sql.retry import PROMPT, hurried
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.reporter import store_kept_together, store_together
from tuner.worker.attempts.ends import EndCall, end_together
from tuner.worker.attempts.reports import GatherCall, StoreCall
from tuner.worker.attempts.suggested import SuggestedCall, store_suggestions_together

T = TypeVar("T")
Calls = list[tuple[Future[Any], Callable[[], Any]]]
EnterRungs = Callable[[Sequence[tuple[Lease, Mapping[str, Any]]]], None]


@dataclass(frozen=True)
class Answer:
    """Whether a call to the database is finished; waits as `Caller.wait` does."""

    future: Future[Any]
    database_s: float
    seconds: float
    is_over: Callable[[], bool]


class Together:
    """A `Caller` whose calls are made together with those of the other trials."""

    def __init__(self, ask: Callable[[object], Any], calls: Calls) -> None:
        self._ask, self._calls = ask, calls

    def submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._calls.append((future, call))
        return future

    def wait(
        self, future: Future[Any], database_s: float, seconds: float = float("inf"), is_over: Callable[[], bool] = bool
    ) -> bool:
        if not future.done():
            self._ask(Answer(future, database_s, seconds, is_over))
        return future.done()


class Gatherer:
    """A `tuner.worker.attempts.reports.Gatherer` that stores the gathered reports of all trials in one transaction."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._changing = threading.Lock()
        self._calls: Calls = []

    def submit_later(self, call: Callable[[], T], seconds: float) -> Future[T]:
        future: Future[T] = Future()
        with self._changing:
            is_first = not self._calls
            self._calls.append((future, call))
        if is_first:
            self._background.submit_later(self._make_calls, seconds)
        return future

    def _make_calls(self) -> None:
        with self._changing:
            calls, self._calls = self._calls, []
        calls = [(future, call) for future, call in calls if future.set_running_or_notify_cancel()]
        gathered = [call for _, call in calls if isinstance(call, GatherCall)]
        with contextlib.suppress(Exception):  # then each call stores its own reports
            for call in gathered:
                call.take()
            if several := [call.reporter for call in gathered if call.reporter.is_due()]:
                store_kept_together(several)
        _make(calls)


def make_together(calls: Calls, enter_rungs: EnterRungs, is_over: Callable[[], bool]) -> None:
    """Make calls, each kind in one transaction: ends, suggestions, reports, decisions in rungs.

    If one of these fails, each call then stores its own.

    Args:
        calls: The calls, with the futures of their results.
        enter_rungs: `Storage.enter_rungs` for the study.
        is_over: Whether the worker must exit.
    """
    ends = [call for _, call in calls if isinstance(call, EndCall)]
    if len(ends) > 1:
        end_together(ends)
    suggested = [call for _, call in calls if isinstance(call, SuggestedCall)]
    if len(suggested) > 1:
        store_suggestions_together(suggested)
    stores = [call for _, call in calls if isinstance(call, StoreCall)]
    if len(stores) > 1:
        with contextlib.suppress(Exception):
            for one in stores:
                one.take()
            store_together([(one.reporter, one.report) for one in stores])
            stored = [one for one in stores if one.reporter.is_stored(one.report)]
            places = [(one.reporter.lease, place) for one in stored if (place := one.next_place()) is not None]
            if len(places) > 1:
                with hurried(dataclasses.replace(PROMPT, is_over=is_over)):
                    enter_rungs(places)
    # Ends first: pruners compare with the trials that have ended.
    _make(sorted(calls, key=lambda one: not isinstance(one[1], EndCall)))


def _make(calls: Calls) -> None:
    for future, call in calls:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
