"""Studies side by side, and importances, on studies whose answers are known."""

import datetime
import math
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

import tuner
from tuner.errors import UnknownStudy, UsageError
from tuner.results.compare import compare_rows, importance_rows, saved_s, typical_epoch_s
from tuner.storage import connect
from tuner.storage.read.lineage import Effort, read_efforts
from tuner.storage.sql.tables import attempts, reports
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import register
from tuner.trial import Outcome, Report

pytestmark = pytest.mark.with_tables


@pytest.fixture
def storage(sqlite_url: str) -> Iterator[Any]:
    storage = tuner.open_storage(sqlite_url)
    yield storage
    storage.close()


@pytest.fixture
def any_storage(storage_url: str) -> Iterator[Any]:
    storage = tuner.open_storage(storage_url)
    yield storage
    storage.close()


def run(engine: sa.Engine, study_id: int, outcome: Outcome, value: float | None, epochs: int, **record: float) -> Lease:
    """Run a trial on two devices as our workers do."""
    lease = claim(engine, Claimant(study_id, "worker", trials=100, lease_s=300.0, devices=2))
    assert isinstance(lease, Lease)
    for epoch in range(1, epochs + 1):
        leases.report(engine, lease, [Report(epoch, epoch, {"loss": 1.0})], "loss")
    leases.tell(engine, lease, outcome, None if value is None else [value], record)
    return lease


def test_studies_lie_side_by_side(any_storage: Any, storage_url: str) -> None:
    engine = connect(storage_url)
    ours = register(any_storage, engine, "ours", ["maximize"], {"objective": ["accuracy"], "epochs": 10})
    for value in (0.5, 0.25, 0.75, 0.125):
        run(engine, ours.study_id, Outcome.COMPLETE, value, 10)
    run(engine, ours.study_id, Outcome.PRUNED, None, 4, compile_s=90.0)
    run(engine, ours.study_id, Outcome.PRUNED, None, 0)
    run(engine, ours.study_id, Outcome.DIVERGED, None, 2)
    run(engine, ours.study_id, Outcome.TIMED_OUT, None, 3)  # is not pruned, and saves nothing
    run(engine, ours.study_id, Outcome.FAILED, None, 1)
    with engine.begin() as connection:  # each took 450 seconds, one after another
        start_s = 1000.0 + 450.0 * attempts.c.trial_id
        connection.execute(attempts.update().values(started_at_s=start_s, ended_at_s=start_s + 450.0))
        reported_s = 1100.0 + 450.0 * reports.c.trial_id + 60.0 * reports.c.epoch
        connection.execute(reports.update().values(reported_at_s=reported_s))
    theirs = optuna.create_study(study_name="theirs", storage=any_storage)
    for value in (3.0, math.inf, 1.0):
        theirs.tell(theirs.ask(), value)

    first, second = compare_rows(engine, ["ours", "theirs"])
    assert first == {
        "study": "ours", "objective": "accuracy", "direction": "maximize", "best": 0.75, "median": 0.375, "trials": 9,
        "complete": 4, "pruned": 2, "diverged": 1, "out_of_memory": 0, "timed_out": 1, "failed": 1,
        "device_hours": 2.25,  # nine times 450 seconds on two devices
        "hours_saved": 0.5333,  # six epochs of a minute on two devices, and ten of the trial that reported none
    }  # fmt: skip
    assert [second[key] for key in ("best", "median", "trials", "device_hours", "hours_saved")] == [
        1.0, 3.0, 3, None, None,
    ]  # fmt: skip
    with pytest.raises(UnknownStudy, match=r"no study 'our' in this storage: .* did you mean 'ours'"):
        compare_rows(engine, ["ours", "our"])
    engine.dispose()


def test_a_pruned_trial_saves_the_epochs_it_did_not_run() -> None:
    assert saved_s(Effort(0, Outcome.PRUNED, 2, 50.0, 10.0), 5, 7.0) == 30.0
    assert saved_s(Effort(0, Outcome.PRUNED, 5, 50.0, 10.0), 5, 7.0) == 0.0
    assert saved_s(Effort(0, Outcome.PRUNED, 9, 50.0, 10.0), 5, 7.0) == 0.0
    assert saved_s(Effort(0, Outcome.DIVERGED, 2, 50.0, 10.0), 5, 7.0) == 0.0


def test_a_trial_without_a_second_epoch_saves_typical_ones() -> None:
    first = Effort(0, Outcome.PRUNED, 1, 50.0, 0.0)
    others = [Effort(at, Outcome.COMPLETE, 5, 50.0, seconds) for at, seconds in enumerate((9.0, 0.0, 3.0, 5.0))]
    assert typical_epoch_s([first, *others]) == 5.0
    assert saved_s(first, 5, 5.0) == 20.0
    assert typical_epoch_s([first]) is None
    assert saved_s(first, 5, None) is None
    assert saved_s(first, 1, None) == 0.0


def test_hours_saved_are_unknown_rather_than_none_where_no_trial_has_a_second_epoch(
    any_storage: Any, storage_url: str
) -> None:
    engine = connect(storage_url)
    study_id = register(any_storage, engine, "ours", ["minimize"], {"objective": ["loss"], "epochs": 10}).study_id
    run(engine, study_id, Outcome.PRUNED, None, 1)
    assert compare_rows(engine, ["ours"])[0]["hours_saved"] is None
    run(engine, study_id, Outcome.COMPLETE, 0.5, 10)
    with engine.begin() as connection:
        connection.execute(reports.update().values(reported_at_s=100.0 + 60.0 * reports.c.epoch))
    assert compare_rows(engine, ["ours"])[0]["hours_saved"] == 0.3  # nine minutes on two devices
    engine.dispose()


def test_only_between_reports_of_one_attempt_is_an_epochs_time_known(any_storage: Any, storage_url: str) -> None:
    engine = connect(storage_url)
    study_id = register(any_storage, engine, "ours", ["minimize"], {"objective": ["loss"], "epochs": 10}).study_id
    run(engine, study_id, Outcome.PRUNED, None, 3)
    run(engine, study_id, Outcome.PRUNED, None, 1)
    taken = claim(engine, Claimant(study_id, "worker", trials=100, lease_s=300.0, devices=2))
    assert isinstance(taken, Lease)
    leases.release(engine, taken)
    run(engine, study_id, Outcome.PRUNED, None, 3)
    with engine.begin() as connection:
        connection.execute(reports.update().values(reported_at_s=100.0 + 60.0 * reports.c.epoch))
    assert [effort.epoch_device_s for effort in read_efforts(engine, study_id)] == [120.0, 0.0, 0.0]
    engine.dispose()


def fill(storage: Any, name: str, count: int, *directions: Any) -> optuna.Study:
    """Add trials whose objective depends much on x, little on y, not at all on z."""
    study = optuna.create_study(
        study_name=name, storage=storage, directions=directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    for _ in range(count):
        trial = study.ask()
        x, y = (trial.suggest_float(name, 0.0, 1.0) for name in "xy")
        trial.suggest_categorical("z", ("a", "b"))
        signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions]
        study.tell(trial, [sign * value for sign, value in zip(signs, (10 * x + y, 10 * y + x), strict=False)])
    return study


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_importances_are_optunas(storage: Any, sqlite_url: str, direction: str) -> None:
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    study = fill(storage, "ours", 60, direction)
    rows, notes = importance_rows(sqlite_url, "ours")

    assert [row["hparam"] for row in rows] == ["x", "y", "z"]
    for method, evaluator in (
        ("ped_anova", PedAnovaImportanceEvaluator()),
        ("fanova", FanovaImportanceEvaluator(seed=0)),
    ):
        expected = get_param_importances(study, evaluator=evaluator)
        assert {row["hparam"]: row[method] for row in rows} == expected
        assert sum(expected.values()) == pytest.approx(1.0)
    assert notes[0] == "from 60 complete trials"
    assert "the methods agree that x matters most" in notes[1]


@pytest.mark.parametrize("exponent", [1020, -1060])
@pytest.mark.slow
def test_importances_do_not_depend_on_the_scale(storage: Any, sqlite_url: str, exponent: int) -> None:
    """Objectives near the largest float, whose variances overflow, and near the smallest, whose variances vanish."""
    space: Any = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in ("x", "y")}
    for name, scale in (("plain", 0), ("scaled", exponent)):
        study = optuna.create_study(study_name=name, storage=storage)
        for at in range(24):
            params = {"x": at / 24, "y": (at * 7 % 24) / 24}
            value = (-1.0) ** at * (1 + at % 5) if name == "plain" else math.ldexp((-1.0) ** at * (1 + at % 5), scale)
            study.add_trial(optuna.create_trial(value=value, params=params, distributions=space))

    assert importance_rows(sqlite_url, "scaled") == importance_rows(sqlite_url, "plain")


def test_the_largest_floats_of_both_signs_have_importances(storage: Any, sqlite_url: str) -> None:
    study = optuna.create_study(study_name="ours", storage=storage)
    space: Any = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in ("x", "y")}
    for at in range(20):  # x alone decides
        params = {"x": at / 20, "y": (at * 7 % 20) / 20}
        value = 1e308 if at < 10 else -1e308
        study.add_trial(optuna.create_trial(value=value, params=params, distributions=space))

    first, second = importance_rows(sqlite_url, "ours")[0]
    assert (first["hparam"], second["hparam"]) == ("x", "y")
    assert first["fanova"] > 0.99
    assert first["ped_anova"] > 0.9


@pytest.mark.slow
def test_each_objective_has_importances_of_its_own(storage: Any, sqlite_url: str) -> None:
    fill(storage, "ours", 60, "minimize", "maximize")
    rows, notes = importance_rows(sqlite_url, "ours")

    tops = {row["objective"]: row["hparam"] for row in reversed(rows)}
    assert tops == {"objective 0": "x", "objective 1": "y"}
    assert len(notes) == 3


@pytest.mark.slow
def test_of_very_many_trials_a_part_is_drawn(storage: Any, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(storage, "ours", 60, "minimize")
    monkeypatch.setattr("tuner.results.compare.MOST_TRIALS", 20)
    rows, notes = importance_rows(sqlite_url, "ours")
    assert notes[0] == "from 60 complete trials, PED-ANOVA from 20 of them"
    monkeypatch.setattr("tuner.results.compare.FANOVA_TRIALS", 30)
    fewer, notes = importance_rows(sqlite_url, "ours")
    assert notes[0] == "from 60 complete trials, PED-ANOVA from 20 of them, fANOVA from 30 of them"
    by_name = ({row["hparam"]: row["fanova"] for row in found} for found in (rows, fewer))
    assert next(by_name) != next(by_name)


@pytest.mark.slow
def test_methods_that_disagree_are_told(storage: Any, sqlite_url: str) -> None:
    """Among the best only y matters; over the whole space x, which is either bad or irrelevant."""
    study = optuna.create_study(study_name="ours", storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(200):
        trial = study.ask()
        x, y = (trial.suggest_float(name, 0.0, 1.0) for name in "xy")
        study.tell(trial, (100.0 if x < 0.5 else 0.0) + (y if y > 0.1 else -10.0))
    _, notes = importance_rows(sqlite_url, "ours")
    assert "the methods disagree: y matters most for being among the best (PED-ANOVA), x over the whole" in notes[1]


def test_what_cannot_be_analysed_is_said(storage: Any, sqlite_url: str) -> None:
    fill(storage, "few", 9, "minimize")
    with pytest.raises(UsageError, match="at least 10 complete trials: study 'few' has 9 so far"):
        importance_rows(sqlite_url, "few")
    study = optuna.create_study(study_name="nothing", storage=storage)
    for _ in range(12):
        study.tell(study.ask(), 1.0)
    with pytest.raises(
        UsageError, match="hyperparameters that vary: all complete trials of study 'nothing' have the same"
    ):
        importance_rows(sqlite_url, "nothing")
    with pytest.raises(UnknownStudy):
        importance_rows(sqlite_url, "fews")
    infinite = optuna.create_study(study_name="infinite", storage=storage)
    infinite.add_trials([optuna.create_trial(value=math.inf if at < 8 else 1.0) for at in range(12)])
    with pytest.raises(
        UsageError, match="at least 10 complete trials with a finite value: study 'infinite' has 4 so far"
    ):
        importance_rows(sqlite_url, "infinite")


@pytest.mark.slow
def test_the_importance_for_seconds_is_that_of_an_optuna_study_of_the_seconds(storage: Any, sqlite_url: str) -> None:
    """The objective depends on x, the seconds of training on y; a trial that was resumed is not counted."""
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    study_id = register(storage, storage.engine, "ours", ["maximize"], {"objective": ["accuracy"]}).study_id
    of_seconds = optuna.create_study()
    space: Any = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in ("x", "y")}
    for at in range(25):
        params = {"x": at / 25, "y": (at * 7 % 25) / 25}
        claimant = Claimant(study_id, "worker", trials=100, lease_s=300.0)
        lease = claim(storage.engine, claimant)
        assert isinstance(lease, Lease)
        if at == 24:
            leases.release(storage.engine, lease)
            lease = claim(storage.engine, claimant)
            assert isinstance(lease, Lease)
        for name, value in params.items():
            storage.set_trial_param(lease.trial_id, name, value, space[name])
        seconds = 1000.0 if at == 24 else 10 * params["y"] + params["x"]
        leases.tell(storage.engine, lease, Outcome.COMPLETE, [params["x"]], {"train_s": seconds, "compile_s": 99.0})
        if at < 24:
            of_seconds.add_trial(optuna.create_trial(value=seconds, params=params, distributions=space))
    rows, notes = importance_rows(sqlite_url, "ours", "seconds")
    assert [(row["objective"], row["hparam"]) for row in rows] == [("seconds", "y"), ("seconds", "x")]
    for method, evaluator in (
        ("ped_anova", PedAnovaImportanceEvaluator()),
        ("fanova", FanovaImportanceEvaluator(seed=0)),
    ):
        expected = get_param_importances(of_seconds, evaluator=evaluator)
        assert {row["hparam"]: row[method] for row in rows} == pytest.approx(expected)
    assert notes[:2] == ["from 25 complete trials", "without 1 trials whose time is not known or had several attempts"]
    assert importance_rows(sqlite_url, "ours")[0][0]["hparam"] == "x"
    with pytest.raises(UsageError, match="`of` must be objective or seconds: got 'time'"):
        importance_rows(sqlite_url, "ours", "time")  # type: ignore[arg-type]


def test_of_a_plain_optuna_study_the_seconds_are_the_duration(storage: Any, sqlite_url: str) -> None:
    study = optuna.create_study(study_name="plain", storage=storage)
    space: Any = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in ("x", "y")}
    start = datetime.datetime(2026, 1, 1)
    for at in range(12):
        params = {"x": at / 12, "y": (at * 5 % 12) / 12}
        trial = optuna.create_trial(value=params["x"], params=params, distributions=space)
        trial.datetime_start, trial.datetime_complete = start, start + datetime.timedelta(seconds=9 * params["y"])
        study.add_trial(trial)
    rows, _ = importance_rows(sqlite_url, "plain", "seconds")
    assert rows[0]["hparam"] == "y"
