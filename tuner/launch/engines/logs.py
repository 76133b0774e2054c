"""Reads the logs of workers that an engine runs: all of them, one worker's, or the lines of one trial."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tuner.errors import TunerError, UsageError
from tuner.launch.engines.choose import make_engine
from tuner.launch.engines.engine import WorkerLog
from tuner.launch.engines.jobs import all_jobs
from tuner.output.sanitize import printable
from tuner.storage.read.queries import find_study, read_trial
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import attempts

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy import Engine as Database

_POLL_S = 0.5
"""Seconds between two looks for a first log."""
_TRIAL = re.compile(r'(?:tuner: )?trial (\d+)[:,]|\{.*"trial": (\d+)')
"""The beginning of a line about a trial. A worker runs one trial at a time: what follows is of the same trial."""


@dataclass(frozen=True)
class Log:
    """A log, and what of it to print.

    Attributes:
        source: The log.
        is_named: Whether each line is to begin with the log's name.
        trial: The trial whose lines are wanted; None for all lines.
    """

    source: WorkerLog
    is_named: bool
    trial: int | None


def find_logs(database: Database, study: str, *, worker: str | None = None, trial: int | None = None) -> list[Log]:
    """Return the logs of a study's workers.

    Args:
        database: The storage's engine.
        study: The study.
        worker: Only this worker's.
        trial: Only of the workers that ran this trial, and only its lines.

    Raises:
        UsageError: the study has no job, or there is no such log.
        UnknownStudy: there is no such study or trial.
    """
    row = find_study(database, study)
    jobs = all_jobs(database, row.study_id)
    if not jobs:
        raise UsageError(
            f"study {study!r} has no job on a cluster (Slurm, Kubernetes or Ray): its workers print to the terminal of "
            "`tuner launch` or `tuner worker`; "
            f"`tuner logs {study} NUMBER` prints what a trial printed"
        )
    wanted = [worker] if worker is not None else []
    if trial is not None:
        ran = _workers_of(database, read_trial(database, row, trial).trial_id)
        wanted = [one for one in ran if worker in (None, one)]
        if not wanted:
            raise UsageError(_nobody_ran(study, trial, worker, ran))
    engines = [(make_engine(job.engine), job) for job in jobs]
    sources = [log for engine, job in engines for log in engine.logs(job, wanted)]
    if not sources:
        where = ", ".join(sorted({engine.log_place(job) for engine, job in engines}))
        of = f" of {', '.join(wanted)}" if wanted else ""
        is_in_files = any(engine.shares_folders for engine, _ in engines)
        hint = "if the workers wrote it on another machine, run this there; " if is_in_files else ""
        raise UsageError(
            f"no log{of} in {where}: {hint}the job may still be queued, or was deleted together with its logs"
        )
    return [Log(source, len(sources) > 1, trial) for source in sources]


def _nobody_ran(study: str, trial: int, worker: str | None, ran: Sequence[str]) -> str:
    """Return the message if no worker that was asked for has run a trial, but these have."""
    if worker is None or not ran:
        return f"no worker has run trial {trial} of study {study!r}"
    others = f"worker{'s' if len(ran) > 1 else ''} {', '.join(map(repr, ran))}"
    which = "one of these names" if len(ran) > 1 else "that name"
    return f"worker {worker!r} did not run trial {trial} of study {study!r}; {others} did: pass {which} as `worker`"


def read_logs(found: Iterable[Log]) -> Iterator[str]:
    """Return the lines of logs."""
    for log in found:
        yield from _Reader(log).lines()


def follow_logs(find: Callable[[], list[Log]]) -> Iterator[str]:
    """Return the lines of logs, and new ones as they come, also of new logs; never ends.

    Each line begins with the name of its log: more logs may come. What fails later than the first time is tried again.

    Args:
        find: Returns the logs.
    """
    readers: dict[str, _Reader] = {}
    while True:
        try:
            for log in find():
                readers.setdefault(log.source.name, _Reader(dataclasses.replace(log, is_named=True)))
            for reader in readers.values():
                yield from reader.lines()
        except TunerError:
            if not readers:
                raise
        time.sleep(max((reader.poll_s for reader in readers.values()), default=_POLL_S))


class _Reader:
    """Reads the wanted lines of a log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.poll_s = log.source.poll_s
        self._trial: int | None = None

    def lines(self) -> Iterator[str]:
        """Return the wanted lines since the last call."""
        for raw in self._log.source.lines():
            line = printable(raw.decode("utf-8", "replace").rstrip("\r\n"))
            if self._is_wanted(line):
                yield f"{self._log.source.name}: {line}" if self._log.is_named else line

    def _is_wanted(self, line: str) -> bool:
        if self._log.trial is None:
            return True
        begins = _TRIAL.match(line)
        if begins is not None:
            self._trial = int(begins[1] or begins[2])
        return self._trial == self._log.trial


def _workers_of(database: Database, trial_id: int) -> list[str]:
    query = sa.select(attempts.c.worker).where(attempts.c.trial_id == trial_id).order_by(attempts.c.fence)

    def work(connection: Connection) -> list[str]:
        return list(dict.fromkeys(connection.execute(query).scalars()))

    return read(database, work)
