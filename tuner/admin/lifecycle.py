"""Stops, resumes and resizes a study by hand; safe while workers run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.errors import UsageError, is_int
from tuner.results.stopping import End, recorded_end
from tuner.storage.read.queries import find_study
from tuner.storage.worker import studies

if TYPE_CHECKING:
    from sqlalchemy import Engine


MOST_TRIALS = 2**31 - 1
"""The largest number of trials that the database can store."""


def stop(engine: Engine, name: str) -> bool:
    """Stop a study on all machines: its workers give back their trials and exit; jobs of an engine are cancelled.

    Returns:
        Whether it was not stopped yet.

    Raises:
        UnknownStudy: there is no such study.
    """
    from tuner.launch.engines import cancel_open_jobs

    study_id = find_study(engine, name).study_id
    was_running = studies.stop(engine, study_id)
    cancel_open_jobs(engine, study_id, "its workers exit by themselves when they start")
    return was_running


@dataclass(frozen=True)
class Resumed:
    """The result of `resume`.

    Attributes:
        was_stopped: Whether the study was stopped, and can be launched again now.
        end: The rule that has ended the study, which needs another setting instead; None if there is none.
    """

    was_stopped: bool
    end: End | None = None


def resume(engine: Engine, name: str) -> Resumed:
    """Allow a stopped study to be launched again, unless its target, patience or terminator has ended it.

    Raises:
        UnknownStudy: there is no such study.
    """
    study_id = find_study(engine, name).study_id
    end = recorded_end(engine, study_id)
    return Resumed(end is None and studies.resume(engine, study_id), end)


def change_trials(engine: Engine, name: str, trials: int) -> int:
    """Set the number of trials of a study; return the number before.

    Running workers use it from their next claim. It replaces the number of the study's file, until the study is
    launched with another one.

    Args:
        engine: The storage's engine.
        name: The study.
        trials: The number, from 1 to `MOST_TRIALS`. Trials that run continue if it is lower than what is used.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: the number is not an integer in that range, or the study was never launched.
    """
    if not is_int(trials) or not 1 <= trials <= MOST_TRIALS:
        raise UsageError(f"the number of trials must be an integer from 1 to {MOST_TRIALS}: got {trials!r}")
    before = studies.change_trials(engine, find_study(engine, name).study_id, trials)
    if before is None:
        raise UsageError(f"study {name!r} was never launched, so its number of trials is that of its file")
    return before
