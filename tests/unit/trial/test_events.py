"""What a worker says, as the lines of JSON that its launcher reads, and as people read it."""

import json
from typing import Any

import pytest

from tuner.launch import process
from tuner.launch.process import read_printed
from tuner.output import log
from tuner.trial import Event, Outcome, events
from tuner.trial.events import OF_PIPES, encode, event_line, parse

STAMP = {"time": "2026-01-02T03:04:05.678Z", "seconds": {"training": 1.5}}
SAID: list[tuple[Event, dict[str, Any], str | None]] = [
    (
        events.StudyLoaded("tiny", 4, "loss, accuracy", 9),
        {"event": "study", "study": "tiny", "trials": 4, "objective": "loss, accuracy", "combinations": 9},
        "study tiny, 4 trials",
    ),
    (
        events.ProgramsCompiled(9, 40, 3, 12.5),
        {"event": "compiled", "combinations": 9, "programs": 40, "fetched": 3, "took_s": 12.5},
        "compiled 40 programs for 9 combinations of static values in 12 s",
    ),
    (
        events.TrialBegan(3, {"rate": 0.123456, "width": 8, "kind": "a"}),
        {"event": "trial", "trial": 3, "hparams": {"rate": 0.123456, "width": 8, "kind": "a"}},
        "trial 3: rate=0.1235, width=8, kind=a",
    ),
    (
        events.EpochEnded(3, 2, 20, [0.123456, 7.0]),
        {"event": "report", "trial": 3, "epoch": 2, "step": 20, "values": [0.123456, 7.0]},
        "trial 3, epoch 2: 0.1235, 7",
    ),
    (
        events.TrialEnded(3, Outcome.COMPLETE, [0.5], 1.25, 0.5),
        {"event": "end", "trial": 3, "outcome": "complete", "values": [0.5], "train_s": 1.25, "compile_s": 0.5},
        "trial 3: complete",
    ),
    (
        events.TrialEnded(3, Outcome.DIVERGED, None, 1.25, 0.5),
        {"event": "end", "trial": 3, "outcome": "diverged", "values": None, "train_s": 1.25, "compile_s": 0.5},
        "trial 3: diverged",
    ),
    (events.TrialReleased(3), {"event": "end", "trial": 3, "outcome": "released"}, "trial 3: released"),
    (
        events.TrialRetried(3, "ValueError: no"),
        {"event": "retry", "level": "warning", "trial": 3, "error": "ValueError: no"},
        "trial 3 failed and is retried: ValueError: no",
    ),
    (
        events.TrialRestarted(3, "other shapes"),
        {"event": "restart", "level": "warning", "trial": 3, "error": "other shapes"},
        "trial 3 restarts from its first epoch: other shapes",
    ),
    (
        events.TrialLost(3, "taken over"),
        {"event": "lost", "level": "warning", "trial": 3, "message": "taken over"},
        None,
    ),
    (
        events.TrialCopied(3, 5, 1, {"rate": 0.5}),
        {"event": "copy", "trial": 3, "epoch": 5, "copied": 1, "hparams": {"rate": 0.5}},
        "trial 3 copies trial 1 after epoch 5: rate=0.5",
    ),
    (events.TrialDeadly(3, "died"), {"event": "deadly", "level": "warning", "trial": 3, "message": "died"}, None),
    (
        events.StudyEnded("target", "study 'tiny' has ended"),
        {"event": "ended", "rule": "target", "message": "study 'tiny' has ended"},
        "study 'tiny' has ended",
    ),
    (events.SamplerFailed(3, "oh"), {"event": "sampler", "level": "warning", "trial": 3, "message": "oh"}, "oh"),
    (
        *(events.MetricUnusable(3, "it is NaN"),),
        *({"event": "infeasible", "level": "warning", "trial": 3, "message": "it is NaN"}, "it is NaN"),
    ),
    (events.SearchPrepared("chosen"), {"event": "search", "message": "chosen"}, "chosen"),
    (events.HparamsUnused(3, "x=1"), {"event": "unused", "level": "warning", "trial": 3, "message": "x=1"}, "x=1"),
    (
        events.TrialOverdue(3, "trial 3 makes no progress"),
        {"event": "overdue", "level": "warning", "trial": 3, "message": "trial 3 makes no progress"},
        "trial 3 makes no progress",
    ),
    (
        events.CohortChosen(16, "16 trials train at once in one program"),
        {"event": "cohort", "lanes": 16, "message": "16 trials train at once in one program"},
        "16 trials train at once in one program",
    ),
    (events.GpusUnwatched("no NVML"), {"event": "gpu", "message": "no NVML"}, "no NVML"),
    (events.SearchFinished(), {"event": "finished"}, "the sampler has ended the search"),
    (events.WorkerIdle(), {"event": "idle"}, "waiting for a trial of another worker"),
    (events.HoursUsed(), {"event": "hours"}, "the study's hours are used up"),
    (events.WorkerDone(), {"event": "done"}, None),
    (
        events.StudyRefused("no such field", 2),
        {"event": "error", "level": "error", "message": "no such field", "exit_status": 2},
        None,
    ),
    (events.SecondsSpent(), {"event": "seconds"}, None),
    (events.RowsSent(), {"event": "progress"}, None),
]


@pytest.mark.parametrize(("event", "line", "words"), SAID)
def test_an_event_is_one_line_of_json_and_comes_back_from_it(
    event: Event, line: dict[str, Any], words: str | None
) -> None:
    assert json.dumps(encode(event)) == json.dumps(line), "the keys in this order"
    assert parse(json.dumps(line)) == event
    assert event_line(event) == words


def test_every_kind_of_event_is_tested_above() -> None:
    assert {type(event) for event, _, _ in SAID} == set(Event.__subclasses__())


def test_the_stamp_is_around_what_an_event_says() -> None:
    line = {"time": STAMP["time"], "event": "lost", "level": "warning", "trial": 3, "message": "m"}
    event = parse(json.dumps({**line, "seconds": STAMP["seconds"]}))
    assert event == events.TrialLost(3, "m", **STAMP)
    assert list(encode(events.TrialLost(3, "m", **STAMP)).items()) == [*line.items(), ("seconds", STAMP["seconds"])]


def test_other_keys_are_left_out_and_other_kinds_ignored() -> None:
    assert parse('{"event": "idle", "since": 3}') == events.WorkerIdle()
    assert parse('{"event": "of a later version", "trial": 3}') is None


def test_a_printed_line_that_is_called_as_an_event_is_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.launch.process.is_json", lambda: True)
    for name in OF_PIPES:
        line = json.dumps({"time": "t", "level": "info", "event": name})
        assert read_printed(line + "\n") == log.LogLine("output", {"message": line})
    said = '{"time": "t", "level": "error", "event": "error", "exit_status": 2}'
    assert read_printed(said) == log.LogLine("error", {"time": "t", "level": "error", "exit_status": 2})


def test_a_printed_line_may_have_a_field_that_a_launch_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    for module in (events, process):
        monkeypatch.setattr(module, "is_json", lambda: True)
    monkeypatch.setattr(events, "tell", lambda message, event, level, **fields: told.append((event, fields)))
    printed = read_printed('{"time": "t", "level": "info", "event": "mine", "worker": 3, "place": "here"}\n')
    events.print_said(printed, worker="host:1", place=0, trial=5)
    assert told == [("mine", {"worker": 3, "place": "here", "trial": 5, "time": "t"})]
