"""The objectives of trials that were trained again with other seeds."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.sql.dialect import clock, insert
from tuner.storage.sql.retry import read, write
from tuner.storage.sql.schema import prepare
from tuner.storage.sql.tables import confirmations


def store_confirmation(engine: Engine, study_id: int, trial_id: int, repeat: int, value: float | None) -> None:
    """Store the objective of a trial's repeat (None if it was not finite), unless one is already stored."""
    prepare(engine)

    def work(connection: Connection, _: int) -> None:
        row = {"trial_id": trial_id, "repeat": repeat, "study_id": study_id, "value": value}
        statement = insert(connection.dialect.name, confirmations)
        statement = statement.values(**row, trained_at_s=clock(connection.dialect.name))
        connection.execute(statement.on_conflict_do_nothing(index_elements=["trial_id", "repeat"]))

    write(engine, work)


def read_confirmations(engine: Engine, study_id: int) -> dict[int, dict[int, float | None]]:
    """Return the repeats of each trial of a study that was confirmed: trial id -> repeat -> objective."""
    columns = (confirmations.c.trial_id, confirmations.c.repeat, confirmations.c.value)
    query = sa.select(*columns).where(confirmations.c.study_id == study_id).order_by(*columns[:2])

    def work(connection: Connection) -> dict[int, dict[int, float | None]]:
        found: dict[int, dict[int, float | None]] = {}
        if sa.inspect(connection).has_table(confirmations.name):
            for trial_id, repeat, value in connection.execute(query):
                found.setdefault(trial_id, {})[repeat] = value
        return found

    return read(engine, work)
