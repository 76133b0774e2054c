"""Pruners that follow another metric than the objective, and several objectives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import FakeTrainer, small_data
from optuna.trial import TrialState
from storage_tools import plain_trials

from tuner import Space, Study, Trial, uniform
from tuner.errors import StudyError
from tuner.worker import run_worker


class HParams(Space):
    x: float = uniform(0.0, 1.0)
    y: float = uniform(0.0, 1.0)


EPOCHS = 4


def metrics(hparams: HParams, epoch: int) -> dict[str, float]:
    """Return a loss that falls from epoch to epoch except at times, its opposite, and a number that is unrelated."""
    loss = 4 * hparams.x + (hparams.x - 0.5) * epoch - (0.1 if epoch % 2 else 0.0)
    return {"val_loss": loss, "score": -loss, "other": hparams.y * epoch}


def train(hparams: HParams, trial: Trial) -> Iterator[dict[str, float]]:
    for epoch in range(1, EPOCHS + 1):
        yield metrics(hparams, epoch)


def run(folder: Path, **settings: Any) -> list[tuple[TrialState, int]]:
    """Run a study; return how each trial ended, and after which epoch."""
    given = {"space": HParams, "train": train, "epochs": EPOCHS, "trials": 9, "sampler": "random", "retries": 0}
    run_worker(Study(name="one", **{**given, **settings}), f"sqlite:///{folder}/study.db", artifacts=str(folder / "a"))
    return [(trial.state, epochs_of(folder, trial._trial_id)) for trial in plain_trials(url(folder), "one")]


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/study.db"


def epochs_of(folder: Path, trial_id: int) -> int:
    from tuner.storage import connected
    from tuner.storage.read.lineage import read_metrics

    with connected(url(folder)) as engine:
        return max(read_metrics(engine, trial_id))


PRUNERS: list[dict[str, Any]] = [
    {"name": "asha", "min_resource": 1, "reduction_factor": 2},
    {"name": "asha", "min_resource": "auto", "reduction_factor": 2},
    {"name": "hyperband", "reduction_factor": 2},
    {"name": "median", "n_startup_trials": 1},
    {"name": "percentile", "n_startup_trials": 1},
    {"name": "patient", "patience": 1, "wrapped": {"name": "median", "n_startup_trials": 1}},
    {"name": "threshold", "upper": 2.0},
    {"name": "wilcoxon", "p_threshold": 0.5},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "pruner",
    [pytest.param(one, marks=[] if one["name"] in ("asha", "median") else [pytest.mark.long]) for one in PRUNERS],
    ids=[f"{one['name']}-{one.get('min_resource')}" for one in PRUNERS],
)
def test_a_pruner_decides_as_if_its_metric_were_the_objective(tmp_path: Path, pruner: dict[str, Any]) -> None:
    """With an objective that is unrelated; Wilcoxon's test compares with the best trial, which must be the same."""
    objective = "score" if pruner["name"] == "wilcoxon" else "other"
    if pruner["name"] == "wilcoxon":
        pytest.importorskip("scipy")
    for name in ("plain", "following"):
        (tmp_path / name).mkdir()
    plain = run(tmp_path / "plain", objective="val_loss", direction="minimize", pruner=pruner)
    following = {**pruner, "metric": "val_loss", "mode": "min"}
    assert run(tmp_path / "following", objective=objective, direction="maximize", pruner=following) == plain
    assert {state for state, _ in plain} == {TrialState.COMPLETE, TrialState.PRUNED}
    complete = [
        trial for trial in plain_trials(url(tmp_path / "following"), "one") if trial.state == TrialState.COMPLETE
    ]
    trial = complete[0]
    assert trial.value == pytest.approx(metrics(HParams(**trial.params), EPOCHS)[objective])


@pytest.mark.slow
def test_a_metric_of_one_of_several_objectives_is_followed(tmp_path: Path) -> None:
    two: dict[str, Any] = {"objective": ["other", "val_loss"], "directions": ["maximize", "minimize"]}
    for name in ("plain", "two"):
        (tmp_path / name).mkdir()
    plain = run(tmp_path / "plain", objective="val_loss", direction="minimize", pruner=PRUNERS[3])
    assert run(tmp_path / "two", **two, pruner={**PRUNERS[3], "metric": "val_loss"}) == plain


def test_several_objectives_prune_what_is_dominated(tmp_path: Path) -> None:
    """At the only rung, after epoch 1, a trial is ranked by both objectives; see `test_rungs.py` for the numbers."""
    both: dict[str, Any] = {"objective": ["other", "val_loss"], "directions": ["maximize", "minimize"]}
    ended = run(tmp_path, **both, pruner={"name": "asha", "min_resource": 1, "reduction_factor": 4}, trials=12)
    points = [
        (-found["other"], found["val_loss"])
        for found in (metrics(HParams(**trial.params), 1) for trial in plain_trials(url(tmp_path), "one"))
    ]
    for at, (state, epochs) in enumerate(ended):
        before = points[:at]
        is_dominated = any(a <= points[at][0] and b <= points[at][1] for a, b in before)
        if is_dominated and at < 7:  # fewer than eight: only what nothing ranks before goes on
            assert (state, epochs) == (TrialState.PRUNED, 1), at
        if all(a > points[at][0] for a, _ in before) or all(b > points[at][1] for _, b in before):
            assert (state, epochs) == (TrialState.COMPLETE, EPOCHS), at  # an end of the front
    assert {state for state, _ in ended} == {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("pruner", [None, "none"])
def test_several_objectives_are_not_pruned_unasked(tmp_path: Path, pruner: str | None) -> None:
    both: dict[str, Any] = {"objective": ["other", "val_loss"], "directions": ["maximize", "minimize"]}
    assert run(tmp_path, **both, pruner=pruner, trials=3) == [(TrialState.COMPLETE, EPOCHS)] * 3


# --- Names that nothing reports


def test_a_function_that_does_not_report_the_metric_stops_at_once(tmp_path: Path) -> None:
    pruner = {"name": "median", "metric": "val_lss", "mode": "min"}
    reason = (
        r"the pruner's metric 'val_lss' is missing from the metrics of epoch 1: the training reported val_loss, score, "
        r"other; did you mean 'val_loss'\?"
    )
    with pytest.raises(StudyError, match=reason):
        run(tmp_path, objective="other", direction="maximize", pruner=pruner)


class Rate(Space):
    learning_rate: float = uniform(0.1, 1.0)


class Trainer(FakeTrainer):
    def values(self, hparams: Any, epoch: int) -> dict[str, float]:
        raise AssertionError("a trial was trained")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pruner": {"name": "asha", "metric": "train_lss", "mode": "min"}},
            "does not report the pruner's metric 'train_lss': it reports loss, .*; did you mean 'train_loss'",
        ),
        (
            {"constraints": {"los": "<= 1"}},
            "does not report the constraint's metric 'los': it reports loss, .*; did you mean 'loss'",
        ),
    ],
    ids=["pruner", "constraint"],
)
def test_a_trainer_that_does_not_report_a_metric_is_refused_before_training(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"objective": "loss", "direction": "minimize", "trainer": Trainer, "data": small_data}
    with pytest.raises(StudyError, match=message):
        run(tmp_path, **given, space=Rate, train=None, **settings)
    assert not (tmp_path / "study.db").exists(), "nothing is stored"
