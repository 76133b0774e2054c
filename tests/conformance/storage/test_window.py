"""What a sampler sees of a large study: the best trials, those that run, and a sample that all workers agree on."""

from __future__ import annotations

import math
import random
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import FrozenTrial, TrialState, create_trial
from storage_tools import add_trials, opened, sent_statements

from tuner.storage.optuna import window
from tuner.storage.optuna.storage import WindowedStorage
from tuner.storage.optuna.window import is_sampled, level

pytestmark = pytest.mark.with_tables

FROM, BEST = 20, 5
SPACE = {"x": FloatDistribution(0.0, 1.0)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "SAMPLE", FROM)
    monkeypatch.setattr(window, "BEST", BEST)


def numbers(found: list[FrozenTrial]) -> list[int]:
    return [trial.number for trial in found]


def some_trial(rng: random.Random, *, complete: float = 0.5, infeasible: float = 0.1) -> FrozenTrial:
    """Return a trial of any kind, also with values that are equal, infinite or NaN."""
    params: dict[str, Any] = {"params": {"x": rng.random()}, "distributions": SPACE}
    value = rng.choice([rng.random(), 0.25, math.inf])
    kind = rng.random()
    if kind < complete:
        attributes = {"constraints": [1.0 if rng.random() < infeasible else -1.0]}
        return create_trial(**params, value=value, system_attrs=attributes)
    if kind < 0.8:
        curve = {step: rng.choice([rng.random(), math.nan]) for step in range(rng.randrange(4))}
        return create_trial(**params, state=TrialState.PRUNED, intermediate_values=curve)
    state = rng.choice([TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING])
    return create_trial(**params, state=state)


def filled(url: str, count: int, seed: int, direction: Any = "minimize", **options: Any) -> int:
    rng = random.Random(seed)
    with opened(url) as storage:
        study = optuna.create_study(storage=storage, study_name=f"study-{seed}", direction=direction)
        add_trials(storage, study._study_id, [some_trial(rng, **options) for _ in range(count)])
        return study._study_id


@pytest.mark.parametrize(("ended", "halved"), [(0, 0), (19, 0), (20, 0), (39, 0), (40, 1), (79, 1), (80, 2), (640, 5)])
def test_the_sample_has_between_so_many_trials_and_twice_as_many(ended: int, halved: int) -> None:
    assert level(ended) == halved


def test_samples_are_nested_and_have_the_expected_size() -> None:
    count = 20_000
    for halved in range(6):
        sampled = {number for number in range(count) if is_sampled(number, halved)}
        # A golden-ratio sequence is spread more evenly than random numbers, which would miss by a standard deviation.
        assert abs(len(sampled) - count / 2**halved) < math.sqrt(count / 2**halved)
        assert sampled <= {number for number in range(count) if is_sampled(number, halved - 1)} if halved else True


def test_a_small_study_is_seen_as_a_whole(storage_url: str) -> None:
    study_id = filled(storage_url, 24, seed=1)
    with opened(storage_url) as storage:
        everything = storage.get_all_trials(study_id)
        assert sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in everything) < 2 * FROM
        seen: Any = WindowedStorage(storage)
        assert seen.get_all_trials(study_id) == everything
        complete = seen.get_all_trials(study_id, states=(TrialState.COMPLETE,))
        assert complete == [trial for trial in everything if trial.state is TrialState.COMPLETE]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(("complete", "infeasible"), [(0.5, 0.1), (0.02, 0.1), (0.5, 0.97)])
def test_a_large_study_is_seen_as_its_best_trials_and_a_sample(
    storage_url: str, direction: str, complete: float, infeasible: float
) -> None:
    study_id = filled(storage_url, 120, seed=2, direction=direction, complete=complete, infeasible=infeasible)
    with opened(storage_url) as storage:
        everything = storage.get_all_trials(study_id)
        found = storage.get_window(study_id)
        assert found == [everything[number] for number in numbers(found)]
        ended = [trial for trial in everything if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        sampled = {trial.number for trial in everything if is_sampled(trial.number, level(len(ended)))}
        running = {trial.number for trial in everything if not trial.state.is_finished()}
        # Optuna's own order: complete trials by value, pruned ones by how long they ran, then infeasible ones.
        study = optuna.load_study(study_name="study-2", storage=storage)
        tpe_sees = [trial for trial in everything if trial.state.name in ("COMPLETE", "PRUNED")]
        below, _ = _split_trials(study, tpe_sees, BEST)
        assert len(below) == BEST
        assert sampled | running <= set(numbers(found))
        best = set(numbers(found)) - sampled - running
        assert best <= set(numbers(below)) <= set(numbers(found))


@pytest.mark.slow
def test_all_processes_see_the_same(storage_url: str) -> None:
    study_id, rng = filled(storage_url, 10, seed=3), random.Random(4)
    with opened(storage_url) as early:
        early.get_window(study_id)
        study = optuna.load_study(study_name="study-3", storage=early)
        for _ in range(6):
            for _ in range(15):
                study.add_trial(some_trial(rng))
            for trial in study.get_trials(states=(TrialState.RUNNING,))[::2]:
                study.tell(trial.number, rng.random())
            with opened(storage_url) as late:
                assert numbers(early.get_window(study_id)) == numbers(late.get_window(study_id))
        assert len(early.get_window(study_id)) < 70


@pytest.mark.slow
def test_only_the_window_is_read_as_a_whole(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study_id = filled(storage_url, 120, seed=2)
    asked: list[int] = []
    load = window.load_trials

    def noted(connection: Any, study_id: int, newest: int, also: Any = (), **options: Any) -> Any:
        asked.append(len(also))
        return load(connection, study_id, newest, also, **options)

    monkeypatch.setattr(window, "load_trials", noted)
    with opened(storage_url) as storage:
        found = storage.get_window(study_id)
        assert asked == [len(found)]
        with sent_statements(storage) as sent:
            storage.get_window(study_id)
    assert len([text for text in sent if text.startswith("SELECT")]) <= 2  # what has changed since


@pytest.mark.slow
def test_a_study_that_was_replaced_is_read_again(storage_url: str) -> None:
    study_id = filled(storage_url, 100, seed=5)
    with opened(storage_url) as storage, opened(storage_url) as other:
        storage.get_window(study_id)
        other.delete_study(study_id)
        with pytest.raises(KeyError, match="there is no study with id"):
            storage.get_window(study_id)
        again = filled(storage_url, 3, seed=6)
        assert numbers(storage.get_window(again)) == [0, 1, 2]
