"""The files of one attempt of a trial, and which of them object storage has."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import CheckpointError
from tuner.object_storage.store import check_complete, describe_error
from tuner.output.log import tell
from tuner.storage.artifacts import RECORD, SEEDS, ObjectStore

LATEST, BEST = "latest", "best"
_FILES_S = 30.0
"""Seconds between two looks for changes of the trial's own files; they are also uploaded with each checkpoint."""
_STAGING = ".upload-"
_PROCESS = uuid.uuid4().hex[:8]
"""Distinguishes this process from earlier ones with its number: in containers, many have the same."""


@dataclass(frozen=True)
class Late:
    """A best checkpoint that is uploaded after its trial has ended: the trial's id, the recorded path, and the URL."""

    trial_id: int
    path: str
    url: str


class TrialUpload:
    """The files of one attempt of a trial, and which of them the store has.

    The store has the same files as the folder: the numbered checkpoints of `latest`, `best` after the trial's end, and
    the trial's own files, which the checkpoints of its other seeds are among. No other attempt writes below its key.

    Args:
        store: The store.
        root: The attempt's folder.
        key: The attempt's key.
        fetched: The checkpoints in `latest` that an earlier attempt has uploaded.
    """

    def __init__(self, store: ObjectStore, root: Path, key: str, fetched: Collection[str] = ()) -> None:
        self._store, self.root, self.key = store, root, key
        self.trial_key, _, attempt = key.rpartition("/")
        self._fence = int(attempt)
        found = _numbered(root / LATEST)
        self._fetched = {name: found[name] for name in fetched if name in found}
        self._sent: dict[str, tuple[int, int]] = {}
        self._own: dict[str, tuple[int, int]] = {}
        self._own_s = time.monotonic()
        self._has_earlier = self._fence > 1
        self._incomplete: dict[str, tuple[int, int]] = {}
        self._warned: set[str] = set()
        self._staging = root.with_name(f"{_STAGING}{attempt}-{os.getpid()}-{_PROCESS}")
        self.asked = self.answered = 0
        self.kept: Path | None = None
        """What is kept of an ended trial; None while it runs."""
        self._has_kept = False
        self.late: Late | None = None
        """Set when the trial has ended before what is kept was uploaded."""

    def sync(self) -> None:
        """Bring the store up to date.

        Raises:
            TunerError: the store cannot be reached, or refuses.
            OSError: a checkpoint cannot be read.
        """
        asked = self.asked
        if self.kept is not None:
            if not self._has_kept:
                self._send_own()
                if self.kept.name == BEST:
                    self._store.upload(self.kept, f"{self.key}/{BEST}")
                self._has_kept = True
        else:
            self._send_running(is_asked=asked > self.answered)
        self.answered = asked

    def _send_running(self, *, is_asked: bool) -> None:
        is_due = time.monotonic() - self._own_s >= _FILES_S
        if is_asked or is_due or self._unsent():
            self._send_own()
        for name in self._incomplete:  # and not only for a moment, while the training removed it
            self._warn(str(self.root / LATEST / name), "it is incomplete")
        has_sent = False
        while self.kept is None and (unsent := self._unsent()):  # the newest, also of those saved meanwhile
            self._send(unsent[0])
            has_sent = True
        if not has_sent:
            return
        local = _numbered(self.root / LATEST)
        for name in self._sent.keys() - local.keys():
            self._store.remove(f"{self.key}/{LATEST}/{name}")
            del self._sent[name]
        if self._has_earlier and self._sent:
            self.remove_earlier()
            self._has_earlier = False

    def _unsent(self) -> list[str]:
        """Return the checkpoints that the store does not have, newest first; none if the newest was fetched from it."""
        found = _numbered(self.root / LATEST)
        self._fetched = {name: state for name, state in self._fetched.items() if found.get(name) == state}
        self._incomplete = {name: state for name, state in self._incomplete.items() if found.get(name) == state}
        if next(iter(found), None) in self._fetched:
            return []
        return [name for name, state in found.items() if self._sent.get(name) != state and name not in self._incomplete]

    def _send(self, name: str) -> None:
        folder = self.root / LATEST / name
        state = _numbered(self.root / LATEST).get(name)
        with self._staged(folder) as staged:
            if staged is not None and state is not None:
                self._store.upload(staged, f"{self.key}/{LATEST}/{name}")
                self._sent[name] = state
            elif state is not None:
                self._incomplete[name] = state

    @contextlib.contextmanager
    def _staged(self, folder: Path) -> Generator[Path | None]:
        """Yield hard links to a checkpoint, which the training may remove meanwhile; None if it is not complete."""
        try:
            yield self._staging if self._is_staged(folder) else None
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)

    def _is_staged(self, folder: Path) -> bool:
        """Link or copy a checkpoint; return whether all of it is there.

        Raises:
            OSError: it is complete, but cannot be copied: the disk may be full.
        """
        for copy in (os.link, shutil.copy2):  # some disks have no hard links
            shutil.rmtree(self._staging, ignore_errors=True)
            try:
                shutil.copytree(folder, self._staging, copy_function=copy)
            except OSError:
                if not _is_complete(folder):
                    return False
                if copy is shutil.copy2:
                    raise
            else:
                break
        return _is_complete(self._staging)

    def _warn(self, path: str, why: str) -> None:
        if path not in self._warned:
            self._warned.add(path)
            tell(f"{path} is not uploaded: {why}", "artifacts", "warning")

    def _send_own(self) -> None:
        """Upload what has changed of the files that the trial has written itself."""
        self._own_s = time.monotonic()
        if not self.root.is_dir():  # nothing is written yet, or a later attempt has taken the folder
            return
        found = dict(_own_files(self.root))
        changed = [name for name, state in found.items() if self._own.get(name) != state]
        for name in changed:
            try:
                self._store.upload(self.root, self.key, [name])
                self._own[name] = found[name]
            except FileNotFoundError:  # the training has removed it
                pass
            except (OSError, UnicodeError) as error:
                self._warn(str(self.root / name), describe_error(error))
        gone = self._own.keys() - found.keys()
        self._store.remove_files(self.key, gone)
        for name in gone:
            del self._own[name]

    def remove_earlier(self) -> None:
        """Remove what earlier attempts of the trial have uploaded."""
        for name in self._store.names(self.trial_key):
            if name.isdecimal() and int(name) < self._fence:
                self._store.remove(f"{self.trial_key}/{name}")

    def tidy(self) -> None:
        """Remove what an ended trial does not need any more: checkpoints to resume from."""
        self._store.remove(f"{self.key}/{LATEST}")
        for seed in {name.split("/")[1] for name in self._own if name.startswith(f"{SEEDS}/")}:
            self._store.remove(f"{self.key}/{SEEDS}/{seed}/{LATEST}")
        if self._fence > 1:
            self.remove_earlier()


def remove_stale(study: Path) -> None:
    """Remove the copies for uploads that killed processes have left in a study's folder."""
    for path in study.glob(f"*/{_STAGING}*"):
        _, process, run = [*path.name.removeprefix(_STAGING).split("-"), "", ""][:3]
        if process.isdecimal() and not _is_running(int(process), run):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int, run: str) -> bool:
    if process == os.getpid():
        return run == _PROCESS
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _is_complete(folder: Path) -> bool:
    try:
        check_complete(folder)
    except CheckpointError:
        return False
    return True


def _numbered(series: Path) -> dict[str, tuple[int, int]]:
    """Return the complete checkpoints in a folder, newest first, with what identifies the files of each."""
    try:
        names = [name for name in os.listdir(series) if name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found: dict[str, tuple[int, int]] = {}
    for name in sorted(names, key=int, reverse=True):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            record = (series / name / RECORD).stat()
            found[name] = record.st_ino, record.st_mtime_ns
    return found


def _own_files(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the files of a trial that are not checkpoints: their paths, with size and time of change."""
    for place, folders, names in os.walk(root):
        if Path(place) == root:
            folders[:] = [name for name in folders if name not in (LATEST, BEST) and not name.startswith(".tmp-")]
        elif Path(place).parent == root / SEEDS:
            folders[:] = [name for name in folders if not name.startswith(".tmp-")]
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError, PermissionError):
                if path.is_file():
                    about = path.stat()
                    yield path.relative_to(root).as_posix(), (about.st_size, about.st_mtime_ns)
