"""Pruners on recorded curves: worked out by hand, against Optuna's own pruners, and against a study that ran."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, PatientPruner, PercentilePruner
from optuna.pruners import SuccessiveHalvingPruner as Halving
from optuna.trial import TrialState
from storage_tools import plain_trials

from tuner import Space, Study, uniform
from tuner.results.simulation import Curve, Setting, simulate
from tuner.search import make_pruner
from tuner.trial import Outcome

EPOCHS = 9


def flat(number: int, value: float, epochs: int = 4, epoch_s: float = 1.0) -> Curve:
    """Return the curve of a trial that reports the same value in each epoch."""
    reports = tuple((epoch, value) for epoch in range(1, epochs + 1))
    return Curve(number, reports, Outcome.COMPLETE, value, epoch_s=epoch_s)


def curves_of(count: int) -> list[Curve]:
    """Return noisy curves that cross each other, some of which diverge or fail."""
    found = []
    for number in range(count):
        chance = random.Random(number)
        end, speed = chance.random(), chance.uniform(0.2, 2.0)
        reports = tuple(
            (epoch, end + math.exp(-speed * epoch) + chance.gauss(0.0, 0.05)) for epoch in range(1, EPOCHS + 1)
        )
        outcome = {3: Outcome.DIVERGED, 8: Outcome.FAILED}.get(number, Outcome.COMPLETE)
        if outcome is not Outcome.COMPLETE:
            reports = reports[:4]
        found.append(Curve(number, reports, outcome, reports[-1][1] if outcome is Outcome.COMPLETE else None))
    return found


def test_asha_as_worked_out_by_hand() -> None:
    # Rungs at epochs 1 and 2; a rung of n values promotes the best n // 2, at least one.
    values = [3.0, 2.0, 2.5, 1.0, 1.5, 2.2, 1.8]
    pruner = make_pruner({"name": "asha", "min_resource": 1, "reduction_factor": 2}, 4)
    stopped = simulate([flat(at, value) for at, value in enumerate(values)], pruner, Setting("hand", False, 1, 4))
    # 2.5 is second of three; 2.2 is fourth of six; 1.8 is third of seven, but in the next rung third of five.
    assert stopped == {2: 1, 5: 1, 6: 2}


def test_the_larger_values_are_kept_when_maximizing() -> None:
    values = [-3.0, -2.0, -2.5, -1.0, -1.5, -2.2, -1.8]
    pruner = make_pruner({"name": "asha", "min_resource": 1, "reduction_factor": 2}, 4)
    stopped = simulate([flat(at, value) for at, value in enumerate(values)], pruner, Setting("hand", True, 1, 4))
    assert stopped == {2: 1, 5: 1, 6: 2}


@pytest.mark.parametrize(
    ("workers", "first_s", "stopped"),
    [(1, 1.0, {1: 1}), (2, 1.0, {1: 1}), (2, 3.0, {}), (1, 3.0, {1: 1})],
)
def test_with_several_workers_the_trial_that_reports_first_is_first_in_the_rung(
    workers: int, first_s: float, stopped: dict[int, int]
) -> None:
    pruner = make_pruner({"name": "asha", "min_resource": 1, "reduction_factor": 2}, 4)
    curves = [flat(0, 1.0, 2, first_s), flat(1, 2.0, 2)]
    assert simulate(curves, pruner, Setting("two", False, workers)) == stopped


def test_a_free_worker_starts_the_next_trial() -> None:
    # Worker 0 is busy for 10 s. Worker 1 runs the other trials one after another, so that 3 enters the rung after 2.
    pruner = make_pruner({"name": "asha", "min_resource": 1, "reduction_factor": 2}, 4)
    curves = [flat(0, 0.0, 2, 10.0), flat(1, 1.0, 1), flat(2, 0.5, 1), flat(3, 0.75, 1)]
    assert simulate(curves, pruner, Setting("free", False, 2)) == {3: 1}


def test_an_exempt_trial_counts_in_the_rungs_and_is_not_stopped() -> None:
    pruner = make_pruner({"name": "asha", "min_resource": 1, "reduction_factor": 2}, 4)
    curves = [flat(0, 1.0), flat(1, 3.0), flat(2, 2.0)]
    assert simulate(curves, pruner, Setting("exempt", False, exempt={1})) == {2: 1}


def test_no_trial_is_stopped_after_its_last_epoch() -> None:
    pruner: Any = make_pruner({"name": "threshold", "upper": 0.5}, 4)
    rises = Curve(0, ((1, 0.1), (2, 0.9)), Outcome.COMPLETE, 0.9)
    assert simulate([rises], pruner, Setting("last", False, last_epoch=2)) == {}
    assert simulate([rises], pruner, Setting("last", False, last_epoch=3)) == {0: 2}


def optunas_own(curves: list[Curve], pruner: BasePruner, name: str) -> dict[int, int]:
    """Return what Optuna prunes in a study in memory, whose trials report these curves."""
    study, stopped = optuna.create_study(study_name=name, pruner=pruner), {}
    ends = {Outcome.COMPLETE: TrialState.COMPLETE, Outcome.FAILED: TrialState.FAIL}
    for curve in curves:
        trial = study.ask()
        for epoch, value in curve.reports:
            trial.report(value, epoch)
            if epoch < EPOCHS and trial.should_prune():
                stopped[curve.number] = epoch
                break
        state = TrialState.PRUNED if curve.number in stopped else ends.get(curve.outcome, TrialState.PRUNED)
        study.tell(trial, curve.value if state is TrialState.COMPLETE else None, state)
    return stopped


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("given", "theirs"),
    [
        ("asha", lambda: Halving(min_resource=1, reduction_factor=3)),
        ({"name": "asha", "bootstrap_count": 5}, lambda: Halving(1, 3, bootstrap_count=5)),
        ("hyperband", lambda: HyperbandPruner(min_resource=1, max_resource=EPOCHS)),
        ("median", MedianPruner),
        ("percentile", lambda: PercentilePruner(25.0)),
        ("patient", lambda: PatientPruner(MedianPruner(), patience=3)),
    ],
)
def test_the_same_trials_are_stopped_as_by_optunas_own_pruners(given: Any, theirs: Callable[[], BasePruner]) -> None:
    curves = curves_of(40)
    stopped = simulate(curves, make_pruner(given, EPOCHS), Setting("theirs", False, 1, EPOCHS))
    assert stopped == optunas_own(curves, theirs(), "theirs")
    assert len(stopped) > 3
    assert stopped != optunas_own(curves[::-1], theirs(), "theirs")  # so that the comparison can fail


class HParams(Space):
    x: float = uniform(0.0, 1.0)


def curve_at(x: float) -> list[float]:
    chance = random.Random(x)
    return [x + 1.0 / epoch + chance.gauss(0.0, 0.1) for epoch in range(1, EPOCHS + 1)]


def train(hparams: Any, trial: Any) -> Iterator[dict[str, float]]:
    for value in curve_at(hparams.x):
        yield {"loss": value}


@pytest.mark.parametrize("given", ["asha", "hyperband"])
def test_the_same_trials_are_stopped_as_when_a_study_ran(given: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    settings: dict[str, Any] = {"objective": "loss", "direction": "minimize", "epochs": EPOCHS, "sampler": "random"}
    Study(name="ran", space=HParams, train=train, trials=15, pruner=given, **settings).run(url)
    trials = plain_trials(url, "ran")
    ran = {trial.number: max(trial.intermediate_values) for trial in trials if trial.state == TrialState.PRUNED}
    assert ran
    curves = []
    for trial in trials:
        values = curve_at(trial.params["x"])  # to the end, also of trials that were pruned
        curves.append(Curve(trial.number, tuple(enumerate(values, 1)), Outcome.COMPLETE, values[-1]))
    assert simulate(curves, make_pruner(given, EPOCHS), Setting("ran", False, 1, EPOCHS)) == ran
