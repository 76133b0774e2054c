"""What an engine is: it submits, scales and cancels jobs of identical workers."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuner.errors import TunerError


class EngineError(TunerError):
    """An engine's command failed or is missing."""


@dataclass(frozen=True)
class Part:
    """One submission to an engine: its id there, and its number of workers."""

    id: str
    workers: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """Identical workers of a study that an engine keeps running.

    Attributes:
        key: Identifies the job among those of its study.
        engine: The engine's name.
        study: The study's name.
        command: The command line of a worker.
        folder: The folder in which workers run.
        logs: The folder for the workers' logs.
        devices_per_worker: Number of GPUs for each worker, on each of its hosts; 0 requests none.
        options: Settings of the engine, by name.
        launched_at_s: The time of the launch, in seconds since 1970.
        hosts_per_worker: Number of hosts that train each trial together.
        parts: What was submitted; more than one after the job has grown.
    """

    key: str
    engine: str
    study: str
    command: tuple[str, ...]
    folder: Path
    logs: Path
    devices_per_worker: int
    options: Mapping[str, str]
    launched_at_s: float
    hosts_per_worker: int = 1
    parts: tuple[Part, ...] = ()

    @property
    def workers(self) -> int:
        """The number of workers that were asked for."""
        return sum(part.workers for part in self.parts)

    @property
    def name(self) -> str:
        """The engine and the ids of what has workers of the job, for people."""
        shown = [part for part in self.parts if part.workers] or self.parts[-1:]
        return f"{self.engine} job {', '.join(part.id for part in shown)}"

    def closed(self) -> Job:
        """Return the job without workers."""
        return dataclasses.replace(self, parts=tuple(Part(part.id, 0) for part in self.parts))

    def to_json(self) -> dict[str, Any]:
        """Return the job as plain JSON."""
        return {
            **{name: getattr(self, name) for name in ("key", "engine", "study", "devices_per_worker", "launched_at_s")},
            "hosts_per_worker": self.hosts_per_worker,
            "command": list(self.command),
            "folder": str(self.folder),
            "logs": str(self.logs),
            "options": dict(self.options),
            "parts": [[part.id, part.workers] for part in self.parts],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        """Return the job of `to_json`."""
        return cls(
            key=value["key"],
            engine=value["engine"],
            study=value["study"],
            command=tuple(value["command"]),
            folder=Path(value["folder"]),
            logs=Path(value["logs"]),
            devices_per_worker=value["devices_per_worker"],
            options=value["options"],
            launched_at_s=value["launched_at_s"],
            hosts_per_worker=value.get("hosts_per_worker", 1),
            parts=tuple(Part(*part) for part in value["parts"]),
        )


def job_name(job: Job) -> str:
    """Return a name for what an engine is asked for next: lower-case letters, digits and `-`, at most 53 characters."""
    study = re.sub(r"[^a-z0-9]+", "-", job.study.lower()).strip("-")[:40].strip("-") or "study"
    digest = hashlib.sha256(f"{job.study}\n{job.launched_at_s}\n{len(job.parts)}".encode("utf-8", "surrogatepass"))
    return f"tuner-{study}-{digest.hexdigest()[:6]}"


@dataclass(frozen=True)
class JobState:
    """How many workers of a job wait in the engine's queue, how many run, and the exit statuses of those that ended.

    The status of a worker that was ended by a signal is 128 plus its number. Engines forget workers that ended a while
    ago.
    """

    pending: int
    running: int
    statuses: tuple[int, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether no worker is left."""
        return self.pending + self.running == 0


class WorkerLog(Protocol):
    """What a worker has printed, perhaps still growing."""

    @property
    def name(self) -> str:
        """Its name, which no other log of the study has."""
        ...

    @property
    def poll_s(self) -> float:
        """Seconds after which it is worth reading it again."""
        ...

    def lines(self) -> Iterator[bytes]:
        """Yield the whole lines since the last call, each with its end."""
        ...


class Engine(Protocol):
    """An engine that keeps workers running.

    Each method raises `EngineError`, in one line, if the engine's command or interface fails or is missing.
    """

    @property
    def shares_folders(self) -> bool:
        """Whether workers use this machine's folders: its Python, the study's file, and the folder for logs."""
        ...

    def check(self, job: Job) -> None:
        """Raise UsageError if a setting of the job is wrong."""
        ...

    def script(self, job: Job, workers: int) -> str:
        """Return what is submitted for a number of workers, as text."""
        ...

    def submit(self, job: Job, workers: int, environment: Mapping[str, str]) -> Job:
        """Submit a job of so many workers; return it with its part.

        Args:
            job: The job.
            workers: The number of workers, at least 1.
            environment: The variables of the workers' environment; they may be secret.
        """
        ...

    def scale(self, job: Job, workers: int, environment: Mapping[str, str]) -> Job:
        """Change the number of workers; those that are too many give back their trials. Return the changed job."""
        ...

    def state(self, job: Job) -> JobState:
        """Return how many workers wait and run; if none does, the exit statuses of those that ended."""
        ...

    def cancel(self, job: Job) -> None:
        """End all workers, which give back their trials first; they are not started again."""
        ...

    def passes_url(self, job: Job) -> bool:
        """Return whether workers get this machine's storage URL."""
        ...

    def ends_with_launch(self, job: Job) -> bool:
        """Return whether what runs the workers is started by this process on this machine, and ends with it."""
        ...

    def logs(self, job: Job, workers: Sequence[str]) -> Sequence[WorkerLog]:
        """Return the logs of workers by their names, or of all workers if there are none."""
        ...

    def log_place(self, job: Job) -> str:
        """Return where the logs are, for people."""
        ...
