"""The notifications of one launch: what its launcher knows becomes events."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.errors import StudyFailed, StudyStopped, TunerError
from tuner.launch.progress import Progress, Snapshot
from tuner.notify.events import FAILING, FINISHED, GONE, Ending, State
from tuner.notify.notifier import Notifier
from tuner.notify.receivers import read_receivers, warn_of_secrets
from tuner.storage import StorageURL

_TELL_AFTER_S = 5.0


@dataclass
class LaunchNotices:
    """The notifications of a launch.

    Args:
        notifier: Sends them.
        launch: Distinguishes the launch from others.
        workers: The number of its workers.
    """

    notifier: Notifier
    launch: str
    workers: int

    @classmethod
    def of(cls, given: Sequence[str], url: StorageURL, workers: int) -> LaunchNotices:
        """Return the notifications of a launch with these receivers.

        Raises:
            UsageError: a receiver is wrong.
        """
        receivers = read_receivers(given, os.environ)
        warn_of_secrets(receivers)
        launch = f"{os.uname().nodename}:{os.getpid()} of {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
        return cls(Notifier(receivers, url), launch, workers)

    def start(self, study: str) -> None:
        """Start, once a worker has the study."""
        self.notifier.start(study)

    def watch(self, progress: Progress, snapshot: Snapshot) -> None:
        """Take the state of the study, and print messages about notifications."""
        if snapshot.began_s is not None:
            self.notifier.see(_state(snapshot))
        self._tell(progress)

    def end(
        self, progress: Progress, snapshot: Snapshot, stop: threading.Event, error: TunerError | None, *, is_gone: bool
    ) -> None:
        """Notify of the end, and wait a while until all is delivered; not after a signal.

        Args:
            progress: Shows messages.
            snapshot: The study at the end.
            stop: Set by signals.
            error: The error that ended the launch.
            is_gone: Whether all workers have ended by an error.
        """
        began_s, has_told = time.monotonic(), False

        def has_ended() -> bool:
            nonlocal has_told
            if not has_told and not stop.is_set() and time.monotonic() > began_s + _TELL_AFTER_S:
                progress.note("delivering notifications; press Ctrl-C to stop", "notify")
                has_told = True
            self._tell(progress)
            return stop.is_set()

        self.notifier.end(None if stop.is_set() else self._ending(snapshot, error, is_gone), has_ended)
        self._tell(progress)

    def _ending(self, snapshot: Snapshot, error: TunerError | None, is_gone: bool) -> Ending:
        if error is None and snapshot.ended:
            return self._ended(FINISHED, "ended_early", snapshot)
        if error is None:
            reason = "hours" if snapshot.is_out_of_hours and snapshot.used < snapshot.trials else "budget"
            is_early = snapshot.is_finished and snapshot.used < snapshot.trials
            return self._ended(FINISHED, "search_ended" if is_early else reason, snapshot)
        if isinstance(error, StudyFailed) and not is_gone:
            return self._ended(FAILING, str(error), snapshot)
        if isinstance(error, StudyStopped) and not is_gone:
            return self._ended(FINISHED, "stopped", snapshot)
        return self._ended(GONE, str(error), snapshot)

    def _ended(self, kind: str, reason: str, snapshot: Snapshot) -> Ending:
        return Ending(kind, reason, _state(snapshot), self.launch, self.workers)

    def _tell(self, progress: Progress) -> None:
        for note in self.notifier.take_notes():
            progress.note(note.text, "notify", note.level, **({} if note.event_id is None else {"id": note.event_id}))


def _state(snapshot: Snapshot) -> State:
    return State(snapshot.used, snapshot.trials, snapshot.best_value, snapshot.best_trial)
