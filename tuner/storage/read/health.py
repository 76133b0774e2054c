"""The state of a storage: its latency, versions, free connections and clock offset."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import StorageDenied, StorageSchemaError
from tuner.storage.sql import tables, zones
from tuner.storage.sql.dialect import clock
from tuner.storage.sql.retry import read
from tuner.storage.sql.versions import check_tables, read_versions

_ROUNDS = 5


@dataclass(frozen=True)
class Health:
    """The state of a storage.

    Attributes:
        server: The database and its version.
        round_trip_s: Median time of a statement that does nothing.
        ahead_s: How far the database's clock is ahead of this machine's, accurate to half a round trip.
        tables: The versions of the tables, or the problem with them.
        tables_fit: Whether they fit this version, or do not exist yet.
        connections: The server's current connections, and the maximum for such users; None on SQLite.
        unknown_zones: The number of trials with times of an unknown zone.
    """

    server: str
    round_trip_s: float
    ahead_s: float
    tables: str
    tables_fit: bool
    connections: tuple[int, int] | None
    unknown_zones: int


def read_health(engine: Engine) -> Health:
    """Return the state of a storage, without changes.

    Raises:
        StorageLost: the database does not answer.
        StorageDenied: the user does not have the necessary rights.
    """
    return read(engine, lambda connection: _read(connection, engine))


def _read(connection: Connection, engine: Engine) -> Health:
    is_sqlite = connection.dialect.name == "sqlite"
    version = connection.exec_driver_sql("SELECT sqlite_version()" if is_sqlite else "SHOW server_version").scalar_one()
    trips: list[float] = []
    offsets: list[float] = []
    for _ in range(_ROUNDS):
        began_s, before_s = time.perf_counter(), time.time()
        theirs_s = connection.execute(sa.select(clock(connection.dialect.name))).scalar_one()
        trips.append(time.perf_counter() - began_s)
        offsets.append(theirs_s - before_s - trips[-1] / 2)
    if not is_sqlite:
        _check_rights(connection)
    versions = read_versions(connection)
    try:
        check_tables(versions, engine)
        known = {"Optuna": versions.optuna, "tuner": versions.tuner}
        made = [f"{name} {revision}" for name, revision in known.items() if revision is not None]
        told, tables_fit = ", ".join(made) or "none yet", True
    except StorageSchemaError as error:
        told, tables_fit = str(error), False
    return Health(
        f"{'SQLite' if is_sqlite else 'PostgreSQL'} {version}",
        statistics.median(trips),
        statistics.median(offsets),
        told,
        tables_fit,
        None if is_sqlite else _connections(connection),
        zones.count(connection),
    )


_MISSING_RIGHTS = """
WITH ours AS (
    SELECT c.oid, c.relname FROM pg_class c
    WHERE c.relkind = 'r' AND c.relname = ANY(%(names)s) AND c.relnamespace = to_regnamespace(%(schema)s)
)
SELECT kind || ' on ' || relname FROM ours, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) kind
WHERE NOT has_table_privilege(oid, kind)
UNION ALL
SELECT 'USAGE on ' || s.relname FROM ours JOIN pg_depend d ON d.refobjid = ours.oid AND d.deptype = 'a'
JOIN pg_class s ON s.oid = d.objid
WHERE CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE') ELSE false END
UNION ALL
SELECT 'CREATE on schema ' || %(schema)s
WHERE (SELECT count(*) FROM ours WHERE relname = ANY(%(first)s)) < cardinality(%(first)s)
AND NOT has_schema_privilege(%(schema)s, 'CREATE')
"""


def _check_rights(connection: Connection) -> None:
    """Raise StorageDenied if this user may not read and write the tables, or create them if they do not exist."""
    schema = connection.exec_driver_sql("SELECT current_schema()").scalar_one()
    names = [*tables.tuner_tables.tables, *tables.CHILDREN_OF_TRIALS, *tables.CHILDREN_OF_STUDIES]
    names += ["studies", "trials", "version_info", "alembic_version", tables.VERSION_TABLE]
    first = ["studies", tables.VERSION_TABLE]  # without one of them, the tables of Optuna or ours are still to be made
    values = {"names": names, "first": first, "schema": schema}
    found = connection.exec_driver_sql(_MISSING_RIGHTS, values).scalars().all()
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise StorageDenied.because(f"no {', '.join(found[:3])}{more}")


def _connections(connection: Connection) -> tuple[int, int]:
    query = (
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
        "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    )
    used, most = connection.exec_driver_sql(query).one()
    return used, most
