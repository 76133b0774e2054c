"""Trials with several seeds: each is one trial, whose reports are the means over its seeds, alone and in a cohort."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from after_faults import table
from storage_tools import opened
from worker_log import Log, logged

import tuner
from tuner import Space, Study, choice, log_uniform, uniform
from tuner.cli.arguments import Format
from tuner.cli.printing import emit, print_fields
from tuner.errors import StudyError, TrialPruned, UsageError
from tuner.launch.database import StudyDatabase
from tuner.results.rows import best_rows, progress_line, show_row, study_row, trial_rows
from tuner.storage import storage_url
from tuner.storage.artifacts import SEEDS
from tuner.storage.read.lineage import read_metrics
from tuner.storage.read.queries import find_study, read_trial
from tuner.storage.sql.tables import leases
from tuner.study import trial_seed
from tuner.training import ArrayDataset, Layout, TrainerModule, load_from_checkpoint
from tuner.training.loop.lanes import Lanes
from tuner.trial import Outcome, Report, Stop
from tuner.trial.events import (
    CohortChosen,
    EpochEnded,
    TrialBegan,
    TrialEnded,
    TrialRestarted,
    encode,
    parse,
)
from tuner.trial.seed_values import mean, standard_error
from tuner.worker.follow import check_group
from tuner.worker.rerun import Rerunner, confirm, reproduce
from tuner.worker.runtime import make_runtime
from tuner.worker.trainables import train_module
from tuner.worker.trainables.choose import make_trainable
from tuner.worker.trainables.train_seeds import merge, seed_of

TOLERANCE = 5e-6
"""As in `test_vmap.py`: in a cohort, sums are taken in another order."""
RNG = np.random.default_rng(0)
SPLITS = ArrayDataset(
    inputs=RNG.normal(size=(50, 3)).astype(np.float32), targets=RNG.normal(size=50).astype(np.float32)
).split(0.2, seed=0, test=0.2)
HALVING = {"name": "asha", "min_resource": 1, "reduction_factor": 2}


class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    noise: float = uniform(0.0, 1.0)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.relu(nn.Dense(4)(x)))[:, 0]


class Line(TrainerModule):
    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return Model()

    def batch_size(self, hparams: Any) -> int:
        return 8

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        return (outputs - batch["targets"]) ** 2, {}


LINE = Line()


def study_of(**settings: Any) -> Study:
    given: dict[str, Any] = {
        "name": "seeded", "space": HParams, "trainer": LINE, "data": lambda seed: SPLITS, "objective": "loss",
        "direction": "minimize", "epochs": 4, "trials": 3, "sampler": "random", "pruner": "none", "seeds": 3,
    }  # fmt: skip
    return Study(**{**given, **settings})


@pytest.fixture
def work(tmp_path: Path) -> Callable[..., Log]:
    return lambda study, url, log=None, **options: logged(study, url, tmp_path / Path(url).stem, log, **options)


def reports_of(url: str) -> dict[int, dict[int, tuple[int, dict[str, float]]]]:
    """Return number -> epoch -> step and metrics."""
    with opened(url) as storage:
        study = find_study(storage.engine, "seeded")
        rows = trial_rows(storage.engine, "seeded")
        ids = {row["number"]: read_trial(storage.engine, study, row["number"]).trial_id for row in rows}
        return {number: read_metrics(storage.engine, trial_id) for number, trial_id in ids.items()}


def rows_of(url: str) -> list[Any]:
    with opened(url) as storage:
        return trial_rows(storage.engine, "seeded")


def by_hand(study: Study, row: Any, count: int) -> list[list[Report]]:
    """Train the seeds of a trial without a study; return the reports of each."""
    hparams, name, direction = study.hparams_of(row["hparams"]), study.objectives[0], study.all_directions[0]
    return [
        list(
            study.trainer.train_model(
                hparams,
                SPLITS,
                epochs=study.epochs,
                seed=seed_of(0, row["number"], at),
                objective=name,
                direction=direction,
                keep=study.value,
            )
        )
        for at in range(count)
    ]


# --- Values


@pytest.mark.with_tables
def test_a_trial_is_the_mean_of_trainings_by_hand(sqlite_url: str, work: Callable[..., Log], tmp_path: Path) -> None:
    study = study_of(trials=2)
    log = work(study, sqlite_url)
    stored, rows = reports_of(sqlite_url), rows_of(sqlite_url)
    ends = log.of(TrialEnded)
    assert [(event.trial, event.outcome) for event in ends] == [(0, Outcome.COMPLETE), (1, Outcome.COMPLETE)]
    assert [list(event.stderrs) for event in ends] == [[row.get("stderr")] for row in rows]
    assert parse(json.dumps(encode(ends[0]))) == ends[0]
    assert [(event.trial, event.epoch) for event in log.of(EpochEnded)] == list(itertools.product((0, 1), range(1, 5)))
    for row in rows:
        alone = by_hand(study, row, 3)
        for epoch, (step, metrics) in stored[row["number"]].items():
            reports = [reports[epoch - 1] for reports in alone]
            assert step == reports[0].step
            for name in reports[0].metrics:
                assert metrics[name] == statistics.mean(report.metrics[name] for report in reports), name
            losses = [report.metrics["loss"] for report in reports]
            assert metrics["loss_stderr"] == statistics.stdev(losses) / math.sqrt(3)
            assert metrics.keys() - reports[0].metrics.keys() == {"loss_stderr"}
        last = [reports[-1].metrics["loss"] for reports in alone]
        assert len({*last}) == 3
        assert (row.get("value"), row.get("stderr"), row.get("trained_seeds")) == (
            statistics.mean(last),
            statistics.stdev(last) / math.sqrt(3),
            3,
        )
    # The model is that of the first seed, which trains as a trial with one seed.
    with opened(sqlite_url) as storage:
        path = show_row(storage.engine, "seeded", 0)["checkpoint"]
    assert path is not None
    loaded = load_from_checkpoint(path, trainer=LINE)
    assert loaded.record["seed"] == trial_seed(0, 0, "training")
    assert loaded.record["best"]["metrics"]["loss"] == by_hand(study, rows[0], 1)[0][-1].metrics["loss"]
    assert list(tmp_path.glob(f"**/{SEEDS}")) == []


@pytest.mark.slow
@pytest.mark.with_tables
def test_a_cohort_comes_to_the_same(sqlite_url: str, work: Callable[..., Log], tmp_path: Path) -> None:
    log = work(study_of(trials=5, cohort=2), sqlite_url)
    alone = f"sqlite:///{tmp_path / 'alone.db'}"
    work(study_of(trials=5), alone)
    (said,) = log.of(CohortChosen)
    assert (said.lanes, said.message) == (2, "2 trials with 3 seeds each train at once in one program")
    assert [event.outcome for event in log.of(TrialEnded)] == [Outcome.COMPLETE] * 5
    assert table(sqlite_url, leases.c.trial_id) == []
    found, expected = reports_of(sqlite_url), reports_of(alone)
    assert found.keys() == expected.keys() == set(range(5))
    for number, reports in expected.items():
        assert found[number].keys() == reports.keys() == {1, 2, 3, 4}
        for epoch, (step, metrics) in reports.items():
            assert found[number][epoch][0] == step
            # The standard error is a difference of numbers of that size.
            assert found[number][epoch][1] == pytest.approx(metrics, rel=TOLERANCE, abs=TOLERANCE)
    with opened(sqlite_url) as storage:
        assert show_row(storage.engine, "seeded", 4)["lanes"] == 6


@pytest.mark.slow
@pytest.mark.with_tables
def test_the_best_epoch_is_that_of_each_seed(sqlite_url: str, work: Callable[..., Log]) -> None:
    """So that the value is what a study with one seed would find on average, and what `tuner confirm` estimates."""

    class Dips(Line):
        def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> dict[str, float]:
            return {"value": (7919 * metrics["loss"] * epoch) % 1.0}

    study = study_of(trainer=Dips(), objective="value", value="best", trials=1)
    work(study, sqlite_url)
    (row,) = rows_of(sqlite_url)
    curves = [[report.metrics["value"] for report in reports] for reports in by_hand(study, row, 3)]
    bests = [min(curve) for curve in curves]
    assert row.get("value") == statistics.mean(bests)
    assert row.get("stderr") == statistics.stdev(bests) / math.sqrt(3)
    assert len({curve.index(min(curve)) for curve in curves}) > 1, "the seeds have different best epochs"
    with opened(sqlite_url) as storage:
        path = show_row(storage.engine, "seeded", 0)["checkpoint"]
    assert path is not None
    best = load_from_checkpoint(path, trainer=study.trainer).record["best"]
    assert best["epoch"] == 1 + curves[0].index(bests[0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 4.0], (7 / 3, statistics.stdev([1, 2, 4]) / math.sqrt(3))),
        ([1.0, math.nan], (math.nan, math.nan)),
        ([math.inf, -math.inf], (math.nan, math.nan)),
        ([math.inf, 1.0], (math.inf, math.nan)),
        ([1.7e308, 1.7e308], (1.7e308, 0.0)),
        ([1.7e308, -1.7e308], (0.0, math.inf)),
    ],
)
def test_means_and_standard_errors(values: list[float], expected: tuple[float, float]) -> None:
    assert (mean(values), standard_error(values)) == pytest.approx(expected, rel=1e-15, nan_ok=True)


def test_an_objective_that_a_seed_lacks_is_missing_from_the_mean() -> None:
    merged = merge([Report(2, 8, {"loss": 1.0, "own": 2.0}), Report(2, 8, {"loss": 3.0})], ["loss"])
    assert merged == Report(2, 8, {"loss": 2.0, "loss_stderr": 1.0})
    assert merge([Report(2, 8, {"loss": 1.0})], ["loss"]) == Report(2, 8, {"loss": 1.0})
    with pytest.raises(StudyError, match=r"must not report 'loss_stderr': tuner reports .* rename the metric"):
        merge([Report(1, 1, {"loss": 1.0, "loss_stderr": 1.0})], ["loss"])


# --- How trials end


class ByTrial(Line):
    """One of the trainings reports what `fault` returns: its second argument counts the trainings, from 0."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []

    def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
        key = np.asarray(jax.random.key_data(state.key)).tobytes()
        if key not in self._keys:
            self._keys.append(key)
        return self.fault(self._keys.index(key), epoch)

    def fault(self, at: int, epoch: int) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("cohort", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.long])])
@pytest.mark.with_tables
def test_a_seed_that_diverges_ends_the_trial(cohort: int, sqlite_url: str, work: Callable[..., Log]) -> None:
    """In each of two trials the second seed reports NaN at its second epoch: the objective, or another metric."""
    faults = [{"value": math.nan, "other": 1.0}, {"value": 1.0, "other": math.nan}]

    class Faulty(ByTrial):
        def fault(self, at: int, epoch: int) -> Any:
            return faults[at // 2] if (at % 2, epoch) == (1, 2) else {"value": float(at), "other": 0.0}

    log = work(study_of(trainer=Faulty(), objective="value", seeds=2, trials=2, cohort=cohort), sqlite_url)
    assert {event.trial: event.outcome for event in log.of(TrialEnded)} == {0: Outcome.DIVERGED, 1: Outcome.COMPLETE}
    found = reports_of(sqlite_url)
    assert {number: max(reports) for number, reports in found.items()} == {0: 2, 1: 4}
    assert math.isnan(found[0][2][1]["value"])
    assert math.isnan(found[1][2][1]["other"])
    assert table(sqlite_url, leases.c.trial_id) == []


@pytest.mark.parametrize(
    ("cohort", "every"), [(1, 1), (1, 3), pytest.param(2, 1, marks=[pytest.mark.slow, pytest.mark.long])]
)
@pytest.mark.with_tables
def test_a_hook_that_prunes_one_seed_prunes_the_trial(
    cohort: int, every: int, sqlite_url: str, work: Callable[..., Log]
) -> None:
    """With `validate_every=3`, the seed that is pruned is the only one with a report of its second epoch."""

    class Pruning(ByTrial):
        validate_every = every

        def on_training_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
            return super().on_validation_epoch_end(state, hparams, epoch, metrics)

        def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
            return {}

        def fault(self, at: int, epoch: int) -> Any:
            if (at, epoch) == (1, 2):
                raise TrialPruned
            return {}

    log = work(study_of(trainer=Pruning(), seeds=2, trials=1, cohort=cohort), sqlite_url)
    assert [event.outcome for event in log.of(TrialEnded)] == [Outcome.PRUNED]
    assert list(reports_of(sqlite_url)[0]) == {1: [1, 2], 3: []}[every]
    assert table(sqlite_url, leases.c.trial_id) == []


# --- Resuming


class Steps(Line):
    loop = "step"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "cohort"),
    [((1, 2, 3), 1), ((1, 2, 3), 2), *(pytest.param(*one, marks=pytest.mark.long) for one in ((3, 1), (2, 2)))],
)
@pytest.mark.with_tables
def test_a_resumed_trial_is_the_undisturbed_one(
    seeds: Any, cohort: int, sqlite_url: str, work: Callable[..., Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker stops again and again, after so many programs: within the epochs of seeds, and between them."""
    left, stop = [10**6], Stop()
    must_stop = train_module._must_stop

    def count(*of: Any) -> bool:
        left[0] -= 1
        stop.requested = stop.requested or left[0] < 0
        return must_stop(*of)

    monkeypatch.setattr(train_module, "_must_stop", count)
    study = study_of(
        trainer=Steps(), seeds=seeds, trials=2, save_every_s=10**6, cohort=cohort, pruner=HALVING, epochs=4
    )
    whole = f"sqlite:///{tmp_path / 'whole.db'}"
    undisturbed = work(study, whole, stop=stop)
    logs: list[Log] = []
    for turn in range(20):
        left[0], stop.requested = 5 + 3 * turn, False
        logs.append(work(study, sqlite_url, stop=stop))
        if not stop.requested:
            break
    assert len(logs) > 3
    assert not any(log.of(TrialRestarted) for log in logs)
    assert reports_of(sqlite_url) == reports_of(whole)
    assert [_result(row) for row in rows_of(sqlite_url)] == [_result(row) for row in rows_of(whole)]
    ended = [(event.trial, event.outcome) for log in logs for event in log.of(TrialEnded)]
    assert sorted(ended) == sorted((event.trial, event.outcome) for event in undisturbed.of(TrialEnded))
    # A resumed trial reports its last epoch again, and no other.
    for trial, at in itertools.product((0, 1), range(1, len(logs))):
        before = [event.epoch for log in logs[:at] for event in log.of(EpochEnded) if event.trial == trial]
        epochs = [event.epoch for event in logs[at].of(EpochEnded) if event.trial == trial]
        last = max(before, default=0)
        assert epochs == list(range(max(last, 1), max(last, 1) + len(epochs))) or epochs == list(
            range(last + 1, last + 1 + len(epochs))
        )


def _result(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


# --- Seeds that are added


@pytest.mark.parametrize("cohort", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.long])])
@pytest.mark.with_tables
def test_trials_that_survive_a_rung_get_more_seeds(
    cohort: int, sqlite_url: str, work: Callable[..., Log], tmp_path: Path
) -> None:
    study = study_of(seeds=(1, 2, 4), trials=6, pruner=HALVING, cohort=cohort)
    log = work(study, sqlite_url)
    ends = {event.trial: event for event in log.of(TrialEnded)}
    assert {event.outcome for event in ends.values()} == {Outcome.COMPLETE, Outcome.PRUNED}
    stored, rows = reports_of(sqlite_url), rows_of(sqlite_url)
    counts = {1: 1, 2: 2, 3: 4, 4: 4}  # rungs after epochs 1 and 2
    tolerance = 0.0 if cohort == 1 else TOLERANCE
    for row in rows:
        alone, reports = by_hand(study, row, 4), stored[row["number"]]
        assert sorted(reports) == list(range(1, max(reports) + 1)), "new seeds train the earlier epochs without reports"
        for epoch, (_, metrics) in reports.items():
            losses = [seed[epoch - 1].metrics["loss"] for seed in alone[: counts[epoch]]]
            assert metrics["loss"] == pytest.approx(statistics.mean(losses), rel=tolerance, abs=0)
            expected = statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else None
            assert metrics.get("loss_stderr") == (None if expected is None else pytest.approx(expected, abs=tolerance))
        assert row.get("trained_seeds") == counts[max(reports)]
        is_complete = row["outcome"] == "complete"
        assert is_complete == (max(reports) == 4)
        assert row.get("value") == (reports[4][1]["loss"] if is_complete else None)


class Widths(Space):
    learning_rate: float = log_uniform(1e-3, 1e-1)
    noise: float = uniform(0.0, 1.0)
    width: int = choice(2, 3, 4)


class Unsteady(Line):
    """Some trials fail, diverge or are ended by a hook, as their `noise` says."""

    def init_model(self, hparams: Any) -> Any:
        return nn.Dense(1) if hparams.width == 2 else Model()

    def on_validation_epoch_end(self, state: Any, hparams: Any, epoch: int, metrics: Any) -> Any:
        kind, number = int(1000 * hparams.noise) % 7, int(np.asarray(jax.random.key_data(state.key)).sum()) % 3
        if epoch == 1 + (int(10_000 * hparams.noise) + number) % 3:
            if kind == 0:
                raise RuntimeError("planted")
            if kind == 1:
                raise TrialPruned
        return {}

    def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
        outputs = outputs.reshape(batch["targets"].shape)
        losses = (outputs - batch["targets"]) ** 2
        return jnp.where(jnp.floor(1000 * hparams.noise) % 7 == 2, jnp.nan, losses), {}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("seed", "seeds", "cohort"),
    [
        (0, 3, 3),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [(1, (1, 2, 3), 3), (2, (1, 3), "auto"), (3, (2, 4), 2)]
        ),
    ],
)
@pytest.mark.with_tables
def test_random_ends_leave_no_trial_waiting_and_the_budget_exact(
    seed: int, seeds: Any, cohort: Any, sqlite_url: str, work: Callable[..., Log]
) -> None:
    """Trials of three programs fail, diverge and are pruned, while others wait for lanes or add seeds."""
    study = study_of(
        space=Widths, trainer=Unsteady(), seed=seed, seeds=seeds, trials=16, cohort=cohort, retries=1, pruner=HALVING,
        baseline=None,
    )  # fmt: skip
    log = work(study, sqlite_url)
    outcomes = [event.outcome for event in log.of(TrialEnded)]
    assert len([one for one in outcomes if one.uses_budget]) == 16
    assert {Outcome.COMPLETE, Outcome.PRUNED} <= {*outcomes}
    assert len({event.hparams["width"] for event in log.of(TrialBegan)}) == 3
    assert table(sqlite_url, leases.c.trial_id) == []


# --- Trained again


@pytest.mark.slow
@pytest.mark.with_tables
def test_a_trial_comes_back_with_its_seeds_and_is_confirmed_with_others(
    sqlite_url: str, work: Callable[..., Log], tmp_path: Path
) -> None:
    study = study_of(trials=2)
    work(study, sqlite_url)
    with opened(sqlite_url) as storage:
        row = find_study(storage.engine, "seeded")
        runtime = make_runtime("", needs_jax=True)
        made = [
            make_trainable(one, lambda hparams: SPLITS, runtime, {}, row.record, lambda name, measure: measure())
            for one in (study, study.changed(seeds=1))
        ]
        rerunner = Rerunner(storage.engine, row, study, Path(__file__), made[0], runtime, made[1])
        compared = reproduce(rerunner, 1, lambda report: None)
        assert {one.metric for one in compared} >= {"loss", "loss_stderr", "test_loss"}
        assert {(one.difference, one.epochs) for one in compared} <= {(0.0, 4), (0.0, 1)}
        found: list[tuple[int, int, float | None]] = []
        confirm(rerunner, 1, 2, lambda *of: found.append(of))
        (best,) = best_rows(storage.engine, "seeded")
    hparams = study.hparams_of(best["hparams"])
    for number, repeat, value in found:
        seed = trial_seed(0, repeat, "confirmation")
        reports = list(LINE.train_model(hparams, SPLITS, epochs=4, seed=seed, objective="loss", keep="last"))
        assert (number, value) == (best["number"], reports[-1].metrics["loss"])
    confirmed = best.get("confirmed")
    assert confirmed is not None
    assert (len(found), confirmed["seeds"], best.get("trained_seeds")) == (2, 2, 3)
    assert confirmed["mean"] == pytest.approx(statistics.mean(value for _, _, value in found if value is not None))


# --- What is shown


@pytest.mark.with_tables
def test_means_are_shown_with_their_standard_errors(
    sqlite_url: str, work: Callable[..., Log], capsys: pytest.CaptureFixture[str]
) -> None:
    work(study_of(trials=1), sqlite_url)
    (row,) = rows_of(sqlite_url)
    value, stderr = row["value"], row["stderr"]
    text = f"{value:.5g} ± {stderr:.2g}"
    with opened(sqlite_url) as storage:
        studied, shown = study_row(storage.engine, "seeded"), show_row(storage.engine, "seeded", 0)
        best = best_rows(storage.engine, "seeded")
    assert (studied.get("best"), studied.get("best_stderr")) == (value, stderr)
    of_seeds: Any = shown.get("seed_values")
    assert (statistics.mean(of_seeds), statistics.stdev(of_seeds) / math.sqrt(3)) == (value, stderr)
    assert progress_line(studied).endswith(f"best {text}")
    print_fields(shown)
    assert f"value                {text}, mean and standard error of 3 seeds\n" in capsys.readouterr().out
    emit(best, Format.TABLE)
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[:6] == ["number", "outcome", "value", "stderr", "trained_seeds", "seconds"]
    assert line.split()[2:5] == [f"{value:.5g}", f"{stderr:.5g}", "3"]
    counts = StudyDatabase(storage_url(sqlite_url)).count("seeded").result()
    assert counts is not None
    assert (counts.best, counts.best_stderr) == (value, stderr)


# --- Settings


@pytest.mark.parametrize("seeds", [0, -1, True, 2.0, "3", (), (3, 1), (1, 1), (1, 2.0), None])
def test_what_seeds_must_be(seeds: Any) -> None:
    with pytest.raises(StudyError, match=r"^seeds must be an integer of at least 1, or several, .*: got"):
        study_of(seeds=seeds)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pruner": "hyperband"},
            r"needs pruner='asha': got pruner='hyperband', epochs=4 .*; use seeds=3 to train each",
        ),
        ({"pruner": "none"}, r"needs pruner='asha': got pruner='none'"),
        (
            {"pruner": None, "epochs": 2},
            r"needs 2 rungs before the last report of a trial: got 1 \(after epoch 1\) from",
        ),
        (
            {"objective": ("loss", "train_loss"), "direction": None, "directions": ("minimize", "minimize")},
            "needs pruner='asha': got pruner='none'",
        ),
    ],
)
def test_numbers_of_seeds_need_rungs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study_of(seeds=(1, 2, 3), **settings)


def test_rungs_that_trials_pass_only_at_their_end_do_not_count() -> None:
    class Rare(Line):
        validate_every = 3

    assert study_of(seeds=(1, 3), pruner=HALVING).seed_plan.rungs == (1,)
    assert study_of(seeds=(1, 3), pruner=HALVING, trainer=Rare()).seed_plan.rungs == (1,)
    with pytest.raises(StudyError, match=r"got none from pruner="):
        study_of(seeds=(1, 3), pruner=HALVING, trainer=Rare(), epochs=3)


def test_members_of_a_population_have_one_seed() -> None:
    with pytest.raises(StudyError, match=r"population-based training .* trains one seed in each trial: got seeds=3"):
        study_of(pruner={"name": "pbt", "every": 1})


def test_seeds_need_a_trainer() -> None:
    with pytest.raises(StudyError, match=r"seeds needs a study with `trainer`: got seeds=3 .* or run `tuner confirm`"):
        study_of(trainer=None, data=None, train=lambda hparams, trial: 0.0, epochs=None, pruner=None)


def test_the_seeds_are_part_of_the_study() -> None:
    old = study_of(seeds=1).record()
    assert "seeds" not in old
    study_of(seeds=1).check_unchanged(old)
    with pytest.raises(StudyError, match=r": seeds was 1 and is now 3;"):
        study_of().check_unchanged(old)
    with pytest.raises(StudyError, match=r": seeds was 3 and is now 1;"):
        study_of(seeds=1).check_unchanged(study_of().record())
    halving = study_of(seeds=(1, 3), pruner=HALVING)
    halving.check_unchanged(halving.record())
    with pytest.raises(StudyError, match=r": seed_rungs was 1 and is now 2;"):
        study_of(seeds=(1, 3), pruner={**HALVING, "min_resource": 2}).check_unchanged(halving.record())


@pytest.mark.with_tables
def test_a_metric_with_the_name_of_a_standard_error_is_refused_before_the_first_trial(
    sqlite_url: str, work: Callable[..., Log]
) -> None:
    class Clashing(Line):
        def loss(self, outputs: Any, batch: Any, hparams: Any) -> Any:
            losses, _ = super().loss(outputs, batch, hparams)
            return losses, {"loss_stderr": losses}

    with pytest.raises(StudyError, match="must not report 'loss_stderr'"):
        work(study_of(trainer=Clashing()), sqlite_url)
    assert tuner.open_storage(sqlite_url).get_all_studies() == []


def test_a_worker_on_several_hosts_refuses_them() -> None:
    group: Any = SimpleNamespace()
    with pytest.raises(UsageError, match=r"trains one seed: study 'seeded' has seeds=3; use workers of one host"):
        check_group(study_of(), group)
    check_group(study_of(seeds=1), group)


def test_no_seed_is_one_of_confirm() -> None:
    used = [seed_of(0, number, at) for number in range(50) for at in range(10)]
    assert len({*used, *(trial_seed(0, repeat, "confirmation") for repeat in range(1, 50))}) == 500 + 49
    assert seed_of(0, 7, 0) == trial_seed(0, 7, "training")


# --- Several devices, and a program that does not fit


@pytest.mark.slow
@pytest.mark.with_tables
def test_a_worker_with_several_devices_trains_one_seed_after_another(
    sqlite_url: str, work: Callable[..., Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = f"sqlite:///{tmp_path / 'one.db'}"
    work(study_of(trials=1), one)
    monkeypatch.setenv("TUNER_DEVICES", "cpu 0,1")
    monkeypatch.setattr("tuner.training.loop.runtime.worker_layout", lambda devices: Layout(jax.devices()[:2]))
    work(study_of(trials=1, cohort=2), sqlite_url)
    (found,), (expected,) = rows_of(sqlite_url), rows_of(one)
    assert found.get("value") == pytest.approx(expected.get("value"), rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.with_tables
def test_without_memory_for_the_lanes_of_a_trial_its_seeds_train_one_by_one(
    sqlite_url: str, work: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError("planted")

    monkeypatch.setattr(Lanes, "_advance", fail)
    log = work(study_of(cohort=2), sqlite_url)
    assert [event.message.partition(":")[0] for event in log.of(CohortChosen)] == [
        "2 trials with 3 seeds each train at once in one program",
        "the 3 seeds of a trial train at once in one program",
        "the program of several trials failed, so they train one by one",
    ]
    assert {event.outcome for event in log.of(TrialEnded)} == {Outcome.COMPLETE}
    assert len(log.of(TrialEnded)) == 3
