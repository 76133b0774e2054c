"""The context of a worker's trials: created once and passed to each."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from tuner.output.log import now
from tuner.storage.sql.background_calls import Background
from tuner.storage.sql.retry import Patience, patient
from tuner.storage.worker.claims import Claimant
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import mode_of
from tuner.study import StudySpec
from tuner.study.source import code_digest, git_state
from tuner.trial import Event, Stop
from tuner.worker.time_use import TimeUse

if TYPE_CHECKING:
    import optuna

    from tuner.storage.optuna.storage import Storage

_LAST_PATIENCE_S = 3.0


@dataclass(frozen=True)
class Place:
    """Where a worker's trials run and leave their files, and the clocks they run by."""

    artifacts: Path
    about: dict[str, Any]
    layout: Any
    devices: str
    clock: Any
    time_use: TimeUse

    def describe(self) -> dict[str, Any]:
        """Return what is kept of a worker: where it runs and with what."""
        from tuner.training.saved.run_record import versions

        file = self.about["file"]
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "devices": self.devices or f"cpu {os.cpu_count()}",
            "file": file,
            "code": None if file is None else code_digest(Path(file)),
            "git": None if file is None else git_state(Path(file)),
            "versions": versions(),
        }


class FinalWrites:
    """Gives what a worker still has to write before it ends a moment: for all of it together.

    Args:
        engine: The storage's engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._end_s: float | None = None

    def engine(self) -> Engine:
        """Return an engine that waits for a database that is away until the moment is over, from the first call on."""
        if self._end_s is None:
            self._end_s = time.monotonic() + _LAST_PATIENCE_S
        left_s = self._end_s - time.monotonic()
        return patient(self._engine, Patience(left_s, statement_s=max(1.0, left_s)))

    def is_over(self) -> bool:
        """Return whether the moment has begun and is over."""
        return self._end_s is not None and time.monotonic() >= self._end_s

    def forget(self) -> None:
        """Begin anew with the next call: the worker did not end."""
        self._end_s = None


class Samplers:
    """Makes the sampler of each trial.

    Args:
        study: The study.
    """

    def __init__(self, study: StudySpec) -> None:
        self._study = study
        self._has_made_one = False
        self._common_space: Any = None

    def make(self, lease: Lease) -> optuna.samplers.BaseSampler:
        """Return the sampler for a trial: one for its number, or the study's own object."""
        sampler = self._study.make_sampler(lease.number)
        if sampler is self._study.sampler and not self._has_made_one and (lease.number > 0 or lease.fence > 1):
            # An Optuna object starts from its own seed in every process: all workers would suggest the same.
            sampler.reseed_rng()
        self._has_made_one = True
        self._share_space(sampler)
        return sampler

    def _share_space(self, sampler: Any) -> None:
        """Hand on which parameters all trials have in common: a new sampler would look through all of them again."""
        from optuna.search_space import IntersectionSearchSpace

        if isinstance(getattr(sampler, "_search_space", None), IntersectionSearchSpace):
            self._common_space = sampler._search_space = self._common_space or sampler._search_space


class ProgramModes:
    """Remembers of each program whether it runs as scan or as steps, as the study has it.

    Args:
        engine: The storage's engine.
        study_id: The study.
    """

    def __init__(self, engine: Engine, study_id: int) -> None:
        self._engine, self._study_id = engine, study_id
        self._known: dict[str, str] = {}

    def choose(self, program: str, measure: Callable[[], str]) -> str:
        """Return how a program runs; `measure` finds out if the study does not have it yet."""
        if program not in self._known:
            self._known[program] = mode_of(self._engine, self._study_id, program, measure)
        return self._known[program]


@dataclass(frozen=True)
class WorkerContext:
    """What every trial of a worker needs.

    Attributes:
        study: The study.
        study_id: Its id in the storage.
        splits: Its data.
        optimizer_rules: The rules by which it was begun.
        storage: Optuna's view of the database.
        engine: The same database; waits for it as long as a worker does.
        prompt_engine: The same, for calls that must not wait.
        background: The thread that reports are stored on.
        optuna_study: The study as its sampler sees it.
        pruning_study: The study as its pruner sees it.
        claimant: The worker as the storage sees it.
        folder: The study's artifacts.
        place: Devices, clocks, and what checkpoints say of the study.
        time_use: What the worker's time goes on.
        stop: Whether the worker is to end.
        samplers: Makes the sampler of each trial.
        modes: Remembers how programs run.
        final_writes: For what is written before the worker ends.
        listener: Takes the worker's events.
    """

    study: StudySpec
    study_id: int
    splits: Any
    optimizer_rules: int
    storage: Storage
    engine: Engine
    prompt_engine: Engine
    background: Background
    optuna_study: optuna.Study
    pruning_study: optuna.Study
    claimant: Claimant
    folder: Path
    place: Place
    time_use: TimeUse
    stop: Stop
    samplers: Samplers
    modes: ProgramModes
    final_writes: FinalWrites
    listener: Callable[[Event], None]

    def say(self, event: Event) -> None:
        """Say an event, with its time and what the worker's own time went on since the one before."""
        seconds = {name: round(spent_s, 6) for name, spent_s in self.time_use.take().items()}
        self.listener({"time": now(), **event, "seconds": seconds})

    def say_seconds(self) -> None:
        """Say what the time goes on, now and then: an epoch may take an hour."""
        if self.time_use.is_due():
            self.say({"event": "seconds"})

    def must_end(self) -> bool:
        """Return whether somebody has asked the worker to end."""
        return self.stop.requested
