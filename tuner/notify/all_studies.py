"""Notifies people of the studies of a storage, whoever launches them: for the dashboard, and jobs of an engine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.errors import StorageLost, TunerError, UnknownStudy
from tuner.notify import events
from tuner.notify.events import Ending, State, StudyName
from tuner.notify.looks import find_ending, read_state
from tuner.notify.notifier import Note, Notifier, Pace
from tuner.notify.receivers import Receiver
from tuner.storage import StorageURL, connect, notices
from tuner.storage.notices import Notice
from tuner.storage.read.launches import Activity, read_activity
from tuner.storage.read.queries import Standing, StudyRow, read_identity, read_standings, read_studies
from tuner.storage.sql import deadlines
from tuner.storage.sql.retry import Patience, patient

if TYPE_CHECKING:
    from sqlalchemy import Engine

EVERY_S = 5.0
_STATEMENT_S = 10.0
_CLOSE_S = 2.0


@dataclass
class _Watched:
    """A study, as it was seen last, and its notifier while something happens."""

    seen: object = None
    notifier: Notifier | None = None


class StudiesNotifier:
    """Finds and sends the events of the studies of a storage, on threads of its own.

    A receiver that no one has notified of a study yet gets none of the events before it is first seen.

    Args:
        receivers: Whom to notify.
        url: The storage's URL.
        tell: Called with lines about notifications.
        only: The names of studies; all if empty.
        pace: How long and how often to try.
        every_s: Seconds between two looks at the database.

    Concurrency: any number of these and of launches may notify of the same studies; each event is stored once, and
    each try is claimed.
    """

    def __init__(
        self,
        receivers: Sequence[Receiver],
        url: StorageURL,
        tell: Callable[[Note], None],
        *,
        only: Collection[str] = (),
        pace: Pace | None = None,
        every_s: float = EVERY_S,
    ) -> None:
        self._receivers, self._url, self._tell, self._only = receivers, url, tell, frozenset(only)
        self._pace, self._every_s = pace or Pace(), every_s
        self._watched: dict[int, _Watched] = {}
        self._is_first, self._has_told_missing, self._is_closed = True, False, threading.Event()
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name="notify-studies", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._thread.start()

    def close(self) -> None:
        """End the threads, without waiting for receivers; what is not delivered stays in the database."""
        self._is_closed.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        for watched in list(self._watched.values()):
            if watched.notifier is not None:
                watched.notifier.close()

    def _run(self) -> None:
        try:
            while not self._is_closed.is_set():
                with contextlib.suppress(StorageLost):  # for a moment
                    self._look()
                    self._is_first = False
                self._is_closed.wait(self._every_s)
        except Exception as error:
            why = error if isinstance(error, TunerError) else f"{type(error).__name__}: {error}"
            self._tell(Note(f"no notifications are sent any more: {why}", "error"))
        finally:
            if self._engine is not None:
                self._engine.dispose()

    def _look(self) -> None:
        """Look at all studies once."""
        engine = self._connect()
        studies = {one.study_id: one for one in read_studies(engine) if one.record and self._wants(one.name)}
        if not self._has_told_missing:
            self._has_told_missing = True
            for missing in sorted(self._only - {one.name for one in studies.values()}):
                self._tell(Note(f"no study {missing!r} yet: its events are sent when there is one", "warning"))
        standings, activities = read_standings(engine), read_activity(engine)
        for gone in [study_id for study_id in self._watched if study_id not in studies]:
            self._drop(self._watched.pop(gone))
        for study_id, study in studies.items():
            about = standings.get(study_id, Standing()), activities.get(study_id, Activity())
            with contextlib.suppress(UnknownStudy):  # deleted meanwhile
                self._look_at(engine, study, *about)

    def _wants(self, name: str) -> bool:
        return not self._only or name in self._only

    def _look_at(self, engine: Engine, study: StudyRow, standing: Standing, activity: Activity) -> None:
        watched = self._watched.setdefault(study.study_id, _Watched())
        is_new, is_same = watched.seen is None, watched.seen == (standing, activity)
        if watched.notifier is not None:
            for note in watched.notifier.take_notes():
                self._tell(note)
        if is_same:
            if watched.notifier is not None and not standing.workers and watched.notifier.is_idle:
                self._drop(watched)
            return
        state = read_state(engine, study, standing.trials)
        ending = find_ending(engine, study, standing, state, activity)
        if is_new and self._is_first and not standing.workers and self._is_past(engine, study, state, ending, activity):
            watched.seen = (standing, activity)
            return
        if watched.notifier is None:
            notices.subscribe(engine, study.study_id, [one.key for one in self._receivers])  # an error ends it here
            watched.notifier = Notifier(self._receivers, self._url, self._pace, engine)
            watched.notifier.start(study.name)
        watched.notifier.see(state)
        if ending is not None:
            watched.notifier.post(ending)
        watched.seen = (standing, activity)

    def _is_past(
        self, engine: Engine, study: StudyRow, state: State, ending: Ending | None, activity: Activity
    ) -> bool:
        """Return whether nothing is to be sent of a study that was idle before this process started.

        Receivers that nobody has notified of the study yet do not get what has happened before.
        """
        keys, study_id = {one.key for one in self._receivers}, study.study_id
        known = notices.subscribed(engine, study_id) & keys
        name = StudyName(study.name, read_identity(engine, study_id) or "")
        last = None if ending is None else events.ended(name, ending, activity.attempts, activity.joined)
        if known != keys:
            before: list[Notice] = [*events.nearly_used(name, state, None), *([] if last is None else [last])]
            notices.subscribe(engine, study_id, sorted(keys - known), before)
        if known and last is not None and not notices.is_stored(engine, last.event_id):
            return False  # it has ended while nobody looked
        return not any(notices.unsent(engine, study_id, key) for key in known)

    def _drop(self, watched: _Watched) -> None:
        if watched.notifier is not None:
            for note in watched.notifier.take_notes():
                self._tell(note)
            watched.notifier.close()
            watched.notifier = None

    def _connect(self) -> Any:
        if self._engine is None:
            with deadlines.limit(_STATEMENT_S):
                self._engine = patient(connect(self._url), Patience(0.0, statement_s=_STATEMENT_S))
        return self._engine
