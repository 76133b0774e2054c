"""The context of a worker's trials: created once and passed to each."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from tuner.output.captured import CapturedOutput
from tuner.output.log import now
from tuner.storage.artifacts import Artifacts, StudyArtifacts
from tuner.storage.sql.background_calls import Caller
from tuner.storage.sql.retry import Patience, patient
from tuner.storage.worker.claims import Claimant
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.renewal import Renewals
from tuner.storage.worker.studies import mode_of
from tuner.study import StudySpec
from tuner.study.source import code_digest, git_state
from tuner.trial import Event, Stop
from tuner.trial.events import SecondsSpent
from tuner.worker.attempts.reports import Gatherer
from tuner.worker.files.trial_files import StudyFiles
from tuner.worker.gpu_use import GpuWatch
from tuner.worker.runtime import Runtime
from tuner.worker.time_use import TimeUse
from tuner.worker.trainables.trainable import Trainable

if TYPE_CHECKING:
    import optuna

    from tuner.search import Agreed
    from tuner.storage.optuna.storage import Storage
    from tuner.worker.population import Population

_LAST_PATIENCE_S = 3.0


@dataclass(frozen=True)
class Place:
    """The devices, folders and runtime of a worker's trials."""

    artifacts: Artifacts
    about: dict[str, Any]
    function: str | None
    devices: str
    runtime: Runtime
    time_use: TimeUse
    gpus: GpuWatch
    hosts: tuple[str, ...] = ()
    """The hosts of a worker that spans several."""

    def describe(self) -> dict[str, Any]:
        """Return the information stored about a worker: where it runs, and its versions."""
        file = self.about["file"]
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "devices": self._devices(),
            **({"hosts": list(self.hosts)} if self.hosts else {}),
            "file": file,
            **({} if self.function is None else {"function": self.function}),
            "code": None if file is None else code_digest(Path(file)),
            "git": None if file is None else git_state(Path(file)),
            "versions": self.runtime.versions(),
        }

    def _devices(self) -> str:
        if self.hosts:
            return f"{self.runtime.device_count} devices of {len(self.hosts)} hosts"
        return self.devices or f"cpu {os.cpu_count()}"


class FinalWrites:
    """Limits the total time for a worker's last writes before it exits.

    Args:
        engine: The storage's engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._end_s: float | None = None

    def engine(self) -> Engine:
        """Return an engine that waits for the database until the time is over, which starts with the first call."""
        if self._end_s is None:
            self._end_s = time.monotonic() + _LAST_PATIENCE_S
        left_s = self._end_s - time.monotonic()
        return patient(self._engine, Patience(left_s, statement_s=max(1.0, left_s)))

    def is_over(self) -> bool:
        """Return whether the time has started and is over."""
        return self._end_s is not None and time.monotonic() >= self._end_s

    def forget(self) -> None:
        """Restart the time with the next call, because the worker did not exit."""
        self._end_s = None


class Samplers:
    """Creates the sampler of each trial.

    Args:
        study: The study.
        agreed: What is stored with it for its sampler.
    """

    def __init__(self, study: StudySpec, agreed: Agreed | None = None) -> None:
        self._study, self._agreed = study, agreed
        self._has_made_one = False

    def make(self, lease: Lease) -> optuna.samplers.BaseSampler:
        """Return the sampler for a trial: a new one for its number, or the study's own object."""
        sampler = self._study.make_sampler(lease.number, self._agreed)
        if sampler is self._study.sampler and not self._has_made_one and (lease.number > 0 or lease.fence > 1):
            # An Optuna object has the same seed in every process, so all workers would suggest the same values.
            sampler.reseed_rng()
        self._has_made_one = True
        return sampler


class ProgramModes:
    """Stores with the study whether each program runs as scan or as steps.

    Args:
        engine: The storage's engine.
        study_id: The study.
    """

    def __init__(self, engine: Engine, study_id: int) -> None:
        self._engine, self._study_id = engine, study_id
        self._known: dict[str, str] = {}

    def choose(self, program: str, measure: Callable[[], str]) -> str:
        """Return how a program runs; calls `measure` if the study does not have it yet."""
        if program not in self._known:
            self._known[program] = mode_of(self._engine, self._study_id, program, measure)
        return self._known[program]


@dataclass(frozen=True)
class WorkerContext:
    """The context of a worker's trials.

    Attributes:
        study: The study.
        study_id: Its id in the storage.
        trainable: Trains its trials.
        storage: Optuna's view of the database.
        engine: The same database; waits for it with a worker's patience.
        prompt_engine: The same database, for calls that must not wait.
        background: Calls what stores reports, on a thread.
        gatherer: The same thread, for reports that nobody waits for, which are stored several at once.
        optuna_study: The study for its sampler.
        pruning_study: The study for its pruner.
        claimant: The worker for the storage.
        files: The files of its trials.
        artifacts: Where they are.
        place: Devices, and the information about the study in checkpoints.
        time_use: How the worker spends its time.
        stop: Whether the worker must stop.
        samplers: Creates the sampler of each trial.
        final_writes: The time limit for writes before the worker exits.
        listener: Receives the worker's events.
        output: Writes what a trial prints to its log; None if this process is not only a worker.
        renewals: Renews the leases of trials, on a thread.
        is_cohort: Whether the worker trains several trials at once.
        lanes: Returns the number of lanes of the program in which the trial trains with others; 1 if it trains alone.
        population: The states that trials copy from each other; None without population-based training.
    """

    study: StudySpec
    study_id: int
    trainable: Trainable
    storage: Storage
    engine: Engine
    prompt_engine: Engine
    background: Caller
    renewals: Renewals
    optuna_study: optuna.Study
    pruning_study: optuna.Study
    claimant: Claimant
    files: StudyFiles
    artifacts: StudyArtifacts
    place: Place
    time_use: TimeUse
    stop: Stop
    samplers: Samplers
    final_writes: FinalWrites
    listener: Callable[[Event], None]
    output: CapturedOutput | None = None
    gatherer: Gatherer | None = None
    is_cohort: bool = False
    lanes: Callable[[], int] = lambda: 1
    population: Population | None = None

    @property
    def runtime(self) -> Runtime:
        """The runtime of the worker's framework."""
        return self.place.runtime

    def say(self, event: Event) -> None:
        """Send an event, with its time and how the worker spent the time since the previous event."""
        seconds = {name: round(spent_s, 6) for name, spent_s in self.time_use.take().items()}
        self.listener(dataclasses.replace(event, time=now(), seconds=seconds))

    def say_aside(self, event: Event) -> None:
        """Send an event from a thread that is not the worker's."""
        self.listener(dataclasses.replace(event, time=now()))

    def say_seconds(self) -> None:
        """Report from time to time how the time is spent, because an epoch may take an hour."""
        if self.time_use.is_due():
            self.say(SecondsSpent())

    def must_end(self) -> bool:
        """Return whether the worker was asked to stop."""
        return self.stop.requested
