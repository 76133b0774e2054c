"""Uploads the files of a worker's trials to object storage on a thread of its own, so that no training waits for it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Collection

from tuner.errors import TunerError
from tuner.object_storage.store import describe_error
from tuner.output.log import tell
from tuner.storage.artifacts import ObjectStore
from tuner.storage.sql.backoff import Backoff
from tuner.storage.sql.retry import PROMPT, hurried
from tuner.worker.files.trial_upload import Late, TrialUpload

_POLL_S = 1.0
"""Seconds between two looks for new checkpoints."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
DOWN_S = 10.0
"""Seconds that the end of a trial waits for a store that does not answer."""

_BRIEFLY = dataclasses.replace(PROMPT, statement_s=2.0)
"""How long the uploads wait for the database."""

Removable = Callable[[Collection[int]], Collection[int]]
"""Returns those of trials whose files can be removed."""


class Uploads:
    """The thread that uploads, and what it has to do.

    While the store cannot be reached, it tries again with growing pauses, and prints one line. What fails for another
    reason is also tried again, and does not hold up the rest.

    Args:
        store: The store.
        study_key: The study's key in it.
    """

    def __init__(self, store: ObjectStore, study_key: str) -> None:
        self._store, self._study_key = store, study_key
        self._uploads: list[TrialUpload] = []
        self._chores: list[Callable[[], object]] = []
        self._arrived: list[Late] = []
        self._removable: Removable | None = None
        self._changed = threading.Condition()
        self._is_woken = self._is_closed = False
        self._down_since_s: float | None = None
        self._noted: set[type[Exception]] = set()
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)
        self._thread.start()

    # --- On the worker's thread

    def begin(self, upload: TrialUpload) -> None:
        """Upload an attempt's files from now on, until `forget`."""
        with self._changed:
            self._uploads.insert(0, upload)

    def forget(self, upload: TrialUpload) -> None:
        """Stop to upload an attempt's files."""
        with self._changed:
            self._uploads = [one for one in self._uploads if one is not upload]

    def wait(self, upload: TrialUpload, seconds: float, is_over: Callable[[], bool]) -> bool:
        """Wait until the store has an attempt's files as they are now; return whether it has.

        Args:
            upload: The attempt's files.
            seconds: Seconds to wait; less if the store does not answer.
            is_over: Called from time to time; True ends the wait.
        """
        with self._changed:
            upload.asked += 1
            mine = upload.asked
        self._wake()
        return self._wait_for(lambda: upload.answered >= mine, seconds, is_over)

    def finish(self, upload: TrialUpload, *, is_kept: bool) -> None:
        """Remove what is not needed after a trial's end: checkpoints to resume from, or everything."""
        self.forget(upload)
        with self._changed:
            self._chores.append(upload.tidy if is_kept else lambda: self._store.remove(upload.trial_key))
        self._wake()

    def finish_later(self, upload: TrialUpload) -> None:
        """Continue to upload the best checkpoint of a trial that has ended."""
        with self._changed:
            if upload not in self._uploads:
                self._uploads.append(upload)

    def drop_late(self, numbers: Collection[int]) -> None:
        """Stop to upload the best checkpoints of ended trials that are not needed any more."""
        keys = {f"{self._study_key}/{number}" for number in numbers}
        with self._changed:
            self._uploads = [one for one in self._uploads if one.late is None or one.trial_key not in keys]

    def collect(self, removable: Removable) -> None:
        """Remove the files of trials that are not needed, after the next look for uploads.

        Args:
            removable: Called on the thread, with the trials that have files in the store at that time.
        """
        with self._changed:
            self._removable = removable
            self._collect_later()
        self._wake()

    def take_arrived(self) -> list[Late]:
        """Return the late checkpoints that the store has now; each is returned once."""
        with self._changed:
            arrived, self._arrived = self._arrived, []
        return arrived

    def wait_for_rest(self, seconds: float, is_over: Callable[[], bool]) -> list[Late]:
        """Wait until everything is uploaded and removed; return the late checkpoints that are not."""
        self._wake()
        self._wait_for(lambda: not self._uploads and not self._chores, seconds, is_over)
        with self._changed:
            return [upload.late for upload in self._uploads if upload.late is not None]

    def close(self) -> None:
        """End the thread, without waiting for it."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def _wait_for(self, condition: Callable[[], bool], seconds: float, is_over: Callable[[], bool]) -> bool:
        began_s = time.monotonic()
        while not condition():
            now_s = time.monotonic()
            down_s = 0.0 if self._down_since_s is None else now_s - max(began_s, self._down_since_s)
            if now_s - began_s >= seconds or down_s >= DOWN_S or is_over():
                return False
            with self._changed:
                self._changed.wait(0.05)
        return True

    # --- On the thread

    def _run(self) -> None:
        backoff, pause_s = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S), _POLL_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_woken or self._is_closed, pause_s)
                self._is_woken = False
                if self._is_closed:
                    return
            if not self._work():
                pause_s = backoff.next_s()
                continue
            self._down_since_s = None
            if any(issubclass(kind, TunerError) for kind in self._noted):
                tell(f"{self._store.url} can be written again", "artifacts")
            self._noted.clear()
            backoff.reset()
            pause_s = _POLL_S

    def _work(self) -> bool:
        """Upload and remove what there is; return whether all of it is done."""
        done = [self._is_synced(upload) for upload in list(self._uploads)]
        done.append(self._are_chores_done())
        with self._changed:
            self._changed.notify_all()
        return all(done)

    def _is_synced(self, upload: TrialUpload) -> bool:
        try:
            if _is_gone(upload):  # removed, because others became better
                self.forget(upload)
                return True
            upload.sync()
        except Exception as error:
            if not isinstance(error, TunerError) and (upload not in self._uploads or _is_gone(upload)):
                return True  # its files were removed meanwhile
            self._note_failed(error, f"cannot upload {upload.root}")
            return False
        if upload.late is not None:
            self._note_arrived(upload, upload.late)
        return True

    def _are_chores_done(self) -> bool:
        while self._chores:
            try:
                self._chores[0]()
            except TunerError as error:
                self._note_failed(error)
                return False
            except Exception as error:  # it would fail each time, and hold up the others
                self._note_failed(error, f"cannot remove files from {self._store.url}")
            with self._changed:
                del self._chores[0]
        return True

    def _note_arrived(self, upload: TrialUpload, late: Late) -> None:
        with self._changed:
            if upload in self._uploads:
                self._uploads.remove(upload)
                self._arrived.append(late)
                self._chores.append(upload.tidy)
                self._collect_later()  # better trials may have ended during the upload

    def _note_failed(self, error: Exception, what: str = "") -> None:
        if self._down_since_s is None:
            self._down_since_s = time.monotonic()
        if type(error) not in self._noted:
            self._noted.add(type(error))
            why = str(error) if isinstance(error, TunerError) else f"{what}: {describe_error(error)}"
            tell(f"{why}; training continues, and uploads are tried again", "artifacts", "warning")

    def _collect_later(self) -> None:
        if self._collect not in self._chores[1:]:  # the first chore may be running: it would miss what is new
            self._chores.append(self._collect)

    def _collect(self) -> None:
        """Remove what is not needed; without the database, the end of a later trial or `tuner gc` does."""
        if self._removable is None:
            return
        numbers = [int(name) for name in self._store.names(self._study_key) if name.isdecimal()]
        found: Collection[int] = ()
        with contextlib.suppress(TunerError), hurried(_BRIEFLY):
            found = self._removable(numbers) if numbers else ()
        for number in found:
            self._store.remove(f"{self._study_key}/{number}")


def _is_gone(upload: TrialUpload) -> bool:
    return upload.kept is not None and not upload.kept.is_dir()
