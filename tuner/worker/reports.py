"""Stores the reports of one trial and asks its pruner, while the training continues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial

from sqlalchemy import Engine

from tuner.errors import StorageLost, TunerError
from tuner.storage.sql.background_calls import Background
from tuner.storage.worker.reporter import Reporter
from tuner.trial import Report

_ANSWER_S = 1.5
"""How long training waits for the database at each report. With a healthy one the answer is always there by then."""
_LAST_S = 3.0
"""How long the last reports of a worker that ends may take."""


class Reports:
    """Hands a trial's reports to a thread in their order, and learns from it whether to prune the trial.

    Training waits for the answer to each report while the database needs no more than a moment. Of one that needs
    longer, it learns the answer at a later report, and does not wait again until all reports before have been stored.

    Args:
        background: The thread.
        reporter: Stores the reports; used on that thread.
        is_hopeless: Asks the pruner about a report that was stored; called on that thread.
        is_over: Whether the worker is to end: its last reports are waited for a moment, and no longer.
    """

    def __init__(
        self,
        background: Background,
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
        """See `Reporter.keep`. The answer to the next report is waited for all the same."""
        self._background.submit(partial(self._reporter.keep, list(several)))

    def store(self, report: Report, *, may_prune: bool) -> bool:
        """Store a report; return whether the trial is to be pruned, as far as that is known.

        Args:
            report: The report.
            may_prune: Whether to ask the pruner, and to go by what it said before.

        Raises:
            LeaseLost: another worker has the trial.
            Exception: whatever the pruner raised.
        """
        self._collect()
        is_behind = bool(self._unanswered) or self._is_away
        future = self._background.submit(partial(self._store, report, may_prune))
        self._unanswered.append(future)
        if not is_behind:
            self._background.wait(future, _ANSWER_S)
        self._collect()
        return may_prune and self._is_hopeless

    def finish(self, engine: Engine) -> None:
        """Wait until all reports are stored, as long as the engine waits for a database that is away.

        Raises:
            LeaseLost: another worker has the trial.
            StorageLost: the database stays away, or the worker is to end and the database is silent.
        """
        while self._unanswered:
            future = self._unanswered[0]
            if not self._background.wait(future, float("inf"), is_over=self._is_over):
                self._background.wait(future, float("inf"), seconds=_LAST_S)
            if not future.done():
                raise StorageLost("cannot reach the storage: the last reports are not stored, and the worker exits")
            # Too late to fail the trial for what its pruner raised: the training is over.
            if not isinstance(self._unanswered.popleft().exception(), TunerError | None):
                continue
            future.result()
        self._reporter.flush(engine)

    def _collect(self) -> None:
        while self._unanswered and self._unanswered[0].done():
            self._is_hopeless = self._unanswered.popleft().result() or self._is_hopeless

    def _store(self, report: Report, may_prune: bool) -> bool:
        self._is_away = not self._reporter.store(report)
        # While the database is away nothing can be compared.
        return not self._is_away and may_prune and self._ask(report)
