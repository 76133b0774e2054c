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
FILES = "files"
"""The folder of a trial's own files, in the trial's folder."""
RECORD = "record.json"
"""The file in a checkpoint that describes it; `tuner.training.saved.files` writes it."""


def artifacts_folder(given: str | Path | None) -> Path:
    """Return the folder of all studies' files: the given one, else `$TUNER_ARTIFACTS`, else `tuner-artifacts`."""
    return Path(given or os.environ.get(VARIABLE) or "tuner-artifacts").absolute()


def study_folder(folder: Path, name: str, identity: str) -> Path:
    """Return the folder of a study; `identity` distinguishes studies with the same name in different storages.

    It is always directly below `folder`, because both arguments come from a database.
    """
    return folder / folder_name(name, identity)


def trial_folder(study: Path, number: int) -> Path:
    """Return the folder of one trial."""
    return study / str(number)


def collect(study: Path, removable: Callable[[Collection[int]], Collection[int]]) -> tuple[list[int], int]:
    """Remove the folders of trials that are not needed any more; return the trials, and the freed bytes.

    Args:
        study: The study's folder.
        removable: A function from trial numbers to those whose folders can be removed.
    """
    size = 0
    removed: list[int] = []
    numbers: list[int] = []
    with contextlib.suppress(FileNotFoundError):  # another process may remove it at any moment
        numbers = [int(path.name) for path in study.iterdir() if path.name.isdigit()]
    for number in removable(numbers) if numbers else ():
        folder = trial_folder(study, number)
        size += _size(folder)
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(number)
    return sorted(removed), size


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # this skips folders that another process removes at the same time
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


@dataclass(frozen=True)
class CheckpointAbout:
    """Information about a checkpoint without its arrays."""

    step: int
    epoch: int | None
    size_bytes: int
    files: int


def describe_checkpoint(path: Path) -> CheckpointAbout | None:
    """Return information about a checkpoint; None if it does not exist, or is not one of tuner's.

    Args:
        path: A checkpoint, or the folder of numbered ones in a trial's record, for the newest of them.
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
