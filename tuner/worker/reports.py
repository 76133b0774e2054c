"""Stores the reports of one trial and asks its pruner, while the training continues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Engine

from tuner.errors import StorageLost, TunerError
from tuner.storage.sql.background_calls import Caller
from tuner.storage.worker.reporter import Reporter
from tuner.trial import Report

_ANSWER_S = 1.5
"""Seconds that training waits for the database at each report; usually the answer arrives earlier."""
_LAST_S = 3.0
"""Seconds that the last reports of an exiting worker may take."""


@dataclass(frozen=True)
class StoreCall:
    """A call that stores a report and asks the pruner."""

    reporter: Reporter
    report: Report
    call: Callable[[], bool]

    def __call__(self) -> bool:
        return self.call()


class Reports:
    """Passes a trial's reports to a thread in order, and gets the decision whether to prune the trial.

    Training waits briefly for the answer to each report. If the database needs longer, training gets the answer at a
    later report, and does not wait again until all earlier reports have been stored.

    Args:
        background: The thread, or what makes calls on it.
        reporter: Stores the reports; used on that thread.
        is_hopeless: Asks the pruner about a stored report; called on that thread.
        is_over: Whether the worker must exit: it then waits only briefly for its last reports.
    """

    def __init__(
        self,
        background: Caller,
        reporter: Reporter,
        is_hopeless: Callable[[Report], bool],
        is_over: Callable[[], bool],
    ) -> None:
        self._background, self._reporter = background, reporter
        self._ask, self._is_over = is_hopeless, is_over
        self._unanswered: deque[Future[bool]] = deque()
        self._is_hopeless = False
        self._is_away = False

    def keep(self, several: Iterable[Report]) -> None:
        """See `Reporter.keep`. Training still waits for the answer to the next report."""
        self._background.submit(partial(self._reporter.keep, list(several)))

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
        is_behind = bool(self._unanswered) or self._is_away
        future = self._background.submit(StoreCall(self._reporter, report, partial(self._store, report, may_prune)))
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
        self._reporter.flush(engine)

    def _collect(self) -> None:
        while self._unanswered and self._unanswered[0].done():
            self._is_hopeless = self._unanswered.popleft().result() or self._is_hopeless

    def _store(self, report: Report, may_prune: bool) -> bool:
        self._is_away = not self._reporter.store(report)
        # While the database is down, trials cannot be compared.
        return not self._is_away and may_prune and self._ask(report)
