"""The interface of a tracker, and the data it receives."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tuner.trial import Outcome


@dataclass(frozen=True)
class TrackedStudy:
    """A study; `identity` tells it from others of its name, `settings` are texts by name."""

    name: str
    identity: str
    settings: Mapping[str, str]


@dataclass(frozen=True)
class TrackedTrial:
    """A trial as it stands.

    Attributes:
        number: Its number in the study.
        outcome: How it stands or has ended.
        hparams: Its hyperparameters, as Optuna has them.
        began_s: When it began, seconds since 1970.
        ended_s: When it ended, None before.
        step: Optimizer updates at its last report, 0 before the first.
        results: Numbers that it came to, by name; empty before its end.
        tags: What else is known of it, texts by name.
    """

    number: int
    outcome: Outcome
    hparams: Mapping[str, Any]
    began_s: float
    ended_s: float | None
    step: int
    results: Mapping[str, float]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class TrackedReport:
    """The metrics of an epoch; `at_s`, seconds since 1970, is the same however often the report is sent."""

    epoch: int
    step: int
    at_s: float
    metrics: Mapping[str, float]


class Tracker(Protocol):
    """Takes a study, trial by trial, from one process at a time.

    Every method may be called again with the same arguments, by another process after a crash too, and changes nothing
    then. Every method but `close` raises `TrackerLost` if the tracker does not answer, and `TrackerRefused` if it does
    not take what it was given.
    """

    target: str
    """What it is, without passwords: equal for all processes that send to the same place."""

    def open_study(self, study: TrackedStudy, place: str | None, known: Collection[str]) -> str:
        """Begin, or go on with, a study.

        Args:
            study: The study.
            place: What this returned the last time, in whichever process.
            known: What `open_trial` has returned there. Runs that it has not were begun by requests that were given up.

        Returns:
            What the tracker calls the study: another text than `place` if it has nothing of it.
        """
        ...

    def open_trial(self, trial: TrackedTrial, run: str | None) -> str:
        """Begin a trial, or bring up to date what is said of the one called `run`; return what it is called."""
        ...

    def log(self, run: str, reports: Sequence[TrackedReport]) -> None:
        """Add reports, which follow those before."""
        ...

    def end_trial(self, run: str, trial: TrackedTrial, reports: Sequence[TrackedReport]) -> None:
        """Add the last reports, and say how a trial ended."""
        ...

    def drop_trial(self, run: str) -> None:
        """Remove a trial: its reports are others now, and are sent anew."""
        ...

    def end_study(self) -> None:
        """Say that the study is finished."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...
