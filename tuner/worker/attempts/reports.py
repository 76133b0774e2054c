"""Stores the reports of one trial and asks its pruner, while the training continues."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from sqlalchemy import Engine

from tuner.errors import StorageLost, TunerError
from tuner.storage.sql.background_calls import Caller
from tuner.storage.worker.reporter import Reporter
from tuner.trial import Report

T = TypeVar("T")

GATHER_S = 0.1
"""Seconds after which a report is stored that training does not wait for, with those that came meanwhile."""
_ANSWER_S = 1.5
"""Seconds that training waits for the database at a report; usually the answer arrives earlier."""
_LAST_S = 3.0
"""Seconds that the last reports of an exiting worker may take."""


@dataclass(frozen=True)
class StoreCall:
    """A call that stores a report and asks the pruner.

    Attributes:
        reporter: Stores the reports of its trial.
        report: The report.
        take: Hands the gathered reports over to the reporter.
        next_place: Returns the rung that the pruner will enter first; None if it is not asked, or enters none.
        call: Stores the report, and returns whether the trial must be pruned.
    """

    reporter: Reporter
    report: Report
    take: Callable[[], None]
    next_place: Callable[[], Mapping[str, Any] | None]
    call: Callable[[], bool]

    def __call__(self) -> bool:
        return self.call()


class Gatherer(Protocol):
    """Makes calls that nobody waits for a moment later, on the thread that stores reports."""

    def submit_later(self, call: Callable[[], T], seconds: float) -> Future[T]: ...


@dataclass(frozen=True)
class GatherCall:
    """A call that stores the gathered reports of a trial.

    Attributes:
        reporter: Stores the reports of its trial.
        take: Hands the gathered reports over to the reporter.
        call: Stores them.
    """

    reporter: Reporter
    take: Callable[[], None]
    call: Callable[[], bool]

    def __call__(self) -> bool:
        return self.call()


class Reports:
    """Passes a trial's reports to a thread in order, and gets the decision whether to prune the trial.

    Training waits briefly for the answer to a report that the pruner judges. If the database needs longer, training
    gets the answer at a later report, and does not wait again until all earlier reports have been stored.

    Other reports are gathered: they are stored a moment later, with the next report that the pruner judges, or with the
    end of the trial.

    Args:
        background: The thread, or what makes calls on it.
        reporter: Stores the reports; used on that thread.
        is_hopeless: Asks the pruner about a stored report; called on that thread.
        is_over: Whether the worker must exit: it then waits only briefly for its last reports.
        is_judged: Whether the pruner has something to decide at an epoch.
        gatherer: The thread, or what makes several calls on it together; None if training waits for each report.
        prepare: Called on the thread before reports are stored.
        next_place: Returns the rung that the pruner will enter first for a report; see `StoreCall`.
    """

    def __init__(
        self,
        background: Caller,
        reporter: Reporter,
        is_hopeless: Callable[[Report], bool],
        is_over: Callable[[], bool],
        is_judged: Callable[[int], bool] = lambda epoch: True,
        gatherer: Gatherer | None = None,
        prepare: Callable[[], None] = lambda: None,
        next_place: Callable[[Report], Mapping[str, Any] | None] = lambda report: None,
    ) -> None:
        self._background, self._reporter = background, reporter
        self._ask, self._is_over, self._is_judged = is_hopeless, is_over, is_judged
        self._gatherer, self._prepare, self._next_place = gatherer, prepare, next_place
        self._unanswered: deque[Future[bool]] = deque()
        self._gathered: list[Report] = []
        self._gatherings: deque[Future[bool]] = deque()
        self._gathering = threading.Lock()
        self._is_gathering = False  # whether a call will store what is gathered
        self._is_hopeless = False
        self._is_away = False

    def keep(self, several: Iterable[Report]) -> None:
        """See `Reporter.keep`. Training still waits for the answer to the next report."""
        with self._gathering:
            self._gathered += several

    def store(self, report: Report, *, may_prune: bool) -> bool:
        """Store a report; return whether the trial must be pruned, as far as it is known.

        Args:
            report: The report.
            may_prune: Whether to ask the pruner, and to use its earlier decisions.

        Raises:
            LeaseLost: another worker has the trial.
            Exception: an error of the pruner.
        """
        self._collect()
        is_judged = may_prune and self._is_judged(report.epoch)
        if self._gatherer is not None and not is_judged:
            self._gather(report, self._gatherer)
            return may_prune and self._is_hopeless
        is_behind = bool(self._unanswered) or self._is_away
        next_place = partial(self._next_place, report) if is_judged else lambda: None
        store = partial(self._store, report, is_judged)
        call = StoreCall(self._reporter, report, self._hand_over, next_place, store)
        future = self._background.submit(call)
        self._unanswered.append(future)
        if not is_behind:
            self._background.wait(future, _ANSWER_S)
        self._collect()
        return may_prune and self._is_hopeless

    def finish(self, engine: Engine) -> None:
        """Wait until all reports are stored, for as long as the engine waits for the database.

        Raises:
            LeaseLost: another worker has the trial.
            StorageLost: the database cannot be reached, or does not answer while the worker must exit.
        """
        self.settle()
        self._take_gathered()
        self._reporter.flush(engine)

    def rest(self, engine: Engine) -> list[Report]:
        """Return the last reports, which the caller stores with the end of the trial; the others are stored now.

        Raises: those of `finish`.
        """
        self._take_gathered()
        return self._reporter.take_last(engine)

    def settle(self) -> None:
        """Wait for the reports that are being stored; what is only gathered or kept is left for `finish` or `rest`.

        Raises: those of `finish`.
        """
        self._unanswered += [future for future in self._gatherings if not future.cancel()]
        self._gatherings.clear()
        while self._unanswered:
            future = self._unanswered[0]
            if not self._background.wait(future, float("inf"), is_over=self._is_over):
                self._background.wait(future, float("inf"), seconds=_LAST_S)
            if not future.done():
                raise StorageLost("cannot reach the storage: the last reports are not stored, and the worker exits")
            # An error of the pruner no longer fails the trial, because the training is over.
            if not isinstance(self._unanswered.popleft().exception(), TunerError | None):
                continue
            future.result()

    def _gather(self, report: Report, gatherer: Gatherer) -> None:
        with self._gathering:
            self._gathered.append(report)
            if self._is_gathering:
                return
            self._is_gathering = True
        call = GatherCall(self._reporter, self._begin_gathered, self._store_gathered)
        self._gatherings.append(gatherer.submit_later(call, GATHER_S))

    def _collect(self) -> None:
        while self._gatherings and self._gatherings[0].done():
            self._gatherings.popleft().result()
        while self._unanswered and self._unanswered[0].done():
            self._is_hopeless = self._unanswered.popleft().result() or self._is_hopeless

    def _take_gathered(self) -> None:
        """Keep the gathered reports, so that they are stored with the next one."""
        with self._gathering:
            gathered, self._gathered = self._gathered, []
        if gathered:
            self._reporter.keep(gathered)

    # --- On the thread

    def _hand_over(self) -> None:
        self._prepare()
        self._take_gathered()

    def _begin_gathered(self) -> None:
        with self._gathering:
            self._is_gathering = False
        self._hand_over()

    def _store_gathered(self) -> bool:
        self._begin_gathered()
        self._is_away = not self._reporter.store_kept()
        return False

    def _store(self, report: Report, is_judged: bool) -> bool:
        self._hand_over()
        self._is_away = not self._reporter.store(report)
        # While the database is down, trials cannot be compared.
        return not self._is_away and is_judged and self._ask(report)
