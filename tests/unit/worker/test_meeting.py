"""Threads that take turns."""

from __future__ import annotations

from typing import Any

import pytest

from tuner.worker.cohorts.meeting import Meeting, Participant


def test_one_thread_at_a_time_and_each_until_it_waits() -> None:
    meeting, log = Meeting(), list[str]()

    def run(name: str, rounds: int) -> Any:
        def work(participant: Participant) -> None:
            for turn in range(rounds):
                log.append(f"{name} asks {turn}")
                log.append(f"{name} got {participant.ask((name, turn))}")

        return work

    meeting.start("a", run("a", 1))
    meeting.start("b", run("b", 2))
    assert log == []  # nobody runs before the first turn
    assert meeting.take_turns() == []
    assert log == ["a asks 0", "b asks 0"]
    for participant in meeting.participants:
        participant.answer(participant.request)
    (ended,) = meeting.take_turns()
    assert (ended.error, [one.request for one in meeting.participants]) == (None, [("b", 1)])
    assert log[2:] == ["a got ('a', 0)", "b got ('b', 0)", "b asks 1"]
    assert meeting.take_turns() == []  # without an answer nobody has a turn
    meeting.participants[0].answer("the end")
    meeting.take_turns()
    assert (log[-1], meeting.participants) == ("b got the end", [])


def test_an_error_as_an_answer_is_raised_in_the_thread_and_ends_it() -> None:
    meeting = Meeting()

    def work(participant: Participant) -> None:
        participant.ask("something")

    meeting.start("a", work)
    meeting.take_turns()
    meeting.participants[0].answer(error=KeyError("planted"))
    (ended,) = meeting.take_turns()
    assert isinstance(ended.error, KeyError)
    assert ended.is_over


def test_a_thread_asks_only_for_itself() -> None:
    meeting = Meeting()
    participant = meeting.start("a", lambda participant: participant.ask("something"))
    with pytest.raises(AssertionError):
        participant.ask("from elsewhere")
    meeting.take_turns()
    participant.answer()
    meeting.take_turns()


def test_what_is_called_after_each_turn() -> None:
    meeting, after = Meeting(), list[int]()
    for _ in range(3):
        meeting.start("one", lambda participant: participant.ask(None))
    meeting.take_turns(lambda participant: after.append(participant.number))
    assert after == [1, 2, 3]
    for participant in meeting.participants:
        participant.answer()
    assert len(meeting.take_turns()) == 3
