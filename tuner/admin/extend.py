"""Queues trials that continue finished ones with more epochs (`tuner extend`). Safe while workers run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.errors import UsageError
from tuner.object_storage import is_url
from tuner.storage import AnyURL, connected, open_storage
from tuner.storage.artifacts import LAST
from tuner.storage.read.extensions import read_extensions, read_last_epochs
from tuner.storage.read.population import read_copies
from tuner.storage.read.queries import StudyRow, TrialRow, find_study, read_best, read_numbers, read_trial
from tuner.trial import Outcome
from tuner.trial.extension import EXTENDS, EXTENSION_KEY, Extension

if TYPE_CHECKING:
    from sqlalchemy import Engine


_COUNTING = (Outcome.WAITING, Outcome.RUNNING, Outcome.PREEMPTED, Outcome.COMPLETE)
"""The outcomes of a continuation after which its trial is not continued to as many epochs again."""


@dataclass(frozen=True)
class Extended:
    """A trial that was queued to continue another one.

    Attributes:
        number: Its number.
        of: The number of the trial that it continues.
        after: The last epoch of that one.
        epochs: The number of epochs of both together.
    """

    number: int
    of: int
    after: int
    epochs: int


def extend(
    url: AnyURL, name: str, *, epochs: int, count: int | None = None, numbers: Sequence[int] = ()
) -> list[Extended]:
    """Queue a trial for each of some finished trials, which continues it from its last state.

    The new trial has the hyperparameters and the seed of the finished one, which does not change. It counts towards the
    study's budget like any other.

    Args:
        url: The storage's URL.
        name: The study.
        epochs: The total number of epochs, those of the finished trial included.
        count: The number of best trials to continue, 1 by default; those that are continued to as many epochs already,
            or have as many, are skipped.
        numbers: The trials to continue, instead of the best.

    Raises:
        UnknownStudy: there is no such study or trial.
        UsageError: a trial cannot be continued, or none can; nothing was queued.
    """
    if epochs < 1:
        raise UsageError(f"`epochs` must be at least 1: got {epochs}")
    if count is not None and (numbers or count < 1):
        raise UsageError(
            f"pass either a number of best trials, at least 1, or numbers of trials: got {count}"
            + (f" and {', '.join(map(str, numbers))}" if numbers else "")
        )
    with connected(url) as engine:
        study = find_study(engine, name)
        if not study.record:
            raise UsageError(f"study {name!r} was not created by tuner: only trials of `tuner launch` can be continued")
        finished = _Finished(engine, study)
        if numbers:
            chosen = [finished.check(read_trial(engine, finished.study, one), epochs) for one in dict.fromkeys(numbers)]
        else:
            chosen = finished.best(count or 1, epochs)
    return [_queue(url, name, trial.hparams, extension) for trial, extension in chosen]


class _Finished:
    """The finished trials of a study, and what is known about continuing them."""

    def __init__(self, engine: Engine, study: StudyRow) -> None:
        self._engine, self.study = engine, study
        self._last_epochs = read_last_epochs(engine, study.study_id)
        self._extensions = read_extensions(engine, study.study_id)
        self._copies = read_copies(engine, study.study_id)
        open_or_used = read_numbers(engine, study, list(self._extensions)) if self._extensions else []
        self._counting = {trial.number for trial in open_or_used if trial.outcome in _COUNTING}

    def best(self, count: int, epochs: int) -> list[tuple[TrialRow, Extension]]:
        if len(self.study.directions) > 1:
            raise UsageError(
                f"study {self.study.name!r} has several objectives, so its trials cannot be ranked: pass those to "
                "continue as `numbers`"
            )
        if not self._last_epochs:
            raise UsageError(f"study {self.study.name!r} has no saved last states: {self._how_to_keep()}")
        ranked = read_best(self._engine, self.study, None)
        able = [trial for trial in ranked if self._why_not(trial, epochs) is None]
        if not able:
            raise UsageError(
                f"no trial of {self.study.name!r} can be continued to epoch {epochs}: each one with a last state "
                f"({', '.join(map(str, self._last_epochs))}) is not complete, has as many epochs already, or is "
                "continued already; pass one of them as `numbers` to see its reason"
            )
        return [(trial, self._extension(trial, epochs)) for trial in able[:count]]

    def check(self, trial: TrialRow, epochs: int) -> tuple[TrialRow, Extension]:
        why = self._why_not(trial, epochs)
        if why is not None:
            raise UsageError(f"cannot continue trial {trial.number} of {self.study.name!r}: {why}")
        return trial, self._extension(trial, epochs)

    def _why_not(self, trial: TrialRow, epochs: int) -> str | None:
        """Return why a trial cannot be continued; None if it can."""
        number, last = trial.number, self._last_epochs.get(trial.number)
        if trial.outcome is not Outcome.COMPLETE:
            return f"it is {trial.outcome}, and only complete trials can be continued"
        if last is None or trial.record.checkpoint is None:
            return f"its last state was not saved; {self._how_to_keep()}"
        if number in self._copies:
            return "it copied other trials (pruner pbt), so its hyperparameters changed while it trained"
        if last >= epochs:
            return f"it has {last} epochs: pass more than that as the total, got {epochs}"
        for other, extension in self._extensions.items():
            if extension.of == number and extension.epochs >= epochs and other in self._counting:
                return f"trial {other} continues it to epoch {extension.epochs} already"
        if self._is_gone(_state_of(trial)):
            return "its last state was removed, because better trials ended after it"
        return None

    def _how_to_keep(self) -> str:
        return "set keep_last in the study's file, and the best trials that end after that can be continued"

    def _is_gone(self, state: str) -> bool:
        """Return whether a state is known to be gone; on other machines than those of the workers it is not known."""
        return not is_url(state) and not Path(state).is_dir() and Path(state).parents[1].is_dir()

    def _extension(self, trial: TrialRow, epochs: int) -> Extension:
        earlier = self._extensions.get(trial.number)
        first = trial.number if earlier is None else earlier.first
        return Extension(trial.number, self._last_epochs[trial.number], epochs, first, _state_of(trial))


def _state_of(trial: TrialRow) -> str:
    """Return the folder or the URL of a trial's last state, which is beside its best checkpoint."""
    assert trial.record.checkpoint is not None
    return f"{trial.record.checkpoint.rpartition('/')[0]}/{LAST}"


def _queue(url: AnyURL, name: str, params: Mapping[str, object], extension: Extension) -> Extended:
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    template = create_trial(
        state=TrialState.WAITING,
        user_attrs={EXTENDS: extension.of},
        system_attrs={"fixed_params": dict(params), EXTENSION_KEY: extension.to_json()},
    )
    with contextlib.closing(open_storage(url)) as storage:
        trial_id = storage.create_new_trial(storage.get_study_id_from_name(name), template)
        number = storage.get_trial(trial_id).number
    return Extended(number, extension.of, extension.after, extension.epochs)
