"""Thinned curves and improvements, against a count by hand and against Optuna's own values."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any, Literal

import optuna
import pytest
from storage_tools import opened

from tuner.storage.read.curves import Curves, read_thinned
from tuner.storage.read.improvements import read_improvements
from tuner.storage.read.queries import read_studies
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import register
from tuner.trial import Report

pytestmark = pytest.mark.with_tables


@pytest.fixture
def storage(storage_url: str) -> Iterator[Any]:
    with opened(storage_url) as storage:
        yield storage


def reported(storage: Any, epochs: int) -> int:
    study = register(storage, storage.engine, "ours", ["minimize"], {})
    lease = claim(storage.engine, Claimant(study.study_id, "one", trials=99, lease_s=300.0))
    assert isinstance(lease, Lease)
    several = [Report(epoch, 10 * epoch, {"loss": 1 / epoch}) for epoch in range(1, epochs + 1)]
    if several:
        leases.report(storage.engine, lease, several, "loss")
    return lease.trial_id


@pytest.mark.parametrize(
    ("epochs", "most", "kept"),
    [
        (1, 1, [1]),
        (5, 5, [1, 2, 3, 4, 5]),
        (5, 4, [1, 3, 5]),
        (6, 4, [1, 3, 5, 6]),
        (10, 3, [1, 5, 9, 10]),
        (10, 1, [1, 10]),
    ],
)
def test_every_nth_report_and_the_last_are_kept(storage: Any, epochs: int, most: int, kept: list[int]) -> None:
    trial_id = reported(storage, epochs)
    found = read_thinned(storage.engine, [trial_id], most)[trial_id]
    assert found.total == epochs
    assert found.epochs == kept
    assert found.steps == [10 * epoch for epoch in kept]
    assert found.metrics == [{"loss": 1 / epoch} for epoch in kept]
    times = [one for one in found.times if one is not None]
    assert len(times) == len(kept)
    assert all(0.0 <= one < 60.0 for one in times)


def test_trials_are_thinned_each_by_itself(storage: Any) -> None:
    ids = [reported(storage, epochs) for epochs in (7, 0, 2)]
    found = read_thinned(storage.engine, ids, 3)
    assert {trial_id: curves.epochs for trial_id, curves in found.items()} == {ids[0]: [1, 4, 7], ids[2]: [1, 2]}
    assert read_thinned(storage.engine, [], 3) == {}


def test_a_trial_of_plain_optuna_has_its_intermediate_values(storage: Any) -> None:
    trial = optuna.create_study(storage=storage).ask()
    for step, value in ((0, 0.5), (3, math.inf), (4, 0.25)):
        trial.report(value, step)
    values = [{"value": 0.5}, {"value": math.inf}, {"value": 0.25}]
    nothing: list[None] = [None] * 3
    expected = Curves(3, [0, 3, 4], [*nothing], [*nothing], values)
    assert read_thinned(storage.engine, [trial._trial_id], 9) == {trial._trial_id: expected}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("has_constraints", [False, True])
def test_improvements_are_the_running_best_of_feasible_trials(
    storage: Any, direction: Literal["minimize", "maximize"], has_constraints: bool
) -> None:
    made = optuna.create_study(study_name="ours", storage=storage, direction=direction)
    optuna.create_study(study_name="empty", storage=storage)
    random_ = random.Random(7)
    expected: list[tuple[int, float]] = []
    for number in range(60):
        value, broken = random_.choice([random_.gauss(0, 1), math.inf]), random_.choice([-1.0, 1.0])
        trial = made.ask()
        if has_constraints:
            storage.set_trial_system_attr(trial._trial_id, "constraints:size", broken)
        state = random_.choice([optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED])
        made.tell(trial, value if state is optuna.trial.TrialState.COMPLETE else None, state=state)
        counts = state is optuna.trial.TrialState.COMPLETE and not (has_constraints and broken > 0)
        is_better = not expected or (value > expected[-1][1] if direction == "maximize" else value < expected[-1][1])
        if counts and is_better and math.isfinite(value):
            expected.append((number, value))
    study_id = made._study_id
    found = read_improvements(storage.engine, read_studies(storage.engine))
    assert set(found) == {study_id}
    assert [tuple(one) for one in found[study_id]] == expected
    assert len(expected) > 2
