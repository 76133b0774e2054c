"""What samplers are told of trials that end otherwise than by their training: as Optuna tells them of failed ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from storage_tools import opened

from tuner import Space, Study, Trial, uniform
from tuner.storage.worker import claims
from tuner.storage.worker.leases import end_by_hand
from tuner.trial import Event
from tuner.trial.events import SamplerFailed, SearchFinished
from tuner.worker import run_worker
from tuner.worker.attempts import watchdog

GONE = "UPDATE tuner_leases SET worker = 'gone', fence = fence + 1, expires_at_s = 0"


class HParams(Space):
    x: float = uniform(0.0, 1.0)


class Recording(optuna.samplers.RandomSampler):
    """Records what it is told after each trial, and the states that the study has then."""

    def __init__(self) -> None:
        super().__init__(0)
        self.told: list[tuple[int, TrialState, Any]] = []
        self.params: dict[int, dict[str, Any]] = {}

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self.told.append((trial.number, state, values))
        self.params[trial.number] = trial.params


Runs = Callable[..., list[Event]]


@pytest.fixture
def runs(sqlite_url: str, tmp_path: Path) -> Runs:
    def run(train: Any, sampler: Any, **settings: Any) -> list[Event]:
        given: dict[str, Any] = {"trials": 2, "pruner": "none", "retries": 0, **settings}
        study = Study(
            name="told", space=HParams, train=train, objective="loss", direction="minimize", sampler=sampler, **given
        )
        said: list[Event] = []
        run_worker(study, sqlite_url, artifacts=str(tmp_path / "artifacts"), say=said.append)
        return said

    return run


def until_noticed() -> Iterator[dict[str, float]]:
    """Report until the worker notices that it has lost the trial, which ends this."""
    for _ in range(1000):
        threading.Event().wait(0.02)
        yield {"loss": 1.0}


def states(url: str) -> list[TrialState]:
    with opened(url) as storage:
        return [trial.state for trial in storage.get_all_trials(1)]


def test_of_a_failed_trial_it_is_told_as_by_optuna(runs: Runs) -> None:
    def train(hparams: HParams, trial: Any) -> float:
        if trial.number == 0:
            raise ValueError("no luck")
        return 0.5

    plain, ours = Recording(), Recording()
    study = optuna.create_study(sampler=plain)
    study.optimize(lambda trial: train(HParams(x=trial.suggest_float("x", 0, 1)), trial), n_trials=2, catch=ValueError)
    runs(train, ours, trials=1)
    assert ours.told == plain.told == [(0, TrialState.FAIL, None), (1, TrialState.COMPLETE, [0.5])]
    assert ours.params == plain.params


def test_of_a_trial_that_a_user_ends(runs: Runs, sqlite_url: str) -> None:
    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        yield {"loss": 1.0}
        if trial.number == 0:
            with opened(sqlite_url) as storage:
                end_by_hand(storage.engine, storage.get_trial_id_from_study_id_trial_number(1, 0))
            yield from until_noticed()

    sampler = Recording()
    runs(train, sampler)
    assert sampler.told == [(0, TrialState.PRUNED, None), (1, TrialState.COMPLETE, [1.0])]
    assert states(sqlite_url) == [TrialState.PRUNED, TrialState.COMPLETE]
    with opened(sqlite_url) as storage:
        assert sampler.params[0] == storage.get_all_trials(1)[0].params


def test_of_a_trial_whose_workers_died_the_worker_that_fails_it_tells(
    runs: Runs, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "MAX_DEATHS", 1)
    first, second = Recording(), Recording()

    def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
        yield {"loss": 0.5}
        if trial.number == 0:
            with opened(sqlite_url) as storage, storage.engine.begin() as connection:
                connection.execute(sa.text(GONE))  # it cannot be extended
            runs(train, second, trials=1)
            yield from until_noticed()

    runs(train, first, trials=1)
    assert second.told == [(0, TrialState.FAIL, None), (1, TrialState.COMPLETE, [0.5])]
    assert first.told == [], "it has lost the trial"
    assert states(sqlite_url) == [TrialState.FAIL, TrialState.COMPLETE]


def test_of_a_trial_that_does_not_end_in_time(runs: Runs, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_POLL_S", "_GRACE_S"):
        monkeypatch.setattr(watchdog, name, 0.05)

    def train(hparams: HParams, trial: Trial) -> float:
        while trial.number == 0 and TrialState.PRUNED not in states(sqlite_url):
            threading.Event().wait(0.05)
        return 0.5

    sampler = Recording()
    runs(train, sampler, trial_minutes=0.2 / 60)
    assert sampler.told == [(0, TrialState.PRUNED, None), (1, TrialState.COMPLETE, [0.5])]


def test_its_error_after_a_trial_that_a_user_ended_is_a_warning(runs: Runs, sqlite_url: str) -> None:
    class Failing(Recording):
        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            if state == TrialState.PRUNED:
                raise ValueError("not this one")

    def train(hparams: HParams, trial: Trial) -> float:
        if trial.number == 0:
            with opened(sqlite_url) as storage:
                end_by_hand(storage.engine, storage.get_trial_id_from_study_id_trial_number(1, 0))
        return 0.5

    said = runs(train, Failing())
    (failed,) = [one for one in said if isinstance(one, SamplerFailed)]
    assert failed.message == ("the sampler failed after trial 0, which was ended elsewhere: ValueError: not this one")
    assert states(sqlite_url) == [TrialState.PRUNED, TrialState.COMPLETE]


def test_a_search_that_it_stops_before_its_error_ends(runs: Runs, sqlite_url: str) -> None:
    class Stopping(Recording):
        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            study.stop()
            raise ValueError("afterwards")

    said = runs(lambda hparams, trial: 0.5, Stopping(), trials=5)
    assert states(sqlite_url) == [TrialState.COMPLETE]
    assert len([one for one in said if isinstance(one, SearchFinished)]) == 1
