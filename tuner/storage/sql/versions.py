"""Compares the migrations of a database with those of this installation."""

from __future__ import annotations

import re
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


_MIGRATIONS = Path(__file__).parents[1] / "migrations"
_NAMES = re.compile(r"""^(revision|down_revision)\b[^=\n]*= *["'](.+)["']""", re.MULTILINE)


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
    for owner, found, folder, scripts_of in (
        ("Optuna", versions.optuna, migrations(), optuna_scripts),
        ("tuner", versions.tuner, _MIGRATIONS, tuner_scripts),
    ):
        if found is None or found == newest_in(folder):
            continue
        scripts = scripts_of()
        head = scripts.get_current_head()
        if found == head:
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


@cache
def newest_in(folder: Path) -> str | None:
    """Return the last of the migrations in a folder, from the text of their files; None if it does not say which.

    Alembic would run all of them, which takes 0.2 s.
    """
    files = [
        dict(_NAMES.findall(path.read_text(encoding="utf-8")))
        for path in (folder / "versions").glob("*.py")
        if path.name != "__init__.py"
    ]
    found = {names.get("revision") for names in files}
    earlier = {names.get("down_revision") for names in files}
    last = found - earlier
    # One name for each file, and one file that is the first: otherwise some have another form.
    is_a_line = None not in found and len(found) == len(earlier) == len(files) and None in earlier
    return last.pop() if is_a_line and len(last) == 1 else None


def tuner_config() -> Any:
    """Return Alembic's configuration for our migrations."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
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
