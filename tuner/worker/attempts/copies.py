"""Stores which copies of others a trial has taken, in population-based training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.storage.read.population import loaded_copies
from tuner.storage.worker.fences import Lease
from tuner.study.population import COPIES_KEY, Copy
from tuner.trial.events import TrialCopied

if TYPE_CHECKING:
    from tuner.worker.context import WorkerContext


@dataclass(frozen=True)
class StoredCopies:
    """The copies that a running trial has taken; implements `tuner.worker.population.TrialInPopulation`.

    Args:
        context: The context of the worker's trials.
        lease: The trial's lease.
        is_baseline: Returns whether the trial is the study's baseline, which copies no other.
    """

    context: WorkerContext
    lease: Lease
    is_baseline: Callable[[], bool]

    @property
    def number(self) -> int:
        return self.lease.number

    def may_copy(self) -> bool:
        return not self.is_baseline()

    def copies(self) -> list[Copy]:
        stored = self.context.storage.get_trial(self.lease.trial_id).system_attrs
        return loaded_copies(stored.get(COPIES_KEY, ()))

    def set_copies(self, copies: Sequence[Copy]) -> None:
        stored = [dataclasses.asdict(copy) for copy in copies]
        self.context.storage.set_trial_system_attr(self.lease.trial_id, COPIES_KEY, stored)

    def note_copy(self, copy: Copy) -> None:
        self.context.say(TrialCopied(self.number, copy.epoch, copy.trial, copy.hparams))
