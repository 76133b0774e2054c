"""Creating a study and recording its settings, once, whoever comes first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlalchemy.dialects import postgresql, sqlite

from tuner.errors import StudyError
from tuner.storage.engine import transaction
from tuner.storage.queries import RECORD_KEY, read_record
from tuner.storage.tables import study_system_attributes

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def register(
    storage: BaseStorage, engine: Engine, name: str, directions: Sequence[str], record: Mapping[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Create the study unless it exists, and record its settings unless some are recorded.

    Args:
        storage: The storage.
        engine: An engine on the same database.
        name: The study's name.
        directions: `minimize` or `maximize` for each objective.
        record: The settings; plain JSON.

    Returns:
        The study's id and the settings that are recorded, which may be an earlier launch's.

    Raises:
        StudyError: the storage has a study of that name with other directions.

    Concurrency: safe from many workers; all get the same answer.
    """
    from optuna.exceptions import DuplicatedStudyError
    from optuna.study import StudyDirection

    try:
        study_id = storage.create_new_study([StudyDirection[text.upper()] for text in directions], name)
    except DuplicatedStudyError:
        study_id = storage.get_study_id_from_name(name)
        stored = [direction.name.lower() for direction in storage.get_study_directions(study_id)]
        if stored != list(directions):
            raise StudyError(
                f"study {name!r} is in this storage with direction {', '.join(stored)}: it must be "
                f"{', '.join(directions)}; change it back, or give the study a new name"
            ) from None
    insert = (sqlite if engine.dialect.name == "sqlite" else postgresql).insert(study_system_attributes)
    with transaction(engine) as connection:
        connection.execute(
            insert.values(study_id=study_id, key=RECORD_KEY, value_json=json.dumps(record)).on_conflict_do_nothing(
                index_elements=["study_id", "key"]
            )
        )
    return study_id, read_record(engine, study_id)
