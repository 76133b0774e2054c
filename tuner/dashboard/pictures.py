"""The pictures that a trainer has saved for a trial, where their files are on this machine."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import bottle
from sqlalchemy import Engine

from tuner.object_storage import is_url
from tuner.storage.artifacts import artifacts_of, trial_folder
from tuner.storage.read.queries import StudyRow, TrialRow, read_identity

FOLDER = "pictures"
MOST = 24
"""The number of pictures on a page: the latest."""
_NAME = re.compile(r"[^/\\\0]{1,200}\.png")


def find_pictures(engine: Engine, study: StudyRow, trial: TrialRow) -> list[Path]:
    """Return the latest pictures of a trial, by name; empty if their folder is not on this machine."""
    found: dict[str, Path] = {}
    for folder in _folders(engine, study, trial):
        with contextlib.suppress(OSError):
            pictures = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file()]
            found |= {path.name: path for path in pictures}
    return [found[name] for name in sorted(found)][-MOST:]


def _folders(engine: Engine, study: StudyRow, trial: TrialRow) -> list[Path]:
    """Return the folders that may have pictures: beside the checkpoint, and of each attempt with object storage."""
    checkpoint, identity = trial.record.checkpoint, read_identity(engine, study.study_id)
    places = [Path(checkpoint).parent] if checkpoint and not is_url(checkpoint) else []
    if identity is not None:
        places.append(trial_folder(artifacts_of(None).of_study(study.name, identity).folder, trial.number))
    attempts: list[Path] = []
    for place in places:
        with contextlib.suppress(OSError):
            attempts += sorted(path for path in place.iterdir() if path.name.isdecimal() and path.is_dir())
    return [place / FOLDER for place in [*places, *attempts]]


def send_picture(engine: Engine, study: StudyRow, trial: TrialRow, name: str) -> bottle.HTTPResponse:
    """Send one picture of a trial.

    Raises:
        HTTPError: The trial has no picture of that name on this machine.
    """
    for path in find_pictures(engine, study, trial):
        if path.name == name:
            return bottle.static_file(path.name, root=str(path.parent))  # its type is that of the suffix
    raise bottle.HTTPError(404, "the trial has no picture of that name on this machine")
