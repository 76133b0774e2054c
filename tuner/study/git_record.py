"""The Git state of study files in an image, recorded when the image is built: a container has no repository.

`docker/record_git.py` writes the record; `tuner.study.source.git_state` reads it from the file that `$TUNER_GIT_RECORD`
names.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import UsageError
from tuner.trial.environment import GitState

RECORD_VARIABLE = "TUNER_GIT_RECORD"
"""The file with the record."""
_DESCRIBED = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})(-dirty)?")


@dataclass(frozen=True)
class GitRecord:
    """The Python files of a folder at a commit.

    Args:
        commit: The commit, in hexadecimal.
        is_changed: Whether files that the repository tracks differed from the commit.
        folder: The folder in the container.
        digests: The SHA-256 of each Python file, by its path below the folder.
    """

    commit: str
    is_changed: bool
    folder: str
    digests: dict[str, str]

    def state_of(self, path: Path) -> GitState | None:
        """Return the Git state of a file of the folder; None for a file elsewhere.

        The state is changed if the file is not in the record, or if a recorded file differs or is missing. A folder
        that is mounted over the recorded one may have other files.
        """
        folder = Path(self.folder)
        if not path.absolute().is_relative_to(folder):
            return None
        recorded = self.digests.get(str(path.absolute().relative_to(folder)))
        is_same = recorded is not None and all(_digest(folder / name) == was for name, was in self.digests.items())
        return {"commit": self.commit, "is_changed": self.is_changed or not is_same}


def make_record(folder: Path, described: str) -> GitRecord:
    """Return the record of a folder.

    Args:
        folder: The folder with study files. Hidden folders in it are skipped.
        described: The commit, with `-dirty` after it if tracked files differ, as printed by
            `git describe --always --dirty --abbrev=40 --exclude='*'`.

    Raises:
        UsageError: `described` is not a commit.
    """
    found = _DESCRIBED.fullmatch(described)
    if found is None:
        raise UsageError(
            f"GIT_COMMIT must be a full commit in hexadecimal, or COMMIT-dirty: got {described!r}; "
            "set it to the output of git describe --always --dirty --abbrev=40 --exclude='*'"
        )
    digests: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        name, digest = path.relative_to(folder), _digest(path)
        if digest is not None and not any(part.startswith(".") for part in name.parts[:-1]):
            digests[str(name)] = digest
    return GitRecord(found[1], found[2] is not None, str(folder.absolute()), digests)


def read_record(path: Path) -> GitRecord | None:
    """Return the record in a file; None if there is none."""
    try:
        return GitRecord(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
