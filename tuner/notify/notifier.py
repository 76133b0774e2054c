"""Notifies people during a launch, on threads of its own: nothing waits for a receiver or for the database."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuner.errors import TunerError
from tuner.notify import events
from tuner.notify.events import Ending, State, StudyName
from tuner.notify.receivers import NotDelivered, Receiver
from tuner.output.numbers import duration
from tuner.storage import StorageURL, connect, notices
from tuner.storage.notices import Due, Notice

if TYPE_CHECKING:
    from sqlalchemy import Engine

_STATEMENT_S = 10.0
_HOURS_EVERY_S = 30.0
_LOST_S = 5.0
"""Seconds that the end of a launch is kept back by a database that is down; then it is sent without being stored."""


@dataclass(frozen=True)
class Pace:
    """How long and how often to try.

    Attributes:
        timeout_s: Seconds that a receiver may take for an answer.
        claim_s: Seconds after which another launch tries, because this one seems to have died. More than a try takes.
        first_pause_s: The pause after the first try; each later one is twice as long.
        longest_pause_s: The longest pause.
        give_up_s: Seconds after the first try from which a failed try is the last.
        poll_s: Seconds between two looks for notices of launches that have died.
        end_s: Seconds that a launch waits at its end for notices that are not delivered.
    """

    timeout_s: float = 10.0
    claim_s: float = 60.0
    first_pause_s: float = 2.0
    longest_pause_s: float = 300.0
    give_up_s: float = 3600.0
    poll_s: float = 15.0
    end_s: float = 60.0

    def pause_s(self, tries: int) -> float:
        """Return the seconds until the next try."""
        return min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(tries - 1, 20))


@dataclass(frozen=True)
class Note:
    """A line about notifications, for the log of the launch."""

    text: str
    level: str
    event_id: str | None = None


@dataclass
class Notifier:
    """Notifies the receivers of a launch.

    Args:
        receivers: Whom to notify; nothing happens without any.
        url: The storage's URL.
        pace: How long and how often to try.
        engine: The storage's engine, which others use as well; None to connect to it.
    """

    receivers: Sequence[Receiver]
    url: StorageURL
    pace: Pace = field(default_factory=Pace)
    engine: Engine | None = None
    _states: queue.SimpleQueue[State | Ending] = field(default_factory=queue.SimpleQueue[State | Ending])
    _notes: queue.SimpleQueue[Note] = field(default_factory=queue.SimpleQueue[Note])
    _last: State | None = None
    _watcher: _Watcher | None = None

    def start(self, study: str) -> None:
        """Start to notify of a study, once."""
        if self.receivers and self._watcher is None:
            self._watcher = _Watcher(study, self.receivers, self.url, self.pace, self._states, self._notes, self.engine)

    def see(self, state: State) -> None:
        """Take the state of the study, if it has changed."""
        if self._watcher is not None and state != self._last:
            self._last = state
            self._states.put(state)

    def post(self, ending: Ending) -> None:
        """Notify of the end of a launch, and go on: another launch may follow."""
        self._states.put(ending)

    @property
    def is_idle(self) -> bool:
        """Whether everything that was seen is posted and delivered, or given up."""
        return self._watcher is None or self._watcher.is_idle

    def close(self) -> None:
        """End the threads, without waiting for them; what is not delivered stays in the database."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def take_notes(self) -> list[Note]:
        """Return the lines since the last call."""
        found: list[Note] = []
        while not self._notes.empty():
            found.append(self._notes.get())
        return found

    def end(self, ending: Ending | None, has_ended: Callable[[], bool]) -> None:
        """Notify of the end of the launch, and wait a while for what is not delivered.

        Args:
            ending: How it ended; None if a signal ended it, of which nobody is notified.
            has_ended: Called from time to time; True ends the wait.
        """
        watcher = self._watcher
        if watcher is None:
            return
        if ending is not None:
            self._states.put(ending)
        watcher.finish()
        end_s = time.monotonic() + self.pace.end_s
        while not watcher.is_done() and not has_ended() and time.monotonic() < end_s:
            time.sleep(0.02)
        for event_id, receiver in watcher.left():
            told = f"event {event_id} is not delivered to {receiver}; the next launch with this receiver sends it"
            self._notes.put(Note(told, "warning", event_id))
        watcher.close()


class _Watcher:
    """The threads of a notifier: one finds events, and one for each receiver delivers them."""

    def __init__(
        self,
        study: str,
        receivers: Sequence[Receiver],
        url: StorageURL,
        pace: Pace,
        states: queue.SimpleQueue[State | Ending],
        notes: queue.SimpleQueue[Note],
        shared: Engine | None,
    ) -> None:
        self._shared, self._is_busy = shared, False
        self._study, self._url, self._pace, self._states, self._notes = study, url, pace, states, notes
        self._row: Any = None
        self._name = StudyName(study, "")
        self._engine: Engine | None = None
        self._is_ending = threading.Event()
        self._is_closed = threading.Event()
        self._has_posted = threading.Event()
        self._keys = [receiver.key for receiver in receivers]
        self._state: State | None = None
        self._hours_s = self._ending_s = 0.0
        self._couriers = [_Courier(receiver, pace, notes, self._is_ending, self._is_closed) for receiver in receivers]
        threading.Thread(target=self._watch, name="notify", daemon=True).start()

    def finish(self) -> None:
        """Deliver what is left."""
        self._ending_s = time.monotonic()
        self._is_ending.set()

    def is_done(self) -> bool:
        """Return whether everything is posted and delivered."""
        return self._has_posted.is_set() and all(courier.is_idle for courier in self._couriers)

    @property
    def is_idle(self) -> bool:
        """Whether all states are posted, and all is delivered."""
        is_posted = self._engine is not None and self._states.empty() and not self._is_busy
        return is_posted and all(courier.is_idle for courier in self._couriers)

    def left(self) -> list[tuple[str, str]]:
        """Return the events that are not delivered, each with its receiver."""
        return [(event_id, str(one.receiver)) for one in self._couriers for event_id in one.left]

    def close(self) -> None:
        """End the threads, without waiting for them."""
        self._is_closed.set()
        for courier in self._couriers:
            courier.wake()
        if self._engine is not None and self._shared is None:
            self._engine.dispose()

    def _watch(self) -> None:
        """Post events until the launch has ended."""
        seen: State | Ending | None = None
        try:
            while not self._is_closed.is_set():
                is_last = self._is_ending.is_set()
                seen = self._newest(seen)
                self._is_busy = seen is not None
                try:
                    self._open()
                    self._post(seen)
                    seen, self._is_busy = None, False
                except TunerError:  # the database is down; that keeps back an ending only for a while
                    is_lost = is_last and time.monotonic() > self._ending_s + _LOST_S
                    if isinstance(seen, Ending) and is_lost:
                        self._send_directly(events.ended(self._name, seen, 0))
                        seen = None
                    self._is_closed.wait(0.2)
                if is_last and seen is None and self._states.empty():
                    return
        finally:
            self._has_posted.set()

    def _newest(self, seen: State | Ending | None) -> State | Ending | None:
        """Wait a moment for a state; return the newest that is not posted."""
        try:
            given = self._states.get(timeout=0.0 if seen is not None else 0.2)
            while not isinstance(given, Ending):
                seen = given
                given = self._states.get_nowait()
            return given
        except queue.Empty:
            is_due = seen is None and time.monotonic() >= self._hours_s + _HOURS_EVERY_S
            return self._state if is_due else seen

    def _open(self) -> None:
        """Connect, and subscribe the receivers, once."""
        if self._engine is not None:
            return
        from tuner.storage.read.queries import find_study
        from tuner.storage.sql import deadlines
        from tuner.storage.sql.retry import Patience, patient
        from tuner.storage.worker.studies import identify

        engine = self._shared
        if engine is None:
            with deadlines.limit(_STATEMENT_S):
                engine = patient(connect(self._url), Patience(0.0, statement_s=_STATEMENT_S))
        self._row = find_study(engine, self._study)
        self._name = StudyName(self._study, identify(engine, self._row.study_id))
        notices.subscribe(engine, self._row.study_id, self._keys)
        self._engine = engine
        for courier in self._couriers:
            courier.start(engine, self._row.study_id)

    def _post(self, seen: State | Ending | None) -> None:
        """Post the events of a state."""
        if seen is None or self._engine is None:
            return
        engine, study_id = self._engine, self._row.study_id
        self._state = seen.state if isinstance(seen, Ending) else seen
        hours = None
        if isinstance(seen, Ending) or time.monotonic() >= self._hours_s + _HOURS_EVERY_S:
            self._hours_s, hours = time.monotonic(), notices.read_hours(engine, study_id)
        best = self._find_best(engine, self._state)
        found = [*([] if best is None else [best]), *events.nearly_used(self._name, self._state, hours)]
        if isinstance(seen, Ending):
            joined = notices.count_workers(engine, study_id)
            found.append(events.ended(self._name, seen, notices.count_attempts(engine, study_id), joined))
        if found:
            notices.post(engine, study_id, found, self._keys)
            for courier in self._couriers:
                courier.wake()

    def _find_best(self, engine: Engine, state: State) -> Notice | None:
        if state.best is None:
            return None
        last = notices.last_of(engine, self._row.study_id, (notices.REFERENCE, events.BEST))
        if last is not None and last["trial"] == state.best_trial:
            return None
        from tuner.results.confidence import single_run_margin
        from tuner.storage.worker.confirmations import read_confirmations

        margin = single_run_margin(read_confirmations(engine, self._row.study_id).values())
        maximize = self._row.directions[0] == "maximize"
        return events.new_best(
            self._name, state, None if last is None else dict(last), maximize=maximize, margin=margin
        )

    def _send_directly(self, notice: Notice) -> None:
        """Send a notice that cannot be stored, once."""
        for courier in self._couriers:
            courier.send_directly(notice)


class _Courier:
    """Delivers notices to one receiver.

    Attributes:
        left: The ids of what is not delivered, and the seconds to the next try.
    """

    def __init__(
        self,
        receiver: Receiver,
        pace: Pace,
        notes: queue.SimpleQueue[Note],
        is_ending: threading.Event,
        is_closed: threading.Event,
    ) -> None:
        self.receiver, self._pace, self._notes = receiver, pace, notes
        self._is_ending, self._is_closed, self._is_awake = is_ending, is_closed, threading.Event()
        self._engine: Engine | None = None
        self._study_id = self._asked = self._answered = 0
        self._has_failed = False
        self.left: dict[str, float] = {}

    @property
    def is_idle(self) -> bool:
        """Whether it has looked for notices since it was woken last, and has delivered all."""
        return self._answered >= self._asked and not self.left

    def start(self, engine: Engine, study_id: int) -> None:
        """Start the thread."""
        self._engine, self._study_id, self._asked = engine, study_id, 1
        name = f"notify-{self.receiver.key[:8]}"
        threading.Thread(target=self._deliver, name=name, daemon=True).start()

    def wake(self) -> None:
        """Look for notices now."""
        self._asked += 1
        self._is_awake.set()

    def send_directly(self, notice: Notice) -> None:
        """Send a notice that is not stored, once."""
        try:
            self._send(notice)
        except NotDelivered as error:
            told = f"event {notice.event_id} was given up: {self.receiver}: {error}, and the database is down"
            self._notes.put(Note(told, "error", notice.event_id))

    def _deliver(self) -> None:
        assert self._engine is not None
        while not self._is_closed.is_set():
            self._is_awake.clear()
            asked = self._asked
            try:
                about = self._engine, self._study_id, self.receiver.key
                self.left = notices.unsent(*about)
                if any(rest_s <= 0.0 for rest_s in self.left.values()):
                    for due in notices.take_due(*about, self._pace.claim_s):
                        self._try(self._engine, due)
                    self.left = notices.unsent(*about)
                self._answered = asked
            except TunerError:  # the database is down
                self._answered = asked if self._is_ending.is_set() else self._answered
                self._is_closed.wait(0.5)
            self._is_awake.wait(max(0.0, min([self._pace.poll_s, *self.left.values()])))

    def _send(self, notice: Notice) -> None:
        try:
            self.receiver.send(notice.body, self._pace.timeout_s)
        except NotDelivered:
            raise
        except Exception as error:  # a mistake of ours must not end the thread
            raise NotDelivered(type(error).__name__) from None

    def _try(self, engine: Engine, due: Due) -> None:
        """Send a notice, and store how that went."""
        event_id = due.notice.event_id
        try:
            self._send(due.notice)
        except NotDelivered as error:
            if due.since_s >= self._pace.give_up_s:
                notices.settle(engine, due, notices.GIVEN_UP)
                told = f"event {event_id} was given up after {due.tries} tries: {self.receiver}: {error}"
                self._notes.put(Note(told, "error", event_id))
                return
            notices.settle(engine, due, None, self._pace.pause_s(due.tries))
            if not self._has_failed:
                limit = duration(self._pace.give_up_s)
                told = f"cannot notify {self.receiver}: {error}; event {event_id} is tried again, for {limit}"
                self._notes.put(Note(told, "warning", event_id))
            self._has_failed = True
        else:
            self._has_failed = False
            notices.settle(engine, due, notices.SENT)
