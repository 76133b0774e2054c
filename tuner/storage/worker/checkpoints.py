"""Where the best checkpoints of trials are, in their records, when they are uploaded after the trial's end."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.sql.retry import read, write
from tuner.storage.sql.tables import records


def move_checkpoint(engine: Engine, trial_id: int, path: str, url: str) -> None:
    """Replace the path of a trial's checkpoint by its URL, if the record still has the path."""
    c = records.c
    change = sa.update(records).where(c.trial_id == trial_id, c.checkpoint == path).values(checkpoint=url)

    def work(connection: Connection, tries: int) -> None:
        connection.execute(change)

    write(engine, work)


def checkpoints_below(engine: Engine, study_id: int, folder: Path) -> list[tuple[int, str]]:
    """Return the trials of a study whose recorded checkpoint is below a folder: (id, path)."""
    c = records.c
    query = sa.select(c.trial_id, c.checkpoint).where(c.study_id == study_id, c.checkpoint.is_not(None))

    def work(connection: Connection) -> list[tuple[int, str]]:
        return [(trial_id, path) for trial_id, path in connection.execute(query).all()]

    return [(trial_id, path) for trial_id, path in read(engine, work) if Path(path).is_relative_to(folder)]
