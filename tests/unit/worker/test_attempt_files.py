"""When an attempt waits for its files: before its time limit begins, and before another worker can take the trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from storage_tools import plain_trials

from tuner import Space, Study, Trial, uniform
from tuner.storage.worker import leases
from tuner.trial import Stop
from tuner.worker import run_worker
from tuner.worker.attempts import watchdog
from tuner.worker.files.trial_files import _FolderFiles


class HParams(Space):
    x: float = uniform(0.0, 1.0)


def run(folder: Path, train: Any, stop: Stop | None = None, **settings: Any) -> optuna.trial.FrozenTrial:
    given = {"objective": "loss", "direction": "minimize", "trials": 1, "pruner": "none", "retries": 0}
    study = Study(name="one", **{"space": HParams, "train": train, **given, **settings})
    url = f"sqlite:///{folder}/study.db"
    run_worker(study, url, artifacts=str(folder / "artifacts"), stop=stop)
    return plain_trials(url, "one")[0]


def test_the_wait_for_files_does_not_count_as_time_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ahead_s = watchdog.time.monotonic, [0.0]
    stops: list[bool] = []

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return real() + ahead_s[0]

    def fetch(self: _FolderFiles, must_stop: Callable[[], bool]) -> bool:
        ahead_s[0] += 3000.0
        stops.append(must_stop())
        return not stops[-1]

    monkeypatch.setattr(watchdog, "time", Clock)
    monkeypatch.setattr(_FolderFiles, "fetch", fetch)

    def train(hparams: HParams, trial: Trial) -> float:
        assert not trial.should_stop()
        trial.report({"loss": 1.0})
        return 0.5

    ended = run(tmp_path, train, trial_minutes=20)

    assert stops == [False]
    assert (ended.state, ended.value) == (TrialState.COMPLETE, 0.5)


def test_a_worker_that_must_end_does_not_wait_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, stops = Stop(), list[bool]()

    def fetch(self: _FolderFiles, must_stop: Callable[[], bool]) -> bool:
        stop.requested = True
        stops.append(must_stop())
        return not stops[-1]

    monkeypatch.setattr(_FolderFiles, "fetch", fetch)
    trial = run(tmp_path, lambda hparams, trial: 1.0, stop)
    assert stops == [True]
    assert not trial.state.is_finished()


def test_a_failed_trial_is_uploaded_before_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = leases.retry

    def retry(*args: Any) -> bool:
        order.append("retry")
        return real(*args)

    monkeypatch.setattr(leases, "retry", retry)
    monkeypatch.setattr(_FolderFiles, "flush", lambda self: order.append(f"flush {written(self.root)}"))

    def train(hparams: HParams, trial: Trial) -> float:
        order.append("train")
        trial.save({"epoch": 1}, epoch=1)
        if order.count("train") < 3:
            raise ValueError(f"failure {len(order)}")
        return 1.0

    trial = run(tmp_path, train, retries=1)

    assert order == ["train", "flush 1", "retry", "train", "train"], "the last failure is final, and waits for nothing"
    assert trial.state == TrialState.FAIL


def written(root: Path) -> int:
    return len(list(root.glob("latest/*/record.json")))
