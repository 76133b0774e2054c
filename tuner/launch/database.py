"""A launcher's calls to the storage, made on a separate thread so that the launcher can react to signals."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.errors import TunerError
from tuner.storage import StorageURL, connect
from tuner.storage.sql.background_calls import Background
from tuner.trial import DEADLY, Outcome
from tuner.trial.events import TrialEnded

if TYPE_CHECKING:
    from sqlalchemy import Engine

_STATEMENT_S = 10.0


@dataclass(frozen=True)
class Counts:
    """The progress of a study.

    Attributes:
        by_outcome: The number of trials with each outcome.
        best: The best value; None if there is none, or with several objectives.
        best_trial: The number of the trial with the best value.
        seconds: The time that the database needed to count.
        best_stderr: The standard error of the best value, if it is the mean over several seeds.
        trials: The number of trials of the study, which a user may change while it runs; None if it is not known.
    """

    by_outcome: Mapping[Outcome, int]
    best: float | None
    best_trial: int | None
    seconds: float
    best_stderr: float | None = None
    trials: int | None = None


class StudyDatabase:
    """The storage of a launcher's study; each call returns immediately.

    Args:
        url: The storage's URL.
    """

    def __init__(self, url: StorageURL) -> None:
        self._url = url
        self._background = Background("launcher-database")
        self._engine: Engine | None = None

    def count(self, study: str) -> Future[Counts | None]:
        """Count a study's trials; the result is None if the database is down."""
        return self._background.submit(lambda: self._count(study))

    def release(self, worker: str, study: str, trial: int | None, *, died: bool) -> Future[TrialEnded | None]:
        """Free the trial of a worker that has exited.

        Args:
            worker: The worker's name.
            study: The study.
            trial: The trial whose start it has reported, unless it has reported the end.
            died: Whether it exited by itself during the trial.

        Returns:
            The end of the trial, if the worker told the storage but not its launcher.
        """
        return self._background.submit(lambda: self._release(worker, study, trial, died))

    def wait(self, future: Future[Any], seconds: float) -> bool:
        """Wait for an answer; return whether it has arrived. Signal handlers run during the wait."""
        return self._background.wait(future, seconds, seconds)

    def close(self) -> None:
        """Close the connections after the pending calls, without waiting for them."""
        self._background.submit(lambda: self._engine and self._engine.dispose())
        self._background.close()

    # --- On the thread

    def _connect(self) -> Engine:
        from tuner.storage.sql import deadlines
        from tuner.storage.sql.retry import Patience, patient

        if self._engine is None:
            patience = Patience(0.0, statement_s=_STATEMENT_S)
            with deadlines.limit(_STATEMENT_S):
                self._engine = patient(connect(self._url), patience)
        return self._engine

    def _count(self, name: str) -> Counts | None:
        from tuner.storage.read.budget import find_effective_trials
        from tuner.storage.read.queries import find_study, outcome_counts, read_best

        with contextlib.suppress(TunerError):
            engine, began_s = self._connect(), time.monotonic()
            study = find_study(engine, name)
            by_outcome = outcome_counts(engine, study.study_id)
            rows = read_best(engine, study, 1) if len(study.directions) == 1 else []
            trials = find_effective_trials(engine, study.study_id)
            seconds = time.monotonic() - began_s
            if rows and rows[0].values:
                best, stderrs = rows[0], rows[0].stderrs
                value = rows[0].values[0]
                return Counts(by_outcome, value, best.number, seconds, None if stderrs is None else stderrs[0], trials)
            return Counts(by_outcome, None, None, seconds, trials=trials)
        return None

    def _release(self, worker: str, study: str, trial: int | None, died: bool) -> TrialEnded | None:
        from tuner.storage.worker.claims import release_all

        end = None
        with contextlib.suppress(TunerError):
            end = None if trial is None else self._untold_end(worker, study, trial)
        with contextlib.suppress(TunerError):
            release_all(self._connect(), worker, died=died)
        return end

    def _untold_end(self, worker: str, study: str, trial: int) -> TrialEnded | None:
        from tuner.storage.read.queries import find_study, read_trial

        row = read_trial(self._connect(), find_study(self._connect(), study), trial)
        kept = row.record
        # A trial that was failed after too many deaths has the name of the last worker that died.
        if kept.worker != worker or kept.error_kind == DEADLY or kept.train_s is None or kept.compile_s is None:
            return None
        return TrialEnded(row.number, row.outcome, row.values, kept.train_s, kept.compile_s, row.stderrs)
