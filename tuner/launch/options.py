"""The options of a launch, and the command lines of the processes that it starts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tuner.errors import UsageError, is_number
from tuner.output.log import is_json
from tuner.storage import AnyURL
from tuner.study.ownership import check_labels, check_owner
from tuner.tracking import MLFLOW_VARIABLE, check_trackers

_OF_WORKERS = (
    "trials",
    "artifacts",
    "wall_hours",
    "device_hours",
    "trial_minutes",
    "stall_minutes",
    "seed",
    "name",
    "sampler",
    "pruner",
    "cohort",
    "owner",
)


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """How to launch a study on this machine.

    Attributes:
        storage: The storage's URL; `$TUNER_STORAGE`, else `sqlite:///tuner.db`, if None.
        artifacts: The folder for checkpoints, or the URL of object storage such as `s3://bucket/prefix`;
            `$TUNER_ARTIFACTS`, else `tuner-artifacts`, if None.
        workers: Number of workers; one for each device (on CPUs at most four) by default.
        devices: `auto`, or ids as in `0,1`.
        devices_per_worker: Number of devices for each worker; on each of its hosts if it has several.
        hosts_per_worker: Number of hosts that train each trial together; on an engine only.
        trials: Total number of trials; overrides the study's.
        wall_hours: Budget in hours during which at least one worker runs; overrides the study's.
        device_hours: Device-hour budget; overrides the study's.
        trial_minutes: Minutes that one trial may take; overrides the study's.
        stall_minutes: Minutes that a trial may go without progress; overrides the study's.
        seed: Random seed; overrides the study's.
        fixed: Hyperparameters that are not searched: name -> value, as written on a command line.
        name: The study's name; overrides the study's. A function needs one.
        objectives: For a function: the metrics to optimize; `value` by default.
        directions: For a function: `maximize` or `minimize` for each objective.
        sampler: A name, or a mapping with `name` and options; overrides the study's.
        pruner: A name, or a mapping with `name` and options; overrides the study's.
        cohort: Number of trials that a worker trains at once in one program, or `auto`; overrides the study's.
        owner: Who the study belongs to; overrides the study's.
        labels: Labels to add to those of the study.
        mlflow: The MLflow server to send the study to; `$MLFLOW_TRACKING_URI` if None.
        tensorboard: The folder in which to write the study for TensorBoard.
        wandb: The W&B project to send the study to.
        notify: Whom to notify of events of the study, see docs/guide/notifications.md; `$TUNER_NOTIFY` if empty.
        metrics_port: The port on which to serve Prometheus metrics; 0 picks a free one. None serves none.
        metrics_host: The address on which to serve them, without a login; 127.0.0.1 if None.
        live: Whether to show a live table, or one line per update; on a terminal a table if None.

    Raises:
        UsageError: A number is too small, or an option needs another one.
    """

    storage: AnyURL | None = None
    artifacts: str | None = None
    workers: int | None = None
    devices: str = "auto"
    devices_per_worker: int | None = None
    hosts_per_worker: int | None = None
    trials: int | None = None
    wall_hours: float | None = None
    device_hours: float | None = None
    trial_minutes: float | None = None
    stall_minutes: float | None = None
    seed: int | None = None
    fixed: Mapping[str, str] | None = None
    name: str | None = None
    objectives: Sequence[str] = ()
    directions: Sequence[str] = ()
    sampler: str | Mapping[str, Any] | None = None
    pruner: str | Mapping[str, Any] | None = None
    cohort: int | Literal["auto"] | None = None
    owner: str | None = None
    labels: Sequence[str] = ()
    mlflow: str | None = None
    tensorboard: str | None = None
    wandb: str | None = None
    notify: Sequence[str] = field(default=(), repr=False)  # there may be secrets in it
    metrics_port: int | None = None
    metrics_host: str | None = None
    live: bool | None = None

    def __post_init__(self) -> None:
        check_number("trials", self.trials, 1)
        check_number("seed", self.seed, 0)
        check_limits(self.wall_hours, self.device_hours, self.trial_minutes, self.stall_minutes)
        check_owner(self.owner)
        check_labels(self.labels)
        if self.metrics_host is not None and self.metrics_port is None:
            raise UsageError(f"`metrics_host` {self.metrics_host} has no effect without `metrics_port`: pass both")

    def worker_command(self, target: str, python: str = sys.executable) -> list[str]:
        """Return the command line of a worker; the storage's URL is for its environment.

        Args:
            target: `FILE` or `FILE:NAME`, as the worker finds it.
            python: The worker's Python.
        """
        given = [(name, getattr(self, name)) for name in _OF_WORKERS]
        options = [_flag(name, value) for name, value in given if value is not None]
        options += [_flag("set", f"{name}={value}") for name, value in (self.fixed or {}).items()]
        options += [_flag("objective", name) for name in self.objectives]
        options += [_flag("direction", direction) for direction in self.directions]
        options += [_flag("label", label) for label in self.labels]
        if is_json():
            options.insert(0, _flag("log_format", "json"))
        return [python, "-m", "tuner", "worker", target, *options]

    def mirror_options(self) -> MirrorOptions:
        """Return the options of the process that sends the study to trackers.

        Raises:
            UsageError: A tracker's address is wrong, or the tracker is not installed.
        """
        # What was given must be right. $MLFLOW_TRACKING_URI may be meant for others: the mirror reports its problems.
        check_trackers(self.mlflow, self.tensorboard, self.wandb)
        options = [_flag("tensorboard", os.path.abspath(self.tensorboard))] if self.tensorboard else []
        options += [_flag("wandb", self.wandb)] if self.wandb else []
        uri = self.mlflow or os.environ.get(MLFLOW_VARIABLE)
        # Not as an option: there may be a password in it.
        return MirrorOptions(options, {MLFLOW_VARIABLE: uri} if uri else {})


@dataclass(frozen=True)
class MirrorOptions:
    """The options and the environment of `tuner track`; both are empty if nothing is to be sent anywhere."""

    options: list[str] = field(default_factory=list[str])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def __bool__(self) -> bool:
        return bool(self.options or self.environment)


def _flag(name: str, value: object) -> str:
    text = json.dumps(value) if isinstance(value, Mapping) else value
    return f"--{name.replace('_', '-')}={text}"


def check_limits(
    wall_hours: float | None, device_hours: float | None, trial_minutes: float | None, stall_minutes: float | None
) -> None:
    """Raise UsageError unless each limit of time is None or a number above 0."""
    limits = {
        "wall_hours": wall_hours,
        "device_hours": device_hours,
        "trial_minutes": trial_minutes,
        "stall_minutes": stall_minutes,
    }
    for name, limit in limits.items():
        if limit is not None and (not is_number(limit) or not limit > 0):
            raise UsageError(f"`{name}` must be a number of {name.partition('_')[2]} above 0: got {limit!r}")


def check_number(name: str, number: int | None, low: int) -> None:
    """Raise UsageError unless `number` is None or at least `low`."""
    if number is not None and number < low:
        raise UsageError(f"`{name}` must be at least {low}: got {number}")
