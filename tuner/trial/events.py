"""Events of a worker, and the flag that asks it to stop."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tuner.output.log import LogLine, is_json, tell
from tuner.trial.report import Outcome


@dataclass
class Stop:
    """A request to stop, for example from a signal handler; the worker gives back its trial at the next report.

    Attributes:
        requested: Whether the worker must stop.
        is_heeded: Whether the worker checks the request yet; not while it imports the study and its data.
        is_noticed: Whether the trial has checked the request, and now saves its state.
        owns_process: Whether the process is only a worker, and may be ended with a trial that does not end.
        has_launcher: Whether a launcher started the process, which kills it soon after a request.
        ends_at_s: When the process ends at the latest, on the clock of `time.monotonic`; None before a request.
        give_back: Gives back the worker's trial while its thread is still training; may be called on any thread.
    """

    requested: bool = False
    is_heeded: bool = False
    is_noticed: bool = False
    owns_process: bool = False
    has_launcher: bool = False
    ends_at_s: float | None = None
    give_back: Callable[[], None] = field(default=lambda: None)


# --- What is said


@dataclass(frozen=True)
class Event:
    """A message from a worker or the mirror; each kind has its own class. `encode` turns it into a JSON object.

    Attributes:
        name: The kind as the line has it, under `event`.
        level: `warning` or `error`; None for what is in order.
        time: When it was sent, in UTC; None before.
        seconds: What the worker's time since its event before went on, in seconds: training, compiling, waiting,
            database. None of what is no event of a worker's loop.
    """

    name: ClassVar[str]
    level: ClassVar[str | None] = None
    time: str | None = field(default=None, kw_only=True)
    seconds: Mapping[str, float] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class StudyLoaded(Event):
    """A worker is ready.

    Attributes:
        study: The study's name.
        trials: The budget.
        objective: The names of the objectives, with commas between them.
        combinations: The number of combinations of static hyperparameters whose programs can be compiled before a
            trial needs them; 0 for none.
    """

    name = "study"
    study: str
    trials: int
    objective: str
    combinations: int = 0


@dataclass(frozen=True)
class TrialBegan(Event):
    """A worker starts a trial: its number and its hyperparameters."""

    name = "trial"
    trial: int
    hparams: Mapping[str, Any]


@dataclass(frozen=True)
class EpochEnded(Event):
    """An epoch of a trial was validated: its number from 1, the optimizer updates so far, a value per objective."""

    name = "report"
    trial: int
    epoch: int
    step: int
    values: Sequence[float]


@dataclass(frozen=True)
class TrialEnded(Event):
    """A trial has ended, and is stored.

    Attributes:
        trial: Its number.
        outcome: How it ended.
        values: A value per objective; None without a result.
        train_s: Seconds of training.
        compile_s: Seconds of compiling.
        stderrs: The standard error of each value, the mean over several seeds; None with one seed.
    """

    name = "end"
    trial: int
    outcome: Outcome
    values: Sequence[float] | None
    train_s: float
    compile_s: float
    stderrs: Sequence[float] | None = None


@dataclass(frozen=True)
class TrialReleased(Event):
    """A worker has released a trial before its end. Written as an `end` event with the outcome `released`."""

    name = "end"
    trial: int
    outcome: str = field(default="released", init=False)


@dataclass(frozen=True)
class TrialRetried(Event):
    """A trial failed with this error, and is retried."""

    name, level = "retry", "warning"
    trial: int
    error: str


@dataclass(frozen=True)
class TrialRestarted(Event):
    """A trial restarts from its first epoch, because its checkpoint does not fit the study's file any more."""

    name, level = "restart", "warning"
    trial: int
    error: str


@dataclass(frozen=True)
class TrialCopied(Event):
    """A trial continues with a copy of another: after which epoch, of which trial, with which hyperparameters."""

    name = "copy"
    trial: int
    epoch: int
    copied: int
    hparams: Mapping[str, Any]


@dataclass(frozen=True)
class TrialLost(Event):
    """A worker drops a trial that another has taken over."""

    name, level = "lost", "warning"
    trial: int
    message: str


@dataclass(frozen=True)
class TrialOverdue(Event):
    """A trial makes no progress, or does not end although it has passed a limit."""

    name, level = "overdue", "warning"
    trial: int
    message: str


@dataclass(frozen=True)
class TrialDeadly(Event):
    """A trial was failed because too many workers died in it."""

    name, level = "deadly", "warning"
    trial: int
    message: str


@dataclass(frozen=True)
class SamplerFailed(Event):
    """The sampler raised an error after a trial, which is stored."""

    name, level = "sampler", "warning"
    trial: int
    message: str


@dataclass(frozen=True)
class SearchPrepared(Event):
    """What was stored with a new study for its sampler: the choice of `auto`, a module, trials of earlier studies."""

    name = "search"
    message: str


@dataclass(frozen=True)
class GpusUnwatched(Event):
    """Memory and utilisation of the worker's GPUs are not recorded any more."""

    name = "gpu"
    message: str


@dataclass(frozen=True)
class HparamsUnused(Event):
    """A trial was queued with hyperparameters that it does not have."""

    name, level = "unused", "warning"
    trial: int
    message: str


@dataclass(frozen=True)
class MetricUnusable(Event):
    """A trial counts as infeasible, because a metric with a constraint is missing or NaN."""

    name, level = "infeasible", "warning"
    trial: int
    message: str


@dataclass(frozen=True)
class SearchFinished(Event):
    """The sampler has ended the search."""

    name = "finished"


@dataclass(frozen=True)
class StudyEnded(Event):
    """The study has ended before its budget was used up: the setting that ended it, and a line that says why."""

    name = "ended"
    rule: str
    message: str


@dataclass(frozen=True)
class WorkerIdle(Event):
    """A worker waits for trials of others."""

    name = "idle"


@dataclass(frozen=True)
class CohortChosen(Event):
    """A worker has chosen how many trials it trains at once, and says why if that is only one."""

    name = "cohort"
    lanes: int
    message: str


@dataclass(frozen=True)
class ProgramsCompiled(Event):
    """Programs were compiled before a trial needed them.

    Attributes:
        combinations: The combinations of static hyperparameters.
        programs: The number of programs.
        fetched: The number of others, which the compile cache had already.
        took_s: The seconds that it took.
    """

    name = "compiled"
    combinations: int
    programs: int
    fetched: int
    took_s: float


@dataclass(frozen=True)
class HoursUsed(Event):
    """The study's hours are used up."""

    name = "hours"


@dataclass(frozen=True)
class WorkerDone(Event):
    """A worker ends."""

    name = "done"


@dataclass(frozen=True)
class StudyRefused(Event):
    """A worker cannot go on: what is wrong with the study, and the status that the worker exits with."""

    name, level = "error", "error"
    message: str
    exit_status: int


@dataclass(frozen=True)
class SecondsSpent(Event):
    """Only how time is spent; sent regularly, because an epoch may take an hour."""

    name = "seconds"


@dataclass(frozen=True)
class RowsSent(Event):
    """A tracker has taken what the mirror sent."""

    name = "progress"


_KINDS: Mapping[str, type[Event]] = {
    kind.name: kind
    for kind in (
        *(StudyLoaded, TrialBegan, EpochEnded, TrialEnded, TrialRetried, TrialRestarted, TrialLost, TrialDeadly),
        *(TrialOverdue, TrialCopied),
        *(CohortChosen, StudyEnded, MetricUnusable, SearchPrepared, ProgramsCompiled, GpusUnwatched),
        *(SamplerFailed, HparamsUnused, SearchFinished, WorkerIdle, HoursUsed, WorkerDone, StudyRefused, SecondsSpent),
        RowsSent,
    )
}
OF_PIPES = frozenset(_KINDS) - {StudyRefused.name, RowsSent.name}
"""What workers say on their pipe alone: a printed line that is called so is the study's own. Any command may print
an error, and a launch its progress."""
_STAMP = ("time", "seconds")


# --- As lines of JSON


def encode(event: Event) -> dict[str, Any]:
    """Return an event as a JSON object."""
    own = {part.name: getattr(event, part.name) for part in dataclasses.fields(event) if part.name not in _STAMP}
    if own.get("stderrs", ...) is None:  # a trial with one seed
        del own["stderrs"]
    before = {"time": event.time, "event": event.name, "level": event.level}
    stamped = {name: value for name, value in before.items() if value is not None} | own
    return stamped if event.seconds is None else {**stamped, "seconds": dict(event.seconds)}


def parse(line: str) -> Event | None:
    """Return the event in a line of JSON; None for a kind that this version does not know."""
    said: dict[str, Any] = json.loads(line)
    kind = _KINDS.get(said["event"])
    if kind is TrialEnded:
        kind = TrialReleased if said["outcome"] == TrialReleased.outcome else TrialEnded
    if kind is None:
        return None
    given = {part.name: said[part.name] for part in dataclasses.fields(kind) if part.init and part.name in said}
    if kind is TrialEnded:
        given["outcome"] = Outcome(given["outcome"])
    return kind(**given)


# --- For people


def event_line(event: Event) -> str | None:
    """Return the line that a worker in the foreground prints for an event; None for none."""
    match event:
        case TrialBegan(trial, hparams):
            settings = ", ".join(_setting(name, value) for name, value in hparams.items())
            return f"trial {trial}: {settings or 'started'}"
        case EpochEnded(trial, epoch, _, values):
            return f"trial {trial}, epoch {epoch}: {', '.join(f'{value:.4g}' for value in values)}"
        case TrialRetried(trial, error):
            return f"trial {trial} failed and is retried: {error}"
        case TrialCopied(trial, epoch, copied, hparams):
            settings = ", ".join(_setting(name, value) for name, value in hparams.items())
            return f"trial {trial} copies trial {copied} after epoch {epoch}: {settings}"
        case TrialRestarted(trial, error):
            return f"trial {trial} restarts from its first epoch: {error}"
        case TrialEnded(trial=trial, outcome=outcome) | TrialReleased(trial=trial, outcome=outcome):
            return f"trial {trial}: {outcome}"
        case StudyLoaded(study, trials):
            return f"study {study}, {trials} trials"
        case HoursUsed():
            return "the study's hours are used up"
        case SamplerFailed(_, message) | HparamsUnused(_, message) | MetricUnusable(_, message):
            return message
        case TrialOverdue(_, message) | CohortChosen(_, message):
            return message
        case StudyEnded(_, message) | SearchPrepared(message) | GpusUnwatched(message):
            return message
        case ProgramsCompiled(combinations, programs, _, took_s):
            values = "1 combination" if combinations == 1 else f"{combinations} combinations"
            return f"compiled {programs} programs for {values} of static values in {took_s:.0f} s"
        case SearchFinished():
            return "the sampler has ended the search"
        case WorkerIdle():
            return "waiting for a trial of another worker"
        case _:
            return None


def _setting(name: str, value: object) -> str:
    return f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"


def print_event(event: Event) -> None:
    """Print the line of an event on stderr, or the whole event in a JSON log."""
    print_said(event)


def print_said(said: Event | LogLine, **about: object) -> None:
    """Print an event or a line of a process's log on stderr: for people its text, in a JSON log all of it.

    Args:
        said: What was said.
        about: The worker that said it, for a JSON log; a field of the line itself has precedence.
    """
    is_line = isinstance(said, LogLine)
    name, line = (said.event, None) if is_line else (said.name, event_line(said))
    fields = dict(said.fields) if is_line else encode(said)
    if not is_json():
        if line:
            tell(line, name)
    elif name != SecondsSpent.name:
        message, level = fields.get("message"), str(fields.get("level", "info"))
        more = {key: value for key, value in fields.items() if key not in ("event", "level", "message")}
        tell(str(message) if message else line, name, level, **{**about, **more})
