"""Samplers and pruners by name: what each suggests or stops is what Optuna's own would, from (seed, trial number)."""

import itertools
import json
import math
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna import pruners
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from scipy.stats import qmc

from tuner import Space, Study, choice, int_uniform, log_uniform, uniform
from tuner.errors import StudyError
from tuner.search import SAMPLERS
from tuner.study import trial_seed

allow_experimental = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


TRAINER = SimpleNamespace(train_model=None)


class Mixed(Space):
    slope: float = uniform(-2.0, 6.0)
    rate: float = log_uniform(1e-4, 1.0)
    width: int = int_uniform(1, 64, log=True)
    kind: str = choice("a", "b", "c")


class Discrete(Space):
    width: int = int_uniform(2, 6, step=2)
    kind: object = choice("a", None, (1, 2))
    flag: bool = choice(True, False)


class Line(Space):
    slope: float = uniform(-2.0, 6.0)


class LogLine(Space):
    rate: float = log_uniform(1e-4, 1.0)


class Conditional(Space):
    kind: object = choice(Line, LogLine)
    width: int = int_uniform(1, 8)


LIMIT, LIMIT_BY_HAND = {"name": "threshold", "upper": 0.7}, pruners.ThresholdPruner(upper=0.7)
GRID = {"name": "grid", "values": {"slope": [-2, 0.5, 6.0], "rate": [1e-4, 0.1]}}
FIXED = {"name": "partial_fixed", "fixed": {"width": 8}, "base": {"name": "tpe", "n_startup_trials": 3}}
MODULE = {"name": "hub", "path": "any"}  # not stored with the study yet: it draws at random
OPTIONS: dict[str, Any] = {"grid": GRID, "partial_fixed": FIXED, "hub": MODULE}


def make_study(**settings: Any) -> Study:
    given = {
        "name": "search",
        "space": Mixed,
        "trainer": TRAINER,
        "data": lambda seed: None,
        "objective": "loss",
    }
    given |= {"direction": "minimize", "epochs": 9, "trials": 12, **settings}
    return Study(**given)


def new_search() -> optuna.Study:
    # Its own sampler must never be asked: a named one takes its place for each trial.
    return optuna.create_study(study_name="search", direction="minimize")


def suggest(search: optuna.Study, study: Study, number: int) -> optuna.Trial:
    """Return a new trial, its parameters suggested for trial `number` as a worker does it."""
    search.sampler = study.make_sampler(number)
    trial = search.ask()
    study.sample(trial)
    return trial


def suggest_with(search: optuna.Study, sampler: BaseSampler, study: Study) -> dict[str, Any]:
    """Return what a sampler made by hand suggests for the next trial, which is then forgotten."""
    search.sampler = sampler
    trial = search.ask()
    study.sample(trial)
    search.tell(trial, state=TrialState.FAIL)
    return trial.params


def with_history(count: int) -> optuna.Study:
    """Return a search with complete trials in it, the same in every process."""
    search, study, generator = new_search(), make_study(sampler="random"), random.Random(0)
    for number in range(count):
        search.tell(suggest(search, study, number), generator.random())
    return search


def named(name: str) -> Any:
    if name == "gp":
        pytest.importorskip("torch")
    return OPTIONS.get(name, name)


# --- Samplers


@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - {"brute_force"}))  # which needs a finite space
def test_every_named_sampler_runs_a_study(name: str) -> None:
    study, search = make_study(sampler=named(name)), new_search()

    for number in range(12):
        trial = suggest(search, study, number)
        search.tell(trial, (trial.params["slope"] - 1) ** 2 + trial.params["rate"])

    assert [trial.state for trial in search.trials] == [TrialState.COMPLETE] * 12
    assert all(trial.params.keys() == {"slope", "rate", "width", "kind"} for trial in search.trials)
    assert len({json.dumps(trial.params) for trial in search.trials}) == 12


def print_suggestions(name: str, numbers: Sequence[int]) -> None:
    """Run by the test below in another process."""
    study = make_study(sampler=OPTIONS.get(name, name), seed=7)
    print(json.dumps([suggest(with_history(12), study, number).params for number in numbers]))


@pytest.mark.slow
def test_a_seed_and_a_number_mean_the_same_in_every_process(capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(SAMPLERS.keys() - {"gp", "brute_force"})
    numbers = [12, 13, 40]
    calls = "; ".join(f"run({name!r}, {numbers})" for name in names)
    script = f"import runpy; run = runpy.run_path({__file__!r})['print_suggestions']; {calls}"
    # Another order of sets and dicts must not matter.
    environment = {**os.environ, "PYTHONHASHSEED": "1234"}
    there = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    for name in names:
        print_suggestions(name, numbers)
    here = capsys.readouterr().out

    assert here.splitlines() == there.stdout.splitlines()
    for name, line in zip(names, here.splitlines(), strict=True):
        first, second, third = json.loads(line)
        assert first != second != third, name


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [("random", RandomSampler), ("tpe", TPESampler), ("cmaes", CmaEsSampler), ("nsga2", NSGAIISampler)],
)
@pytest.mark.parametrize("number", [12, 99])
def test_a_named_sampler_is_optunas_with_the_seed_of_the_trial(
    name: str, by_hand: Callable[..., BaseSampler], number: int
) -> None:
    study = make_study(sampler=name, seed=3)

    expected = suggest_with(with_history(12), by_hand(seed=trial_seed(3, number, "sampler")), study)
    assert suggest(with_history(12), study, number).params == expected


def test_options_reach_the_sampler() -> None:
    options = {"n_startup_trials": 3, "n_ei_candidates": 5, "multivariate": True}
    study = make_study(sampler={"name": "tpe", **options})

    expected = suggest_with(with_history(12), TPESampler(seed=trial_seed(0, 12, "sampler"), **options), study)
    assert suggest(with_history(12), study, 12).params == expected
    assert suggest(with_history(12), make_study(sampler="tpe"), 12).params != expected


@allow_experimental
def test_the_options_of_a_study_are_not_used_up() -> None:
    sampler, pruner = {"name": "nsga2", "population_size": 5}, {"name": "patient", "wrapped": "none", "patience": 2}
    study = make_study(sampler=sampler, pruner=pruner)

    assert study.make_sampler(0) is not study.make_sampler(0)
    assert study.make_pruner() is not study.make_pruner()
    assert sampler == {"name": "nsga2", "population_size": 5}
    assert pruner == {"name": "patient", "wrapped": "none", "patience": 2}


def test_optunas_own_objects_are_used_as_they_are() -> None:
    sampler, pruner = RandomSampler(), pruners.MedianPruner()
    study = make_study(sampler=sampler, pruner=pruner)

    assert study.make_sampler(0) is study.make_sampler(5) is sampler
    assert study.make_pruner() is pruner


@pytest.mark.parametrize("name", ["random", "tpe", "cmaes", "nsga2"])
def test_a_seed_cannot_be_an_option_of_a_sampler(name: str) -> None:
    with pytest.raises(StudyError, match="seed"):
        make_study(sampler={"name": name, "seed": 1})


def test_gaussian_processes_need_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed

    with pytest.raises(
        StudyError, match=r"sampler 'gp' needs PyTorch, .*: run `pip install -e '\.\[gp\]'` in the clone of tuner$"
    ):
        make_study(sampler="gp")


# --- Grid


def test_a_grid_has_every_point_once_whoever_draws_them() -> None:
    orders = []
    for seed in (0, 1):
        study = make_study(space=Discrete, sampler="grid", trials=18, seed=seed)
        numbers = random.Random(5).sample(range(18), 18)
        searches = [new_search(), new_search()]  # two workers that know nothing of each other
        drawn = {n: tuple(suggest(searches[n % 2], study, n).params.values()) for n in numbers}
        assert set(drawn.values()) == set(itertools.product([2, 4, 6], ["a", None, "(1, 2)"], [True, False]))
        orders.append([drawn[number] for number in range(18)])
    assert orders[0] != orders[1]


def test_a_grid_takes_the_values_given_for_floats() -> None:
    values = {"slope": [-2, 0.5, 6.0], "rate": [1e-4, 0.1], "width": [8], "kind": ["c"]}
    study = make_study(sampler={"name": "grid", "values": values}, trials=6)

    drawn = [suggest(new_search(), study, number).params for number in range(6)]
    assert {tuple(params.values()) for params in drawn} == set(itertools.product(*values.values()))


def test_a_grid_needs_no_values_for_a_fixed_float() -> None:
    study = make_study(space=Line, sampler="grid", trials=1, fixed={"slope": 0.25})

    assert suggest(new_search(), study, 0).params == {"slope": 0.25}


def by_function(trial: optuna.Trial) -> Space:
    return Line(slope=trial.suggest_float("slope", -2.0, 6.0))


@pytest.mark.parametrize(
    ("space", "options", "reason"),
    [
        (
            Line,
            {},
            r"'grid' needs a list of values for the float 'slope': {'name': 'grid', 'values': {'slope': \[\.\.\.\]",
        ),
        (Conditional, {}, "'grid' needs a Space class without conditional fields"),
        (by_function, {}, "'grid' needs a Space class without conditional fields"),
        (Discrete, {"values": {"widthh": [2]}}, "parameters that the space does not have: widthh"),
        (Line, {"values": {"slope": []}}, "values for 'slope' must be inside its domain: got no values"),
        (
            Line,
            {"values": {"slope": [0.0, 6.5, -3.0]}},
            r"values for 'slope' must be inside .*: got \[6\.5, -3\.0\]",
        ),
        (Discrete, {"values": {"width": [2, 3]}}, r"values for 'width' must be inside its domain: got \[3\]"),
        (Line, {"values": {"slope": 0.0}}, "sampler 'grid' does not accept its options"),
        (Line, {"values": {"slope": ["steep"]}}, r"values for 'slope' must be inside its domain: got \['steep'\]"),
    ],
)
def test_what_is_not_a_grid_is_refused(space: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(StudyError, match=reason):
        make_study(space=space, sampler={"name": "grid", **options})


def ask(search: optuna.Study, study: Study) -> optuna.Trial:
    """Return the next trial of a search that one worker runs, queued ones first."""
    waiting = search.get_trials(states=[TrialState.WAITING])
    number = waiting[0].number if waiting else len(search.trials)
    return suggest(search, study, number)


def test_a_grid_goes_round_what_is_queued_and_what_failed() -> None:
    study, search = make_study(space=Discrete, sampler="grid", trials=18), new_search()
    order = [tuple(suggest(new_search(), study, number).params.values()) for number in range(18)]
    queued = [
        dict(zip(("width", "kind", "flag"), order[9], strict=True)),  # a point that is not tried yet
        dict(zip(("width", "kind", "flag"), order[0], strict=True)),  # one that is
        {"width": 4, "flag": False},  # some point with these
    ]
    drawn: list[tuple[Any, ...]] = []
    while len(drawn) < 19:
        if len(search.trials) == 3:
            for params in queued:
                search.enqueue_trial(params)
        trial = ask(search, study)
        if trial.number in (1, 5, 6):
            search.tell(trial, state=TrialState.FAIL)
        else:
            search.tell(trial, 0.0)
            drawn.append(tuple(trial.params.values()))
    assert drawn[:2] == [order[0], order[2]]
    assert drawn[2:4] == [order[9], order[0]]
    assert set(drawn) == set(order)
    assert len(drawn) == 18 + 1, "the one that was queued though it had been tried"
    # Whoever asks for more gets a point again.
    assert tuple(ask(search, study).params.values()) in order


def test_a_queued_part_of_a_point_is_completed_to_a_free_one() -> None:
    study, search = make_study(space=Discrete, sampler="grid", trials=18), new_search()
    for _ in range(6):
        search.enqueue_trial({"width": 4})
    drawn = [ask(search, study).params for _ in range(6)]
    assert {params["width"] for params in drawn} == {4}
    assert len({str(params) for params in drawn}) == 6


def test_what_can_count_is_every_point_once_and_what_is_queued_beside() -> None:
    study, search = make_study(space=Discrete, sampler="grid", trials=18), new_search()

    def most() -> int:
        sampler: Any = study.make_sampler(0)
        limits = sampler.limits(search.trials)
        assert 18 <= limits.new <= limits.trials
        return limits.trials

    point = {"width": 4, "kind": "a", "flag": True}
    assert most() == 18
    search.enqueue_trial(point)
    assert most() == 18  # a point
    search.enqueue_trial(point)
    assert most() == 19  # the same again
    search.enqueue_trial({"width": 6})
    assert most() == 19  # completed to a point
    for _ in range(3):
        search.tell(ask(search, study), 0.0)
    assert most() == 19
    search.tell(ask(search, study), state=TrialState.FAIL)
    assert most() == 19
    while len(search.get_trials(states=[TrialState.COMPLETE])) < 19:
        search.tell(ask(search, study), 0.0)
    assert most() == 19
    search.enqueue_trial({"width": 6})
    assert most() == 20  # there is no such point left


def test_a_trial_of_a_grid_does_not_cost_more_with_more_points() -> None:
    class Large(Space):
        a: int = int_uniform(1, 300)
        b: int = int_uniform(1, 300)

    study = make_study(space=Large, sampler="grid")
    tracemalloc.start()
    points = [json.dumps(suggest(new_search(), study, number).params) for number in range(12)]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(points)) == 12
    assert peak_bytes < 300 * 300


# --- Quasi-Monte Carlo


def lines(study: Study, count: int, *, workers: int = 1) -> list[float]:
    """Return the values suggested for a space of one parameter; each worker has its trial running all the time."""
    search = new_search()
    searches = [search] + [optuna.load_study(study_name="search", storage=search._storage) for _ in range(workers - 1)]
    running: list[optuna.Trial] = []
    values = []
    for number in range(count):
        if len(running) == workers:
            search.tell(running.pop(0), 0.0)
        running.append(suggest(searches[number % workers], study, number))
        values += running[-1].params.values()
    return values


@pytest.mark.parametrize(
    ("space", "value"),
    [(Line, lambda u: -2.0 + 8.0 * u), (LogLine, lambda u: math.exp(math.log(1e-4) * (1.0 - u)))],
)
def test_qmc_walks_the_sobol_sequence_by_trial_number(space: type[Space], value: Callable[[float], float]) -> None:
    study = make_study(space=space, sampler="qmc", seed=11)

    drawn = lines(study, 16)
    # Optuna passes `seed`, which scrambles otherwise than SciPy's newer `rng`.
    sequence = qmc.Sobol(1, scramble=True, seed=11).random(16)[:, 0]  # pyright: ignore[reportCallIssue]
    assert drawn[1:] == pytest.approx([value(u) for u in sequence[1:]], rel=1e-12)
    # Optuna learns the space from a first trial, which is drawn at random (and not again by another worker).
    by_hand = suggest_with(new_search(), RandomSampler(seed=11), study)
    assert drawn[:1] == list(by_hand.values())


def test_two_workers_never_draw_the_same_point_of_a_sequence() -> None:
    study = make_study(space=Line, sampler="qmc")

    together = lines(study, 32, workers=2)
    assert len(set(together)) == 32
    # The points are the ones that a single worker draws; only the first of each worker are random.
    assert together[2:] == lines(study, 32)[2:]


def test_the_sequence_can_be_chosen() -> None:
    study = make_study(space=Line, sampler={"name": "qmc", "qmc_type": "halton", "scramble": False})

    expected = -2.0 + 8.0 * qmc.Halton(1, scramble=False).random(8)[:, 0]
    assert lines(study, 8)[1:] == pytest.approx(expected[1:], rel=1e-12)


# --- Pruners


def curves(count: int, epochs: int) -> np.ndarray:
    """Return learning curves that fall at different rates to different ends. Float[Array, "count epochs"]"""
    generator, epoch = np.random.default_rng(0), np.arange(1, epochs + 1)
    ends, heights, rates = (generator.uniform(low, high, (count, 1)) for low, high in ((0.1, 1), (0.2, 2), (0.05, 0.6)))
    return ends + heights * np.exp(-rates * epoch) + generator.normal(0.0, 0.04, (count, epochs))


def decisions(pruner: pruners.BasePruner, epochs: int) -> list[int | None]:
    """Return for each of 24 recorded curves the epoch at which it was pruned; four trials run at a time."""
    search = new_search()
    search.pruner = pruner
    table = curves(24, epochs)
    pruned: list[int | None] = [None] * len(table)
    for _ in range(len(table) // 4):
        running = [search.ask() for _ in range(4)]
        for epoch, trial in itertools.product(range(1, epochs + 1), running):
            if pruned[trial.number] is None:
                trial.report(table[trial.number, epoch - 1], epoch)
                if trial.should_prune():
                    pruned[trial.number] = epoch
        for trial in running:
            state = TrialState.COMPLETE if pruned[trial.number] is None else TrialState.PRUNED
            search.tell(trial, table[trial.number, -1] if state is TrialState.COMPLETE else None, state)
    return pruned


halving = pruners.SuccessiveHalvingPruner


@allow_experimental
@pytest.mark.parametrize(
    ("pruner", "epochs", "by_hand"),
    [
        ("asha", 9, lambda: halving(min_resource=1, reduction_factor=3)),
        ("asha", 10, lambda: halving(min_resource=2, reduction_factor=3)),
        ("asha", 27, lambda: halving(min_resource=3, reduction_factor=3)),
        ({"name": "asha", "min_resource": 2}, 27, lambda: halving(min_resource=2, reduction_factor=3)),
        ({"name": "asha", "reduction_factor": 2}, 9, lambda: halving(min_resource=1, reduction_factor=2)),
        ("hyperband", 10, lambda: pruners.HyperbandPruner(min_resource=1, max_resource=10)),
        ("hyperband", 27, lambda: pruners.HyperbandPruner(min_resource=1, max_resource=27)),
        ({"name": "hyperband", "reduction_factor": 2}, 10, lambda: pruners.HyperbandPruner(1, 10, 2)),
        ("median", 10, pruners.MedianPruner),
        ({"name": "median", "n_warmup_steps": 4}, 10, lambda: pruners.MedianPruner(n_warmup_steps=4)),
        ("percentile", 10, lambda: pruners.PercentilePruner(25.0)),
        ({"name": "percentile", "percentile": 60}, 10, lambda: pruners.PercentilePruner(60.0)),
        ("patient", 27, lambda: pruners.PatientPruner(pruners.MedianPruner(), patience=3)),
        ({"name": "patient", "wrapped": LIMIT, "patience": 1}, 10, lambda: pruners.PatientPruner(LIMIT_BY_HAND, 1)),
        ({"name": "threshold", "upper": 1.2}, 10, lambda: pruners.ThresholdPruner(upper=1.2)),
        ("wilcoxon", 10, pruners.WilcoxonPruner),
        ({"name": "wilcoxon", "p_threshold": 0.01}, 10, lambda: pruners.WilcoxonPruner(p_threshold=0.01)),
    ],
)
def test_a_named_pruner_decides_as_optunas_set_by_hand(
    pruner: Any, epochs: int, by_hand: Callable[[], pruners.BasePruner]
) -> None:
    decided = decisions(make_study(pruner=pruner, epochs=epochs).make_pruner(), epochs)

    assert decided == decisions(by_hand(), epochs)
    assert None in decided  # some live, some do not: otherwise nothing was compared
    assert len(set(decided)) > 1


def test_without_a_pruner_every_trial_runs_to_its_end() -> None:
    assert decisions(make_study(pruner="none").make_pruner(), 9) == [None] * 24


@pytest.mark.parametrize("name", ["patient", "wilcoxon"])
def test_naming_an_experimental_pruner_is_the_consent(name: str, recwarn: pytest.WarningsRecorder) -> None:
    make_study(pruner=name).make_pruner()

    assert list(recwarn) == []


# --- Mistakes


@pytest.mark.parametrize(
    ("kind", "given", "reason"),
    [
        (
            "sampler",
            "tp",
            "must be one of auto, brute_force, .*, partial_fixed, qmc, random, tpe: got 'tp'; did you mean 'tpe'?",
        ),
        ("sampler", "", "must be one of .*: got ''$"),
        (
            "sampler",
            {"name": "tpe", "n_startup": 3},
            "'tpe' has no option 'n_startup': .*mean 'n_startup_trials'",
        ),
        ("sampler", {"name": "grid", "value": []}, "'grid' has no option 'value': it has .*; did you mean 'values'?"),
        (
            "sampler",
            {"n_startup_trials": 3},
            "must be one of .*: got None; pass a name, or {'name': ..., option: value}",
        ),
        ("sampler", {"name": ["tpe"]}, r"must be one of .*: got \['tpe'\]; pass a name, or"),
        ("sampler", 3, "must be a name, a mapping or an Optuna sampler: got 3"),
        ("sampler", None, "must be a name, a mapping or an Optuna sampler: got None"),
        (
            "sampler",
            {"name": "qmc", "qmc_type": "hal"},
            "'qmc' does not accept its options {'qmc_type': 'hal'}: ",
        ),
        ("sampler", {"name": "nsga2", "population_size": 1}, "'nsga2' does not accept its options .*population_size"),
        (
            "pruner",
            "ash",
            "must be one of asha, curve, hyperband, median, none, patient, .*: got 'ash'; did you mean 'asha'?",
        ),
        ("pruner", {"name": "asha", "reduction": 2}, "'asha' has no option 'reduction': .*mean 'reduction_factor'?"),
        ("pruner", {"name": "none", "patience": 2}, "'none' has no option 'patience': it has none$"),
        ("pruner", {"name": "asha", "reduction_factor": 1}, "'asha' does not accept its options .*reduction_factor"),
        (
            "pruner",
            {"name": "hyperband", "max_resource": "x"},
            "'hyperband' does not accept its options .*_resource",
        ),
        ("pruner", {"name": "percentile", "percentile": 101}, "'percentile' does not accept its options .*Percentile"),
        ("pruner", "threshold", "'threshold' does not accept its options {}: Either lower or upper"),
        ("pruner", {"name": "patient", "wrapped": "medina"}, "must be one of .*: got 'medina'; did you mean 'median'?"),
    ],
)
def test_a_wrong_search_is_refused_in_one_line(kind: str, given: Any, reason: str) -> None:
    with pytest.raises(StudyError, match=reason) as caught:
        make_study(**{kind: given})

    assert kind in str(caught.value)
    assert "\n" not in str(caught.value)
