"""Several trials of a worker at once: each is an ordinary trial, with its own lease, reports, pruning and outcome."""

from __future__ import annotations

import dataclasses
import itertools
import pkgutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from after_faults import table
from worker_log import Log, logged

import tuner
from tuner import Space, Study, choice, log_uniform, uniform
from tuner.admin import edits
from tuner.errors import StorageLost, StudyError, StudyFailed, TrialPruned
from tuner.storage.sql.tables import attempts, leases, reports, trial_system_attributes, trials
from tuner.storage.worker import leases as storage_leases
from tuner.storage.worker import reporter
from tuner.storage.worker.leases import LANES_KEY
from tuner.training import ArrayDataset, Layout, StreamDataset, TrainerModule
from tuner.training.data.arrays import Splits
from tuner.training.loop.lanes import Lanes
from tuner.trial import Event, Outcome, Stop
from tuner.trial.events import (
    CohortChosen,
    EpochEnded,
    SearchFinished,
    TrialBegan,
    TrialEnded,
    TrialReleased,
    TrialRetried,
)
from tuner.worker.attempts import watchdog
from tuner.worker.attempts.ends import EndCall
from tuner.worker.attempts.suggested import SuggestedCall
from tuner.worker.cohorts import calls, cohort

TOLERANCE = 5e-6
"""As in `test_vmap.py`."""
RNG = np.random.default_rng(0)
SPLITS = ArrayDataset(
    inputs=RNG.normal(size=(40, 3)).astype(np.float32), targets=RNG.normal(size=40).astype(np.float32)
).split(0.2, seed=0)


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    noise: float = uniform(0.0, 1.0)


class Widths(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    noise: float = uniform(0.0, 1.0)
    width: int = choice(2, 3, 4)


class Model(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.relu(nn.Dense(self.width)(x)))[:, 0]


class Line(TrainerModule):
    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return Model(getattr(hparams, "width", 3))

    def batch_size(self, hparams: Any) -> int:
        return 16

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["targets"]) ** 2, {}


class Unsteady(Line):
    """Some trials fail, diverge or are ended by a hook, as their `noise` says."""

    def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
        kind = int(1000 * hparams.noise) % 7
        if epoch == 1 + int(10_000 * hparams.noise) % 3:
            if kind == 0:
                raise RuntimeError("planted")
            if kind == 1:
                raise TrialPruned
        return {}

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        losses, metrics = super().loss(outputs, batch, hparams)
        return jnp.where(jnp.floor(1000 * hparams.noise) % 7 == 2, jnp.nan, losses), metrics


LINE = Line()


def study_of(**settings: Any) -> Study:
    given: dict[str, Any] = {
        "name": "together", "space": HParams, "trainer": LINE, "data": lambda seed: SPLITS, "objective": "loss",
        "direction": "minimize", "epochs": 3, "trials": 7, "sampler": "random", "pruner": "none", "cohort": 3,
    }  # fmt: skip
    return Study(**{**given, **settings})


@pytest.fixture
def work(tmp_path: Path) -> Callable[..., Log]:
    return lambda study, url, log=None, **options: logged(study, url, tmp_path / "artifacts", log, **options)


def results(url: str) -> dict[int, tuple[dict[str, Any], Any, dict[int, float]]]:
    """Return number -> hyperparameters, value, curve."""
    names = optuna.get_all_study_names(tuner.open_storage(url))
    found = optuna.load_study(study_name=names[0], storage=tuner.open_storage(url)).trials
    return {trial.number: (trial.params, trial.values, trial.intermediate_values) for trial in found}


def read_rows(url: str, column: Any) -> list[Any]:
    return [row[0] for row in table(url, column)]


def lanes_of(url: str) -> list[str]:
    rows = table(url, trial_system_attributes.c.key, trial_system_attributes.c.value_json)
    return [value for key, value in rows if key == LANES_KEY]


@pytest.mark.with_tables
def test_trials_come_to_what_they_come_to_one_by_one(
    storage_url: str, tmp_path: Path, work: Callable[..., Log]
) -> None:
    log = work(study_of(), storage_url)
    alone = f"sqlite:///{tmp_path / 'alone.db'}"
    work(study_of(cohort=1), alone)
    found, expected = results(storage_url), results(alone)
    assert found.keys() == expected.keys() == set(range(7))
    for number, (params, values, curve) in expected.items():
        assert found[number][0] == params
        assert found[number][1] == pytest.approx(values, rel=TOLERANCE)
        assert found[number][2] == pytest.approx(curve, rel=TOLERANCE)
    assert [event.lanes for event in log.of(CohortChosen)] == [3]
    # The first three report together, and a freed lane takes the next trial.
    assert [event.trial for event in log.of(EpochEnded)][:6] == [0, 1, 2, 0, 1, 2]
    assert (lanes_of(storage_url), lanes_of(alone)) == (["3"] * 7, [])
    assert read_rows(storage_url, leases.c.trial_id) == []
    assert read_rows(storage_url, attempts.c.ending) == [Outcome.COMPLETE.value] * 7


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
@pytest.mark.with_tables
def test_random_ends_keep_the_lanes_busy_and_the_budget_exact(
    seed: int, sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[int] = []
    advance = Lanes._advance
    monkeypatch.setattr(
        Lanes, "_advance", lambda self, tasks, count: busy.append(len(tasks)) or advance(self, tasks, count)
    )
    study = study_of(
        trainer=Unsteady(), seed=seed, trials=20, cohort=4, epochs=4, retries=1,
        pruner={"name": "asha", "min_resource": 1, "reduction_factor": 2},
    )  # fmt: skip
    log = work(study, sqlite_url)
    outcomes = [event.outcome for event in log.of(TrialEnded)]
    used = [one for one in outcomes if one.uses_budget]
    assert len(used) == 20
    assert {Outcome.COMPLETE, Outcome.PRUNED} <= set(outcomes)
    assert log.of(TrialRetried) or Outcome.DIVERGED in outcomes
    states = read_rows(sqlite_url, trials.c.state)
    assert (states.count("RUNNING"), read_rows(sqlite_url, leases.c.trial_id)) == (0, [])
    assert len(states) == len(outcomes)
    # A lane is idle only while no trial is left for it.
    last_start = max(at for at, event in enumerate(log.events) if isinstance(event, TrialBegan))
    reports = len([event for event in log.events[:last_start] if isinstance(event, EpochEnded)])
    assert busy.count(4) * 4 >= reports - 8


@pytest.mark.slow
@pytest.mark.with_tables
def test_asha_decides_as_for_the_same_reports_one_after_another(sqlite_url: str, work: Callable[..., Log]) -> None:
    """The oracle is Optuna's pruner, which gets the reports in the order in which the cohort made them."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    log = work(study_of(trials=24, cohort=4, epochs=4, pruner=pruner), sqlite_url)
    oracle = optuna.create_study(direction="minimize", pruner=pruner)
    asked: dict[int, optuna.Trial] = {}
    pruned: set[int] = set()
    for event in log.of(EpochEnded):
        while event.trial not in asked:
            trial = oracle.ask()
            asked[trial.number] = trial
        asked[event.trial].report(event.values[0], event.epoch)
        if event.epoch < 4 and asked[event.trial].should_prune():
            pruned.add(event.trial)
    found = {event.trial for event in log.of(TrialEnded) if event.outcome is Outcome.PRUNED}
    assert found == pruned
    assert 0 < len(pruned) < 24


@pytest.mark.slow
@pytest.mark.with_tables
def test_trials_of_other_programs_wait_for_their_turn_and_none_starves(
    sqlite_url: str, work: Callable[..., Log]
) -> None:
    work(study_of(space=Widths, trials=3), sqlite_url)
    edits.enqueue(sqlite_url, "together", {"width": "4"})
    log = work(study_of(space=Widths, trials=30), sqlite_url)
    ended = [event.trial for event in log.of(TrialEnded)]
    assert sorted([0, 1, 2, *ended]) == list(range(30))
    # The queued one was the first to begin: at most as many others went ahead as wait and train at once.
    queued = next(event.trial for event in log.of(TrialBegan) if event.hparams["width"] == 4)
    assert ended.index(queued) <= 3 * 3
    widths = [params["width"] for params, _, _ in results(sqlite_url).values()]
    assert {2, 3, 4} == set(widths)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.with_tables
def test_the_shares_of_static_values_are_those_of_the_sampler(sqlite_url: str, tmp_path: Path, work: Any) -> None:
    """Random search gives each trial the same hyperparameters in a cohort, so that no share can differ at all."""
    alone = f"sqlite:///{tmp_path / 'alone.db'}"
    work(study_of(space=Widths, trials=9, epochs=1), sqlite_url)
    work(study_of(space=Widths, trials=9, epochs=1, cohort=1), alone)
    found, expected = results(sqlite_url), results(alone)
    assert {number: one[0] for number, one in found.items()} == {number: one[0] for number, one in expected.items()}


@pytest.mark.slow
@pytest.mark.with_tables
def test_a_worker_that_is_asked_to_stop_gives_all_trials_back(sqlite_url: str, work: Callable[..., Log]) -> None:
    stop = Stop()

    class Stopping(Log):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if len(self.of(EpochEnded)) == 4:
                stop.requested = True

    log = work(study_of(epochs=6, save_every_s=0.0), sqlite_url, Stopping(), stop=stop)
    assert sorted(event.trial for event in log.of(TrialReleased)) == [0, 1, 2]
    assert read_rows(sqlite_url, attempts.c.ending) == [Outcome.PREEMPTED.value] * 3
    later = work(study_of(epochs=6), sqlite_url)
    assert sorted(event.trial for event in later.of(TrialEnded)) == list(range(7))
    # They are resumed from their checkpoints: no epoch is trained twice.
    trained = [(event.trial, event.epoch) for event in [*log.of(EpochEnded), *later.of(EpochEnded)]]
    assert len(set(trained)) == 7 * 6
    assert len(trained) <= 7 * 6 + 3  # a resumed training reports its last epoch again


@pytest.mark.slow
@pytest.mark.with_tables
def test_a_trial_that_waits_for_its_turn_does_not_use_up_its_minutes(
    sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of the clock is a second: trials of the second and third width wait for longer than they may take."""
    now = 0.0

    class Slow(Line):
        def on_training_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
            nonlocal now
            now += 10.0

    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now))
    study = study_of(space=Widths, trainer=Slow(), trials=9, cohort=3, epochs=2, trial_minutes=1.5)
    log = work(study, sqlite_url)
    assert {event.outcome for event in log.of(TrialEnded)} == {Outcome.COMPLETE}
    assert now == 9 * 2 * 10.0  # three at once take a minute, and the last ones wait for two


@pytest.mark.slow
@pytest.mark.with_tables
def test_trials_that_wait_for_their_turn_are_given_back_when_the_study_is_stopped(
    sqlite_url: str, work: Callable[..., Log]
) -> None:
    class Stopping(Log):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if len(self.of(EpochEnded)) == 1:
                stop.requested = True

    stop = Stop()
    log = work(study_of(space=Widths, trials=30), sqlite_url, Stopping(), stop=stop)
    begun = {event.trial for event in log.of(TrialBegan)}
    trained = {event.trial for event in log.of(EpochEnded)}
    assert begun > trained
    assert set(read_rows(sqlite_url, leases.c.worker)) == {None}
    assert set(read_rows(sqlite_url, attempts.c.ending)) == {Outcome.PREEMPTED.value}


@pytest.mark.slow
@pytest.mark.with_tables
def test_streams_are_trained_one_by_one(sqlite_url: str, work: Callable[..., Log]) -> None:
    class Rows:
        def __len__(self) -> int:
            return len(SPLITS.train)

        def __getitem__(self, index: Any) -> dict[str, Any]:
            return {name: np.asarray(array)[index] for name, array in SPLITS.train.host().items()}

    data = Splits(StreamDataset(Rows()), SPLITS.validation)
    log = work(study_of(data=lambda seed: data, trials=3), sqlite_url)
    (said,) = log.of(CohortChosen)
    assert said == dataclasses.replace(said, lanes=1)
    assert "StreamDataset" in said.message
    assert len(log.of(TrialEnded)) == 3
    assert {event.outcome for event in log.of(TrialEnded)} == {Outcome.COMPLETE}


@pytest.mark.slow
@pytest.mark.with_tables
def test_a_program_that_fails_is_no_error_of_its_trials(
    sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr(Lanes, "_measure", fail)
    log = work(study_of(), sqlite_url)
    assert [event.lanes for event in log.of(CohortChosen)] == [3, 1]
    assert "planted" in log.of(CohortChosen)[1].message
    assert sorted(event.trial for event in log.of(TrialEnded)) == list(range(7))
    assert log.of(TrialRetried) == []


@pytest.mark.slow
@pytest.mark.with_tables
def test_without_memory_for_so_many_lanes_half_as_many_are_used(
    sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Lanes._advance

    def fail(self: Lanes, tasks: Any, count: int) -> None:
        if self.count > 2:
            raise MemoryError("planted")
        advance(self, tasks, count)

    monkeypatch.setattr(Lanes, "_advance", fail)
    log = work(study_of(cohort=5), sqlite_url)
    assert [event.lanes for event in log.of(CohortChosen)] == [5, 2]
    assert sorted(event.trial for event in log.of(TrialEnded)) == list(range(7))
    assert {event.outcome for event in log.of(TrialEnded)} == {Outcome.COMPLETE}


@pytest.mark.slow
@pytest.mark.with_tables
def test_an_error_of_all_trials_stops_the_study(sqlite_url: str, work: Callable[..., Log]) -> None:
    class Broken(Line):
        def on_training_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
            raise RuntimeError("planted")

    with pytest.raises(StudyFailed, match="planted"):
        work(study_of(trainer=Broken(), retries=0), sqlite_url)
    assert read_rows(sqlite_url, leases.c.trial_id) == []


@pytest.mark.slow
@pytest.mark.with_tables
def test_a_cohort_needs_one_device(sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_DEVICES", "cpu 0,1")
    monkeypatch.setattr("tuner.training.loop.runtime.worker_layout", lambda devices: Layout(jax.devices()[:2]))
    log = work(study_of(trials=2), sqlite_url)
    (said,) = log.of(CohortChosen)
    assert (said.lanes, "one device" in said.message) == (1, True)
    assert len(log.of(TrialEnded)) == 2


@pytest.mark.parametrize("cohort", [0, -1, True, 2.0, "many"])
def test_what_a_cohort_must_be(cohort: Any) -> None:
    with pytest.raises(StudyError, match=r"cohort must be an integer of at least 1, or 'auto': got"):
        study_of(cohort=cohort)


def test_a_cohort_needs_a_trainer() -> None:
    with pytest.raises(StudyError, match="cohort needs a study with `trainer`"):
        study_of(trainer=None, data=None, train=lambda hparams, trial: 0.0, epochs=None, pruner=None)


class Unmappable(Line):
    """It trains alone, and `jax.vmap` refuses it."""

    def augment(self, batch: Any, hparams: Any, key: Any) -> Any:
        one = jax.pure_callback(lambda _: np.float32(1.0), jax.ShapeDtypeStruct((), jnp.float32), hparams.noise)
        return {**batch, "targets": batch["targets"] * one}


@pytest.mark.slow
@pytest.mark.parametrize(("loop", "cohort"), [("auto", 3), ("scan", 3), ("auto", "auto")])
@pytest.mark.with_tables
def test_trials_that_cannot_share_a_program_train_one_by_one(
    loop: Any, cohort: Any, sqlite_url: str, work: Callable[..., Log]
) -> None:
    trainer = Unmappable()
    trainer.loop = loop
    log = work(study_of(trainer=trainer, trials=4, cohort=cohort), sqlite_url)
    assert [event.outcome for event in log.of(TrialEnded)] == [Outcome.COMPLETE] * 4
    assert log.of(TrialRetried) == []
    assert log.of(CohortChosen)[-1].lanes == 1
    assert "\n" not in log.of(CohortChosen)[-1].message


@pytest.mark.slow
@pytest.mark.parametrize("cohort", [3, pytest.param("auto", marks=pytest.mark.long)])
@pytest.mark.with_tables
def test_a_program_that_fails_for_some_trials_fails_those_alone(
    cohort: Any, sqlite_url: str, work: Callable[..., Log]
) -> None:
    kinds = itertools.count()

    class Bad(Line):
        def init_model(self, hparams: Any) -> Any:
            if hparams.width == 4:  # each time another error: three of a kind in a row would end the study
                raise type(f"Error{next(kinds)}", (RuntimeError,), {})("planted")
            return super().init_model(hparams)

    log = work(study_of(space=Widths, trainer=Bad(), trials=6, cohort=cohort, retries=0), sqlite_url)
    ended = {event.trial: event.outcome for event in log.of(TrialEnded)}
    width = {event.trial: event.hparams["width"] for event in log.of(TrialBegan)}
    assert {trial for trial, outcome in ended.items() if outcome is Outcome.FAILED} == {
        trial for trial, wide in width.items() if wide == 4
    }
    assert list(ended.values()).count(Outcome.COMPLETE) == 6
    assert Outcome.FAILED in ended.values()


@pytest.mark.slow
@pytest.mark.with_tables
def test_failures_stop_the_study_only_if_no_trial_that_runs_is_better(
    sqlite_url: str, work: Callable[..., Log]
) -> None:
    """Three of four trials fail alike while the fourth trains; when it is complete, the row of failures is over."""

    class Bad(Line):
        def on_training_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
            if (
                epoch == 1
                and len(failed) < 3
                and hparams.learning_rate != kept.setdefault("rate", hparams.learning_rate)
            ):
                failed.append(None)
                raise RuntimeError("planted")

    kept, failed = dict[str, float](), list[None]()
    log = work(study_of(trainer=Bad(), trials=6, cohort=4, retries=0), sqlite_url)
    outcomes = [event.outcome for event in log.of(TrialEnded)]
    assert (outcomes.count(Outcome.FAILED), outcomes.count(Outcome.COMPLETE)) == (3, 6)


@pytest.mark.with_tables
def test_a_sampler_that_ends_the_search_ends_it(sqlite_url: str, work: Callable[..., Log]) -> None:
    class Stopping(optuna.samplers.RandomSampler):
        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            if trial.number == 0:
                study.stop()

    log = work(study_of(sampler=Stopping(), trials=30), sqlite_url)
    assert len(log.of(TrialEnded)) == 3  # those that ran
    assert len(log.of(SearchFinished)) == 1


@pytest.mark.with_tables
def test_trials_that_begin_report_or_end_together_do_so_in_one_transaction(
    sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, list[int]] = {"rungs": [], "ends": [], "rung": [], "end": [], "suggested": [], "one": []}

    def count(path: str, name: str, size: Callable[[Any], int]) -> None:
        owner = pkgutil.resolve_name(path)
        call = getattr(owner, name)
        kind = {
            "enter_rungs": "rungs", "end_together": "ends", "_enter": "rung", "end": "end",
            "store_suggested_together": "suggested", "store_suggested": "one",
        }[name]  # fmt: skip

        def counted(*given: Any, **options: Any) -> Any:
            sizes[kind].append(size(given))
            return call(*given, **options)

        monkeypatch.setattr(owner, name, counted)

    count("tuner.storage.optuna.storage", "enter_rungs", lambda given: len(given[3]))
    count("tuner.storage.optuna.held", "store_suggested_together", lambda given: len(given[1]))
    count("tuner.storage.optuna.held", "store_suggested", lambda given: 1)
    count("tuner.storage.worker.leases", "end_together", lambda given: len(given[1]))
    count("tuner.storage.worker.leases", "end", lambda given: 1)
    count("tuner.storage.worker.rungs", "_enter", lambda given: 1)
    pruner = {"name": "asha", "min_resource": 1, "reduction_factor": 2, "bootstrap_count": 10}  # it promotes none
    log = work(study_of(trials=6, cohort=3, pruner=pruner), sqlite_url)
    assert [event.outcome for event in log.of(TrialEnded)] == [Outcome.PRUNED] * 6
    assert sizes["rungs"] == [3, 3]
    assert len(sizes["rung"]) == 6, "each trial enters once"
    assert sizes["ends"] == [3, 3]
    assert sizes["end"] == []
    assert (sizes["suggested"], sizes["one"]) == ([3, 3], [])


@pytest.mark.slow
@pytest.mark.with_tables
def test_reports_that_no_pruner_judges_are_not_waited_for(
    sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are stored, though the call that stores gathered ones is never made: those of the end are stored with it."""
    monkeypatch.setattr(calls.Gatherer, "_make_calls", lambda self: None)
    monkeypatch.setattr(calls.Together, "wait", lambda self, future, *limits, **more: self._ask_end(future, *limits))

    def ask_end(self: Any, future: Future[Any], *limits: Any) -> bool:
        assert isinstance(self._calls[-1][1], EndCall | SuggestedCall), "a trial waits for its beginning and its end"
        self._ask(calls.Answer(future, float("inf"), float("inf"), bool))
        return True

    monkeypatch.setattr(calls.Together, "_ask_end", ask_end, raising=False)
    work(study_of(trials=4, cohort=2), sqlite_url)
    found = table(sqlite_url, reports.c.trial_id, reports.c.epoch, by=(reports.c.trial_id, reports.c.epoch))
    assert found == [(trial_id, epoch) for trial_id in (1, 2, 3, 4) for epoch in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.with_tables
def test_gathered_reports_are_stored_with_those_that_a_pruner_judges(
    sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls.Gatherer, "_make_calls", lambda self: None)
    stored: list[list[int]] = []
    store = reporter.report_together

    def note(engine: Any, several: Any, objective: Any) -> list[bool]:
        stored.append([len(of_trial) for _, of_trial in several])
        return store(engine, several, objective)

    monkeypatch.setattr(reporter, "report_together", note)
    pruner = {"name": "asha", "min_resource": 3, "reduction_factor": 2}
    log = work(study_of(trials=3, cohort=3, epochs=4, pruner=pruner), sqlite_url)
    assert len(log.of(TrialEnded)) == 3
    assert stored == [[3, 3, 3]], "epochs 1 to 3, at the rung; the fourth with the end"
    found = table(sqlite_url, reports.c.trial_id, reports.c.epoch, by=(reports.c.trial_id, reports.c.epoch))
    ended = {event.trial: event.outcome for event in log.of(TrialEnded)}
    last = {number + 1: 4 if outcome is Outcome.COMPLETE else 3 for number, outcome in ended.items()}
    assert found == [(trial_id, epoch) for trial_id in (1, 2, 3) for epoch in range(1, last[trial_id] + 1)]


@pytest.mark.with_tables
def test_trials_that_have_ended_are_stored_although_the_worker_fails(
    sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_turns = cohort.Cohort._take_turns

    def fail_when_all_end(self: Any) -> None:
        take_turns(self)
        if len([call for _, call in self._calls if isinstance(call, EndCall)]) == 3:
            raise StudyError("planted")

    monkeypatch.setattr(cohort.Cohort, "_take_turns", fail_when_all_end)
    with pytest.raises(StudyError, match="planted"):
        work(study_of(trials=3, cohort=3), sqlite_url)
    endings = table(sqlite_url, attempts.c.ending, by=(attempts.c.trial_id,))
    assert endings == [("complete",)] * 3, "the sampler was told"


@pytest.mark.with_tables
def test_leases_are_renewed_before_the_first_turn(
    sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first trial's sampler waits until the lease of the last one was extended."""
    monkeypatch.setattr("tuner.worker.opening.LEASE_S", 1.0)
    first: dict[int, float] = {}

    class Slow(optuna.samplers.RandomSampler):
        def before_trial(self, study: Any, trial: Any) -> None:
            if trial.number > 0 or first:
                return
            while True:
                ends = dict(table(sqlite_url, leases.c.trial_id, leases.c.expires_at_s))
                first.update(first or ends)
                if ends != first and all(ends[one] > first[one] for one in ends):
                    return

    log = work(study_of(sampler=Slow(), trials=3), sqlite_url)
    assert len(log.of(TrialEnded)) == 3
    assert read_rows(sqlite_url, attempts.c.ending) == [Outcome.COMPLETE.value] * 3


def test_trials_wait_for_a_slow_database_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three trials wait up to 1.5 s each: together 1.5 s, and one that must wait for the end waits for it."""
    now, waits = 0.0, list[float]()

    def wait(future: Any, database_s: float, seconds: float, is_over: Any) -> bool:
        nonlocal now
        waits.append(max(0.0, database_s))
        now += waits[-1] if waits[-1] < 100 else 0.0
        return False

    monkeypatch.setattr(cohort, "time", SimpleNamespace(monotonic=lambda: now))
    requests = [calls.Answer(Future(), limit_s, float("inf"), bool) for limit_s in (float("inf"), 1.5, 1.5, 1.5)]
    answered: list[Any] = []
    participants = [SimpleNamespace(request=one, answer=lambda one=one: answered.append(one)) for one in requests]
    waiting: Any = SimpleNamespace(
        meeting=SimpleNamespace(participants=participants),
        context=SimpleNamespace(background=SimpleNamespace(wait=wait)),
    )
    assert cohort.Cohort._answer(waiting)
    assert waits == [1.5, 0.0, 0.0, float("inf")]
    assert len(answered) == 4


def test_the_last_calls_of_trials_that_are_given_back_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = 0.0, list[float]()

    def wait(future: Any, database_s: float, seconds: float) -> bool:
        nonlocal now
        waits.append(max(0.0, seconds))
        now += waits[-1]
        return False

    monkeypatch.setattr(cohort, "time", SimpleNamespace(monotonic=lambda: now))
    requests = [calls.Answer(Future(), float("inf"), float("inf"), bool) for _ in range(4)]
    answered: list[Any] = []
    participants = [SimpleNamespace(request=one, answer=lambda one=one: answered.append(one)) for one in requests]
    waiting: Any = SimpleNamespace(
        _call=lambda: None,
        meeting=SimpleNamespace(participants=participants),
        context=SimpleNamespace(background=SimpleNamespace(wait=wait)),
    )
    cohort.Cohort._finish_calls(waiting)
    assert waits == [cohort._LAST_CALLS_S, 0.0, 0.0, 0.0]
    assert answered == []


def test_ends_do_not_wait_again_for_a_database_that_stayed_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **options: Any) -> Any:
        tried.append(given)
        raise StorageLost("away")

    tried: list[Any] = []
    for name in ("end", "end_together"):
        monkeypatch.setattr(storage_leases, name, fail)
    lease: Any = SimpleNamespace(trial_id=1)
    several = [EndCall(cast("Any", None), storage_leases.Ending(lease, Outcome.COMPLETE, [0.5], {})) for _ in range(3)]
    futures = [(Future[Any](), one) for one in several]
    calls.make_together(cast("Any", futures), lambda places: None, lambda: False)
    assert len(tried) == 1
    assert [type(future.exception()) for future, _ in futures] == [StorageLost] * 3
