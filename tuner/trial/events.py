"""Events of a worker, and the flag that asks it to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuner.output.log import is_json, tell

Event = dict[str, Any]
"""An event of a worker. `event` is study, trial, report, end, retry, restart, lost, deadly, sampler, unused, finished,
idle, hours, done, error or seconds; `seconds` has the time since the previous event by activity: training, compiling,
waiting, database."""


@dataclass
class Stop:
    """A request to stop, for example from a signal handler; the worker gives back its trial at the next report.

    Attributes:
        requested: Whether the worker must stop.
        is_heeded: Whether the worker checks the request yet; not while it imports the study and its data.
    """

    requested: bool = False
    is_heeded: bool = False


def event_line(event: Event) -> str | None:
    """Return the line that a worker in the foreground prints for an event; None for none."""
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
            return f"trial {event['trial']} failed and is retried: {event['error']}"
        case "restart":
            return f"trial {event['trial']} restarts from its first epoch: {event['error']}"
        case "end":
            return f"trial {event['trial']}: {event['outcome']}"
        case "study":
            return f"study {event['study']}, {event['trials']} trials"
        case "hours":
            return "the study's hours are used up"
        case "sampler" | "unused":
            return event["message"]
        case "finished":
            return "the sampler has ended the search"
        case "idle":
            return "waiting for a trial of another worker"
        case _:
            return None


def print_event(event: Event) -> None:
    """Print the line of an event on stderr, or the whole event in a JSON log."""
    line, fields = event_line(event), dict(event)
    name, message = fields.pop("event"), fields.pop("message", None)
    if not is_json():
        fields, message = {}, None
    if line or message or (is_json() and name != "seconds"):
        tell(message or line, name, **fields)
