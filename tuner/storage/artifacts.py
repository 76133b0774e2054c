"""Where the files of a study's trials are: checkpoints to resume from, and the best ones. Does not import JAX.

They are in a folder, or in object storage: then in a folder of this machine as well, from which they are uploaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.errors import ArtifactsLost, ArtifactsURLError, CheckpointError, UsageError
from tuner.object_storage import (
    OBJECT_STORES,
    RECORD,
    ArtifactsURL,
    ObjectStore,
    cached_folder,
    fetched,
    is_url,
    parse_artifacts_url,
)
from tuner.output.log import tell
from tuner.output.sanitize import folder_name

__all__ = [
    "FILES",
    "LAST",
    "LOG",
    "RECORD",
    "VARIABLE",
    "Artifacts",
    "CheckpointAbout",
    "StudyArtifacts",
    "artifacts_of",
    "collect",
    "describe_checkpoint",
    "has_more_than_log",
    "local_checkpoint",
    "study_folder",
    "trial_folder",
]

VARIABLE = "TUNER_ARTIFACTS"
_LAST_FILES_S = 10.0
"""Seconds in which a worker notices that its study was deleted, and writes no more files."""
FILES = "files"
"""The folder of a trial's own files, in the trial's folder."""
LOG = "log.txt"
"""What a trial printed, in the trial's folder; `log.1.txt` has what was printed before, if that is much."""
LAST = "last"
"""The folder with the last state of a complete trial, in the trial's folder; it has the same folders as that one."""
SEEDS = "seeds"
"""The folder with a folder for each seed of a trial but the first, in the trial's folder."""


@dataclass(frozen=True)
class Artifacts:
    """Where the files of all studies are.

    Attributes:
        folder: The folder in which they are written and read.
        store: The object storage to which they are uploaded; None if the folder is all.
    """

    folder: Path
    store: ObjectStore | None = None

    def __str__(self) -> str:
        return str(self.folder if self.store is None else self.store.url)

    def of_study(self, name: str, identity: str) -> StudyArtifacts:
        """Return where the files of a study are; `identity` as for `study_folder`."""
        return StudyArtifacts(study_folder(self.folder, name, identity), self.store)

    def check(self) -> None:
        """Check that object storage can be written; a folder is created with the first file.

        Raises:
            ArtifactsURLError: it refuses: the bucket does not exist, or credentials are missing or wrong.
            ArtifactsLost: it cannot be reached.
        """
        if self.store is not None:
            self.store.check()

    def check_or_warn(self) -> None:
        """Check as `check` does, but only print a warning if the storage cannot be reached: workers upload later.

        Raises:
            ArtifactsURLError: it refuses.
        """
        try:
            self.check()
        except ArtifactsLost as error:
            tell(f"{error}; the launch continues, and workers upload when they can", "artifacts", "warning")


@dataclass(frozen=True)
class StudyArtifacts:
    """Where the files of one study are.

    Attributes:
        folder: Its folder.
        store: The object storage that has them too, under the folder's name; None if there is none.
    """

    folder: Path
    store: ObjectStore | None = None

    @property
    def key(self) -> str:
        """The key of the study in the object storage."""
        return self.folder.name

    def __str__(self) -> str:
        return str(self.folder if self.store is None else self.store.url_of(self.key))

    def exist(self) -> bool:
        """Return whether there are any files."""
        return self.folder.is_dir() or (self.store is not None and bool(self.store.names(self.key)))

    def collect(self, removable: Callable[[Collection[int]], Collection[int]]) -> tuple[list[int], int]:
        """Remove the files of trials that are not needed any more; return the trials, and the freed bytes.

        Copies in the folder of files that are in object storage are removed too, and not counted.

        Args:
            removable: As for the function `collect`.
        """
        removed, size = collect(self.folder, removable)
        if self.store is None:
            return removed, size
        numbers = [int(name) for name in self.store.names(self.key) if name.isdecimal()]
        stored = sorted(removable(numbers)) if numbers else []
        freed = {number: self.store.remove(f"{self.key}/{number}") for number in stored}
        return sorted({*removed, *stored}), sum(freed.values()) or size

    def remove(self) -> None:
        """Remove all files of the study, also while a worker that has not stopped yet writes more.

        Raises:
            OSError: some could not be removed from the folder.
        """
        if self.store is not None:
            self.store.remove(self.key)
        end_s = time.monotonic() + _LAST_FILES_S
        while True:
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            if time.monotonic() > end_s:
                raise OSError(f"cannot remove {self.folder}")
            time.sleep(0.1)


def artifacts_of(given: str | Path | None) -> Artifacts:
    """Return where all studies' files are: in the given folder or URL, else `$TUNER_ARTIFACTS`, else `tuner-artifacts`.

    Raises:
        ArtifactsURLError: a URL is wrong, or a package for it is not installed. The storage is not asked yet.
    """
    place = given or os.environ.get(VARIABLE) or "tuner-artifacts"
    if isinstance(place, str) and is_url(place):
        url = parse_artifacts_url(place)
        return Artifacts(cached_folder(url), ObjectStore(url))
    return Artifacts(Path(place).absolute())


def local_checkpoint(recorded: str, name: str, what: str = "checkpoint") -> Path:
    """Return the folder of a checkpoint in a trial's record; one in object storage is copied to this machine.

    The trial's own files are copied with it, to the folder `files` beside it.

    Args:
        recorded: The path or the URL in the record.
        name: The trial, for messages.
        what: What is in the folder, for messages.

    Raises:
        UsageError: the checkpoint is not there any more, or it is on another machine.
        ArtifactsURLError: a URL is wrong, or leads to something that is not an object store.
        ArtifactsLost: the object storage cannot be reached, and there is no copy on this machine.
    """
    if is_url(recorded):
        _recorded_url(recorded)
        try:
            folder = fetched(recorded)
            with contextlib.suppress(CheckpointError):  # it has none
                fetched(f"{recorded.rpartition('/')[0]}/{FILES}")
        except CheckpointError as error:
            raise UsageError(f"cannot read the {what} of {name}: {error}") from None
        return folder
    folder = Path(recorded)
    if not folder.is_dir():
        raise UsageError(
            f"the {what} of {name} is not on this machine: no folder {folder}; it was removed in favour of "
            "better trials, or is on the machine that ran the trial"
        )
    return folder


def _recorded_url(recorded: str) -> ArtifactsURL:
    """Check the URL of a checkpoint in a trial's record, which anyone who can write to the database has chosen.

    Raises:
        ArtifactsURLError: it is wrong, or it could lead to files of this machine or to any server, and is not below
            the URL in `$TUNER_ARTIFACTS`.
    """
    url = parse_artifacts_url(recorded)
    given = os.environ.get(VARIABLE)
    is_given = is_url(given) and str(url).startswith(f"{parse_artifacts_url(str(given))}/")
    if url.protocol not in OBJECT_STORES and not is_given:
        place, _ = url.split()
        raise ArtifactsURLError(
            f"the URL of a checkpoint in the database must be one of object storage, such as s3 or gs: got {url}; "
            f"if the artifacts are there, set ${VARIABLE}={place}"
        )
    return url


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


def has_more_than_log(folder: Path) -> bool:
    """Return whether the folder of a trial exists, and its log is not all that is in it."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not names or any(not name.startswith("log.") for name in names)


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


def describe_checkpoint(recorded: str) -> CheckpointAbout | None:
    """Return information about a checkpoint; None if it does not exist, or is not one of tuner's.

    Args:
        recorded: A checkpoint in a trial's record, or the folder of numbered ones, for the newest of them: a path, or a
            URL, of which only the record is read.

    Raises:
        ArtifactsLost: the object storage cannot be reached.
        ArtifactsURLError: it refuses to be read, or the URL does not lead to an object store.
    """
    if is_url(recorded):
        url, key = _recorded_url(recorded).split()
        store = ObjectStore(url)
        sizes = store.sizes(key)
        records = [name for name in sizes if _NUMBERED.fullmatch(name)]
        newest = max(records, key=lambda name: (len(name), name), default=RECORD)
        try:
            return _about(store.read_json(f"{key}/{newest}"), lambda name: sizes[newest[: -len(RECORD)] + name])
        except (CheckpointError, ValueError, KeyError, TypeError, AttributeError):
            return None
    path = Path(recorded)
    try:
        numbered = [folder for folder in path.iterdir() if folder.name.isdecimal()]
        folder = max(numbered, key=lambda found: int(found.name), default=path)
        head = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return _about(head, lambda name: (folder / name).stat().st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_NUMBERED = re.compile(rf"\d+/{re.escape(RECORD)}")


def _about(head: Any, size_of: Callable[[str], int]) -> CheckpointAbout:
    sizes = [size_of(name) for name in head["files"]]
    best = head["record"].get("best") or head["record"]
    return CheckpointAbout(head["step"], best.get("epoch"), sum(sizes), len(sizes))
