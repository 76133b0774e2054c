"""The parameters that all trials have: as Optuna finds them, and by comparing references."""

import random
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, TPESampler
from optuna.search_space import IntersectionSearchSpace, intersection_search_space
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.search.intersection import SharedIntersection, with_shared_intersection

DOMAINS: dict[str, list[BaseDistribution]] = {
    "rate": [FloatDistribution(1e-3, 1.0, log=True)],
    "width": [IntDistribution(1, 8), IntDistribution(1, 8), IntDistribution(1, 16)],
    "kind": [CategoricalDistribution(("a", "b"))],
}


def some_trial(rng: random.Random) -> FrozenTrial:
    """Return a trial of any state, which may lack a parameter or have another domain for it."""
    distributions = {name: rng.choice(several) for name, several in DOMAINS.items() if rng.random() < 0.9}
    values: dict[str, Any] = {"rate": 0.1, "width": 2, "kind": "a"}
    state = rng.choice(
        [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    )
    return create_trial(
        state=state,
        value=1.0 if state == TrialState.COMPLETE else None,
        params={name: values[name] for name in distributions},
        distributions=distributions,
    )


@pytest.mark.parametrize("include_pruned", [False, True])
def test_the_parameters_are_those_that_optuna_finds(include_pruned: bool) -> None:
    found: list[int] = []
    for seed in range(200):
        rng = random.Random(seed)
        study = optuna.create_study()
        study.add_trials([some_trial(rng) for _ in range(rng.randrange(6))])
        common = SharedIntersection(include_pruned).calculate(study)
        assert common == intersection_search_space(study.get_trials(), include_pruned)
        assert list(common) == sorted(common)
        found.append(len(common))
    assert {0, 1, 2, 3} == set(found)


def test_the_result_may_be_changed() -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=1.0, params={"width": 2}, distributions={"width": IntDistribution(1, 8)}))
    SharedIntersection().calculate(study)["width"].high = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert SharedIntersection().calculate(study) == {"width": IntDistribution(1, 8)}


@pytest.mark.parametrize("sampler", [TPESampler(), CmaEsSampler(), NSGAIISampler()])
def test_a_sampler_uses_it(sampler: BaseSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(sampler=with_shared_intersection(sampler))
    study.add_trial(create_trial(value=1.0, params={"width": 2}, distributions={"width": IntDistribution(1, 8)}))
    monkeypatch.setattr(IntersectionSearchSpace, "calculate", lambda *_, **__: pytest.fail("Optuna's own was used"))
    space = sampler.infer_relative_search_space(study, study.trials[0])
    assert set(space) == {"width"}
