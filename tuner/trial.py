"""What a trial says while it runs and how it ends. No JAX, no Optuna."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Outcome(enum.StrEnum):
    """How a trial ended, as stored with it; `running` and `waiting` are not ends."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    RUNNING = "running"
    WAITING = "waiting"

    @property
    def uses_budget(self) -> bool:
        """True for the ends that count towards the number of trials asked for."""
        return self not in (Outcome.FAILED, Outcome.RUNNING, Outcome.WAITING)


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
        """Return the objectives' values in their order.

        Raises:
            KeyError: an objective is not among the metrics.
        """
        return [self.metrics[name] for name in objectives]


def all_finite(values: list[float]) -> bool:
    """Return whether no value is NaN or infinite."""
    return all(math.isfinite(value) for value in values)


Event = dict[str, Any]
"""What a worker says of itself: `event` is study, trial, report, end, idle, done or error; a launcher shows it."""


@dataclass
class Stop:
    """Set from outside, a signal handler say; the worker gives its trial back at the next report."""

    requested: bool = False
