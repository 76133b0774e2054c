"""Optuna's sampler and pruner objects in a real worker: they may end the search or raise errors, and lose no trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState
from sampler_study import LETTERS, NUMBERS, POINTS, Finite, Floats, make_study, work
from storage_tools import opened

from tuner import Space

__all__ = ["work"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def names(events: list[dict[str, Any]], *wanted: str) -> list[str]:
    return [event["event"] for event in events if event["event"] in wanted]


# --- A sampler that ends the search


@pytest.mark.parametrize(
    "make", [lambda: optuna.samplers.GridSampler({"n": NUMBERS, "c": LETTERS}), optuna.samplers.BruteForceSampler]
)
@pytest.mark.parametrize("trials", [6, 20])
def test_a_sampler_that_has_tried_every_point_ends_the_search(
    make: Callable[[], BaseSampler], trials: int, work: Any
) -> None:
    found, events, raised = work(make_study(sampler=make(), trials=trials))
    assert raised is None
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
    assert {(trial.params["n"], trial.params["c"]) for trial in found} == POINTS
    assert names(events, "finished", "end", "done") == ["end"] * 6 + ["finished", "done"]


class Ending(RandomSampler):
    """Ends the search from one of its methods, in its third trial."""

    def __init__(self, method: str) -> None:
        super().__init__(seed=0)
        self.method = method

    def act(self, method: str, study: optuna.Study, trial: Any) -> None:
        if method == self.method and trial.number == 2:
            study.stop()

    def before_trial(self, study: Any, trial: Any) -> None:
        self.act("before_trial", study, trial)

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        self.act("infer_relative_search_space", study, trial)
        return super().infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        self.act("sample_relative", study, trial)
        return super().sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        self.act("sample_independent", study, trial)
        return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self.act("after_trial", study, trial)


METHODS = ["before_trial", "infer_relative_search_space", "sample_relative", "sample_independent", "after_trial"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pruner", ["none", optuna.pruners.HyperbandPruner(min_resource=1, max_resource=2)])
def test_a_search_ends_after_the_trial_in_which_its_sampler_says_so(method: str, pruner: Any, work: Any) -> None:
    found, events, raised = work(make_study(sampler=Ending(method), pruner=pruner))
    assert raised is None
    assert len(found) == 3
    assert all(trial.state.is_finished() and trial.params for trial in found)
    assert names(events, "finished") == ["finished"]


def test_a_search_ends_after_the_trial_in_which_the_space_says_so(work: Any) -> None:
    def space(trial: optuna.Trial) -> Space:
        if trial.number == 1:
            trial.study.stop()
        return Floats(x=trial.suggest_float("x", 0, 1), y=0.5)

    found, events, raised = work(make_study(sampler="random", space=space))
    assert (len(found), raised) == (2, None)
    assert names(events, "finished") == ["finished"]


def test_a_trial_that_is_tried_again_is_finished_before_the_search_ends(work: Any) -> None:
    study = make_study(sampler=Ending("before_trial"))
    study.trainer.train_model = failing_once_in_the_third(study.trainer)
    found, events, _ = work(study)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 3
    assert names(events, "retry", "finished", "done") == ["retry", "finished", "done"]


def failing_once_in_the_third(trainer: Any) -> Callable[..., Any]:
    train = trainer.train_model

    def train_model(*args: Any, **options: Any) -> Any:
        if trainer.begun == 2:
            trainer.begun += 1
            raise RuntimeError("planted")
        return train(*args, **options)

    return train_model


# --- A sampler that fails


class Failing(RandomSampler):
    """Raises an error from one of its methods, in the trials that it is told."""

    def __init__(self, method: str, numbers: set[int], error: type[BaseException] = RuntimeError) -> None:
        super().__init__(seed=0)
        self.method, self.numbers, self.error = method, numbers, error
        self.told: list[tuple[int, TrialState]] = []

    def act(self, method: str, trial: Any) -> None:
        if method == self.method and trial.number in self.numbers:
            raise self.error(f"planted in {method}")

    def before_trial(self, study: Any, trial: Any) -> None:
        self.act("before_trial", trial)

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        self.act("infer_relative_search_space", trial)
        return super().infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        self.act("sample_relative", trial)
        return super().sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        if param_name == "c":
            self.act("sample_independent", trial)
        return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self.told.append((trial.number, state))
        self.act("after_trial", trial)

    def reseed_rng(self) -> None:
        if self.method == "reseed_rng":
            raise self.error("planted in reseed_rng")


@pytest.mark.parametrize("method", METHODS[:-1])
@pytest.mark.slow
def test_a_trial_whose_sampler_fails_has_failed_and_the_study_goes_on(method: str, work: Any) -> None:
    sampler = Failing(method, {2})
    found, events, raised = work(make_study(sampler=sampler, retries=1))
    assert raised is None
    states = [TrialState.FAIL if number == 2 else TrialState.COMPLETE for number in range(7)]
    assert [trial.state for trial in found] == states
    retries = [event for event in events if event["event"] == "retry"]
    assert [(event["trial"], event["error"]) for event in retries] == [(2, f"RuntimeError: planted in {method}")]
    # As Optuna has it: what was suggested before the error is stored; a trial that was never asked is not told.
    assert found[2].params.keys() == ({"n"} if method == "sample_independent" else set())
    told = [(number, state) for number, state in enumerate(states) if (number, method) != (2, "before_trial")]
    assert sampler.told == told


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS[:-1], "reseed_rng"])
def test_a_sampler_that_always_fails_stops_the_study_with_its_traceback(method: str, work: Any) -> None:
    work(make_study(sampler="random", trials=1))  # the first trial of all asks for no new seed
    found, _, raised = work(make_study(sampler=Failing(method, set(range(9)))))
    assert "the same error ended 3 trials in a row" in str(raised)
    assert str(raised).endswith(f"RuntimeError: planted in {method}")
    assert [trial.state for trial in found] == [TrialState.COMPLETE] + [TrialState.FAIL] * 3


def test_a_trial_after_which_the_sampler_fails_is_stored(work: Any) -> None:
    found, events, raised = work(make_study(sampler=Failing("after_trial", {0, 1, 3, 4})))
    assert raised is None
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
    assert all(trial.value is not None for trial in found)
    messages = [event["message"] for event in events if event["event"] == "sampler"]
    said = "the sampler failed after trial {}, which is stored as complete: RuntimeError: planted in after_trial"
    assert messages == [said.format(number) for number in (0, 1, 3, 4)]


def test_a_sampler_that_fails_after_every_trial_stops_the_study(work: Any) -> None:
    found, _, raised = work(make_study(sampler=Failing("after_trial", set(range(9)))))
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 3
    text = "study 'objects' stopped: the sampler failed after 3 trials in a row, which are stored; fix the sampler"
    assert str(raised).startswith(text)
    assert str(raised).endswith("RuntimeError: planted in after_trial")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_trial_is_stored_before_its_worker_ends(error: type[BaseException], work: Any, tmp_path: Path) -> None:
    with pytest.raises(error):
        work(make_study(sampler=Failing("after_trial", {1}, error)))
    with opened(f"sqlite:///{tmp_path}/study.db") as storage:
        found = storage.get_all_trials(storage.get_study_id_from_name("objects"))
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 2


class FailingPruner(BasePruner):
    def prune(self, study: Any, trial: Any) -> bool:
        raise RuntimeError("planted in prune")


def test_a_pruner_that_fails_stops_the_study_with_its_traceback(work: Any) -> None:
    found, _, raised = work(make_study(sampler="random", pruner=FailingPruner()))
    assert "the same error ended 3 trials in a row" in str(raised)
    assert str(raised).endswith("RuntimeError: planted in prune")
    assert [trial.state for trial in found] == [TrialState.FAIL] * 3


# --- What was queued


def test_a_value_that_a_queued_trial_does_not_have_is_said(work: Any, tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> Space:
        if trial.suggest_categorical("c", ["a", "b"]) == "a":
            return Finite(n=trial.suggest_int("n", 1, 3), c="a")
        return Finite(n=1, c="b")

    work(make_study(sampler="random", space=space, trials=1))
    with opened(f"sqlite:///{tmp_path}/study.db") as storage:
        study = optuna.load_study(study_name="objects", storage=storage)
        study.enqueue_trial({"c": "b", "n": 2})
        study.enqueue_trial({"c": "a", "n": 2})
    found, events, _ = work(make_study(sampler="random", space=space, trials=3))
    assert [trial.params for trial in found[1:]] == [{"c": "b"}, {"c": "a", "n": 2}]
    said = [(event["trial"], event["message"]) for event in events if event["event"] == "unused"]
    assert said == [(1, "trial 1 was queued with n=2, which it does not use")]


# --- What a sampler is told


def constraints_of(trial: Any) -> list[float]:
    """Return what a user may look at: hyperparameters and the curve."""
    return [trial.params["x"] - 0.5, trial.intermediate_values[1] - trial.intermediate_values[2]]


@pytest.mark.filterwarnings("ignore:`constraints_func` has been deprecated:FutureWarning")
@pytest.mark.parametrize("make", [optuna.samplers.TPESampler, optuna.samplers.NSGAIISampler])
def test_constraints_are_stored_with_the_trial_that_they_are_of(make: Any, work: Any) -> None:
    found, _, raised = work(make_study(space=Floats, sampler=make(constraints_func=constraints_of)))
    assert raised is None
    for trial in found:
        # The curve is at + 1, at + 1 / 2.
        assert trial.system_attrs["constraints"] == pytest.approx([trial.params["x"] - 0.5, 0.5])


OBJECTS: dict[str, Callable[[], BaseSampler]] = {
    "brute force": optuna.samplers.BruteForceSampler,
    "cma-es": lambda: optuna.samplers.CmaEsSampler(n_startup_trials=2, seed=0),
    "grid": lambda: optuna.samplers.GridSampler({"n": NUMBERS, "c": LETTERS}),
    "gp": lambda: optuna.samplers.GPSampler(n_startup_trials=2, seed=0),
    "nsga-ii": lambda: optuna.samplers.NSGAIISampler(population_size=3, seed=0),
    "nsga-iii": lambda: optuna.samplers.NSGAIIISampler(population_size=3, seed=0),
    "partial fixed": lambda: optuna.samplers.PartialFixedSampler({"n": 2, "x": 0.25}, RandomSampler(seed=0)),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=0, warn_asynchronous_seeding=False),
    "random": lambda: RandomSampler(seed=0),
    "tpe": lambda: optuna.samplers.TPESampler(n_startup_trials=2, multivariate=True, group=True, seed=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "minimize"]], ids=["one", "two"])
@pytest.mark.parametrize("name", OBJECTS)
def test_every_sampler_object_runs_a_study(name: str, directions: list[Any], work: Any) -> None:
    if name == "gp":
        pytest.importorskip("torch")
    if (name, len(directions)) == ("cma-es", 2):
        pytest.skip("supports only one objective")
    space: Any = Finite if name in ("brute force", "grid") else Floats
    objective = ["loss", "size"][: len(directions)]
    settings = {"objective": objective, "direction": None, "directions": directions, "space": space}
    found, events, raised = work(make_study(sampler=OBJECTS[name](), **settings))
    assert raised is None
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
    assert names(events, "sampler", "retry") == []
    if name == "partial fixed":
        assert {trial.params["x"] for trial in found} == {0.25}
