"""What a trial says while it runs and how it ends. No JAX, no Optuna."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.output.log import is_json, tell

OPTIMIZER_RULES = 2
"""How optimizers treat parameters. A record without this number is of 1, and goes on so.

1: arrays of two or more axes decay; a `Stack` of layers is one array.
2: biases and scales never decay, and each layer of a `Stack` is treated as the same layer outside of one.
"""


def optimizer_rules_of(record: Mapping[str, Any]) -> int:
    """Return the rules by which a study or a training was begun, from its record."""
    return record.get("optimizer_rules", 1)


def with_rules(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record that says its rules also where it was written by a version that had only one."""
    return {**record, "optimizer_rules": optimizer_rules_of(record)}


class Outcome(enum.StrEnum):
    """How a trial stands. `preempted` is no end: its worker gave it back or vanished, and another goes on with it."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    PREEMPTED = "preempted"
    RUNNING = "running"
    WAITING = "waiting"

    @property
    def uses_budget(self) -> bool:
        """True for the ends that count towards the number of trials asked for."""
        return self in (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY)


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


DEADLY = "dead workers"
"""The kind of error of a trial in which too many workers died."""

Event = dict[str, Any]
"""What a worker says. `event` is study, trial, report, end, retry, restart, lost, deadly, sampler, unused, finished,
idle, hours, done, error or seconds; `seconds` what its time since the event before went on: training, compiling,
waiting, database."""


@dataclass
class Stop:
    """Set from outside, a signal handler say; the worker gives its trial back at the next report.

    Attributes:
        requested: Whether somebody wants the worker to end.
        is_heeded: Whether the worker has begun to look at that: not while it still imports the study and its data.
    """

    requested: bool = False
    is_heeded: bool = False


def event_line(event: Event) -> str | None:
    """Return what a worker in the foreground prints of an event, None for nothing."""
    match event["event"]:
        case "trial":
            hparams = ", ".join(
                f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                for name, value in event["hparams"].items()
            )
            return f"trial {event['trial']}: {hparams}"
        case "report":
            values = ", ".join(f"{value:.4g}" for value in event["values"])
            return f"trial {event['trial']}, epoch {event['epoch']}: {values}"
        case "retry":
            return f"trial {event['trial']} failed and is tried again: {event['error']}"
        case "restart":
            return f"trial {event['trial']} starts again from its first epoch: {event['error']}"
        case "end":
            return f"trial {event['trial']}: {event['outcome']}"
        case "study":
            return f"study {event['study']}, {event['trials']} trials"
        case "hours":
            return "the study's hours are spent"
        case "sampler" | "unused":
            return event["message"]
        case "finished":
            return "the sampler has ended the search"
        case "idle":
            return "waiting for a trial of another worker"
        case _:
            return None


def print_event(event: Event) -> None:
    """Print an event's line on stderr, or in a JSON log all of it."""
    line, fields = event_line(event), dict(event)
    name, message = fields.pop("event"), fields.pop("message", None)
    if not is_json():
        fields, message = {}, None
    if line or message or (is_json() and name != "seconds"):
        tell(message or line, name, **fields)
