"""Notes of studies and trials, which Optuna's pages show and change as well."""

from __future__ import annotations

from dataclasses import dataclass

from optuna_dashboard import _note as optuna_notes

from tuner.dashboard.api_checks import is_storable
from tuner.errors import UsageError
from tuner.storage.optuna.storage import Storage

LONGEST = 20_000
"""Characters of a note."""


@dataclass(frozen=True)
class Note:
    """A note, in Markdown, and the number of times that it was saved."""

    text: str = ""
    version: int = 0


def read_note(storage: Storage, study_id: int, trial_id: int | None = None) -> Note:
    """Return the note of a study, or of one of its trials; an empty one if there is none."""
    found = optuna_notes.get_note_from_system_attrs(storage.get_study_system_attrs(study_id), trial_id)
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
    """
    if len(note.text) > LONGEST:
        raise UsageError(f"a note must have at most {LONGEST} characters: got {len(note.text)}")
    if not is_storable(note.text):
        raise UsageError("a note must be text without NUL or lone surrogates: remove them")
    now = read_note(storage, study_id, trial_id)
    if now.version != note.version:
        raise UsageError("the note was changed meanwhile: copy your text, go back, reload the page, and add it there")
    optuna_notes.save_note_with_version(storage, study_id, trial_id, now.version + 1, note.text)
