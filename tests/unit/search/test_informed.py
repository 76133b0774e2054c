"""What samplers are told of trials that diverged, ran out of memory or timed out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner import Space, Study, choice, int_uniform, log_uniform, uniform
from tuner.search.informed import InformedSampler, Neighbours, as_violations, is_bad
from tuner.study import trial_seed


class Plane(Space):
    x: float = uniform(0.0, 1.0)
    y: float = log_uniform(1e-3, 1.0)


def make_study(sampler: Any, seed: int, objectives: int = 1, space: type[Space] = Plane) -> Study:
    names = ["loss", "size"][:objectives]
    given: dict[str, Any] = {"trainer": SimpleNamespace(train_model=None), "data": lambda seed: None}
    given |= {"objective": names, "directions": ["minimize"] * objectives, "epochs": 3, "trials": 9}
    return Study(name="bad", space=space, sampler=sampler, seed=seed, **given)


def run(study: Study, trials: int, *, is_told: bool) -> tuple[list[bool], optuna.Study]:
    """Run a study whose loss gets better the nearer x is to 0.5, and that diverges for greater ones.

    Returns:
        Whether each trial diverged, and the search.
    """
    search = optuna.create_study(directions=list(study.all_directions))
    diverged: list[bool] = []
    for number in range(trials):
        search.sampler = study.make_sampler(number)
        trial = search.ask()
        study.sample(trial)
        x, y = trial.params["x"], trial.params["y"]
        diverged.append(x > 0.5)
        if diverged[-1]:
            trial.set_user_attr("outcome", "diverged")
            search.tell(trial, state=TrialState.PRUNED if is_told else TrialState.FAIL)
        else:
            loss = -x + (math.log10(y) / 3 + 0.5) ** 2
            search.tell(trial, [loss, y][: len(study.objectives)])
    return diverged, search


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "objectives", "trials", "seeds"),
    [
        ("tpe", 1, 50, 6),
        ("gp", 1, 24, 4),
        ("cmaes", 1, 60, 16),
        ({"name": "nsga2", "population_size": 10}, 2, 60, 6),
        pytest.param({"name": "nsga2", "population_size": 10}, 1, 60, 6, marks=pytest.mark.long),
        pytest.param({"name": "nsga3", "population_size": 10}, 2, 60, 6, marks=pytest.mark.long),
    ],
)
def test_fewer_of_the_later_trials_diverge_than_with_the_same_sampler_that_is_not_told(
    sampler: Any, objectives: int, trials: int, seeds: int
) -> None:
    if sampler == "gp":
        pytest.importorskip("torch")
    shares = {}
    for is_told in (True, False):
        runs = [run(make_study(sampler, seed, objectives), trials, is_told=is_told)[0] for seed in range(seeds)]
        shares[is_told] = np.array([np.mean(one[trials // 2 :]) for one in runs])
    fewer = shares[False] - shares[True]  # paired by seed
    # Three standard errors, so that it is not chance.
    assert fewer.mean() > 3 * fewer.std(ddof=1) / math.sqrt(len(fewer)), shares
    assert shares[True].mean() < 0.75 * shares[False].mean(), shares


@pytest.mark.parametrize("sampler", ["cmaes", {"name": "nsga2", "population_size": 10}, "gp"])
def test_stored_trials_and_results_are_as_they_were(sampler: Any) -> None:
    if sampler == "gp":
        pytest.importorskip("torch")
    study = make_study(sampler, seed=1)
    diverged, search = run(study, 20, is_told=True)
    assert {TrialState.PRUNED, TrialState.COMPLETE} == {trial.state for trial in search.trials}
    for trial, is_diverged in zip(search.trials, diverged, strict=True):
        assert trial.state == (TrialState.PRUNED if is_diverged else TrialState.COMPLETE)
        assert trial.constraints == {}
        assert (trial.values is None) == is_diverged
    complete = [trial for trial in search.trials if trial.state == TrialState.COMPLETE]
    assert search.best_trial.number == min(complete, key=lambda trial: trial.value or 0.0).number


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("cmaes", lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False)),
        ({"name": "nsga2", "population_size": 5}, lambda seed: NSGAIISampler(seed=seed, population_size=5)),
        ({"name": "nsga3", "population_size": 5}, lambda seed: NSGAIIISampler(seed=seed, population_size=5)),
        ("tpe", lambda seed: TPESampler(seed=seed)),
    ],
)
def test_without_bad_trials_suggestions_are_optunas(name: Any, by_hand: Any) -> None:
    study = make_study(name, seed=4)

    def suggested(make: Any) -> list[dict[str, Any]]:
        search = optuna.create_study()
        for number in range(20):
            search.sampler = make(number)
            trial = search.ask()
            study.sample(trial)
            if number == 7:  # pruned by a pruner is not bad
                trial.report(1.0, 1)
                search.tell(trial, state=TrialState.PRUNED)
            else:
                search.tell(trial, trial.params["x"] + trial.params["y"])
        return [trial.params for trial in search.trials]

    assert suggested(study.make_sampler) == suggested(lambda number: by_hand(trial_seed(4, number, "sampler")))


# --- As violations of a constraint

SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}


def ended(value: float | None, outcome: str = "complete", **constraints: float) -> FrozenTrial:
    state = TrialState.PRUNED if value is None else TrialState.COMPLETE
    attributes = {f"constraints:{name}": one for name, one in constraints.items()}
    given: dict[str, Any] = {"params": {"x": 0.5}, "distributions": SPACE, "user_attrs": {"outcome": outcome}}
    return create_trial(state=state, value=value, system_attrs=attributes, **given)


def test_a_gaussian_process_sees_bad_trials_as_violations_with_median_values() -> None:
    trials = [
        ended(1.0, size=-2.0),
        ended(None, "diverged"),
        ended(5.0, size=4.0),
        ended(None, "pruned"),
        ended(2.0, size=math.inf),
        ended(None, "out_of_memory", size=9.0),
        ended(math.inf, size=-3.0),
        create_trial(state=TrialState.RUNNING, params={"x": 0.5}, distributions=SPACE),
    ]
    before = [(trial.state, trial.values, dict(trial.system_attrs)) for trial in trials]
    seen = as_violations(trials)

    assert [trial.state.name for trial in seen] == ["COMPLETE"] * 3 + ["PRUNED"] + ["COMPLETE"] * 3 + ["RUNNING"]
    # By hand: the finite values are 1, 2 and 5; the finite sizes -3, -2 and 4.
    assert [seen[at].value for at in (1, 5)] == [2.0, 2.0]
    assert seen[1].constraints == {"size": -2.0, "tuner:bad": 1.0}
    assert seen[5].constraints == {"size": 9.0, "tuner:bad": 1.0}
    assert seen[2].constraints == {"size": 4.0, "tuner:bad": -1.0}
    assert seen[3] is trials[3]
    assert [(trial.state, trial.values, dict(trial.system_attrs)) for trial in trials] == before


def test_nothing_is_a_violation_while_there_are_no_values() -> None:
    only_bad = [ended(None, "diverged")]
    no_bad = [ended(1.0), ended(None, "pruned")]
    assert as_violations(only_bad) == only_bad
    assert as_violations(no_bad) == no_bad


def test_only_trials_that_cannot_end_well_are_bad() -> None:
    outcomes = ["diverged", "out_of_memory", "timed_out", "pruned", "failed"]
    assert [is_bad(ended(None, outcome)) for outcome in outcomes] == [True, True, True, False, False]
    assert not is_bad(ended(1.0, "diverged"))


# --- Rejection


def test_distances_are_in_the_scale_of_the_parameters() -> None:
    space = {
        "rate": FloatDistribution(1e-4, 1.0, log=True),
        "width": IntDistribution(10, 20),
        "kind": CategoricalDistribution(("a", "b", "c")),
    }

    def at(rate: float, width: int, kind: str, outcome: str) -> FrozenTrial:
        given: dict[str, Any] = {"params": {"rate": rate, "width": width, "kind": kind}, "distributions": space}
        state = TrialState.COMPLETE if outcome == "complete" else TrialState.PRUNED
        value = 1.0 if outcome == "complete" else None
        return create_trial(state=state, value=value, user_attrs={"outcome": outcome}, **given)

    others = [ended(None, "diverged"), create_trial(state=TrialState.RUNNING)]  # without these parameters
    trials = [*others, at(1e-2, 10, "a", "complete"), at(1.0, 20, "c", "diverged")]
    neighbours = Neighbours(trials, space)
    assert neighbours.has_bad
    # 1e-2 is half way from 1e-4 to 1; the widths differ by all of their range, and so do the choices.
    bad, good = math.sqrt(0.5**2 + 1 + 1), 0.0
    assert neighbours.margin({"rate": 1e-2, "width": 10, "kind": "a"}) == pytest.approx(bad - good / 2)
    bad, good = math.sqrt(0.25**2 + 1), math.sqrt(0.25**2 + 1 + 1)
    assert neighbours.margin({"rate": 1e-1, "width": 20, "kind": "b"}) == pytest.approx(bad - good / 2)
    assert not Neighbours(trials[:3], space).has_bad


class Drawing(BaseSampler):
    """Proposes given values of x one after another, and draws the choice on its own."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return {"x": next(self.values)}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        assert param_name == "y"
        return 0.5


@pytest.mark.parametrize(
    ("proposed", "taken"),
    [
        ([0.85, 0.7, 0.2], 0.7),  # 0.7 is 0.2 from the bad trial, and 0.3 from the other
        ([0.2], 0.2),
        ([0.9, 0.81, 0.95, *[0.9] * 17], 0.81),  # all are near: the one with the greatest margin
    ],
)
def test_a_proposal_near_a_bad_trial_is_drawn_again(proposed: list[float], taken: float) -> None:
    search = optuna.create_study(sampler=InformedSampler(Drawing(proposed), rejects=True))
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
    search.add_trial(create_trial(value=1.0, params={"x": 0.4, "y": 0.5}, distributions=space))
    bad: dict[str, Any] = {"params": {"x": 0.9, "y": 0.5}, "distributions": space}
    search.add_trial(create_trial(state=TrialState.PRUNED, user_attrs={"outcome": "timed_out"}, **bad))
    assert search.ask(space).params == {"x": taken, "y": 0.5}


class Mixed(Space):
    x: float = uniform(0.0, 1.0)
    y: float = log_uniform(1e-3, 1.0)
    kind: str = choice("a", "b")
    width: int = int_uniform(1, 4)


@pytest.mark.parametrize("pruner", ["none", "hyperband"])
@pytest.mark.parametrize("sampler", ["cmaes", "nsga2", "gp"])
def test_all_parameters_get_values_also_with_hyperband(sampler: str, pruner: str) -> None:
    if sampler == "gp":
        pytest.importorskip("torch")
    study = make_study(sampler, seed=0, space=Mixed)
    search = optuna.create_study(pruner=optuna.pruners.HyperbandPruner() if pruner == "hyperband" else None)
    for number in range(14):
        search.sampler = study.make_sampler(number)
        trial = search.ask()
        study.sample(trial)
        assert trial.params.keys() == {"x", "y", "kind", "width"}
        trial.report(1.0, 1)
        trial.should_prune()
        if trial.params["x"] > 0.5:
            trial.set_user_attr("outcome", "diverged")
            search.tell(trial, state=TrialState.PRUNED)
        else:
            search.tell(trial, trial.params["x"])
    assert any(is_bad(trial) for trial in search.trials)
