"""Reads what a trial printed: its file where that is, else the last lines that the database has."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.output.sanitize import hide_password, printable
from tuner.storage.artifacts import LOG, Artifacts, trial_folder
from tuner.storage.read.queries import TrialRow, find_study, read_identity, read_trial
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import logs

_POLL_S = 0.5


@dataclass(frozen=True)
class TrialLogText:
    """What a trial printed.

    Attributes:
        lines: The lines.
        file: The file that has them; None if they are the last lines, from the database.
        has_ended: Whether the trial has ended, so that no lines follow.
    """

    lines: Sequence[str]
    file: Path | None
    has_ended: bool


def last_lines(engine: Engine, trial_id: int) -> list[str]:
    """Return the last lines that the latest attempt of a trial printed, as far as the database has them."""
    query = sa.select(logs.c.lines).where(logs.c.trial_id == trial_id).order_by(logs.c.fence.desc()).limit(1)

    def work(connection: Connection) -> list[str]:
        if not sa.inspect(connection).has_table(logs.name):  # plain Optuna
            return []
        found = connection.execute(query).scalar_one_or_none()
        return hide_password(found).split("\n") if found else []

    return read(engine, work)


def read_log(engine: Engine, study: str, number: int, artifacts: Artifacts) -> TrialLogText:
    """Return what a trial printed.

    The file is read if it is in the folder of artifacts, and has what the database has: on another machine there may be
    a file of an earlier attempt.

    Raises:
        UnknownStudy: there is no such study or trial.
    """
    row = find_study(engine, study)
    trial = read_trial(engine, row, number)
    stored = last_lines(engine, trial.trial_id)
    identity = read_identity(engine, row.study_id) or ""
    folder = trial_folder(artifacts.of_study(row.name, identity).folder, number)
    for place in _attempts(folder):
        lines = _file_lines(place)
        if lines and (not stored or stored[-1] in lines):
            return TrialLogText(_printable(lines), place / LOG, _has_ended(trial))
    return TrialLogText(_printable(stored), None, _has_ended(trial))


def follow_log(find: Callable[[], TrialLogText]) -> Iterator[str]:
    """Return the lines of a trial, and new ones as they come, until the trial has ended.

    Args:
        find: Returns the log.
    """
    before: Sequence[str] = ()
    while True:
        found = find()
        yield from new_lines(before, found.lines)
        before = found.lines or before
        if found.has_ended:
            return
        time.sleep(_POLL_S)


def new_lines(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """Return the lines that follow those of before, which may have lost their beginning since."""
    if not now:
        return now
    for start, line in enumerate(before):
        if line == now[0] and list(now[: len(before) - start]) == list(before[start:]):
            return now[len(before) - start :]
    return now


def _attempts(folder: Path) -> list[Path]:
    """Return the folders that may have a trial's log: with object storage each attempt has one, the newest first."""
    with contextlib.suppress(OSError):
        numbered = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
        return [folder, *sorted(numbered, key=lambda path: int(path.name), reverse=True)]
    return []


def _file_lines(folder: Path) -> list[str]:
    lines: list[str] = []
    for name in (LOG.replace(".txt", ".1.txt"), LOG):
        with contextlib.suppress(OSError):
            lines += (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
    return lines


def _printable(lines: Sequence[str]) -> list[str]:
    return [printable(hide_password(line)) for line in lines]


def _has_ended(trial: TrialRow) -> bool:
    return trial.completed is not None
