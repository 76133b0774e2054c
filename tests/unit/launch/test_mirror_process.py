"""How long a launch waits for its mirror at its end: as long as a tracker takes something. Time is made up."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest
from tracking_tools import RecordedProgress

from tuner.launch import mirror_process as mirror
from tuner.launch.mirror_process import MirrorProcess
from tuner.launch.options import MirrorOptions
from tuner.launch.process import Message
from tuner.launch.progress import Progress
from tuner.output.log import LogLine
from tuner.storage import parse_url
from tuner.trial.events import RowsSent

PROGRESS = RowsSent()


class Process:
    """A mirror that says something at some times, counted from the end of its standard input, and ends at another."""

    def __init__(self, mirror_process: MirrorProcess, said: dict[float, Any], ends_s: float, *, obeys: bool) -> None:
        self.inbox, self.said, self.ends_s, self.obeys = mirror_process._inbox, said, ends_s, obeys
        self.now_s, self.fate = 0.0, ""
        self.process = self
        self.stdin = self
        self.returncode: int | None = None
        self.ending = "exit status 130"

    # The clock of the launcher.

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    # The process, and its standard input.

    def close(self) -> None:
        self.is_asked = True

    def has_ended(self) -> bool:
        for at_s in sorted(self.said):
            if at_s <= self.now_s:
                self.inbox.put(Message(0, "mirror", self.said.pop(at_s)))
        if self.now_s >= self.ends_s and self.returncode is None:
            self.returncode = 130 if self.fate else 0
        return self.returncode is not None

    def stop(self) -> None:
        self.fate += "stopped"
        if self.obeys:
            self.ends_s = self.now_s + 0.5

    def kill(self) -> None:
        self.fate += ", killed"
        self.returncode = -9


def end(
    monkeypatch: pytest.MonkeyPatch,
    said: dict[float, Any],
    ends_s: float,
    *,
    obeys: bool = True,
    signal_s: float | None = None,
) -> tuple[Process, list[str]]:
    """End a launch whose mirror behaves so; return the mirror and what was shown."""
    made = MirrorProcess(MirrorOptions(), parse_url("sqlite:///x.db"), _study="tiny")
    process, shown, stop = Process(made, said, ends_s, obeys=obeys), RecordedProgress(), threading.Event()
    made._process = cast("Any", process)
    monkeypatch.setattr(mirror, "time", process)

    def sleep(seconds: float) -> None:
        process.now_s += seconds
        if signal_s is not None and process.now_s >= signal_s:
            stop.set()

    process.sleep = sleep
    if signal_s == 0.0:
        stop.set()
    made.end(cast("Progress", shown), stop)
    assert made._process is None
    return process, shown.lines


def test_a_mirror_that_still_sends_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    every_10_s = {float(at_s): PROGRESS for at_s in range(0, 600, 10)}

    process, lines = end(monkeypatch, every_10_s, 600.0)

    assert (process.returncode, process.fate) == (0, "")
    assert lines == ["sending the rest of study 'tiny' to its trackers; press Ctrl-C to stop"]


def test_a_mirror_that_ends_soon_is_not_talked_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert end(monkeypatch, {0.0: PROGRESS, 1.0: LogLine("output", {"message": "tuner: word"})}, 2.0)[1] == ["word"]


def test_a_mirror_that_still_starts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    process, _ = end(monkeypatch, {100.0: PROGRESS}, 110.0)
    assert (process.returncode, process.fate) == (0, "")

    process, lines = end(monkeypatch, {}, 1e9, obeys=False)
    assert process.fate == "stopped, killed"
    assert 120.0 <= process.now_s <= 130.0
    assert lines[-1].startswith("not all of study 'tiny' was sent to its trackers")


def test_a_mirror_that_sends_nothing_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    process, lines = end(monkeypatch, {0.0: PROGRESS, 20.0: PROGRESS}, 1e9)

    assert process.fate == "stopped", "it ended by itself then"
    assert 95.0 <= process.now_s <= 100.0
    assert lines[-1] == (
        "not all of study 'tiny' was sent to its trackers (exit status 130); "
        "`tuner track --once` with the same trackers sends the rest"
    )


@pytest.mark.parametrize(("signal_s", "by_s"), [(0.0, 20.0), (30.0, 33.0)])
def test_after_a_signal_it_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch, signal_s: float, by_s: float
) -> None:
    every_5_s = {float(at_s): PROGRESS for at_s in range(0, 600, 5)}

    process, lines = end(monkeypatch, every_5_s, 1e9, obeys=False, signal_s=signal_s)

    assert process.fate == "stopped, killed"
    assert process.now_s <= by_s
    assert lines[-1].startswith("not all of study 'tiny' was sent to its trackers")
