"""Shows the progress of a launch on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tuner.launch.devices import DeviceGroup
from tuner.output.log import clean, tell
from tuner.output.sanitize import one_line
from tuner.storage import hide_password
from tuner.trial import Event, Outcome, event_line, print_event

_PLAIN_EVERY_S = 5.0
_IN_ORDER = (
    Outcome.PRUNED,
    Outcome.RUNNING,
    Outcome.PREEMPTED,
    Outcome.FAILED,
    Outcome.DIVERGED,
    Outcome.OUT_OF_MEMORY,
)


@dataclass
class Snapshot:
    """The state of a running study.

    Attributes:
        study: Its name; empty until a worker has loaded it.
        trials: The budget; 0 until then.
        counts: The number of trials with each outcome, including those of other launches.
        best: The best value so far, as text.
        best_value: The same as a number; None with several objectives.
        began_s: When this launch started its first trial, on the monotonic clock.
        already: Trials that had used budget by then.
        workers: The state of each worker, by index.
        is_out_of_hours: Whether the study ended because its wall or device hours were used up.
        is_finished: Whether a sampler ended the search, by `Study.stop()`.
    """

    objective: str = ""
    study: str = ""
    trials: int = 0
    counts: Mapping[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    best: str = ""
    best_value: float | None = None
    began_s: float | None = None
    already: int = 0
    workers: dict[int, str] = field(default_factory=dict[int, str])
    is_out_of_hours: bool = False
    is_finished: bool = False

    @property
    def used(self) -> int:
        """Trials that have used budget."""
        return sum(count for outcome, count in self.counts.items() if outcome.uses_budget)

    def seconds_left(self, now_s: float) -> float | None:
        """Return the estimated time to the end at the current rate; None before the first trial ends."""
        done = self.used - self.already
        if self.began_s is None or done <= 0:
            return None
        return (now_s - self.began_s) / done * max(0, self.trials - self.used)

    def line(self, now_s: float) -> str:
        """Return the state of the study in one line."""
        counts = self.counts
        parts = [f"{self.used}/{self.trials} trials", f"{counts[Outcome.COMPLETE]} complete"]
        parts += [
            f"{counts[outcome]} {outcome.replace('_', ' ')}"
            for outcome in _IN_ORDER
            if counts[outcome] or outcome in (Outcome.PRUNED, Outcome.RUNNING, Outcome.FAILED)
        ]
        if self.best:
            parts.append(f"best {self.best}")
        left = self.seconds_left(now_s)
        if left is not None:
            parts.append(f"{format_seconds(left)} left")
        return ", ".join(parts)


def format_seconds(seconds: float) -> str:
    """Return a readable duration: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress(Protocol):
    """Shows a snapshot from time to time, and all messages of the launcher and events of workers."""

    def update(self, snapshot: Snapshot) -> None: ...
    def note(self, message: str, event: str, level: str = "info", **fields: object) -> None: ...
    def say(self, event: Event) -> None: ...
    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def shown(event: Event) -> str | None:
    """Return the line to show for an event of a worker or the mirror; None for none."""
    match event["event"]:
        case "retry" | "restart":
            return f"[{event['place']}] {event_line(event)}"
        case "sampler" | "unused":
            return f"[{event['place']}] {event['message']}"
        case "output":
            return f"[{event['place']}] {event['message']}"
        case "track":
            return f"[track] {event['message']}"
        case _:
            return None


class PlainProgress:
    """Prints one line when a trial has ended, at most every few seconds; for logs and pipes."""

    def __init__(self) -> None:
        self._shown: Mapping[Outcome, int] = {}
        self._next_s = 0.0
        self._last: Snapshot | None = None

    def update(self, snapshot: Snapshot) -> None:
        now_s = time.monotonic()
        self._last = snapshot
        if not snapshot.study or (now_s < self._next_s and snapshot.used < snapshot.trials):
            return
        if snapshot.counts != self._shown:  # a change of only the time left is not shown
            self.note(
                snapshot.line(now_s),
                "progress",
                trials=snapshot.trials,
                counts=dict(snapshot.counts),
                best=snapshot.best_value,
                left_s=snapshot.seconds_left(now_s),
            )
            self._shown, self._next_s = dict(snapshot.counts), now_s + _PLAIN_EVERY_S

    def note(self, message: str, event: str, level: str = "info", **fields: object) -> None:
        tell(message, event, level, **fields)

    def say(self, event: Event) -> None:
        text = shown(event)
        if text is not None:
            self.note(text, event["event"])

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._next_s = 0.0  # the end is always shown
            self.update(self._last)


class JsonProgress(PlainProgress):
    """Prints the same and every event of the workers as JSON, for programs."""

    def say(self, event: Event) -> None:
        texts = {name: hide_password(value) for name, value in event.items() if isinstance(value, str)}
        print_event({**event, **texts})


class LiveProgress:
    """A live table, for terminals."""

    def __init__(self, console: Console, groups: list[DeviceGroup]) -> None:
        self._console, self._groups = console, groups
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def update(self, snapshot: Snapshot) -> None:
        self._live.update(draw(snapshot, self._groups, time.monotonic()))

    def note(self, message: str, event: str, level: str = "info", **fields: object) -> None:
        self._live.console.print(f"tuner: {clean(message)}", markup=False, highlight=False, soft_wrap=True)

    def say(self, event: Event) -> None:
        text = shown(event)
        if text is not None:
            self.note(text, event["event"])

    def __enter__(self) -> LiveProgress:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


def draw(snapshot: Snapshot, groups: list[DeviceGroup], now_s: float) -> Group:
    """Return the live table."""
    counts = Table(box=None, pad_edge=False, header_style="bold")
    shown = {
        "done": f"{snapshot.used}/{snapshot.trials}" if snapshot.trials else "",
        "complete": str(snapshot.counts[Outcome.COMPLETE]),
        "running": str(snapshot.counts[Outcome.RUNNING]),
        "pruned": str(snapshot.counts[Outcome.PRUNED]),
        "failed": str(snapshot.counts[Outcome.FAILED]),
        "diverged": str(snapshot.counts[Outcome.DIVERGED] + snapshot.counts[Outcome.OUT_OF_MEMORY]),
        f"best {snapshot.objective}".rstrip(): snapshot.best or "-",
        "time left": "" if (left := snapshot.seconds_left(now_s)) is None else format_seconds(left),
    }
    for heading in shown:
        counts.add_column(Text(heading), justify="right", no_wrap=True)
    counts.add_row(*shown.values())
    workers = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("worker", "devices", "state"):
        workers.add_column(heading, no_wrap=True)
    for index, group in enumerate(groups):
        workers.add_row(str(index), str(group), Text(one_line(snapshot.workers.get(index, "starting"))))
    title = Text(one_line(f"study {snapshot.study}") if snapshot.study else "loading the study", style="bold")
    return Group(title, counts, Text(""), workers)
