"""How a storage is: reachable, how fast, of which version, how many connections are left, how far its clock is off."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import StorageSchemaError
from tuner.storage import zones
from tuner.storage.dialect import clock
from tuner.storage.engine import read
from tuner.storage.schema import check_tables, read_versions

_ROUNDS = 5


@dataclass(frozen=True)
class Health:
    """What a storage says of itself.

    Attributes:
        server: The database and its version.
        round_trip_s: Median time of a statement that does nothing.
        ahead_s: How far the database's clock is ahead of this machine's, give or take half a round trip.
        tables: The versions of the tables, or what is wrong with them.
        tables_fit: Whether they are those of this version, or there are none yet.
        connections: How many the server has now, and how many it takes from such users; None on SQLite.
        unknown_zones: How many trials have times of an unknown zone.
    """

    server: str
    round_trip_s: float
    ahead_s: float
    tables: str
    tables_fit: bool
    connections: tuple[int, int] | None
    unknown_zones: int


def read_health(engine: Engine) -> Health:
    """Return how a storage is; changes nothing.

    Raises:
        StorageLost: it does not answer.
    """
    return read(engine, lambda connection: _read(connection, engine))


def _read(connection: Connection, engine: Engine) -> Health:
    is_sqlite = connection.dialect.name == "sqlite"
    version = connection.exec_driver_sql("SELECT sqlite_version()" if is_sqlite else "SHOW server_version").scalar_one()
    trips, offsets = [], []
    for _ in range(_ROUNDS):
        began_s, before_s = time.perf_counter(), time.time()
        theirs_s = connection.execute(sa.select(clock(connection.dialect.name))).scalar_one()
        trips.append(time.perf_counter() - began_s)
        offsets.append(theirs_s - before_s - trips[-1] / 2)
    versions = read_versions(connection)
    try:
        check_tables(versions, engine)
        known = {"Optuna": versions.optuna, "tuner": versions.tuner}
        made = [f"{name} {revision}" for name, revision in known.items() if revision is not None]
        tables, tables_fit = ", ".join(made) or "none yet", True
    except StorageSchemaError as error:
        tables, tables_fit = str(error), False
    return Health(
        f"{'SQLite' if is_sqlite else 'PostgreSQL'} {version}",
        statistics.median(trips),
        statistics.median(offsets),
        tables,
        tables_fit,
        None if is_sqlite else _connections(connection),
        zones.count(connection),
    )


def _connections(connection: Connection) -> tuple[int, int]:
    query = (
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
        "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    )
    used, most = connection.exec_driver_sql(query).one()
    return used, most
