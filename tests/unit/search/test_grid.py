"""The sampler `grid` in a real worker: every point is tried, whatever was queued, failed or asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from sampler_study import POINTS, make_study, work
from storage_tools import opened

__all__ = ["work"]  # a fixture

COMPLETE, FAIL = TrialState.COMPLETE, TrialState.FAIL


def points(trials: list[Any]) -> list[tuple[Any, ...]]:
    return [(trial.params["n"], trial.params["c"]) for trial in trials if trial.state is COMPLETE]


def enqueue(tmp_path: Path, params: dict[str, Any]) -> None:
    with opened(f"sqlite:///{tmp_path}/study.db") as storage:
        import optuna

        optuna.load_study(study_name="objects", storage=storage).enqueue_trial(params)


@pytest.mark.slow
def test_a_trial_that_is_queued_takes_no_point_from_the_others(work: Any, tmp_path: Path) -> None:
    work(make_study(sampler="grid", trials=3))
    done, _, _ = work(make_study(sampler="grid", trials=3))
    enqueue(tmp_path, done[1].params)  # one that has been tried
    found, events, _ = work(make_study(sampler="grid", trials=6))
    assert len(found) == 6
    assert len(set(points(found))) == 5

    found, events, _ = work(make_study(sampler="grid", trials=7))
    assert set(points(found)) == POINTS
    found, events, _ = work(make_study(sampler="grid", trials=50))
    assert len(found) == 7
    assert [event["event"] for event in events if event["event"] in ("trial", "finished", "done")] == [
        "finished",
        "done",
    ]
    enqueue(tmp_path, done[1].params)  # after the last point
    found, events, _ = work(make_study(sampler="grid", trials=50))
    assert len(found) == 8


@pytest.mark.slow
def test_a_queued_point_is_not_tried_twice(work: Any, tmp_path: Path) -> None:
    work(make_study(sampler="grid", trials=1))
    found, _, _ = work(make_study(sampler="grid", trials=1))
    (missing, *_) = POINTS - set(points(found))
    enqueue(tmp_path, {"n": missing[0], "c": missing[1]})
    found, _, _ = work(make_study(sampler="grid", trials=6))
    assert points(found)[1] == missing
    assert (len(found), set(points(found))) == (6, POINTS)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_point_whose_trial_failed_is_tried_again(work: Any, retries: int) -> None:
    study = make_study(sampler="grid", trials=6, retries=retries)
    train, called = study.trainer.train_model, []

    def fail_in_between(*args: Any, **options: Any) -> Any:
        called.append(args)
        if len(called) in (4, 5):
            raise RuntimeError("planted")
        return train(*args, **options)

    study.trainer.train_model = fail_in_between
    found, _, raised = work(study)
    assert raised is None
    assert [trial.state for trial in found].count(FAIL) == 2 - retries
    assert set(points(found)) == POINTS
    assert len(points(found)) == 6


def test_a_grid_that_an_earlier_version_began_is_finished(work: Any, tmp_path: Path) -> None:
    found, _, _ = work(make_study(sampler="grid", trials=4))
    with opened(f"sqlite:///{tmp_path}/study.db") as storage, storage.engine.begin() as connection:
        gone = connection.exec_driver_sql("DELETE FROM trial_system_attributes WHERE key = 'tuner:grid_point'")
        assert gone.rowcount == 4
    after, _, _ = work(make_study(sampler="grid", trials=6))
    assert points(after)[:4] == points(found)
    assert set(points(after)) == POINTS
