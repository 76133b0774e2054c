"""Folders for the files of a study's trials: checkpoints to resume from, and the best ones. Does not import JAX."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tuner.output.sanitize import folder_name

VARIABLE = "TUNER_ARTIFACTS"
RECORD = "record.json"
"""The file in a checkpoint that says what it is; `tuner.training.saved.files` writes it."""


def artifacts_folder(given: str | Path | None) -> Path:
    """Return the folder of all studies' files: as given, else `$TUNER_ARTIFACTS`, else `tuner-artifacts` here."""
    return Path(given or os.environ.get(VARIABLE) or "tuner-artifacts").absolute()


def study_folder(folder: Path, name: str, identity: str) -> Path:
    """Return the folder of one study; `identity` tells apart studies of one name in different storages.

    It is directly below `folder` whatever the two are: both are read from a database.
    """
    return folder / folder_name(name, identity)


def trial_folder(study: Path, number: int) -> Path:
    """Return the folder of one trial."""
    return study / str(number)


def collect(study: Path, removable: Callable[[Collection[int]], Collection[int]]) -> tuple[list[int], int]:
    """Remove the folders of trials that nobody needs any more; return the trials, and how many bytes they took.

    Args:
        study: The study's folder.
        removable: trial numbers -> those whose folder can go.
    """
    size = 0
    removed: list[int] = []
    numbers: list[int] = []
    with contextlib.suppress(FileNotFoundError):  # somebody may remove all of it at any moment
        numbers = [int(path.name) for path in study.iterdir() if path.name.isdigit()]
    for number in removable(numbers) if numbers else ():
        folder = trial_folder(study, number)
        size += _size(folder)
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(number)
    return sorted(removed), size


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # which passes over folders that somebody else removes meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


@dataclass(frozen=True)
class CheckpointAbout:
    """What is known of a checkpoint without reading its arrays."""

    step: int
    epoch: int | None
    size_bytes: int
    files: int


def describe_checkpoint(path: Path) -> CheckpointAbout | None:
    """Return what a checkpoint says of itself; None if it is not there, or not one of ours.

    Args:
        path: A checkpoint, or the folder of numbered ones that a trial's record names, of which the newest counts.
    """
    try:
        numbered = [folder for folder in path.iterdir() if folder.name.isdecimal()]
        folder = max(numbered, key=lambda found: int(found.name), default=path)
        head = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        sizes = [(folder / name).stat().st_size for name in head["files"]]
        best = head["record"].get("best") or head["record"]
        return CheckpointAbout(head["step"], best.get("epoch"), sum(sizes), len(sizes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
