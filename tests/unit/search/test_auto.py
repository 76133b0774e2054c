"""`auto` chooses by documented rules, and keeps to what is stored with the study."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.samplers import CmaEsSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState

from tuner import Space, Study, choice, int_uniform, uniform
from tuner.errors import StudyError
from tuner.search import Agreed, Plan, auto
from tuner.search.auto import choose_plan
from tuner.search.informed import InformedSampler
from tuner.study import trial_seed
from tuner.study.sampling import context_of


class Numbers(Space):
    x: float = uniform(0.0, 1.0)
    n: int = int_uniform(1, 9)


class Choices(Numbers):
    kind: str = choice("a", "b")


class Conditional(Space):
    kind: object = choice(Numbers, None)


def by_function(trial: optuna.Trial) -> Space:
    return Numbers(x=trial.suggest_float("x", 0, 1), n=1)


def make_study(space: Any = Numbers, objectives: int = 1, **settings: Any) -> Study:
    names = [f"loss{at}" for at in range(objectives)]
    given: dict[str, Any] = {"trainer": SimpleNamespace(train_model=None), "data": lambda seed: None, "epochs": 3}
    given |= {"objective": names, "directions": ["minimize"] * objectives, "trials": 9, "sampler": "auto"}
    return Study(name="auto", space=space, **{**given, **settings})


@pytest.fixture
def has_torch(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    find = importlib.util.find_spec
    found = object() if request.param else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "torch" else find(name))


BOUND = {"constraints": {"size": "<= 3"}}


@pytest.mark.parametrize(
    ("has_torch", "space", "objectives", "settings", "plan"),
    [
        # As OptunaHub documents the rules of its AutoSampler.
        (True, Numbers, 1, {}, ("gp", "cmaes")),
        (True, Numbers, 1, BOUND, ("gp", "tpe")),
        (True, Choices, 1, {}, ("tpe", "tpe")),
        (True, Choices, 1, {"fixed": {"kind": "a"}}, ("gp", "cmaes")),
        (True, Conditional, 1, {}, ("tpe", "tpe")),
        (True, by_function, 1, {}, ("tpe", "tpe")),
        (True, Numbers, 2, {}, ("gp", "nsga2")),
        (True, Numbers, 3, BOUND, ("gp", "nsga2")),
        (True, Choices, 2, {}, ("tpe", "nsga2")),
        (True, Numbers, 4, {}, ("tpe", "nsga3")),
        (True, Conditional, 2, {}, ("tpe", "tpe")),
        (False, Numbers, 1, {}, ("tpe", "cmaes")),
        (False, Numbers, 2, {}, ("tpe", "nsga2")),
    ],
    indirect=["has_torch"],
)
@pytest.mark.usefixtures("has_torch")
def test_the_rules(space: Any, objectives: int, settings: dict[str, Any], plan: tuple[str, str]) -> None:
    study = make_study(space, objectives, sampler="random", **settings)
    assert choose_plan(context_of(study, 0, 0, None)) == Plan(*plan)


def run(study: Study, agreed: Agreed, trials: int) -> optuna.Study:
    search = optuna.create_study(directions=list(study.all_directions))
    for number in range(trials):
        search.sampler = study.make_sampler(number, agreed)
        trial = search.ask()
        study.sample(trial)
        if number % 3 == 2:
            search.tell(trial, state=TrialState.PRUNED)
        else:
            value = (trial.params["x"] - 0.3) ** 2
            search.tell(trial, [value, -value][: len(study.objectives)])
    return search


def test_the_later_sampler_starts_from_complete_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "FEW", 10)
    study, agreed = make_study(), Agreed(Plan("tpe", "cmaes"))
    search = run(study, agreed, 16)
    is_later = ["cma:generation" in trial.system_attrs for trial in search.trials]
    # Trials 0, 1, 3, 4, ... 13 are the first ten complete ones.
    assert is_later == [False] * 14 + [True] * 2

    # What Optuna's own samplers suggest after the same trials.
    def by_hand(number: int, sampler: Any) -> dict[str, Any]:
        again = optuna.create_study(sampler=sampler)
        again.add_trials(search.trials[:number])
        trial = again.ask()
        study.sample(trial)
        return trial.params

    seed = trial_seed(0, 13, "sampler")
    assert by_hand(13, TPESampler(seed=seed)) == search.trials[13].params
    seed = trial_seed(0, 14, "sampler")
    complete = [trial for trial in search.trials[:14] if trial.state == TrialState.COMPLETE]
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        started = CmaEsSampler(seed=seed, source_trials=complete, warn_independent_sampling=False)
    assert by_hand(14, started) == search.trials[14].params
    assert by_hand(14, CmaEsSampler(seed=seed, warn_independent_sampling=False)) != search.trials[14].params


@pytest.mark.slow
def test_trials_of_the_first_sampler_are_the_first_generation_of_the_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "FEW", 60)
    search = run(make_study(objectives=2), Agreed(Plan("tpe", "nsga2")), 95)
    key = NSGAIISampler._get_generation_key()
    generations = [trial.system_attrs[key] for trial in search.trials]
    assert generations == [0] * 89 + [1] * 6  # the 60th complete trial has the number 88


def test_what_is_stored_counts_and_not_what_is_installed() -> None:
    sampler: Any = make_study().make_sampler(3, Agreed(Plan("nsga2", "nsga2")))
    search = optuna.create_study(sampler=sampler)
    search.ask()
    chosen = sampler._chosen[1]
    assert isinstance(chosen, InformedSampler)
    assert isinstance(chosen.sampler, NSGAIISampler)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_a_stored_choice_that_is_not_installed_is_refused() -> None:
    with pytest.raises(StudyError, match="the sampler 'gp' needs PyTorch, which is not installed"):
        make_study().make_sampler(3, Agreed(Plan("gp", "cmaes")))


def test_auto_has_no_options() -> None:
    with pytest.raises(StudyError, match="sampler 'auto' has no option 'few': it has none"):
        make_study(sampler={"name": "auto", "few": 3})


def test_a_window_is_seen_if_both_samplers_can() -> None:
    assert make_study().sees_window(Agreed(Plan("tpe", "tpe")))
    assert not make_study().sees_window(Agreed(Plan("tpe", "cmaes")))
    assert make_study(objectives=2).sees_window(Agreed(Plan("tpe", "tpe")))
    assert not make_study(objectives=2).sees_window(Agreed(Plan("tpe", "nsga2")))
    assert make_study(sampler={"name": "partial_fixed", "fixed": {"n": 3}}).sees_window(Agreed())
    assert not make_study(sampler={"name": "partial_fixed", "fixed": {"n": 3}, "base": "cmaes"}).sees_window(Agreed())
