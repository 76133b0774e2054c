"""Compares the migrations of a database with those of this installation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import StorageSchemaError
from tuner.output.sanitize import hide_password
from tuner.storage.sql import tables
from tuner.trial.optuna_private import migrations

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory


@dataclass(frozen=True)
class Versions:
    """The migrations of a database; None for tables that do not exist."""

    optuna: str | None
    tuner: str | None


def read_versions(connection: Connection) -> Versions:
    """Return the versions of a database's tables."""
    names = set(sa.inspect(connection).get_table_names())

    def revision(table: str) -> str:
        found = connection.execute(sa.text(f"SELECT version_num FROM {table}")).scalars().all()
        return ", ".join(found)

    optuna = tuner = None
    if "studies" in names:
        optuna = revision("alembic_version") if "alembic_version" in names else ""
    if tables.VERSION_TABLE in names:
        tuner = revision(tables.VERSION_TABLE)
    elif "tuner_leases" in names:
        tuner = "0001"  # the first versions did not record one
    return Versions(optuna, tuner)


def check_tables(versions: Versions, engine: Engine, *, may_be_older: bool = False) -> None:
    """Raise StorageSchemaError if the tables belong to another version."""
    for owner, found, scripts in (
        ("Optuna", versions.optuna, optuna_scripts()),
        ("tuner", versions.tuner, tuner_scripts()),
    ):
        head = scripts.get_current_head()
        if found is None or found == head:
            continue
        shown = f"the tables of {owner} in {hide_password(engine.url.render_as_string())}"
        if not found or found in [script.revision for script in scripts.walk_revisions()]:
            if may_be_older:
                continue
            raise StorageSchemaError(
                f"{shown} are at version {found or 'unknown'}, but this installation needs {head}; "
                "back up the database, stop all workers, then run `tuner upgrade`"
            )
        raise StorageSchemaError(
            f"{shown} are at version {found!r}, which this installation does not know: it needs {head}; "
            f"install a newer {owner.lower()}"
        )


def tuner_config() -> Any:
    """Return Alembic's configuration for our migrations."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations").replace("%", "%%"))
    return config


@cache
def tuner_scripts() -> ScriptDirectory:
    """Return our migrations; Alembic runs all their files the first time."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(tuner_config())


@cache
def optuna_scripts() -> ScriptDirectory:
    """Return Optuna's migrations; Alembic runs all their files the first time."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(migrations()))
