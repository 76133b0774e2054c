"""Events of a study: when each is found, and that its id depends only on what happened."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from tuner.notify import events
from tuner.notify.events import Ending, State, StudyName
from tuner.results.confidence import single_run_margin
from tuner.storage.notices import HoursBudget
from tuner.storage.read.hours import Hours

STUDY = StudyName("digits", "0123")


def state(used: int = 5, trials: int = 10, best: float | None = 0.5, trial: int | None = 3) -> State:
    return State(used, trials, best, trial)


def best_of(now: State, last: Any, **more: Any) -> Any:
    return events.new_best(STUDY, now, last, **{"maximize": True, "margin": None, **more})


def test_the_first_best_is_a_reference_and_a_better_one_is_an_event() -> None:
    assert best_of(state(best=None, trial=None), None) is None
    first = best_of(state(), None)
    assert first.kind == "first_result"
    assert best_of(state(), first.body) is None
    better = best_of(state(best=0.6, trial=7), first.body)
    assert better.kind == "new_best"
    told = {name: better.body[name] for name in ("trial", "value", "previous_trial", "previous_value", "margin")}
    assert told == {"trial": 7, "value": 0.6, "previous_trial": 3, "previous_value": 0.5, "margin": None}
    assert "the noise was not measured" in better.body["text"]
    assert best_of(state(best=0.6, trial=7), first.body, maximize=False) is None
    assert best_of(state(best=0.4, trial=7), first.body, maximize=False).kind == "new_best"


def test_a_gain_within_the_noise_is_no_event_until_gains_add_up() -> None:
    last = {"trial": 3, "value": 0.5}
    assert best_of(state(best=0.59, trial=7), last, margin=0.1) is None
    assert best_of(state(best=0.61, trial=8), last, margin=0.1).body["margin"] == 0.1


def test_the_margin_of_single_runs_is_students_t_for_a_difference_of_two() -> None:
    # By hand: deviations -1, 1 and -2, 0, 2 give the sum of squares 10 with 3 degrees of freedom.
    repeats: Any = [{0: 1.0, 1: 3.0}, {0: 4.0, 1: 6.0, 5: 8.0}, {0: 9.0}, {0: 1.0, 1: None}]
    margin = single_run_margin(repeats)
    assert margin == pytest.approx(stats.t.ppf(0.975, 3) * math.sqrt(2 * 10 / 3))
    assert single_run_margin([{0: 1.0}, {}]) is None
    assert single_run_margin([{0: 2.0, 1: 2.0}]) == 0.0


def test_a_budget_is_nearly_used_from_nine_tenths() -> None:
    assert events.nearly_used(STUDY, state(used=8), None) == []
    [of_trials] = events.nearly_used(STUDY, state(used=9), None)
    assert of_trials.body["text"] == "study 'digits': 9 of 10 trials are used"
    hours = HoursBudget(wall_s=3600.0, device_s=7200.0, used=Hours(3300.0, 6000.0))
    [of_wall] = events.nearly_used(STUDY, state(), hours)
    assert (of_wall.body["budget"], of_wall.body["limit"]) == ("wall_hours", 1.0)
    assert events.nearly_used(STUDY, state(trials=0), None) == []


def test_the_id_of_an_event_depends_on_the_study_and_on_what_happened() -> None:
    nearly = [events.nearly_used(STUDY, state(used=used, trials=trials), None)[0].event_id
              for used, trials in ((9, 10), (10, 10), (20, 20))]  # fmt: skip
    assert nearly[0] == nearly[1] != nearly[2]
    other = events.nearly_used(StudyName("digits", "4567"), state(used=9), None)[0].event_id
    assert other != nearly[0]


def end_of(kind: str, reason: str, attempts: int = 12, workers: int = 2) -> Any:
    return events.ended(STUDY, Ending(kind, reason, state(used=10), "host:5", workers), attempts)


def test_an_end_is_another_event_after_more_attempts() -> None:
    finished = end_of("finished", "budget")
    assert finished.body["text"] == "study 'digits' is finished: 10 of 10 trials; the best is 0.5 (trial 3)"
    assert end_of("finished", "budget").event_id == finished.event_id
    assert end_of("finished", "budget", 13).event_id != finished.event_id


def test_an_error_is_its_first_and_its_last_line_without_passwords() -> None:
    trace = "study 'digits' stopped: why; fix it\nTraceback:\n  File\nValueError: password=hidden\n"
    failing = end_of("failing", trace)
    assert failing.body["text"] == "study 'digits' stopped: why; fix it\nValueError: password=***"
    gone = end_of("workers_gone", trace)
    assert "all 2 workers of the launch host:5 are gone: study 'digits' stopped" in gone.body["text"]
    assert "the only worker of the launch host:5 is gone" in end_of("workers_gone", trace, workers=1).body["text"]
