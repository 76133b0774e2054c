"""What a launch on an engine will submit: the study is loaded and the job made, but nothing is stored or submitted."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import sqlalchemy

from tuner.errors import UsageError
from tuner.launch.engines.choose import make_engine
from tuner.launch.engines.engine import Job
from tuner.launch.options import LaunchOptions, check_number
from tuner.notify.receivers import Receiver, read_receivers, warn_of_secrets
from tuner.storage import StorageURL, storage_url
from tuner.storage.artifacts import artifacts_of
from tuner.study.file import Settings, load_target, split_path

if TYPE_CHECKING:
    from tuner.study import StudySpec
    from tuner.study.spec import Direction

_LOCAL = ("metrics_port", "metrics_host", "mlflow", "tensorboard", "wandb")
_LOCAL_HINTS = {
    "mlflow": "run `tuner track STUDY --mlflow URI` beside the job",
    "tensorboard": "run `tuner track STUDY --tensorboard DIR` beside the job",
    "wandb": "run `tuner track STUDY --wandb PROJECT` beside the job",
    **dict.fromkeys(("metrics_port", "metrics_host"), "`tuner dashboard` serves the metrics of all workers"),
}


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Where to launch a study: an engine and its settings.

    Attributes:
        on: The engine: `slurm`, `kubernetes` or `ray`.
        options: Settings of the engine, by name; for Slurm the long options of sbatch, such as `partition`.
        logs: The folder for the workers' logs; `tuner-logs` if None. Kubernetes keeps them itself.
    """

    on: str
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    logs: str | None = None


@dataclass(frozen=True)
class Plan:
    """A study, its storage, the job of its workers, and who is notified of its events."""

    study: StudySpec
    url: StorageURL
    job: Job
    workers: int
    receivers: Sequence[Receiver] = ()

    def script(self) -> str:
        """Return what is submitted, as text."""
        return make_engine(self.job.engine).script(self.job, self.workers)


def make_plan(target: str, options: LaunchOptions, where: JobOptions) -> Plan:
    """Load a study and plan its job.

    Args:
        target: `FILE` or `FILE:NAME`, on a file system that all nodes share; for Kubernetes the same path must lead to
            the same file in the image.
        options: How to launch it; `devices` and what serves one machine do not apply.
        where: The engine.

    Raises:
        UsageError: the study's file, an option or the storage does not fit.
    """
    engine = make_engine(where.on)
    _check(options)
    if where.logs is not None and not engine.shares_folders:
        raise UsageError(
            f"`logs` has no effect with `on` {where.on}, which keeps logs itself: leave it out, and run `tuner logs`"
        )
    url = storage_url(options.storage)
    if url.file is not None:
        raise UsageError(
            f"workers on a cluster need a Postgres database, because several hosts cannot share a SQLite file: got "
            f"storage {str(url)!r}; `tuner database` starts one"
        )
    receivers = read_receivers(options.notify, os.environ)
    warn_of_secrets(receivers)
    path, name = split_path(target)
    settings = Settings(
        name=options.name,
        objectives=options.objectives,
        directions=cast("list[Direction]", list(options.directions)),
        trials=options.trials,
        fixed=options.fixed or {},
        more={
            name: getattr(options, name)
            for name in (
                *("wall_hours", "device_hours", "trial_minutes", "stall_minutes"),
                *("seed", "sampler", "pruner", "cohort"),
            )
        },
    )
    study = load_target(target, settings).study
    place = path.absolute() if engine.shares_folders else path
    there = str(place) + (f":{name}" if name is not None else "")
    artifacts = artifacts_of(options.artifacts)
    artifacts.check_or_warn()
    command = dataclasses.replace(options, artifacts=str(artifacts)).worker_command(
        there, python=sys.executable if engine.shares_folders else "python"
    )
    job = Job(
        key=uuid.uuid4().hex,
        engine=where.on,
        study=study.name,
        command=tuple(command),
        folder=Path.cwd(),
        logs=Path(where.logs or "tuner-logs").absolute(),
        devices_per_worker=options.devices_per_worker or 0,
        hosts_per_worker=options.hosts_per_worker or 1,
        options=where.options,
        launched_at_s=time.time(),
    )
    if job.hosts_per_worker > 1 and study.trainer is None:
        raise UsageError(
            f"`hosts_per_worker` needs a study with `trainer`, because other code cannot be divided among hosts: study "
            f"{study.name!r} has none"
        )
    engine.check(job)
    return Plan(study, url, job, options.workers or 1, receivers)


def _check(options: LaunchOptions) -> None:
    check_number("workers", options.workers, 1)
    check_number("devices_per_worker", options.devices_per_worker, 0)
    check_number("hosts_per_worker", options.hosts_per_worker, 1)
    if options.devices != "auto":
        raise UsageError(f"`devices` is for this machine: got {options.devices!r} with `on`; use `devices_per_worker`")
    for name in _LOCAL:
        if getattr(options, name) not in (None, ()):
            raise UsageError(f"`{name}` cannot be used with `on`: {_LOCAL_HINTS[name]}")


def serves_one_host(url: StorageURL) -> bool:
    """Return whether other hosts cannot reach the storage, because its URL names this one only for itself."""
    host = sqlalchemy.make_url(url.driver).host or ""
    return host in ("", "localhost", "::1") or host.startswith("127.")
