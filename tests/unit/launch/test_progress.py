"""What a launcher shows of a study: one line, a duration, plain progress, the live table."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import tuner.launch.progress
from tuner.launch import launcher as local
from tuner.launch.devices import DeviceGroup
from tuner.launch.progress import LiveProgress, PlainProgress, Snapshot, draw
from tuner.output.log import LogLine
from tuner.trial import Outcome
from tuner.trial.events import (
    CohortChosen,
    EpochEnded,
    SecondsSpent,
    TrialBegan,
    TrialLost,
    TrialRestarted,
    TrialRetried,
)

GROUPS = [DeviceGroup("gpu", (0, 1), (0,)), DeviceGroup("gpu", (2,), (1,), sharers=2), DeviceGroup("cpu", (7,), (7,))]


def counts(**numbers: int) -> dict[Outcome, int]:
    return {outcome: numbers.get(outcome.name.lower(), 0) for outcome in Outcome}


# Distinct numbers, so that none can stand for another.
NUMBERS = {"complete": 11, "pruned": 23, "running": 3, "failed": 5, "diverged": 41, "out_of_memory": 17, "waiting": 2}


def snapshot(**changes: Any) -> Snapshot:
    values = {
        "objective": "accuracy",
        "study": "digits",
        "trials": 200,
        "counts": counts(**NUMBERS),
        "best": "0.9871 (trial 13)",
        "began_s": 100.0,
        "already": 82,
        "workers": {0: "trial 19, epoch 3: 0.91", 2: "waiting for other workers' trials"},
    }
    return Snapshot(**{**values, **changes})


# Snapshots


def test_budget_is_used_by_all_ends_but_failures() -> None:
    assert snapshot().used == 11 + 23 + 41 + 17
    assert Snapshot().used == 0


@pytest.mark.parametrize(
    ("changes", "now_s", "left_s"),
    [
        ({}, 150.0, 540.0),  # 10 trials in 50 s, 108 to go
        ({"already": 0}, 192.0, 108.0),
        ({"trials": 92}, 150.0, 0.0),
        ({"trials": 50}, 150.0, 0.0),  # the budget was lowered
        ({"already": 92}, 150.0, None),
        ({"already": 93}, 150.0, None),
        ({"began_s": None}, 150.0, None),
        ({"began_s": 0.0}, 50.0, 540.0),
    ],
)
def test_the_time_left_is_at_the_rate_of_this_launch(
    changes: dict[str, Any], now_s: float, left_s: float | None
) -> None:
    assert snapshot(**changes).seconds_left(now_s) == (None if left_s is None else pytest.approx(left_s))


def test_a_study_in_one_line() -> None:
    assert snapshot().line(150.0) == (
        "92/200 trials, 11 complete, 23 pruned, 3 running, 5 failed, 41 diverged, 17 out of memory, "
        "best 0.9871 (trial 13), 9 min 0 s left"
    )


def test_what_is_rare_stands_in_the_line_only_if_it_is_there() -> None:
    assert Snapshot(trials=30).line(150.0) == "0/30 trials, 0 complete, 0 pruned, 0 running, 0 failed"
    assert "1 diverged" in Snapshot(counts=counts(diverged=1)).line(0.0)
    assert "out of memory" not in Snapshot(counts=counts(diverged=1)).line(0.0)
    assert "1 timed out" in Snapshot(counts=counts(timed_out=1)).line(0.0)


# Plain lines


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(tuner.launch.progress, "time", SimpleNamespace(monotonic=lambda: self.now_s))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_plain_progress_speaks_every_few_seconds_at_most(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    said, expected = "", []
    for now_s, done, is_shown in [
        (1000.0, 0, True),  # at once
        (1004.9, 1, False),
        (1005.0, 2, True),
        (1009.9, 3, False),
        (1020.0, 4, True),
        (1024.9, 5, False),
        (1025.0, 6, True),
    ]:
        clock.now_s = now_s
        progress.update(Snapshot(study="s", trials=10, counts=counts(complete=done)))
        expected += [f"tuner: {done}/10 trials, {done} complete, 0 pruned, 0 running, 0 failed"] * is_shown
        said += capsys.readouterr().err
        assert said.splitlines() == expected  # long lines are not wrapped


def test_plain_progress_says_nothing_twice(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    for _ in range(3):
        progress.update(Snapshot(study="s", trials=10))
        clock.now_s += 60
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_plain_progress_does_not_wait_with_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.update(Snapshot(study="s", trials=2, counts=counts(complete=1)))
    for _ in range(2):
        progress.update(Snapshot(study="s", trials=2, counts=counts(complete=2)))
    assert [line[:17] for line in capsys.readouterr().err.splitlines()] == ["tuner: 1/2 trials", "tuner: 2/2 trials"]


def test_plain_progress_waits_for_a_study(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.update(Snapshot())
    assert capsys.readouterr().err == ""


def test_plain_progress_speaks_when_something_ended(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    for _ in range(3):
        progress.update(Snapshot(study="s", trials=10, counts=counts(complete=1), began_s=0.0))
        clock.now_s += 60
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_plain_progress_prints_notes_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainProgress() as progress:
        progress.note("[bold]not markup[/bold] and longer than the terminal 3.14", "a_note")
        progress.say(LogLine("output", {"message": "[bold]printed[/bold] :smile:"}), place=0)
    assert capsys.readouterr().err.splitlines() == [
        "tuner: [bold]not markup[/bold] and longer than the terminal 3.14",
        "tuner: [0] [bold]printed[/bold] :smile:",
    ]


def test_people_are_shown_failures_and_what_was_printed_beside_the_snapshot(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    for event in [
        TrialBegan(3, {"width": 2}),
        EpochEnded(3, 1, 5, [0.5]),
        TrialRetried(3, "ValueError: no"),
        TrialRestarted(4, "its checkpoint has another state"),
        CohortChosen(4, "4 trials train at once in one program"),
        TrialLost(3, "gone"),
        LogLine("track", {"message": "sent"}),
        SecondsSpent(),
    ]:
        progress.say(event, place=1)
    assert capsys.readouterr().err.splitlines() == [
        "tuner: [1] trial 3 failed and is retried: ValueError: no",
        "tuner: [1] trial 4 restarts from its first epoch: its checkpoint has another state",
        "tuner: [1] 4 trials train at once in one program",
        "tuner: [track] sent",
    ]


# The live table


def drawn(shown: Snapshot, now_s: float = 150.0) -> list[str]:
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(draw(shown, GROUPS, now_s))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_table_has_a_column_for_trials_that_timed_out_if_there_are_any() -> None:
    _, heading, numbers, *_ = drawn(snapshot(counts=counts(**NUMBERS, timed_out=7)))
    assert numbers[: heading.index("timed out") + len("timed out")].endswith(" 7")
    assert "timed out" not in drawn(snapshot())[1]


def test_the_table_has_every_number() -> None:
    title, heading, numbers, *_ = drawn(snapshot())
    assert title == "study digits"
    columns = {
        "done": "92/200",
        "complete": "11",
        "running": "3",
        "pruned": "23",
        "failed": "5",
        "diverged": "58",  # with those out of memory
        "best accuracy": "0.9871 (trial 13)",
        "time left": "9 min 0 s",
    }
    assert heading.split() == " ".join(columns).split()
    assert numbers.split() == " ".join(columns.values()).split()
    for name, value in columns.items():  # numbers end below the ends of their headings
        assert numbers[: heading.index(name) + len(name)].endswith(value)


def test_the_table_says_what_each_worker_does() -> None:
    lines = drawn(snapshot())[4:]
    assert [line.split() for line in lines] == [
        ["worker", "devices", "state"],
        ["0", "gpu", "0,1", "trial", "19,", "epoch", "3:", "0.91"],
        ["1", "gpu", "2", "(1/2)", "starting"],
        ["2", "cpu", "7", "waiting", "for", "other", "workers'", "trials"],
    ]


def test_the_table_before_a_study_is_loaded() -> None:
    title, heading, numbers, *_ = drawn(Snapshot())
    assert title == "loading the study"
    assert heading.split() == ["done", "complete", "running", "pruned", "failed", "diverged", "best", "time", "left"]
    assert numbers.split() == ["0", "0", "0", "0", "0", "-"]
    assert numbers[: heading.index("best") + len("best")].endswith("-")


def test_live_progress_draws_and_keeps_notes(clock: Clock) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    with LiveProgress(console, GROUPS) as progress:
        clock.now_s = 150.0
        progress.update(snapshot())
        progress.note("a note [red]as it is[/red]", "a_note")
        progress.say(LogLine("output", {"message": "[red]printed[/red]"}), place=1)
    shown = out.getvalue()
    assert "tuner: a note [red]as it is[/red]" in shown
    assert "tuner: [1] [red]printed[/red]" in shown
    assert "92/200" in shown
    assert "9 min 0 s" in shown


@pytest.mark.parametrize(
    ("is_terminal", "live", "kind"),
    [
        (True, None, LiveProgress),
        (True, False, PlainProgress),
        (True, True, LiveProgress),
        (False, None, PlainProgress),
    ],
)
def test_a_table_is_for_terminals_that_want_one(
    is_terminal: bool, live: bool | None, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal)
    monkeypatch.setattr(local, "Console", lambda **_: console)
    assert type(local._progress(GROUPS, live)) is kind
