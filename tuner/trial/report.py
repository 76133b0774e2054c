"""Reports and outcomes of trials."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass


class Outcome(enum.StrEnum):
    """The outcome of a trial. `preempted` is not final: its worker gave it back or died, and another resumes it."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    FAILED = "failed"
    PREEMPTED = "preempted"
    RUNNING = "running"
    WAITING = "waiting"

    @property
    def uses_budget(self) -> bool:
        """Whether trials with this outcome count towards the requested number of trials."""
        return self in _USING_BUDGET


_USING_BUDGET = (
    Outcome.COMPLETE,
    Outcome.PRUNED,
    Outcome.DIVERGED,
    Outcome.OUT_OF_MEMORY,
    Outcome.TIMED_OUT,
)


@dataclass(frozen=True, slots=True)
class Report:
    """The metrics of one finished epoch.

    Attributes:
        epoch: Passes over the training data so far, counted from 1. Pruners compare trials at equal epochs.
        step: Optimizer updates so far.
        metrics: Example-weighted means by name, as Python floats; validation metrics have their plain names,
            training metrics the prefix `train_`.
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]

    def values(self, objectives: tuple[str, ...]) -> list[float]:
        """Return the values of the objectives in order.

        Raises:
            KeyError: the metrics do not include an objective.
        """
        return [self.metrics[name] for name in objectives]


def all_finite(values: list[float]) -> bool:
    """Return whether no value is NaN or infinite."""
    return all(math.isfinite(value) for value in values)


DEADLY = "dead workers"
"""The kind of error of a trial in which too many workers died without it getting further."""
