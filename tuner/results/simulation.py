"""Runs a pruner over recorded curves, in a given order of arrival and with several workers at once.

The pruner is the real one, with Optuna's storage in memory instead of a database.
"""

from __future__ import annotations

import copy
import heapq
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from tuner.search import TrialPruner
from tuner.storage.worker.rungs import Place, Rungs
from tuner.trial import Outcome
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

_STATES = {Outcome.COMPLETE: TrialState.COMPLETE, Outcome.FAILED: TrialState.FAIL}


@dataclass(frozen=True)
class Curve:
    """A recorded trial.

    Attributes:
        number: Its number in the recorded study.
        reports: Epoch and objective of each report, by epoch.
        outcome: How it ended.
        value: Its objective if it is complete and satisfies its constraints; None otherwise, or if it is not known.
        before_s: Device seconds before its first epoch.
        epoch_s: Device seconds of an epoch.
    """

    number: int
    reports: tuple[tuple[int, float], ...]
    outcome: Outcome
    value: float | None
    before_s: float = 0.0
    epoch_s: float = 1.0

    @property
    def last_epoch(self) -> int:
        """Its last reported epoch; 0 without a report."""
        return self.reports[-1][0] if self.reports else 0


@dataclass(frozen=True)
class Setting:
    """The study in which curves are simulated.

    Attributes:
        name: Its name, from which Hyperband computes brackets.
        maximize: Whether larger is better.
        workers: The number of trials that run at once; > 0.
        last_epoch: The epoch after which pruners are not asked; None to ask them after every report.
        exempt: Numbers of trials that are never stopped.
    """

    name: str
    maximize: bool
    workers: int = 1
    last_epoch: int | None = None
    exempt: Collection[int] = field(default=())


class MemoryStorage(InMemoryStorage):
    """Optuna's storage in memory, with the rungs of successive halving as tuner's storage has them."""

    def __init__(self) -> None:
        super().__init__()
        self._rungs = Rungs()

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a copy of a trial that its reader may change."""
        trial = copy.copy(super().get_trial(trial_id))
        trial.intermediate_values = dict(trial.intermediate_values)
        trial.system_attrs = dict(private.system_attrs(trial))
        return trial

    def enter_rung(
        self,
        study_id: int,
        trial_id: int,
        *,
        bracket: int,
        rung: int,
        values: tuple[float, ...],
        reduction_factor: int,
        bootstrap_count: int,
        maximize: tuple[bool, ...],
        metric: str | None = None,
    ) -> bool:
        """Enter a trial into a rung; see `tuner.storage.worker.rungs.enter_rung`."""
        known = self._rungs
        if (trial_id, rung) in known.decided:
            return known.decided[trial_id, rung]
        (value,) = values
        if math.isnan(value):
            return False
        place = Place(bracket, rung, metric, size=1)
        is_promoted = known.promotes(
            place, values, reduction_factor=reduction_factor, bootstrap_count=bootstrap_count, maximize=maximize
        )
        known.add(known.newest + 1, trial_id, bracket, rung, value, is_promoted, metric)
        return is_promoted


def simulate(curves: Sequence[Curve], pruner: BasePruner, setting: Setting) -> dict[int, int]:
    """Return the trials that a pruner stops, with the epoch of each: trial's number -> epoch.

    A free worker starts the next trial. Each trial reports at the times that its recorded epochs took, and gets the
    position of its arrival as its number, which gives its bracket in Hyperband.

    Args:
        curves: The trials in the order in which they arrive.
        pruner: The pruner, which is not used for anything else.
        setting: The study.
    """
    storage = MemoryStorage()
    study = optuna.create_study(
        study_name=setting.name,
        storage=storage,
        direction="maximize" if setting.maximize else "minimize",
        pruner=pruner,
    )
    waiting, stopped = iter(curves), dict[int, int]()
    running: list[tuple[float, int, Iterator[float]]] = []
    for place in range(setting.workers):
        running.append((0.0, place, _work(study, waiting, setting, stopped)))
    heapq.heapify(running)
    while running:
        now_s, place, work = running[0]
        pause_s = next(work, None)
        if pause_s is None:
            heapq.heappop(running)
        else:
            heapq.heapreplace(running, (now_s + pause_s, place, work))
    return stopped


def _work(study: optuna.Study, waiting: Iterator[Curve], setting: Setting, stopped: dict[int, int]) -> Iterator[float]:
    """Run trials one after another; yield the seconds until the next report or trial."""
    storage = private.storage_of(study)
    for curve in waiting:
        trial_id = storage.create_new_trial(private.study_id(study))
        asked = TrialPruner(study, storage.get_trial(trial_id))
        at_epoch = 0
        yield curve.before_s
        for epoch, value in curve.reports:
            yield (epoch - at_epoch) * curve.epoch_s
            at_epoch = epoch
            storage.set_trial_intermediate_value(trial_id, epoch, value)
            is_hopeless = _may_stop(epoch, value, setting) and asked.should_prune(epoch, value)
            if is_hopeless and curve.number not in setting.exempt:
                stopped[curve.number] = epoch
                break
        state = TrialState.PRUNED if curve.number in stopped else _STATES.get(curve.outcome, TrialState.PRUNED)
        values = [_value_of(curve)] if state is TrialState.COMPLETE else None
        storage.set_trial_state_values(trial_id, state, values)


def _may_stop(epoch: int, value: float, setting: Setting) -> bool:
    """Return whether a worker asks the pruner after a report."""
    return math.isfinite(value) and (setting.last_epoch is None or epoch < setting.last_epoch)


def _value_of(curve: Curve) -> float:
    return curve.value if curve.value is not None else curve.reports[-1][1] if curve.reports else math.inf
