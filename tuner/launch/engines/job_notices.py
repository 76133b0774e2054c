"""The notifications of a job of an engine, sent by the launch that waits for it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from tuner.errors import StorageLost, StudyFailed, TunerError
from tuner.launch.engines.engine import Job
from tuner.launch.signals import end_on_signals
from tuner.launch.study_launch import Interrupted
from tuner.notify.events import FAILING, FINISHED, GONE, Ending, State
from tuner.notify.looks import finished_by, read_state
from tuner.notify.notifier import Notifier
from tuner.notify.receivers import Receiver
from tuner.output.log import tell
from tuner.storage import StorageURL, notices
from tuner.storage.read.queries import Standing, StudyRow, find_study, read_standings

if TYPE_CHECKING:
    from sqlalchemy import Engine as Database


class WorkersEnded(StudyFailed):
    """All workers of a job have ended by errors, before the study."""


class JobNotices:
    """Notifies of a job's study, as `tuner.launch.notices.LaunchNotices` does of a launch on this machine.

    Args:
        receivers: Whom to notify.
        url: The storage's URL.
        database: The storage's engine.
        job: The job.
    """

    def __init__(self, receivers: Sequence[Receiver], url: StorageURL, database: Database, job: Job) -> None:
        self._receivers, self._database, self._job = receivers, database, job
        self._notifier = Notifier(receivers, url)
        self._last: tuple[Standing, State] | None = None
        self._notifier.start(job.study)

    def look(self) -> None:
        """Take the state of the study; the database may be down for a moment."""
        if not self._receivers:
            return
        with contextlib.suppress(StorageLost):
            study = find_study(self._database, self._job.study)
            standing = read_standings(self._database, study.study_id).get(study.study_id, Standing())
            self._last = standing, read_state(self._database, study, standing.trials)
            self._notifier.see(self._last[1])
        self._tell()

    @contextlib.contextmanager
    def until_end(self) -> Generator[None]:
        """Notify of how the body ends, and wait a while until that is delivered; not if a signal has ended it."""
        try:
            yield
        except Interrupted:
            self._end(None)
            raise
        except TunerError as error:
            self.look()
            self._end(self._ending(error))
            raise
        self.look()
        self._end(self._ending(None))

    def _ending(self, error: TunerError | None) -> Ending | None:
        if self._last is None:
            return None
        standing, state = self._last
        if isinstance(error, StudyFailed):
            return self._ended(GONE if isinstance(error, WorkersEnded) else FAILING, str(error), state)
        reason = finished_by(standing, state)
        if reason is None and error is None:
            reason = "search_ended"
        return None if reason is None else self._ended(FINISHED, reason, state)

    def _ended(self, kind: str, reason: str, state: State) -> Ending:
        return Ending(kind, reason, state, self._job.name, max(1, self._job.workers))

    def _end(self, ending: Ending | None) -> None:
        if not self._receivers:
            return
        stop = threading.Event()
        undo = end_on_signals((signal.SIGINT, signal.SIGTERM), stop.set)
        try:
            self._notifier.end(ending, stop.is_set)
        finally:
            undo()
        self._tell()

    def _tell(self) -> None:
        for note in self._notifier.take_notes():
            tell(note.text, "notify", note.level, **({} if note.event_id is None else {"id": note.event_id}))


def subscribe(receivers: Sequence[Receiver], database: Database, study: StudyRow) -> None:
    """Note who wants the events of a job that nobody waits for, and print what sends them."""
    if receivers:
        notices.subscribe(database, study.study_id, [one.key for one in receivers])
        tell(
            "this command ends now and sends nothing: to get notifications, keep `tuner dashboard` running with the "
            "same receivers, as `notify` or in $TUNER_NOTIFY",
            "notify",
            "warning",
        )


def watched(notify: JobNotices, show: Callable[..., None]) -> Callable[..., None]:
    """Return a function that shows the progress, and notifies of it."""

    def both(state: object) -> None:
        show(state)
        notify.look()

    return both
