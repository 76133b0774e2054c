"""The samplers `partial_fixed` and `brute_force`: as Optuna's own, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.samplers import PartialFixedSampler, TPESampler
from optuna.trial import TrialState
from sampler_study import POINTS
from sampler_study import make_study as make_finite
from sampler_study import work as work  # a fixture
from storage_tools import opened

from tuner import Space, Study, choice, int_uniform, log_uniform
from tuner.errors import StudyError
from tuner.results.rows import study_row
from tuner.storage.read.queries import SEARCH_ENDED_KEY, find_record
from tuner.study import trial_seed


class SGD(Space):
    momentum: int = int_uniform(0, 3)


class Mixed(Space):
    rate: float = log_uniform(1e-4, 1.0)
    width: int = int_uniform(1, 64, log=True)
    kind: str = choice("a", "b", "c")
    optimizer: object = choice(SGD, None)


def make_study(sampler: Any, space: Any = Mixed, **settings: Any) -> Study:
    given: dict[str, Any] = {"trainer": SimpleNamespace(train_model=None), "data": lambda seed: None, "epochs": 3}
    given |= {"objective": "loss", "direction": "minimize", "trials": 9, "name": "fixed"}
    return Study(space=space, sampler=sampler, **{**given, **settings})


def run(study: Study, make: Callable[[int], Any], trials: int) -> list[dict[str, Any]]:
    search = optuna.create_study()
    for number in range(trials):
        search.sampler = make(number)
        trial = search.ask()
        study.sample(trial)
        search.tell(trial, trial.params["rate"] + trial.params["width"])
    return [trial.params for trial in search.trials]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_fixed_hyperparameters_have_their_values_and_the_others_are_the_bases() -> None:
    fixed = {"width": 8, "kind": "b"}
    study = make_study({"name": "partial_fixed", "fixed": fixed, "base": {"name": "tpe", "n_startup_trials": 4}})
    found = run(study, study.make_sampler, 20)

    def by_hand(number: int) -> Any:
        base = TPESampler(n_startup_trials=4, seed=trial_seed(0, number, "sampler"))
        return PartialFixedSampler(fixed, base)

    assert found == run(study, by_hand, 20)
    assert {(params["width"], params["kind"]) for params in found} == {(8, "b")}
    assert len({params["rate"] for params in found}) == 20
    assert study.record() == make_study("tpe").record(), "the space is the same, unlike with fixed="


def test_naming_partial_fixed_is_the_consent(recwarn: pytest.WarningsRecorder) -> None:
    make_study({"name": "partial_fixed", "fixed": {"width": 8}})
    assert list(recwarn) == []


def by_function(trial: optuna.Trial) -> Space:
    return SGD(momentum=trial.suggest_int("momentum", 0, 3))


def test_a_space_that_is_a_function_is_not_checked() -> None:
    study = make_study({"name": "partial_fixed", "fixed": {"momentum": 2}, "base": "random"}, space=by_function)
    trial = optuna.create_study(sampler=study.make_sampler(0)).ask()
    assert study.sample(trial) == SGD(momentum=2)


def by_condition(trial: optuna.Trial) -> Space:
    if trial.number < 2:
        return Plain(width=8)
    return SGD(momentum=trial.suggest_int("momentum", 0, 3))


class Plain(Space):
    width: int = int_uniform(1, 64)


def unused(events: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(event["trial"], event["message"]) for event in events if event["event"] == "unused"]


def test_a_fixed_name_that_no_trial_has_is_said_once(work: Any) -> None:
    fixed = {"momentum": 2, "momentun": 1, "rate": 0.1}
    sampler = {"name": "partial_fixed", "fixed": fixed, "base": "random"}
    found, events, raised = work(make_finite(sampler=sampler, space=by_function, trials=3))
    assert raised is None
    assert [trial.params for trial in found] == [{"momentum": 2}] * 3
    begin = "the sampler 'partial_fixed' fixes {!r}, which no trial has suggested so far: they have momentum"
    wanted = [begin.format("momentun") + "; did you mean 'momentum'?", begin.format("rate")]
    assert unused(events) == [(0, line) for line in wanted]


def test_trials_without_hyperparameters_say_nothing_about_fixed_names(work: Any) -> None:
    sampler = {"name": "partial_fixed", "fixed": {"momentum": 2}, "base": "random"}
    _, events, raised = work(make_finite(sampler=sampler, space=by_condition, trials=4))
    assert raised is None
    assert unused(events) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, r"'partial_fixed' must be {'name': 'partial_fixed', 'fixed': .*got {'fixed': None, 'base': 'tpe'}"),
        ({"fixed": {}}, "'partial_fixed' must be "),
        ({"fixed": {"width": 8}, "seed": 3}, "'partial_fixed' must be .*'seed': 3"),
        ({"fixed": {"width": 8}, "base": TPESampler()}, "'base' is a named sampler"),
        ({"fixed": {"width": 8}, "base": "tp"}, "the sampler must be one of .*: got 'tp'; did you mean 'tpe'"),
        ({"fixed": {"width": 8}, "base": "grid"}, "base of 'partial_fixed' cannot be 'grid': use .* `fixed`"),
        ({"fixed": {"widdth": 8}}, "no hyperparameter 'widdth' to fix: the space has rate.*did you mean 'width'"),
        ({"fixed": {"width": 65}}, r"'partial_fixed' must fix width in its domain, IntDistribution\(.*: got 65"),
        ({"fixed": {"kind": "d"}}, "must fix kind in its domain, .*: got 'd'"),
        ({"fixed": {"optimizer.momentum": 9}}, "must fix optimizer.momentum in its domain, .*: got 9"),
    ],
)
def test_what_cannot_be_fixed_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(StudyError, match=reason) as caught:
        make_study({"name": "partial_fixed", **options})
    assert "\n" not in str(caught.value)


def test_cmaes_as_a_base_needs_one_objective() -> None:
    several = {"objective": ["loss", "size"], "direction": None, "directions": ["minimize"] * 2}
    with pytest.raises(StudyError, match="'cmaes' supports only one objective"):
        make_study({"name": "partial_fixed", "fixed": {"width": 8}, "base": "cmaes"}, **several)


# --- Brute force


def test_brute_force_tries_every_point_once_and_ends_the_search(work: Any) -> None:
    found, events, raised = work(make_finite(sampler="brute_force", trials=20))
    assert raised is None
    assert len(found) == len(POINTS)
    assert {(trial.params["n"], trial.params["c"]) for trial in found} == POINTS
    assert {trial.state for trial in found} == {TrialState.COMPLETE}
    assert [event["event"] for event in events if event["event"] == "finished"] == ["finished"]


def test_a_second_launch_of_brute_force_trains_nothing(work: Any) -> None:
    work(make_finite(sampler="brute_force", trials=20))
    found, events, raised = work(make_finite(sampler="brute_force", trials=20))
    assert raised is None
    assert len(found) == len(POINTS)
    assert [event["event"] for event in events if event["event"] == "finished"] == ["finished"]


@pytest.mark.slow
def test_a_study_that_brute_force_has_searched_is_finished(work: Any, tmp_path: Path) -> None:
    work(make_finite(sampler="brute_force", trials=20))
    with opened(f"sqlite:///{tmp_path}/study.db") as storage:
        row = study_row(storage.engine, "objects")
    assert (row["state"], row["reason"]) == ("finished", "the sampler has ended the search")
    work(make_finite(sampler="random", trials=20))  # the search goes on
    with opened(f"sqlite:///{tmp_path}/study.db") as storage:
        row = study_row(storage.engine, "objects")
        record = find_record(storage.engine, 1, SEARCH_ENDED_KEY)
    assert (row["state"], row["reason"]) == ("finished", None)
    assert record is None


def test_brute_force_needs_a_finite_space() -> None:
    with pytest.raises(StudyError, match="'brute_force' needs integers and choices only: rate must be fixed, or have"):
        make_study("brute_force")
    make_study("brute_force", fixed={"rate": 0.5})
