"""Which models of a study with several objectives are kept: those of Optuna's Pareto front."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import optuna
import pytest

import tuner
from tuner.storage.read.front import is_worth_keeping, removable

pytestmark = pytest.mark.with_tables

MAXIMIZE = (False, True)
GRID = (-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf)


@pytest.fixture
def study(storage_url: str) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = tuner.open_storage(storage_url)
    yield optuna.create_study(study_name="pair", storage=storage, directions=["minimize", "maximize"])
    storage.close()


def add(study: optuna.Study, values: tuple[float, float], constraint: float | None = None) -> None:
    attributes = {} if constraint is None else {"constraints": [constraint]}
    study.add_trial(optuna.trial.create_trial(values=list(values), system_attrs=attributes))


@pytest.mark.slow
def test_the_kept_models_are_those_of_optunas_front(study: optuna.Study) -> None:
    engine, draw = study._storage.engine, random.Random(3)  # type: ignore[attr-defined]
    for at in range(30):
        values = (draw.choice(GRID), draw.choice(GRID))
        add(study, values, constraint=draw.choice((-1.0, 0.0, 1.0)) if at % 3 == 0 else None)
    study.enqueue_trial({})  # has not ended
    front = {trial.number for trial in study.best_trials}
    assert 0 < len(front) < 20
    assert set(removable(engine, 1, range(31), 3, maximize=MAXIMIZE)) == set(range(30)) - front
    assert set(removable(engine, 1, range(31), 0, maximize=MAXIMIZE)) == set(range(30))
    for values in itertools.product(GRID, GRID):
        add(study, values)
        is_best = study.trials[-1].number in {trial.number for trial in study.best_trials}
        assert is_worth_keeping(engine, 1, values, 3, maximize=MAXIMIZE) is is_best, values
        assert not is_worth_keeping(engine, 1, values, 0, maximize=MAXIMIZE)


def test_with_one_objective_the_best_few_are_kept(study: optuna.Study) -> None:
    engine = study._storage.engine  # type: ignore[attr-defined]
    single = optuna.create_study(study_name="one", storage=study._storage)
    for value in (3.0, 1.0, 2.0, 4.0):
        single.add_trial(optuna.trial.create_trial(value=value))
    assert removable(engine, 2, range(4), 2, maximize=(False,)) == [0, 3]
    assert is_worth_keeping(engine, 2, [1.5], 2, maximize=(False,))
    assert not is_worth_keeping(engine, 2, [2.5], 2, maximize=(False,))
