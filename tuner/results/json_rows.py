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
    timed_out: int
    """The number of trials with this outcome; they count against the budget."""
    failed: int
    """The number of trials that ended with an error, after all retries."""


class StudyJson(TypedDict):
    """A row of `tuner studies`."""

    study: str
    """Its name."""
    owner: str | None
    """Who it belongs to: its user attribute `owner`; null if it has none."""
    labels: list[str]
    """Its [labels](guide/several-studies.md): its user attribute `labels`."""
    state: str | None
    """`stopped` (by `tuner stop`), `finished` (the trials asked for are done, or `reason` says why the study has ended
    before), `out of hours`, `running` (a worker holds a trial), `idle`; null for a study of plain Optuna."""
    reason: str | None
    """Why the study has ended before its trials were done: its [target, patience or
    terminator](guide/when-to-stop.md), or that its sampler has ended the search; else null."""
    workers: int
    """The number of workers that hold a trial of the study."""
    objective: str | None
    """The metric, or several as `a, b`; null for a study of plain Optuna."""
    direction: str
    """`minimize` or `maximize`, or several."""
    trials: int
    """The number of trials with any outcome."""
    complete: int
    pruned: int
    diverged: int
    out_of_memory: int
    timed_out: int
    """The number of trials with this outcome; they count against the budget."""
    failed: int
    """The number of trials that ended with an error, after all retries."""
    preempted: int
    """The number of trials that were given back or lost their worker, and wait for another one."""
    running: int
    waiting: int
    """The number of trials that a worker holds; the number of queued trials."""
    best: Number | None
    """The best objective of a complete trial that satisfies its constraints; null with several objectives."""
    best_stderr: NotRequired[Number | None]
    """Its standard error, if trials train with [several seeds](guide/seeds.md)."""


class BestStderrJson(TypedDict):
    """The standard error of a study's best value."""

    best_stderr: NotRequired[Number | None]


class SeedsJson(TypedDict):
    """The values of a trial's seeds."""

    seed_values: NotRequired[list[Number] | list[list[Number]] | None]


class ResultJson(TypedDict):
    """A trial's result: `value` of one objective, `values` of several."""

    value: NotRequired[Number | None]
    values: NotRequired[list[Number] | None]
    stderr: NotRequired[Number | None]
    stderrs: NotRequired[list[Number] | None]
    trained_seeds: NotRequired[int | None]
    objectives: NotRequired[list[str]]


class EndJson(TypedDict):
    """What `tuner watch` shows of a trial that has ended."""

    number: int
    """The trial's number in its study, from 0."""
    outcome: str
    """One of the outcomes above."""
    value: NotRequired[Number | None]
    """The objective of a complete trial; with several objectives `values`, a list."""
    values: NotRequired[list[Number] | None]
    """The objectives in the study's order, if there are several."""
    stderr: NotRequired[Number | None]
    """The standard error of `value`, the mean over the trial's own seeds; only of a study with [several
    seeds](guide/seeds.md); null unless the trial is complete."""
    stderrs: NotRequired[list[Number] | None]
    """The same for each of several objectives."""
    trained_seeds: NotRequired[int | None]
    """The number of these seeds; null before the trial has ended."""
    objectives: NotRequired[list[str]]
    """Their names, in the same order; `0`, `1`, ... if another tool created the study without names. Tables and CSV
    have a column `values.NAME` for each instead."""
    is_feasible: bool | None
    """Whether the trial satisfies all its constraints: each is 0 or less; null if it has none."""
    seconds: float | None
    """The time from its start to its end; null before it has ended, and if its times have an unknown zone."""


class TrialJson(EndJson):
    """A row of `tuner trials`."""

    hparams: dict[str, Scalar]
    """Hyperparameter -> value; for a choice, its label."""
    user_attrs: dict[str, object]
    """Attributes that the training has stored with Optuna's `set_user_attr` -> value; any JSON."""


class ConfirmedJson(TypedDict):
    """What `tuner confirm` found of a trial."""

    seeds: int
    """The number of other seeds that count: those that all confirmed trials have."""
    mean: Number | None
    """The mean objective over them; null if one was not finite."""
    low: Number | None
    high: Number | None
    """The 95 % t interval of the mean, from the trial's own values; null for fewer than two seeds, or if all are
    equal."""
    is_tied: bool
    """Whether it cannot be distinguished from the first (Tukey's test over all confirmed trials and their common seeds,
    95 %)."""
    margin: Number | None
    """The difference between two means from which that test distinguishes two trials; null if it is not known."""
    tied_with: list[int]
    """For the first trial, the numbers of the trials it cannot be distinguished from; otherwise empty."""


class BaselineJson(TypedDict):
    """How a trial compares with its study's baseline."""

    number: int
    value: Number | None
    """The baseline's trial number, and its objective; if both trials were confirmed, the mean over their common
    seeds."""
    better_by: Number | None
    """How much better the trial is, in the study's direction; negative if it is worse, null if one was not finite."""
    low: Number | None
    high: Number | None
    """The 95 % interval of `better_by`, by Tukey's test as above; null for fewer than two seeds, or if they show no
    noise."""
    seeds: int
    """The number of other seeds behind these numbers; 0 if they are the trials' own values."""


class EpochsJson(TypedDict):
    """Which epoch of a trial counts."""

    value_epoch: str | None
    """The epoch whose value ranks the trials: `last` or `best`; null if the training returns the value itself."""
    kept_epoch: str | None
    """The epoch whose model or saved state is kept: `last` or `best`; null if tuner keeps none."""


class BestJson(TrialJson, EpochsJson):
    """A row of `tuner best` and `tuner confirm`."""

    confirmed: NotRequired[ConfirmedJson | None]
    """The result of `tuner confirm`; null if it was not run, absent with several objectives."""
    baseline: NotRequired[BaselineJson | None]
    """The comparison with the study's baseline; null without a baseline, or before it is complete; absent with several
    objectives."""


class TimingsJson(TypedDict):
    """Where a trial's seconds went."""

    compile_s: float | None
    compilations: int | None
    """Seconds spent compiling in the last attempt, and the number of compiled programs."""
    programs_fetched: int | None
    """The number of programs that it took from the [compile cache](guide/several-machines.md#compiled-programs)."""
    compile_saved_s: float | None
    """Seconds of compiling that programs from the compile cache saved; null if none came from it."""
    lanes: int | None
    """The number of trainings that its program runs [at once](guide/cohorts.md), one for each trial or seed; 1 if it
    trained alone."""
    train_s: float | None
    """The other seconds of the last attempt."""
    wait_s: float | None
    """The rest of `seconds`: earlier attempts, and time in which no worker ran it."""


class GpuJson(TypedDict):
    """The use of the [GPUs](guide/gpus.md) on which a trial trained in its last attempt: whatever ran there counts."""

    peak_bytes: int | None
    """The highest memory use that was seen on one of its GPUs."""
    mean_bytes: int | None
    """The mean memory use, over its GPUs and the samples."""
    total_bytes: int | None
    """The memory that the GPU with the highest use has."""
    percent: float | None
    """The mean utilisation: the share of the time in which a kernel ran, 0 to 100, over its GPUs and the samples."""


class ReportJson(TypedDict):
    """What a trial has reported of an epoch."""

    epoch: int
    step: int | None
    """The epoch, from 1; optimizer updates so far."""
    value: Number | None
    """The value reported to Optuna: the objective; null with several objectives."""
    metrics: dict[str, Number]
    """Metric -> value; training metrics begin with `train_`."""


class AttemptJson(TypedDict):
    """One worker's run of a trial."""

    worker: str
    devices: int
    seconds: float | None
    """The worker, the number of devices, the duration."""
    ending: str | None
    """An outcome, `preempted` or `died`; null while it runs."""
    error: str | None
    """The traceback of a failed attempt."""


class CopyJson(TypedDict):
    """A copy that a trial took of another, with [pruner `pbt`](guide/population.md)."""

    epoch: int
    trial: int
    """The epoch after which it took the copy, and the number of the copied trial."""
    hparams: dict[str, Scalar]
    """The hyperparameters with which it continued."""


class ShownJson(TrialJson):
    """What `tuner show` prints."""

    study: str
    """The study's name."""
    seed_values: NotRequired[list[Number] | list[list[Number]] | None]
    """The objective with each seed, in a list per seed if there are several objectives; only of a study with [several
    seeds](guide/seeds.md)."""
    constraints: dict[str, Number] | None
    """Optuna's constraints by name, or by position `0`, `1`, ... if they are a list; null if there are none."""
    started: str | None
    completed: str | None
    """UTC, ISO 8601 with a `Z`; without a `Z` if an earlier version stored [local time of an unknown
    zone](storage.md#times)."""
    compile_s: float | None
    compilations: int | None
    """Seconds spent compiling in the last attempt, and the number of compiled programs."""
    programs_fetched: int | None
    """The number of programs that it took from the [compile cache](guide/several-machines.md#compiled-programs)."""
    compile_saved_s: float | None
    """Seconds of compiling that programs from the compile cache saved; null if none came from it."""
    lanes: int | None
    """The number of trainings that its program runs [at once](guide/cohorts.md), one for each trial or seed; 1 if it
    trained alone."""
    train_s: float | None
    """The other seconds of the last attempt."""
    wait_s: float | None
    """The rest of `seconds`: earlier attempts, and time in which no worker ran it."""
    gpu: GpuJson | None
    """The memory and the utilisation of its NVIDIA GPUs; null if they were not recorded."""
    worker: str | None
    """The worker that ended it."""
    checkpoint: str | None
    """The path of its best checkpoint, or its URL in object storage."""
    error: str | None
    """The traceback of a failed attempt."""
    copies: list[CopyJson] | None
    """The copies that it took of other trials, by epoch; null if there are none. `hparams` has those of its start."""
    extends: int | None
    """The number of the trial that it [continues](guide/extending.md); null if it began by itself."""
    reports: list[ReportJson]
    """A list, by epoch."""
    attempts: list[AttemptJson]
    """A list of the times that a worker ran it."""
    ran_with: RanWith | None
    """About the last worker: `host`, `devices`, `file` (the study's), `code` (a digest of it), `git` (`commit`,
    `is_changed`), `versions`."""
    ended_study: str | None
    """Why the study has ended with this trial, if it reached the study's target; else null."""


class CompareJson(TypedDict):
    """A row of `tuner compare`."""

    study: str
    objective: str | None
    direction: str
    """As above."""
    best: Number | None
    median: Number | None
    """Best and median objective of the complete trials that satisfy their constraints."""
    trials: int
    complete: int
    pruned: int
    diverged: int
    out_of_memory: int
    timed_out: int
    failed: int
    """Counts."""
    device_hours: float | None
    """Hours of all attempts, times the devices of each; null for a study of plain Optuna."""
    hours_saved: float | None
    """Estimate of the device hours saved by pruning: each epoch not run counts as long as the trial's epochs after its
    first, or as the study's median if the trial has only one; null if that is not known either."""


class SharesJson(TypedDict):
    """A hyperparameter's importance by each method."""

    ped_anova: float | None
    fanova: float | None


class ImportanceJson(TypedDict):
    """A row of `tuner importance`."""

    objective: str
    """The name of the objective; `seconds` for the training time."""
    hparam: str
    """The hyperparameter."""
    ped_anova: float | None
    fanova: float | None
    """Its share by each method; both sum to 1 over the hyperparameters; null if a method has none."""


class SpreadJson(TypedDict):
    """A number over the orders of arrival of a replay."""

    mean: Number | None
    """Its mean; null if the study was recorded with pruning."""
    low: Number
    high: Number
    """The 2.5 and 97.5 % percentiles over the orders. If the study was recorded with pruning: those of the lower and of
    the higher of the two cases of each order."""


class ReplayJson(TypedDict):
    """A row of `tuner replay`."""

    pruner: str
    """The pruner's name, or its JSON with the options."""
    trials: int
    censored: int
    """The number of ended trials, and of those that were pruned when the study ran."""
    orders: int
    workers: int
    """The number of random orders, and of trials that run at once."""
    stopped: SpreadJson
    """The number of trials that the pruner stops."""
    epochs: int
    epochs_saved: SpreadJson
    """The epochs of all trials without a pruner; those that it saves."""
    hours: float | None
    hours_saved: SpreadJson | None
    """The same in device hours; null if it is not known how long an epoch took."""
    best: Number
    """The best objective of the study, of a complete trial that satisfies its constraints."""
    regret: SpreadJson
    """How much worse the best trial is that the pruner does not stop; `inf` if it stops all with a value."""


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
