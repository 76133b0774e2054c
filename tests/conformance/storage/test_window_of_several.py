"""What a sampler sees of a large study with several objectives: what TPE would take as its best is among it."""

from __future__ import annotations

import math
import random
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import _split_trials, default_gamma_multiobjective
from optuna.trial import FrozenTrial, TrialState, create_trial
from storage_tools import add_trials, opened

from tuner.storage.optuna import storage as storage_module
from tuner.storage.optuna import window
from tuner.storage.optuna.storage import WindowedStorage
from tuner.storage.optuna.window import is_sampled, level

pytestmark = pytest.mark.with_tables

FROM = 40
SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "SAMPLE", FROM)


def numbers(found: list[FrozenTrial]) -> list[int]:
    return [trial.number for trial in found]


def some_trial(rng: random.Random, objectives: int, *, complete: float = 0.8, infeasible: float = 0.1) -> FrozenTrial:
    """Return a trial of any kind, also with values that are equal or infinite."""
    params: dict[str, Any] = {"params": {"x": rng.random()}, "distributions": SPACE}
    attributes = {"constraints:size": rng.random() if rng.random() < infeasible else -1.0}
    kind = rng.random()
    if kind < complete:
        values = [rng.choice([rng.random(), rng.random(), round(rng.random(), 1), math.inf]) for _ in range(objectives)]
        return create_trial(**params, values=values, system_attrs=attributes)
    if kind < 0.95:
        return create_trial(**params, state=TrialState.PRUNED, system_attrs=attributes)
    return create_trial(**params, state=rng.choice([TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]))


def new_study(storage: Any, name: str, objectives: int) -> optuna.Study:
    directions: Any = ["minimize", "maximize", "minimize"]
    return optuna.create_study(storage=storage, study_name=name, directions=directions[:objectives])


def below(study: optuna.Study, trials: list[FrozenTrial], count: int) -> list[int]:
    """Return the numbers of the trials that Optuna's TPE takes as its best."""
    return numbers(_split_trials(study, [trial for trial in trials if trial.state in ENDED], count)[0])


def check(study: optuna.Study, storage: Any) -> list[FrozenTrial]:
    """Return the window, in which TPE finds the same best trials as among all."""
    everything, seen = storage.get_all_trials(study._study_id), storage.get_window(study._study_id)
    assert seen == [everything[number] for number in numbers(seen)]
    ended = [trial for trial in everything if trial.state in ENDED]
    sampled = {trial.number for trial in everything if is_sampled(trial.number, level(len(ended)))}
    running = {trial.number for trial in everything if not trial.state.is_finished()}
    assert sampled | running <= set(numbers(seen))
    taken = default_gamma_multiobjective(sum(trial.state in ENDED for trial in seen))
    for count in {1, taken // 2, taken}:
        assert below(study, seen, count) == below(study, everything, count)
    return seen


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize(("complete", "infeasible"), [(0.8, 0.1), (0.05, 0.1), (0.8, 0.98)])
def test_the_best_are_those_of_the_whole_study(
    storage_url: str, objectives: int, complete: float, infeasible: float
) -> None:
    rng = random.Random(objectives)
    with opened(storage_url) as storage:
        study = new_study(storage, "several", objectives)
        options = {"complete": complete, "infeasible": infeasible}
        add_trials(storage, study._study_id, [some_trial(rng, objectives, **options) for _ in range(260)])
    with opened(storage_url) as storage:
        seen = check(optuna.load_study(study_name="several", storage=storage), storage)
        assert len(seen) < 160


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.slow
def test_the_best_remain_right_while_trials_end(storage_url: str, objectives: int) -> None:
    rng = random.Random(10 + objectives)
    seen: list[FrozenTrial] = []
    with opened(storage_url) as early:
        study = new_study(early, "several", objectives)
        for step in range(12):
            added = [some_trial(rng, objectives) for _ in range(25)]
            for trial in added:
                if trial.values and step > 6:  # better than all before, so that whole ranks are overtaken
                    signs = [1.0, -1.0, 1.0][:objectives]
                    trial.values = [value - sign * step for value, sign in zip(trial.values, signs, strict=True)]
            add_trials(early, study._study_id, added)
            for trial in study.get_trials(states=(TrialState.RUNNING,))[::2]:
                study.tell(trial.number, [rng.random() for _ in range(objectives)])
            seen = check(study, early)
            with opened(storage_url) as late:
                assert numbers(seen) == numbers(late.get_window(study._study_id))
        assert len(seen) < 190


@pytest.mark.slow
def test_trials_are_read_again_when_too_few_of_the_known_are_best(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine fronts of twenty trials, then trials that beat nearly all: only now are the last fronts among the best."""
    loads: list[int] = []
    load = storage_module.load_window
    monkeypatch.setattr(storage_module, "load_window", lambda *given: loads.append(1) or load(*given))
    with opened(storage_url) as storage:
        study = new_study(storage, "several", 2)
        for front in range(9):
            points = [(at + 20.0 * front, at - 20.0 * front) for at in range(20)]
            study.add_trials([create_trial(params={"x": 0.5}, distributions=SPACE, values=point) for point in points])
        check(study, storage)
    with opened(storage_url) as storage:
        study = optuna.load_study(study_name="several", storage=storage)
        loads.clear()
        for at in range(12):
            study.add_trial(create_trial(params={"x": 0.5}, distributions=SPACE, values=(-10.0 * at, 30.0 * at)))
            check(study, storage)
    assert len(loads) > 1


@pytest.mark.slow
def test_a_very_large_front_is_sampled(storage_url: str) -> None:
    with opened(storage_url) as storage:
        study = new_study(storage, "several", 2)
        points = [[float(at), float(at)] for at in range(400)]
        front = [create_trial(params={"x": 0.5}, distributions=SPACE, values=point) for point in points]
        add_trials(storage, study._study_id, front)
        seen = storage.get_window(study._study_id)
        assert len(seen) < 3.5 * FROM
        with opened(storage_url) as late:
            assert numbers(seen) == numbers(late.get_window(study._study_id))


@pytest.mark.slow
def test_a_small_study_gets_the_suggestions_of_optuna(storage_url: str) -> None:
    rng = random.Random(5)
    known = [some_trial(rng, 2) for _ in range(60)]
    found: list[float] = []
    with opened(storage_url) as storage:
        windowed: Any = WindowedStorage(storage)
        for place in (windowed, optuna.storages.InMemoryStorage()):
            study = new_study(place, "several", 2)
            study.sampler = TPESampler(seed=3)
            study.add_trials(known)
            found.append(study.ask(SPACE).params["x"])
    assert found[0] == found[1]
