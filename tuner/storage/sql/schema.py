"""Creates the tables, refuses those of another version, and upgrades them on request."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from tuner.errors import StorageDenied, StorageSchemaError
from tuner.output.sanitize import hide_password
from tuner.storage.sql import tables, zones
from tuner.storage.sql.engine import connected_engine, error_line, is_denied, limit_transaction, lost
from tuner.storage.sql.url import AnyURL, StorageURL, parse_url
from tuner.storage.sql.versions import (
    Versions,
    check_tables,
    optuna_scripts,
    read_versions,
    tuner_config,
    tuner_scripts,
)
from tuner.trial.optuna_private import table_models

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo


_CREATION_LOCK = 7_461_120  # an arbitrary number that other users of the database are unlikely to lock


def prepare(engine: Engine) -> None:
    """Create the missing tables, all or none of them.

    Raises:
        StorageSchemaError: the tables belong to an older or a newer version.

    Concurrency: safe from many processes, also on an empty database.
    """
    versions = check(engine)
    if None in (versions.optuna, versions.tuner):
        # Optuna's `create_all` is not safe if two processes run it at once.
        with _locked(engine) as connection:
            versions = read_versions(connection)
            if versions.optuna is None:
                _create_optuna_tables(connection)
            if versions.tuner is None:
                migrate(connection)


def check(engine: Engine) -> Versions:
    """Return the versions of the tables, without creating any.

    Raises:
        StorageSchemaError: the tables belong to an older or a newer version.
    """
    with engine.connect() as connection:
        versions = read_versions(connection)
    check_tables(versions, engine)
    return versions


@contextlib.contextmanager
def _locked(engine: Engine) -> Generator[Connection]:
    """Open a transaction that only one process at a time can have, on a single connection."""
    path = Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None
    with contextlib.ExitStack() as stack:
        if path is not None:
            folder = os.open(path.absolute().parent, os.O_RDONLY)
            stack.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX)
        connection = stack.enter_context(engine.connect())
        if path is not None:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            connection.rollback()
        stack.enter_context(connection.begin())
        if path is not None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            limit_transaction(connection)
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATION_LOCK})
        yield connection


def _create_optuna_tables(connection: Connection) -> None:
    """Create the tables of `RDBStorage`, which uses four transactions on two connections, in the given transaction."""
    import optuna
    from alembic.migration import MigrationContext

    models = table_models()
    metadata: Any = models.BaseModel.metadata
    metadata.create_all(connection)
    connection.execute(
        metadata.tables["version_info"]
        .insert()
        .values(schema_version=models.SCHEMA_VERSION, library_version=optuna.__version__)
    )
    with _quiet_alembic():
        MigrationContext.configure(connection).stamp(optuna_scripts(), "head")


def migrate(connection: Connection) -> None:
    """Apply the migrations that a database does not have yet, and mark times that may be local."""
    from alembic.command import stamp, upgrade

    config = tuner_config()
    config.attributes["connection"] = connection
    versions = read_versions(connection)
    is_new_to_zones = not sa.inspect(connection).has_table(tables.unknown_zones.name)
    with _quiet_alembic():
        if versions.tuner is not None and not sa.inspect(connection).has_table(tables.VERSION_TABLE):
            stamp(config, versions.tuner)
        upgrade(config, "head")
    if is_new_to_zones and not (versions.tuner is None and zones.is_optuna_5(connection)):
        zones.mark(connection)
    forget_deleted(connection)


def forget_deleted(connection: Connection) -> None:
    """Make SQLite delete the rows of a deleted trial or study, because it reuses their ids.

    On Postgres, foreign keys do this; in SQLite they are off by default. Optuna deletes only rows that it has read
    before: a report that a worker stores in the meantime would otherwise belong to the next trial.
    """
    if connection.dialect.name != "sqlite":
        return
    present = set(sa.inspect(connection).get_table_names())
    for parent, key, theirs in (
        ("trials", "trial_id", tables.CHILDREN_OF_TRIALS),
        ("studies", "study_id", tables.CHILDREN_OF_STUDIES),
    ):
        ours = [table.name for table in tables.tuner_tables.sorted_tables if table.name != parent and key in table.c]
        ours += [name for name in theirs if name in present]
        for name in ours:
            connection.exec_driver_sql(f"DELETE FROM {name} WHERE {key} NOT IN (SELECT {key} FROM {parent})")
        deletes = " ".join(f"DELETE FROM {name} WHERE {key} = old.{key};" for name in ours)
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS tuner_forget_{parent}")
        connection.exec_driver_sql(f"CREATE TRIGGER tuner_forget_{parent} AFTER DELETE ON {parent} BEGIN {deletes} END")


@contextlib.contextmanager
def _quiet_alembic() -> Generator[None]:
    logger = logging.getLogger("alembic")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def upgrade(url: AnyURL, from_timezone: str | None = None) -> list[str]:
    """Upgrade the tables of a database to this version; return what was done, as lines.

    Args:
        url: The storage's URL.
        from_timezone: The zone of the programs that stored local times; these times are converted to UTC.

    Raises:
        StorageLost: the database cannot be reached.
        StorageSchemaError: its tables are newer than this installation.
        UsageError: there is no such time zone.
    """
    from optuna.exceptions import StorageInternalError

    zone = None if from_timezone is None else zones.find_zone(from_timezone)
    url = parse_url(url)
    engine = connected_engine(url)
    done: list[str] = []
    converted = None
    try:
        with engine.connect() as connection:
            before, unknown = read_versions(connection), zones.count(connection)
        if before.optuna is None:
            raise StorageSchemaError(f"nothing to upgrade in {url}: it has no tables")
        check_tables(before, engine, may_be_older=True)
        head = optuna_scripts().get_current_head()
        is_current = before == Versions(head, tuner_scripts().get_current_head())
        if is_current and (zone is None or not unknown):
            done.append(f"the tables of {url} are already at this version")
            return done + _about_zones(unknown, zone, None)
        if url.file is not None:
            done.append(
                f"a copy of the database from before the upgrade is in {back_up(engine, url.file, 'before-upgrade')}"
            )
        if before.optuna != head:
            _mark_before_optuna(engine, before)
            _upgrade_optuna(url)
            done.append(f"upgraded the tables of Optuna from version {before.optuna or 'unknown'} to {head}")
        with _locked(engine) as connection:
            migrate(connection)
            if zone is not None:
                converted = zones.convert(connection, zone)
            after, unknown = read_versions(connection), zones.count(connection)
        check_tables(after, engine)
        if before.tuner != after.tuner:
            done.append(f"upgraded the tables of tuner from version {before.tuner or 'none'} to {after.tuner}")
        done += _about_zones(unknown, zone, converted)
    except (DBAPIError, StorageInternalError) as error:
        for one in (error, error.__cause__):  # Optuna wraps what the database said
            if isinstance(one, DBAPIError) and is_denied(one):
                raise StorageDenied.because(error_line(one)) from None
        raise lost(error, url) from None
    finally:
        engine.dispose()
    return done


def _about_zones(unknown: int, zone: ZoneInfo | None, converted: zones.Converted | None) -> list[str]:
    """Return messages about times that were stored as local time."""
    if zone is None:
        return [f"times in an unknown time zone: {_trials(unknown)}; {zones.ADVICE}"] if unknown else []
    if converted is None or not (converted.trials or converted.left):
        return ["no trial has times in an unknown time zone: nothing was converted"]
    lines = [f"converted from {zone.key} to UTC: the times of {_trials(converted.trials)}"]
    if converted.ambiguous:
        lines.append(
            f"of these, {_trials(converted.ambiguous)} with a time that occurred twice in {zone.key}, when clocks were "
            "put back: the earlier was taken, unless the trial would have ended before it started or in the future"
        )
    if converted.left:
        more = f", and {len(converted.left) - 1} more" if len(converted.left) > 1 else ""
        lines.append(f"left as they were, {_trials(len(converted.left))}: {converted.left[0]}{more}")
    return lines


def _trials(count: int) -> str:
    return f"{count} trial{'s' if count != 1 else ''}"


def _mark_before_optuna(engine: Engine, before: Versions) -> None:
    """Mark local times while the tables still show an older Optuna, in case the upgrade is interrupted."""
    with _locked(engine) as connection:
        is_marked = sa.inspect(connection).has_table(tables.unknown_zones.name)
        if before.tuner is None and not is_marked and not zones.is_optuna_5(connection):
            tables.unknown_zones.create(connection)
            zones.mark(connection)


def back_up(engine: Engine, path: Path, why: str) -> Path:
    """Copy a SQLite database, including its log, to a file beside it; return its path.

    Optuna's migrations on SQLite are not a transaction.
    """
    copy = path.with_name(f"{path.name}.{why}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    with engine.connect() as connection, contextlib.closing(sqlite3.connect(copy)) as target:
        source: Any = connection.connection.dbapi_connection
        source.backup(target)
    return copy


def _upgrade_optuna(url: StorageURL) -> None:
    """Run Optuna's own migrations.

    Raises:
        StorageSchemaError: they failed; Optuna cannot upgrade tables from before its version 2.4.
    """
    from optuna.storages import RDBStorage

    root = logging.getLogger()
    silent = logging.NullHandler()  # otherwise Optuna's Alembic script reconfigures all logging
    root.addHandler(silent)
    try:
        with _quiet_alembic(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            storage = RDBStorage(url.for_optuna, skip_compatibility_check=True, skip_table_creation=True)
            try:
                storage.upgrade()
            finally:
                storage.remove_session()
                storage.engine.dispose()
    except Exception as error:
        line = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StorageSchemaError(
            f"Optuna's migrations failed: {type(error).__name__}: {hide_password(line)}; "
            "a SQLite database may be half upgraded: restore its copy. Optuna cannot upgrade "
            "tables from before its version 2.4"
        ) from error
    finally:
        root.removeHandler(silent)
