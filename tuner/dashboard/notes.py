"""Notes of studies and trials, which Optuna's pages show and change as well."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from tuner.dashboard.api_checks import is_storable
from tuner.errors import UnknownStudy, UsageError
from tuner.storage.optuna.storage import Storage
from tuner.storage.sql.dialect import insert
from tuner.storage.sql.retry import write
from tuner.storage.sql.tables import studies, study_system_attributes
from tuner.trial import optuna_private as private

LONGEST = 20_000
"""Characters of a note."""


@dataclass(frozen=True)
class Note:
    """A note, in Markdown, and the number of times that it was saved."""

    text: str = ""
    version: int = 0


def read_note(storage: Storage, study_id: int, trial_id: int | None = None) -> Note:
    """Return the note of a study, or of one of its trials; an empty one if there is none."""
    found = private.notes().get_note_from_system_attrs(storage.get_study_system_attrs(study_id), trial_id)
    return Note(found["body"], found["version"])


def save_note(storage: Storage, study_id: int, trial_id: int | None, note: Note) -> None:
    """Save a note as optuna-dashboard does.

    Args:
        storage: The storage.
        study_id: The study.
        trial_id: The trial; None for the note of the study.
        note: Its text, and the version that it replaces.

    Raises:
        UsageError: The text is too long or cannot be stored, or the note was changed since that version.
        UnknownStudy: The study has been deleted.

    Concurrency: one transaction that locks the study's row; of two who replace the same version, one is refused.
    """
    if len(note.text) > LONGEST:
        raise UsageError(f"a note must have at most {LONGEST} characters: got {len(note.text)}")
    if not is_storable(note.text):
        raise UsageError("a note must be text without NUL or lone surrogates: remove them")

    def work(connection: Connection, tries: int) -> None:
        locked = sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update()
        if connection.execute(locked).first() is None:
            raise UnknownStudy("the study has been deleted")
        stored = _stored_note(connection, study_id, trial_id)
        now = private.notes().get_note_from_system_attrs(stored, trial_id)
        if tries and now == {"version": note.version + 1, "body": note.text}:  # an earlier try was committed
            return
        if now["version"] != note.version:
            raise UsageError(
                "the note was changed meanwhile: copy your text, go back, reload the page, and add it there"
            )
        # Parts of a longer note before stay, empty.
        parts = dict.fromkeys(stored, "") | private.notes().split_body(note.text, trial_id)
        rows = [
            {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
            for key, value in {**parts, private.notes().note_ver_key(trial_id): note.version + 1}.items()
        ]
        statement = insert(connection.dialect.name, study_system_attributes)
        changed = {"value_json": statement.excluded.value_json}
        connection.execute(statement.on_conflict_do_update(index_elements=["study_id", "key"], set_=changed), rows)

    write(storage.engine, work)


def _stored_note(connection: Connection, study_id: int, trial_id: int | None) -> dict[str, Any]:
    """Return the attributes of a study in which Optuna's pages keep a note."""
    attributes = study_system_attributes.c
    version, prefix = private.notes().note_ver_key(trial_id), private.notes().note_str_key_prefix(trial_id)
    is_of_note = (attributes.key == version) | attributes.key.startswith(prefix, autoescape=True)
    query = sa.select(attributes.key, attributes.value_json).where(attributes.study_id == study_id, is_of_note)
    return {key: json.loads(text) for key, text in connection.execute(query)}
