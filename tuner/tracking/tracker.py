"""The interface of a tracker, and the data it receives."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tuner.trial import Outcome


@dataclass(frozen=True)
class TrackedStudy:
    """A study; `identity` distinguishes it from others with its name, `settings` are texts by name."""

    name: str
    identity: str
    settings: Mapping[str, str]


@dataclass(frozen=True)
class TrackedTrial:
    """The current state of a trial.

    Attributes:
        number: Its number in the study.
        outcome: Its state, or how it ended.
        hparams: Its hyperparameters, as stored by Optuna.
        began_s: When it started, seconds since 1970.
        ended_s: When it ended; None before that.
        step: Optimizer updates at its last report, 0 before the first.
        results: Its results by name; empty before its end.
        tags: Other information about it, as texts by name.
        log: The last lines that it printed; empty before its end.
    """

    number: int
    outcome: Outcome
    hparams: Mapping[str, Any]
    began_s: float
    ended_s: float | None
    step: int
    results: Mapping[str, float]
    tags: Mapping[str, str]
    log: str = ""


@dataclass(frozen=True)
class TrackedReport:
    """The metrics of an epoch; `at_s`, seconds since 1970, does not change if the report is sent again."""

    epoch: int
    step: int
    at_s: float
    metrics: Mapping[str, float]


class Tracker(Protocol):
    """Receives a study, trial by trial, from one process at a time.

    Every method is idempotent: it may be called again with the same arguments, also by another process after a crash.
    Every method but `close` raises `TrackerLost` if the tracker does not answer, and `TrackerRefused` if it rejects the
    data.
    """

    target: str
    """Identifies the tracker, without passwords: equal for all processes that send to the same place."""

    def open_study(self, study: TrackedStudy, place: str | None, known: Collection[str]) -> str:
        """Start or continue a study.

        Args:
            study: The study.
            place: The result of the last call, in any process.
            known: The results of `open_trial` so far. Other runs were started by requests that timed out.

        Returns:
            The tracker's name of the study: different from `place` if it has no data of the study.
        """
        ...

    def open_trial(self, trial: TrackedTrial, run: str | None) -> str:
        """Start a trial, or update the information about `run`; return the tracker's name of the run."""
        ...

    def log(self, run: str, reports: Sequence[TrackedReport]) -> None:
        """Add the next reports."""
        ...

    def end_trial(self, run: str, trial: TrackedTrial, reports: Sequence[TrackedReport]) -> None:
        """Add the last reports, and the outcome of the trial."""
        ...

    def drop_trial(self, run: str) -> None:
        """Remove a trial whose reports have changed and will be sent again."""
        ...

    def end_study(self) -> None:
        """Mark the study as finished."""
        ...

    def close(self) -> None:
        """Close connections and files."""
        ...
