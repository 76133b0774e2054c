"""What the queries print as JSON. `docs/json.md` has its tables of fields from here: scripts/json_reference.py.

A field without a docstring shares that of the next field which has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypeAlias, TypedDict

from tuner.storage.read.lineage import RanWith

Scalar: TypeAlias = str | int | float | bool | None
"""A value of JSON that is not nested. NaN and the infinities are texts."""
Number: TypeAlias = float | str
"""A number; of one that is not finite its name."""


class EndedJson(TypedDict):
    """How many trials of a study have ended how."""

    complete: int
    pruned: int
    diverged: int
    out_of_memory: int
    """How many ended so: these count against the budget."""
    failed: int
    """How many ended with an error, again and again."""


class StudyJson(TypedDict):
    """A row of `tuner studies`."""

    study: str
    """Its name."""
    state: str | None
    """`stopped` (by `tuner stop`), `finished` (the trials asked for are done), `out of hours`, `running` (a worker
    holds a trial), `idle`; null for a study of plain Optuna."""
    workers: int
    """How many workers hold a trial of it."""
    objective: str | None
    """The metric, or several as `a, b`; null for a study of plain Optuna."""
    direction: str
    """`minimize` or `maximize`, or several."""
    trials: int
    """How many there are, of all outcomes."""
    complete: int
    pruned: int
    diverged: int
    out_of_memory: int
    """How many ended so: these count against the budget."""
    failed: int
    """How many ended with an error, again and again."""
    preempted: int
    """How many were given back or lost their worker, and wait for another."""
    running: int
    waiting: int
    """How many a worker has; how many are queued."""
    best: Number | None
    """The best objective of a complete trial that satisfies its constraints; null with several objectives."""


class ResultJson(TypedDict):
    """A trial's result: `value` of one objective, `values` of several."""

    value: NotRequired[Number | None]
    values: NotRequired[list[Number] | None]


class EndJson(TypedDict):
    """What `tuner watch` shows of a trial that has ended."""

    number: int
    """The trial's number in its study, from 0."""
    outcome: str
    """One of the outcomes above."""
    value: NotRequired[Number | None]
    """The objective, of complete trials; with several objectives `values`, a list."""
    values: NotRequired[list[Number] | None]
    """The objectives in the study's order, where there are several."""
    is_feasible: bool | None
    """Whether the trial satisfies all its constraints: each is 0 or less; null if it has none."""
    seconds: float | None
    """From its start to its end; null before it has ended, and where times of an unknown zone do not tell."""


class TrialJson(EndJson):
    """A row of `tuner trials`."""

    hparams: dict[str, Scalar]
    """Hyperparameter -> value; of a choice its label."""


class ConfirmedJson(TypedDict):
    """What `tuner confirm` found of a trial."""

    seeds: int
    """How many other seeds count: those that all confirmed trials have."""
    mean: Number | None
    """The mean objective over them; null if one was not finite."""
    low: Number | None
    high: Number | None
    """The 95 % t interval of the mean, from the trial's own values; null for fewer than two seeds, or if all are
    equal."""
    is_tied: bool
    """Whether it cannot be told apart from the first (Tukey's test over all confirmed trials and their common seeds,
    95 %)."""
    margin: Number | None
    """By how much the means of two trials must differ to be told apart by that test; null where that is not known."""
    tied_with: list[int]
    """Of the first: the numbers of those it cannot be told apart from; else empty."""


class BaselineJson(TypedDict):
    """How a trial compares with its study's baseline."""

    number: int
    value: Number | None
    """The baseline's trial, and its objective: if both were confirmed, the mean over their common seeds."""
    better_by: Number | None
    """How much better the trial is, in the study's direction; negative if it is worse, null if one was not finite."""
    low: Number | None
    high: Number | None
    """The 95 % interval of `better_by`, by Tukey's test as above; null for fewer than two seeds, or where these show no
    noise."""
    seeds: int
    """How many other seeds these numbers are of; 0 if they are the trials' own values."""


class BestJson(TrialJson):
    """A row of `tuner best` and `tuner confirm`."""

    confirmed: NotRequired[ConfirmedJson | None]
    """What `tuner confirm` found; null if it was not asked, absent with several objectives."""
    baseline: NotRequired[BaselineJson | None]
    """How the trial compares with the study's baseline; null without one, or before it is complete; absent with several
    objectives."""


class TimingsJson(TypedDict):
    """Where a trial's seconds went."""

    compile_s: float | None
    compilations: int | None
    """Seconds spent compiling in the last attempt, and how many programs."""
    train_s: float | None
    """The other seconds of the last attempt."""
    wait_s: float | None
    """The rest of `seconds`: earlier attempts, and time in which nobody ran it."""


class ReportJson(TypedDict):
    """What a trial has reported of an epoch."""

    epoch: int
    step: int | None
    """The epoch, from 1; optimizer updates so far."""
    value: Number | None
    """What Optuna was told: the objective; null with several."""
    metrics: dict[str, Number]
    """Metric -> value; training metrics begin with `train_`."""


class AttemptJson(TypedDict):
    """One worker's run of a trial."""

    worker: str
    devices: int
    seconds: float | None
    """Who, on how many devices, for how long."""
    ending: str | None
    """An outcome, `preempted` or `died`; null while it goes on."""
    error: str | None
    """The traceback of one that failed."""


class ShownJson(TrialJson):
    """What `tuner show` prints."""

    study: str
    """The study's name."""
    constraints: dict[str, Number] | None
    """Optuna's constraints by name, those of a list by their places `0`, `1`, ...; null if there are none."""
    started: str | None
    completed: str | None
    """UTC, ISO 8601 with a `Z`; without a `Z` where an earlier version stored [local time of an unknown
    zone](storage.md#times)."""
    compile_s: float | None
    compilations: int | None
    """Seconds spent compiling in the last attempt, and how many programs."""
    train_s: float | None
    """The other seconds of the last attempt."""
    wait_s: float | None
    """The rest of `seconds`: earlier attempts, and time in which nobody ran it."""
    worker: str | None
    """Who ended it."""
    checkpoint: str | None
    """Where its best checkpoint is."""
    error: str | None
    """The traceback of one that failed."""
    reports: list[ReportJson]
    """A list, by epoch."""
    attempts: list[AttemptJson]
    """A list: each time a worker had it."""
    ran_with: RanWith | None
    """Of the last worker: `host`, `devices`, `file` (the study's), `code` (a digest of it), `git` (`commit`,
    `is_changed`), `versions`."""


class CompareJson(TypedDict):
    """A row of `tuner compare`."""

    study: str
    objective: str | None
    direction: str
    """As above."""
    best: Number | None
    median: Number | None
    """Of the complete trials that satisfy their constraints."""
    trials: int
    complete: int
    pruned: int
    diverged: int
    out_of_memory: int
    failed: int
    """Counts."""
    device_hours: float | None
    """Hours of all attempts, times the devices of each; null for a study of plain Optuna."""
    hours_saved: float | None
    """Device hours that pruning saved, an estimate: epochs not run, each as long as those of the trial after its first,
    or as the study's median where the trial has no second; null if that is not known either."""


class SharesJson(TypedDict):
    """A hyperparameter's importance by each method."""

    ped_anova: float | None
    fanova: float | None


class ImportanceJson(TypedDict):
    """A row of `tuner importance`."""

    objective: str
    """Which."""
    hparam: str
    """The hyperparameter."""
    ped_anova: float | None
    fanova: float | None
    """Its share by each method; both sum to 1 over the hyperparameters; null where a method has none."""


class BusyJson(TypedDict):
    """What a worker trains now, as `tuner watch` shows it."""

    worker: str
    devices: str
    trial: int | None
    epoch: int | None
    metrics: str


class WatchedJson(TypedDict):
    """How a study stands, for `tuner watch`: its row, the workers at work, the latest trials that ended."""

    study: StudyJson
    workers: list[BusyJson]
    ended: list[EndJson]


JsonRow: TypeAlias = Mapping[str, object]
"""Any of these rows, or another whose fields have names."""
