"""A study that its target, patience or terminator ends: for all workers, with its reason, until a setting changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from storage_tools import opened

import tuner
from tuner import Space, Study, uniform
from tuner.errors import StudyError, StudyStopped
from tuner.results.rows import show_row, study_row
from tuner.storage.worker.claims import Claimant, NoTrial, claim, must_stop
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import end_study, find_end, stop
from tuner.trial.events import StudyEnded
from tuner.worker import run_worker

pytestmark = pytest.mark.with_tables


class HParams(Space):
    x: float = uniform(0.0, 1.0)


ACCURACIES = [0.2, 0.5, 0.9, 0.4, 0.3, 0.1, 0.95, 0.6]


def train(hparams: Any, trial: Any) -> float:
    return ACCURACIES[trial.number]


def run(url: str, folder: Path, **settings: Any) -> list[str]:
    """Run a worker; return what it said of the end of the study."""
    given: dict[str, Any] = {"space": HParams, "train": train, "objective": "acc", "direction": "maximize"}
    study = Study(name="early", **{**given, "trials": 8, "sampler": "random", **settings})
    said: list[Any] = []
    run_worker(study, url, artifacts=str(folder / "files"), say=said.append)
    return [event.message for event in said if isinstance(event, StudyEnded)]


Work = Callable[..., list[str]]


@pytest.fixture
def work(sqlite_url: str, tmp_path: Path) -> Work:
    return partial(run, sqlite_url, tmp_path)


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Any]:
    with opened(sqlite_url) as storage:
        yield storage.engine


def test_a_trial_at_the_target_ends_the_study(work: Work, engine: Any) -> None:
    (line,) = work(target=0.9)
    why = "trial 2 reached the target 0.9 with acc 0.9"
    assert line == f"study 'early' has ended: {why}; to continue, change or remove its target and launch it again"
    row = study_row(engine, "early")
    assert (row["state"], row["reason"], row["complete"], row["running"]) == ("finished", why, 3, 0)
    assert show_row(engine, "early", 2)["ended_study"] == why
    assert show_row(engine, "early", 1)["ended_study"] is None


@pytest.mark.slow
def test_an_ended_study_starts_no_trial_until_the_setting_changes(work: Work, engine: Any) -> None:
    first = work(target=0.9)
    assert work(target=0.9) == first
    (lower,) = work(target=0.5)  # which an earlier trial has reached
    assert "trial 1 reached the target 0.5" in lower
    assert study_row(engine, "early")["reason"] == "trial 1 reached the target 0.5 with acc 0.5"
    assert study_row(engine, "early")["complete"] == 3
    (higher,) = work(target=0.95)
    assert "trial 6 reached the target 0.95" in higher
    assert work() == []
    row = study_row(engine, "early")
    assert (row["state"], row["reason"], row["complete"]) == ("finished", None, 8)


@pytest.mark.slow
def test_on_postgres_a_study_ends_and_continues_too(postgres_url: str, tmp_path: Path) -> None:
    work = partial(run, postgres_url, tmp_path)
    (line,) = work(target=0.9, patience=5)
    assert work(target=0.9) == [line]
    (line,) = work(patience=3)
    assert "the latest 3 trials were not better than acc 0.9 of trial 2" in line
    with opened(postgres_url) as storage:
        row = study_row(storage.engine, "early")
    assert (row["state"], row["complete"]) == ("finished", 6)
    assert row["reason"] is not None


def test_without_progress_the_study_ends(work: Work, engine: Any) -> None:
    (line,) = work(patience=3)
    assert "the latest 3 trials were not better than acc 0.9 of trial 2; any difference counts" in line
    assert study_row(engine, "early")["complete"] == 6


def test_a_terminator_ends_the_study(work: Work, engine: Any) -> None:
    (line,) = work(terminator={"name": "best_value_stagnation", "max_stagnation_trials": 2})
    assert "Optuna's terminator 'best_value_stagnation' expects no more improvement" in line
    assert study_row(engine, "early")["complete"] == 6  # the third after the best


def test_a_terminator_that_cannot_judge_the_study_says_why(work: Work) -> None:
    class Broken(tuner.search.terminators.make_terminator("best_value_stagnation", 0).__class__):  # type: ignore[misc]
        def __init__(self) -> None: ...

        def should_terminate(self, study: Any) -> bool:
            raise ValueError("no scores have been reported")

    with pytest.raises(StudyError, match="the terminator 'Broken' cannot judge study 'early': no scores have been"):
        work(terminator=Broken())


def test_workers_that_hold_a_trial_give_it_back_and_start_no_other(work: Work, engine: Any) -> None:
    work(trials=1)
    study_id = 1
    other = Claimant(study_id, "another", trials=8, lease_s=300.0)
    lease = claim(engine, other)
    assert isinstance(lease, Lease)
    assert not must_stop(engine, other)
    work(target=0.5)  # trial 2, because the other worker has trial 1
    assert must_stop(engine, other)
    assert claim(engine, other) is NoTrial.STOPPED
    assert study_row(engine, "early")["running"] == 1  # until that worker has looked


@pytest.mark.slow
def test_the_first_reason_stays_and_a_user_can_stop_before(work: Work, engine: Any) -> None:
    work(trials=1)
    assert end_study(engine, 1, {"rule": "target", "why": "first", "trial": 0})
    assert not end_study(engine, 1, {"rule": "target", "why": "second", "trial": 0})
    assert find_end(engine, 1) == {"rule": "target", "why": "first", "trial": 0}
    assert not stop(engine, 1)
    work(trials=2)
    assert find_end(engine, 1) is None

    assert stop(engine, 1)
    with pytest.raises(StudyStopped, match="study 'early' is stopped: run `tuner resume early`"):
        work(target=0.1)
    row = study_row(engine, "early")
    assert (row["state"], row["reason"]) == ("stopped", None)


@pytest.mark.slow
def test_resume_says_that_another_setting_is_needed(
    work: Work, tuner_on_sqlite: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = work(target=0.9)
    assert line in tuner_on_sqlite.run_here("resume", "early").stderr
    tuner.open_study("early", tuner_on_sqlite.env["TUNER_STORAGE"]).resume()
    assert line in capsys.readouterr().err
    assert work(target=0.9) == [line]
    shown = tuner_on_sqlite.run_here("studies").stdout
    assert "trial 2 reached the target 0.9 with acc 0.9" in shown


def test_ask_returns_nothing_and_says_why(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = Study(name="asked", space=HParams, objective="acc", direction="maximize", trials=8, target=0.9)
    trial = study.ask(sqlite_url)
    assert trial is not None
    study.tell(trial, 0.95)
    assert study.ask() is None
    assert "study 'asked' has ended: trial 0 reached the target 0.9 with acc 0.95" in capsys.readouterr().err
