"""Lets threads take turns: each runs until it has to wait for something that is done for several of them at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_here = threading.local()


def current() -> Participant:
    """Return the participant whose thread this is."""
    return _here.participant


class Participant:
    """A thread that takes turns with others.

    Attributes:
        number: Distinguishes it from the others.
        request: What it waits for; None while it is not waiting.
        is_over: Whether its function has returned.
        error: What its function raised.
    """

    def __init__(self, number: int, name: str, run: Callable[[], None], ended_turn: threading.Semaphore) -> None:
        self.number, self.request, self.is_over = number, None, False
        self.error: BaseException | None = None
        self._run, self._ended_turn, self._may_go = run, ended_turn, threading.Semaphore(0)
        self._answer: tuple[Any, BaseException | None] = (None, None)
        self.has_turn = True
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    request: Any

    def _work(self) -> None:
        _here.participant = self
        self._may_go.acquire()
        try:
            self._run()
        except BaseException as error:
            self.error = error
        finally:
            self.is_over = True
            self._ended_turn.release()

    def ask(self, request: object) -> Any:
        """Wait until a request is answered; called on this thread."""
        assert threading.current_thread() is self._thread
        self.request = request
        self._ended_turn.release()
        self._may_go.acquire()
        answer, error = self._answer
        if error is not None:
            raise error
        return answer

    def answer(self, answer: object = None, error: BaseException | None = None) -> None:
        """Answer the request, so that the thread continues in its next turn; `error` is raised there."""
        self.request, self._answer, self.has_turn = None, (answer, error), True

    def take_turn(self) -> None:
        """Let the thread run until it asks for something or ends."""
        self.has_turn = False
        self._may_go.release()
        self._ended_turn.acquire()


class Meeting:
    """Threads that take turns; all methods are for one other thread."""

    def __init__(self) -> None:
        self.participants: list[Participant] = []
        self._ended_turn = threading.Semaphore(0)
        self._count = 0

    def start(self, name: str, run: Callable[[Participant], None]) -> Participant:
        """Add a thread, which runs a function from its first turn on."""
        box: list[Participant] = []
        self._count += 1
        participant = Participant(self._count, name, lambda: run(box[0]), self._ended_turn)
        box.append(participant)
        self.participants.append(participant)
        return participant

    def take_turns(self, after: Callable[[Participant], None] = lambda participant: None) -> list[Participant]:
        """Let each thread run that has a turn; return those that have ended, which are then removed.

        Args:
            after: Called after each turn.
        """
        while ready := [one for one in self.participants if one.has_turn and not one.is_over]:
            for participant in ready:
                participant.take_turn()
                after(participant)
        ended = [one for one in self.participants if one.is_over]
        self.participants = [one for one in self.participants if not one.is_over]
        return ended
