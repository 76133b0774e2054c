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
from tuner.output.log import LogLine, clean, tell
from tuner.output.numbers import duration
from tuner.output.sanitize import one_line
from tuner.trial import Event, Outcome, event_line
from tuner.trial.events import (
    CohortChosen,
    GpusUnwatched,
    HparamsUnused,
    MetricUnusable,
    ProgramsCompiled,
    SamplerFailed,
    SearchPrepared,
    TrialOverdue,
    TrialRestarted,
    TrialRetried,
    print_said,
)

_PLAIN_EVERY_S = 5.0
_IN_ORDER = (
    Outcome.PRUNED,
    Outcome.RUNNING,
    Outcome.PREEMPTED,
    Outcome.FAILED,
    Outcome.DIVERGED,
    Outcome.OUT_OF_MEMORY,
    Outcome.TIMED_OUT,
)


@dataclass
class Snapshot:
    """The state of a running study.

    Attributes:
        file: Its file, as the launch got it.
        study: Its name; empty until a worker has loaded it.
        trials: The budget; 0 until then.
        counts: The number of trials with each outcome, including those of other launches.
        best: The best value so far, as text.
        best_value: The same as a number; None with several objectives.
        best_trial: The trial with the best value.
        began_s: When this launch started its first trial, on the monotonic clock.
        already: Trials that had used budget by then.
        workers: The state of each worker, by index.
        is_out_of_hours: Whether the study ended because its wall or device hours were used up.
        ended: The line that says why the study has ended before its budget was used up; empty if it has not.
        is_finished: Whether a sampler ended the search, by `Study.stop()`.
    """

    objective: str = ""
    file: str = ""
    study: str = ""
    trials: int = 0
    counts: Mapping[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    best: str = ""
    best_value: float | None = None
    best_trial: int | None = None
    began_s: float | None = None
    already: int = 0
    workers: dict[int, str] = field(default_factory=dict[int, str])
    is_out_of_hours: bool = False
    is_finished: bool = False
    ended: str = ""

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
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)


class Progress(Protocol):
    """Shows a snapshot from time to time, and all messages of the launcher and events of workers.

    `say` gets the worker's name and place if they are known; the mirror has neither. If several studies run at once, it
    gets the study's name.
    """

    def update(self, snapshot: Snapshot) -> None: ...
    def note(self, message: str, event: str, level: str = "info", **fields: object) -> None: ...
    def say(
        self, said: Event | LogLine, *, worker: str | None = None, place: int | None = None, study: str | None = None
    ) -> None: ...
    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def shown(said: Event | LogLine, place: int | None) -> str | None:
    """Return the line to show for an event of a worker or the mirror; None for none."""
    match said:
        case TrialRetried() | TrialRestarted() | TrialOverdue() | SamplerFailed():
            return f"[{place}] {event_line(said)}"
        case HparamsUnused() | CohortChosen() | MetricUnusable() | SearchPrepared() | GpusUnwatched():
            return f"[{place}] {event_line(said)}"
        case ProgramsCompiled():
            return event_line(said)
        case LogLine(event="output"):
            return f"[{place}] {said.message}"
        case LogLine(event="track"):
            return f"[track] {said.message}"
        case _:
            return None


def _name(said: Event | LogLine) -> str:
    return said.event if isinstance(said, LogLine) else said.name


@dataclass
class _Printed:
    """What was printed of a study last, and when it may be printed again."""

    snapshot: Snapshot
    counts: Mapping[Outcome, int] = field(default_factory=dict[Outcome, int])
    next_s: float = 0.0


class PlainProgress:
    """Prints one line when a trial has ended, at most every few seconds; for logs and pipes."""

    def __init__(self) -> None:
        self._studies: dict[str, _Printed] = {}

    def update(self, snapshot: Snapshot) -> None:
        now_s = time.monotonic()
        last = self._studies.setdefault(snapshot.file, _Printed(snapshot))
        last.snapshot = snapshot
        if not snapshot.study or (now_s < last.next_s and snapshot.used < snapshot.trials):
            return
        if snapshot.counts != last.counts:  # a change of only the time left is not shown
            several = {"study": snapshot.study} if len(self._studies) > 1 else {}
            line = snapshot.line(now_s)
            self.note(
                f"{snapshot.study}: {line}" if several else line,
                "progress",
                **several,
                trials=snapshot.trials,
                counts=dict(snapshot.counts),
                best=snapshot.best_value,
                left_s=snapshot.seconds_left(now_s),
            )
            last.counts, last.next_s = dict(snapshot.counts), now_s + _PLAIN_EVERY_S

    def note(self, message: str, event: str, level: str = "info", **fields: object) -> None:
        tell(message, event, level, **fields)

    def say(
        self, said: Event | LogLine, *, worker: str | None = None, place: int | None = None, study: str | None = None
    ) -> None:
        text = shown(said, place)
        if text is not None:
            self.note(text if study is None else f"{study}: {text}", _name(said))

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for last in list(self._studies.values()):
            last.next_s = 0.0  # the end is always shown
            self.update(last.snapshot)


class JsonProgress(PlainProgress):
    """Prints the same and every event of the workers as JSON, for programs."""

    def say(
        self, said: Event | LogLine, *, worker: str | None = None, place: int | None = None, study: str | None = None
    ) -> None:
        about = {"study": study, "worker": worker, "place": place}
        print_said(said, **{name: value for name, value in about.items() if value is not None})


class LiveProgress:
    """A live table, for terminals."""

    def __init__(self, console: Console, groups: list[DeviceGroup]) -> None:
        self._groups = groups
        self._snapshots: dict[str, Snapshot] = {}
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def update(self, snapshot: Snapshot) -> None:
        self._snapshots[snapshot.file] = snapshot
        shown = list(self._snapshots.values())
        if len(shown) == 1:
            self._live.update(draw(snapshot, self._groups, time.monotonic()))
        else:
            self._live.update(Group(*(part for one in shown for part in self._part(one))))

    def _part(self, snapshot: Snapshot) -> tuple[Group, Text]:
        """Draw one of several studies, with the workers that it has now."""
        return draw(snapshot, self._groups, time.monotonic(), has_all=False), Text("")

    def note(self, message: str, event: str, level: str = "info", **fields: object) -> None:
        self._live.console.print(f"tuner: {clean(message)}", markup=False, highlight=False, soft_wrap=True)

    def say(
        self, said: Event | LogLine, *, worker: str | None = None, place: int | None = None, study: str | None = None
    ) -> None:
        text = shown(said, place)
        if text is not None:
            self.note(text if study is None else f"{study}: {text}", _name(said))

    def __enter__(self) -> LiveProgress:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


def draw(snapshot: Snapshot, groups: list[DeviceGroup], now_s: float, *, has_all: bool = True) -> Group:
    """Return the live table of a study that has all workers of the launch, or only those that have a state."""
    counts = Table(box=None, pad_edge=False, header_style="bold")
    shown = {
        "done": f"{snapshot.used}/{snapshot.trials}" if snapshot.trials else "",
        "complete": str(snapshot.counts[Outcome.COMPLETE]),
        "running": str(snapshot.counts[Outcome.RUNNING]),
        "pruned": str(snapshot.counts[Outcome.PRUNED]),
        "failed": str(snapshot.counts[Outcome.FAILED]),
        "diverged": str(snapshot.counts[Outcome.DIVERGED] + snapshot.counts[Outcome.OUT_OF_MEMORY]),
        **({"timed out": str(timed_out)} if (timed_out := snapshot.counts[Outcome.TIMED_OUT]) else {}),
        f"best {snapshot.objective}".rstrip(): snapshot.best or "-",
        "time left": "" if (left := snapshot.seconds_left(now_s)) is None else duration(left),
    }
    for heading in shown:
        counts.add_column(Text(heading), justify="right", no_wrap=True)
    counts.add_row(*shown.values())
    workers = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("worker", "devices", "state"):
        workers.add_column(heading, no_wrap=True)
    for index, group in enumerate(groups):
        if not has_all and index not in snapshot.workers:
            continue
        workers.add_row(str(index), str(group), Text(one_line(snapshot.workers.get(index, "starting"))))
    title = Text(one_line(f"study {snapshot.study}") if snapshot.study else "loading the study", style="bold")
    return Group(title, counts, Text(""), workers)
