"""The files of a worker's trials: in a folder, or in object storage with a folder of this machine in front of it."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol, Self

from tuner.errors import ArtifactsLost, ArtifactsURLError, CheckpointError
from tuner.object_storage.store import check_complete
from tuner.output.log import tell
from tuner.storage.artifacts import RECORD, Artifacts, ObjectStore, StudyArtifacts, collect, trial_folder
from tuner.storage.sql.backoff import Backoff
from tuner.storage.worker.fences import Lease
from tuner.trial import Stop
from tuner.worker.files.trial_upload import BEST, LATEST, Late, TrialUpload, remove_stale
from tuner.worker.files.uploads import Removable, Uploads

FETCH_S = 60.0
"""Seconds that a worker waits for a store that it cannot reach, before it starts an earlier trial again."""
_SAVE_S = 20.0
"""Seconds for the upload of the last state of a trial that is given back."""
_KEEP_S = 60.0
"""Seconds that the end of a trial waits for the upload of its best checkpoint, which otherwise arrives later."""
_REST_S = 300.0
"""Seconds for uploads that are left at the end of a worker."""
_MARGIN_S = 1.0


class TrialFiles(Protocol):
    """The files of one attempt of a trial; a context manager around the attempt."""

    @property
    def root(self) -> Path:
        """The folder in which the attempt writes."""
        ...

    def fetch(self, must_stop: Callable[[], bool]) -> bool:
        """Bring the files of earlier attempts to `root`; return False if the worker must stop first."""
        ...

    def flush(self) -> None:
        """Wait a while until what the attempt has saved is where the next one finds it."""
        ...

    def keep(self, path: Path, trial_id: int) -> str:
        """Keep the best checkpoint of a complete trial; return its place, for the trial's record."""
        ...

    def finish(self) -> None:
        """Remove what is not needed, because the end of the trial is stored."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class StudyFiles(Protocol):
    """The files of a worker's study."""

    def of_attempt(self, lease: Lease) -> TrialFiles:
        """Return the files of an attempt."""
        ...

    def resume(self, leftovers: Collection[tuple[int, str]]) -> None:
        """Upload checkpoints that an earlier worker of this machine could not: ids of trials, and recorded paths."""
        ...

    def collect(self, removable: Removable) -> None:
        """Remove the files of trials that are not among the best any more."""
        ...

    def take_arrived(self) -> list[Late]:
        """Return the checkpoints that were uploaded after the end of their trial, each once."""
        ...

    def close(self) -> None:
        """Wait a while for what is left to upload, at the end of the worker."""
        ...


def check_writable(artifacts: Artifacts) -> None:
    """Check that object storage takes a worker's files. One that cannot be reached is no error: the uploads say so.

    Raises:
        ArtifactsURLError: the storage refuses: the bucket does not exist, or credentials are missing or wrong.
    """
    with contextlib.suppress(ArtifactsLost):
        artifacts.check()


def make_study_files(artifacts: StudyArtifacts, stop: Stop) -> StudyFiles:
    """Return the files of a worker's study.

    Args:
        artifacts: Where they are.
        stop: Whether the worker must stop, and when it ends at the latest.
    """
    if artifacts.store is None:
        return _InFolder(artifacts.folder)
    return _InStore(artifacts.folder, artifacts.store, stop)


# --- In a folder


class _InFolder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of_attempt(self, lease: Lease) -> TrialFiles:
        return _FolderFiles(trial_folder(self._folder, lease.number))

    def resume(self, leftovers: Collection[tuple[int, str]]) -> None:
        pass

    def collect(self, removable: Removable) -> None:
        collect(self._folder, removable)

    def take_arrived(self) -> list[Late]:
        return []

    def close(self) -> None:
        pass


class _FolderFiles:
    """Files that need nothing more than to be written: all workers use the same folder, or each its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fetch(self, must_stop: Callable[[], bool]) -> bool:
        return True

    def flush(self) -> None:
        pass

    def keep(self, path: Path, trial_id: int) -> str:
        return str(path)

    def finish(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


# --- In object storage


class _InStore:
    def __init__(self, folder: Path, store: ObjectStore, stop: Stop) -> None:
        self._folder, self._store, self._stop = folder, store, stop
        self._uploads = Uploads(store, folder.name)

    def of_attempt(self, lease: Lease) -> TrialFiles:
        remove_stale(self._folder)
        return _StoreFiles(self._folder, self._store, self._uploads, lease, self._stop)

    def resume(self, leftovers: Collection[tuple[int, str]]) -> None:
        for trial_id, path in leftovers:
            root, kept = Path(path).parent, Path(path)
            key = f"{self._folder.name}/{root.relative_to(self._folder).as_posix()}"
            if kept.is_dir():
                upload = TrialUpload(self._store, root, key)
                upload.kept, upload.late = kept, Late(trial_id, path, self._store.url_of(f"{key}/{kept.name}"))
                self._uploads.finish_later(upload)

    def collect(self, removable: Removable) -> None:
        def removable_here(numbers: Collection[int]) -> Collection[int]:
            found = removable(numbers)
            self._uploads.drop_late(found)  # before their folders are removed
            return found

        collect(self._folder, removable_here)
        self._uploads.collect(removable)

    def take_arrived(self) -> list[Late]:
        return self._uploads.take_arrived()

    def close(self) -> None:
        left = self._uploads.wait_for_rest(_REST_S, lambda: _must_end(self._stop))
        self._uploads.close()
        if left:
            paths = ", ".join(late.path for late in left)
            tell(
                f"not uploaded to {self._store.url}: {paths}; the next launch on this machine uploads them",
                "artifacts",
                "warning",
            )


def _must_end(stop: Stop) -> bool:
    """Return whether the process must end now; until then, what waits for an upload counts as saving."""
    stop.is_noticed = stop.is_noticed or stop.requested
    return stop.ends_at_s is not None and time.monotonic() > stop.ends_at_s - _MARGIN_S


class _StoreFiles:
    """Files in a folder of this machine, one for each attempt, that are uploaded while the trial runs.

    Args:
        folder: The study's folder on this machine; its name is the study's key in the store.
        store: The store.
        uploads: The worker's uploads.
        lease: The worker's claim on the trial.
        stop: Whether the worker must stop.
    """

    def __init__(self, folder: Path, store: ObjectStore, uploads: Uploads, lease: Lease, stop: Stop) -> None:
        self._store, self._uploads, self._lease, self._stop = store, uploads, lease, stop
        self._trial = trial_folder(folder, lease.number)
        self._key = f"{folder.name}/{lease.number}"
        self.root = self._trial / str(lease.fence)
        self._upload = TrialUpload(store, self.root, f"{self._key}/{lease.fence}")
        self._url: str | None = None
        self._late: Late | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._upload.late is None:  # also when another worker has the trial: that worker uploads its own files
            self._uploads.forget(self._upload)

    # --- At the start

    def fetch(self, must_stop: Callable[[], bool]) -> bool:
        fetched: Collection[str] = ()
        if self._lease.fence > 1 and not self._take_local(self._lease.fence - 1):
            backoff, end_s, has_told = Backoff(0.5, 10.0), time.monotonic() + FETCH_S, False
            while True:
                try:
                    fetched = self._take_newest()
                    break
                except (ArtifactsLost, ArtifactsURLError, OSError) as error:
                    if time.monotonic() >= end_s:
                        self._take_local(1)
                        here = "resumes from what this machine has" if self.root.exists() else "starts again"
                        tell(f"trial {self._lease.number} {here}: {error}", "artifacts", "warning")
                        break
                    if not has_told:
                        about = f"trial {self._lease.number} waits for its checkpoint"
                        tell(f"{about}: {error}", "artifacts", "warning")
                    has_told = True
                    pause_s = time.monotonic() + backoff.next_s()
                    while time.monotonic() < min(pause_s, end_s):
                        if must_stop():
                            return False
                        time.sleep(0.05)
        self._upload = TrialUpload(self._store, self.root, f"{self._key}/{self._lease.fence}", fetched)
        self._uploads.begin(self._upload)
        return True

    def _take_local(self, least: int) -> bool:
        """Go on in the folder of this machine's newest earlier attempt, if it is not before `least`; return whether."""
        try:
            attempts = [int(path.name) for path in self._trial.iterdir() if path.name.isdecimal()]
        except FileNotFoundError:
            return False
        newest = max((number for number in attempts if number < self._lease.fence), default=0)
        if newest < least:
            return False
        try:
            (self._trial / str(newest)).rename(self.root)
        except OSError:
            return False
        return True

    def _take_newest(self) -> list[str]:
        """Bring the newest attempt's files to `root`, from the store or from this machine.

        Returns:
            The checkpoints to resume from that the store has.

        Raises:
            ArtifactsLost: the store cannot be reached.
            FileNotFoundError: a file was removed while it was copied.
        """
        sizes = self._store.sizes(self._key)
        stored = sorted({int(head) for name in sizes if (head := name.partition("/")[0]).isdecimal()}, reverse=True)
        earlier = [number for number in stored if number < self._lease.fence]
        if self._take_local(earlier[0] if earlier else 1) or not earlier:
            return []
        scratch = self._trial / f".fetch-{uuid.uuid4().hex}"
        try:
            self._download(earlier[0], _own(sizes, earlier[0]), scratch)
            fetched: list[str] = []
            for attempt in earlier:
                fetched = [
                    name for name in _checkpoints(sizes, attempt) if self._is_fetched(attempt, name, sizes, scratch)
                ]
                if fetched:
                    break
            scratch.mkdir(parents=True, exist_ok=True)
            scratch.rename(self.root)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return fetched

    def _is_fetched(self, attempt: int, name: str, sizes: dict[str, int], folder: Path) -> bool:
        """Copy a checkpoint; return whether it is complete."""
        start = f"{attempt}/{LATEST}/{name}/"
        files = {
            f"{LATEST}/{name}/{one.removeprefix(start)}": size for one, size in sizes.items() if one.startswith(start)
        }
        self._download(attempt, files, folder)
        try:
            check_complete(folder / LATEST / name)
        except CheckpointError:
            where = self._store.url_of(f"{self._key}/{attempt}/{LATEST}/{name}")
            tell(
                f"cannot use the checkpoint {where}: it is incomplete; trying the one before it",
                "checkpoint",
                "warning",
            )
            shutil.rmtree(folder / LATEST / name)
            return False
        return True

    def _download(self, attempt: int, files: dict[str, int], folder: Path) -> None:
        self._store.download(f"{self._key}/{attempt}", folder, files)

    # --- At the end

    def flush(self) -> None:
        if not self._wait(_SAVE_S):
            tell(
                f"the last state of trial {self._lease.number} is not uploaded to {self._store.url}: it stays in "
                f"{self.root}, and another machine resumes from an earlier one",
                "artifacts",
                "warning",
            )

    def keep(self, path: Path, trial_id: int) -> str:
        self._upload.kept = path
        url = self._store.url_of(f"{self._upload.key}/{path.name}")
        if self._wait(_KEEP_S):
            self._url = url
            return url
        self._late = Late(trial_id, str(path), url)
        return str(path)

    def finish(self) -> None:
        if self._late is not None:
            self._upload.late = self._late
        else:
            self._uploads.finish(self._upload, is_kept=self._url is not None)
        for path in self._trial.iterdir() if self._trial.is_dir() else ():  # of earlier attempts on this machine
            if path != self.root and not path.name.startswith(".upload-"):
                shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # it has something
            self._trial.rmdir()

    def _wait(self, seconds: float) -> bool:
        return self._uploads.wait(self._upload, seconds, lambda: _must_end(self._stop))


def _own(sizes: dict[str, int], attempt: int) -> dict[str, int]:
    """Return the files that an attempt has written besides checkpoints, by their paths in its folder."""
    found = {name.removeprefix(f"{attempt}/"): size for name, size in sizes.items() if name.startswith(f"{attempt}/")}
    return {name: size for name, size in found.items() if name.partition("/")[0] not in (LATEST, BEST)}


def _checkpoints(sizes: dict[str, int], attempt: int) -> list[str]:
    """Return the checkpoints to resume from of which an attempt has uploaded the record, newest first."""
    parts = [name.split("/") for name in sizes]
    start = [str(attempt), LATEST]
    numbers = [part[2] for part in parts if part[:2] == start and part[3:] == [RECORD] and part[2].isdecimal()]
    return sorted(numbers, key=int, reverse=True)
