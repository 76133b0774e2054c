"""Trials of earlier studies: what matches is stored once with the new study, and only its sampler sees it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from storage_tools import opened, plain_trials

from tuner import Space, Study, choice, int_uniform, log_uniform
from tuner.errors import StudyChanged, StudyError
from tuner.results.rows import best_rows
from tuner.search import Agreed
from tuner.storage.read.queries import METRIC_NAMES_KEY, find_record
from tuner.storage.worker import earlier
from tuner.storage.worker.earlier import read_earlier, to_trials
from tuner.storage.worker.searches import EARLIER_KEY
from tuner.study import trial_seed
from tuner.trial.events import encode
from tuner.worker import run_worker


class HParams(Space):
    rate: float = log_uniform(1e-5, 1.0)
    width: int = int_uniform(1, 64)


def train(hparams: Any, trial: Any) -> float:
    return bowl({"rate": hparams.rate, "width": hparams.width})


def make_study(seed: int = 0, **settings: Any) -> Study:
    given: dict[str, Any] = {"name": "new", "space": HParams, "train": train, "objective": "loss", "trials": 4}
    given |= {"direction": "minimize", "warm_start": ["old"], "sampler": "tpe", "seed": seed}
    return Study(**{**given, **settings})


def bowl(params: dict[str, Any]) -> float:
    return (math.log10(params["rate"]) + 2) ** 2 + (params["width"] - 20) ** 2 / 200


def valley(params: dict[str, Any]) -> float:
    """Like Rosenbrock's function, with the best value 0 at rate 1e-1 and width 58."""
    x, y = math.log10(params["rate"]) / 2.5 + 1.4, params["width"] / 58
    return (1 - x) ** 2 + 10 * (y - x**2) ** 2


RATE, WIDTH = FloatDistribution(1e-5, 1.0, log=True), IntDistribution(1, 64)


def add(url: str, name: str, trials: list[FrozenTrial], objectives: tuple[str, ...] = ("loss",)) -> None:
    with opened(url) as storage:
        study = optuna.create_study(storage=storage, study_name=name, directions=["minimize" for _ in objectives])
        storage.set_study_system_attr(study._study_id, METRIC_NAMES_KEY, list(objectives))
        study.add_trials(trials)


def earlier_trial(rate: float, width: int, value: float | None = 1.0, **more: Any) -> FrozenTrial:
    given: dict[str, Any] = {"params": {"rate": rate, "width": width}, "distributions": {"rate": RATE, "width": WIDTH}}
    state = TrialState.COMPLETE if value is not None else TrialState.PRUNED
    return create_trial(**given, value=value, state=state, **more)


def searched(function: Callable[[dict[str, Any]], float], shift: float, seed: int) -> list[FrozenTrial]:
    """Return 60 random trials of almost the same function."""
    search = optuna.create_study(sampler=RandomSampler(seed=1000 + seed))

    def objective(trial: optuna.Trial) -> float:
        rate, width = trial.suggest_float("rate", 1e-5, 1.0, log=True), trial.suggest_int("width", 1, 64)
        return function({"rate": min(1.0, rate * shift), "width": width})

    search.optimize(objective, 60)
    return search.trials


@pytest.mark.slow
@pytest.mark.parametrize("function", [bowl, pytest.param(valley, marks=pytest.mark.long)])
def test_15_trials_find_a_better_point_than_without(function: Any, url: str) -> None:
    better = []
    for seed in range(8):
        add(url, f"old-{seed}", searched(function, 1.3, seed))
        best = {}
        for names in ([], [f"old-{seed}"]):
            study = make_study(seed, warm_start=names)
            with opened(url) as storage:
                known = Agreed(earlier=to_trials(read_earlier(storage.engine, study, []))) if names else Agreed()
            search = optuna.create_study()
            for number in range(15):
                search.sampler = study.make_sampler(number, known)
                trial = search.ask()
                study.sample(trial)
                search.tell(trial, function(trial.params))
            best[len(names)] = search.best_value
        better.append(math.log(best[0] + 1e-3) - math.log(best[1] + 1e-3))
    assert np.mean(better) > 3 * np.std(better, ddof=1) / math.sqrt(len(better)), better


# --- What a worker does


def run(study: Study, url: str) -> list[str]:
    events: list[dict[str, Any]] = []
    run_worker(study, url, say=lambda event: events.append(encode(event)))
    return [event["message"] for event in events if event["event"] == "search"]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/study.db"


def test_earlier_trials_are_no_trials_of_the_study(url: str) -> None:
    add(url, "old", [earlier_trial(1e-3, 8, -9.0), earlier_trial(1e-2, 9, 2.0)])
    assert run(make_study(), url) == ["the sampler starts from 2 of 2 trials of 'old'"]
    with opened(url) as storage:
        found = plain_trials(url, "new")
        assert [trial.number for trial in found] == [0, 1, 2, 3], "they use no budget"
        assert best_rows(storage.engine, "new", 1)[0]["number"] == min(found, key=lambda one: one.value or 0.0).number
        assert optuna.load_study(study_name="new", storage=storage).best_value > -9.0


@pytest.mark.slow
def test_all_workers_see_the_trials_as_they_were_at_the_creation(url: str) -> None:
    add(url, "old", [earlier_trial(1e-3, 8), earlier_trial(1e-2, 9, 2.0)])
    run(make_study(trials=1), url)
    with opened(url) as storage:
        before = find_record(storage.engine, storage.get_study_id_from_name("new"), EARLIER_KEY)
        optuna.load_study(study_name="old", storage=storage).add_trial(earlier_trial(0.5, 60))
        assert run(make_study(trials=3), url) == []
        assert find_record(storage.engine, storage.get_study_id_from_name("new"), EARLIER_KEY) == before
        storage.delete_study(storage.get_study_id_from_name("old"))
    assert run(make_study(trials=5), url) == []
    assert len(plain_trials(url, "new")) == 5


@pytest.mark.slow
def test_suggestions_are_those_of_a_study_that_began_with_these_trials(url: str) -> None:
    old = searched(bowl, 1.3, 0)
    add(url, "old", old)
    run(make_study(trials=6), url)
    found = plain_trials(url, "new")
    by_hand = optuna.create_study()
    by_hand.add_trials(old)
    for number, trial in enumerate(found):
        by_hand.sampler = TPESampler(seed=trial_seed(0, number, "sampler/old"))
        again = by_hand.ask()
        params = {"rate": again.suggest_float("rate", 1e-5, 1.0, log=True), "width": again.suggest_int("width", 1, 64)}
        assert params == trial.params
        by_hand.tell(again, bowl(params))


def test_a_study_does_not_repeat_the_trials_of_an_earlier_one_with_the_same_seed(url: str) -> None:
    run(make_study(name="old", warm_start=[]), url)
    run(make_study(), url)
    first, second = ([trial.params["rate"] for trial in plain_trials(url, name)] for name in ("old", "new"))
    assert not {*first} & {*second}


# --- What matches


class Narrow(Space):
    rate: float = log_uniform(1e-4, 1e-2)
    kind: str = choice("a", "b")


def test_what_does_not_match_is_listed(url: str) -> None:
    kind = optuna.distributions.CategoricalDistribution(("a", "b", "c"))

    def old(rate: float, name: str, **more: Any) -> FrozenTrial:
        given: dict[str, Any] = {"params": {"rate": rate, "kind": name, "extra": 3}}
        given["distributions"] = {"rate": RATE, "kind": kind, "extra": WIDTH}
        return create_trial(**{"value": 1.0, **given, **more})

    trials = [
        old(1e-3, "a"),
        old(0.5, "a"),
        old(0.2, "b"),
        old(1e-3, "c"),
        earlier_trial(1e-3, 4),
        old(1e-4, "b", value=None, state=TrialState.PRUNED, intermediate_values={1: 0.5}),
        old(1e-4, "b", value=None, state=TrialState.FAIL),
    ]
    add(url, "old", trials)
    (said,) = run(make_study(space=Narrow, train=lambda hparams, trial: hparams.rate), url)
    assert said == (
        "the sampler starts from 1 of 5 trials of 'old'; 4 of 5 do not match: rate must be in "
        "log_uniform(0.0001, 0.01) (2), kind must be one of ['a', 'b'] (1), the parameter 'kind' of Narrow is missing "
        "(1); not in the space of 'new': extra, width"
    )
    with opened(url) as storage:
        record: Any = find_record(storage.engine, storage.get_study_id_from_name("new"), EARLIER_KEY)
    (trial,) = to_trials(record)
    assert trial.params == {"rate": 1e-3, "kind": "a"}
    assert (trial.number, trial._trial_id) == (-1, -1)
    assert {name: one.distribution() for name, one in Narrow.__domains__.items()} == trial.distributions


def test_a_fixed_hyperparameter_must_have_its_value(url: str) -> None:
    add(url, "old", [earlier_trial(1e-3, 8), earlier_trial(1e-3, 9)])
    (said,) = run(make_study(fixed={"width": 8}), url)
    assert said.startswith("the sampler starts from 1 of 2 trials of 'old'; 1 of 2 do not match: width must be in Int")


@pytest.mark.slow
def test_a_large_study_is_thinned(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earlier, "MOST_TRIALS", 20)
    add(url, "old", [earlier_trial(1e-3, 1 + at % 60, float(at * 7 % 101)) for at in range(101)])
    with opened(url) as storage:
        record = read_earlier(storage.engine, make_study(), [])
    values = [one["values"][0] for one in record["trials"]]
    assert len(values) == 20
    assert {0.0, 1.0, 2.0, 3.0} <= set(values)  # the best fifth of 20
    assert np.mean(values) == pytest.approx((1.5 * 4 + 52 * 16) / 20, abs=3 * 29 / math.sqrt(20))


class Options(Space):
    optimizer: object = choice(HParams, Narrow)


def test_conditional_hyperparameters_are_taken_with_their_conditions(url: str) -> None:
    def train(hparams: Any, trial: Any) -> float:
        return hparams.optimizer.rate

    run(make_study(space=Options, train=train, name="old", warm_start=[], sampler="random", trials=8), url)
    (said,) = run(make_study(space=Options, train=train), url)
    assert said == "the sampler starts from 8 of 8 trials of 'old'"
    with opened(url) as storage:
        record: Any = find_record(storage.engine, storage.get_study_id_from_name("new"), EARLIER_KEY)
    assert [trial.params for trial in to_trials(record)] == [trial.params for trial in plain_trials(url, "old")]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: make_study(warm_start=["nothing"]), "warm_start of study 'new': no study 'nothing' in this storage"),
        (lambda: make_study(objective="error"), r"'new' has error \(minimize\), 'old' has loss \(minimize\)"),
        (lambda: make_study(direction="maximize"), r"'new' has loss \(maximize\), 'old' has loss \(minimize\)"),
        (lambda: make_study(space=Narrow), "no trial of 'old' matches its space; 1 of 1 do not match: rate must"),
        (lambda: make_study(warm_start="old"), "must be a list of names of other studies: got 'old'"),
        (lambda: make_study(warm_start=["old", "old"]), "must be a list of names of other studies"),
        (lambda: make_study(warm_start=["new"]), "must name other studies: got the study's own name"),
        (
            lambda: make_study(space=None, train=__import__("tuner").OptunaObjective(lambda trial: 1.0)),
            "warm_start needs a search space, .*: queue trials with `tuner enqueue --from old new` instead",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_stored(make: Any, reason: str, url: str) -> None:
    add(url, "old", [earlier_trial(0.5, 8)])
    with pytest.raises(StudyError, match=reason):
        run(make(), url)
    with opened(url) as storage:
        assert [study.study_name for study in storage.get_all_studies()] == ["old"]


def test_the_names_are_part_of_the_definition(url: str) -> None:
    add(url, "old", [earlier_trial(1e-3, 8)])
    run(make_study(warm_start=[], trials=1), url)
    with pytest.raises(StudyChanged, match="warm_start was  and is now old"):
        run(make_study(), url)


# --- What other samplers see


@pytest.mark.parametrize("sampler", ["cmaes", "gp"])
@pytest.mark.slow
def test_other_samplers_start_from_earlier_trials(sampler: str, url: str) -> None:
    if sampler == "gp":
        pytest.importorskip("torch")
    add(url, "old", searched(bowl, 1.0, 0))
    values = {}
    for names in ([], ["old"]):
        name = f"new-{len(names)}"
        run(make_study(name=name, warm_start=names, sampler=sampler, trials=8), url)
        values[len(names)] = [trial.value or 0.0 for trial in plain_trials(url, name)]
    assert np.median(values[1][1:]) < np.median(values[0][1:])


class Choices(HParams):
    kind: str = choice("a", "b")


@pytest.mark.slow
def test_auto_shows_them_to_the_sampler_that_it_has_chosen(url: str) -> None:
    add(url, "old", searched(bowl, 1.0, 0))
    run(make_study(name="middle", space=Choices, warm_start=[], sampler="random"), url)
    for sampler in ("tpe", "auto"):  # with a choice in the space they are the same
        run(make_study(name=sampler, space=Choices, warm_start=["middle"], sampler=sampler, trials=9), url)
    found = [[trial.params for trial in plain_trials(url, name)] for name in ("tpe", "auto")]
    assert found[0] == found[1]


def test_a_genetic_algorithm_has_earlier_trials_in_its_first_generation(url: str) -> None:
    old = [earlier_trial(1e-3 if at else 2e-3, 8 + at, float(at)) for at in range(6)]
    add(url, "old", old)
    sampler = {"name": "nsga2", "population_size": 6}
    run(make_study(sampler=sampler, trials=3), url)
    found = plain_trials(url, "new")
    assert [trial.system_attrs[NSGAIISampler._get_generation_key()] for trial in found] == [1, 1, 1]


@pytest.mark.parametrize("sampler", ["random", "qmc", {"name": "grid", "values": {"rate": [1e-3]}}])
@pytest.mark.slow
def test_samplers_that_do_not_learn_are_as_without(sampler: Any, url: str) -> None:
    add(url, "old", [earlier_trial(1e-3, 1)])
    for names in ([], ["old"]):
        run(make_study(name=f"new-{len(names)}", warm_start=names, sampler=sampler), url)
    first, second = ([trial.params for trial in plain_trials(url, f"new-{at}")] for at in (0, 1))
    assert first == second


def test_bad_trials_are_taken_too(url: str) -> None:
    old = [earlier_trial(1e-3, 8), earlier_trial(0.9, 60, None, user_attrs={"outcome": "diverged"})]
    with opened(url) as storage:
        study = optuna.create_study(storage=storage, study_name="old")
        study.add_trials(old)
    run(make_study(name="other", warm_start=[], trials=1), url)  # which creates tuner's tables
    with opened(url) as storage:
        trials = to_trials(read_earlier(storage.engine, make_study(), []))
    assert [trial.state for trial in trials] == [TrialState.COMPLETE]
