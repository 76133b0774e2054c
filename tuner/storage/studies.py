"""Creating a study and recording its settings, once, whoever comes first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlalchemy.dialects import postgresql, sqlite

from tuner.errors import StudyError
from tuner.storage.engine import transaction
from tuner.storage.queries import RECORD_KEY, find_record
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
    return study_id, agree(engine, study_id, RECORD_KEY, record)


def agree(engine: Engine, study_id: int, key: str, value: Any) -> Any:
    """Record a plain JSON value with a study unless it has one under this key; return the one it has then.

    Concurrency: safe from many workers; all get the same answer.
    """
    insert = (sqlite if engine.dialect.name == "sqlite" else postgresql).insert(study_system_attributes)
    with transaction(engine) as connection:
        connection.execute(
            insert.values(study_id=study_id, key=key, value_json=json.dumps(value)).on_conflict_do_nothing(
                index_elements=["study_id", "key"]
            )
        )
    recorded = find_record(engine, study_id, key)
    assert recorded is not None
    return recorded


def mode_of(engine: Engine, study_id: int, program: str, measure: Callable[[], str]) -> str:
    """Return whether a program runs as scan or as steps in this study: as recorded, else as measured now.

    Concurrency: of several workers that measure at once, all take the answer of the first.
    """
    key = f"tuner:loop:{hashlib.sha256(program.encode()).hexdigest()[:16]}"
    recorded = find_record(engine, study_id, key)
    return (recorded or agree(engine, study_id, key, {"program": program, "mode": measure()}))["mode"]
