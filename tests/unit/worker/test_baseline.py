"""The hyperparameters that a study is compared with: always tried, never pruned, held against the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import scipy.stats
from fake_trainer import FakeTrainer, small_data
from storage_tools import opened

from tuner import Space, Study, choice, log_uniform, uniform
from tuner.admin.edits import retry
from tuner.cli.printing import to_csv
from tuner.cli.show import say_how_sure
from tuner.errors import StudyError
from tuner.results.rows import best_rows
from tuner.storage import connect
from tuner.storage.worker.confirmations import store_confirmation
from tuner.worker import run_worker

pytestmark = pytest.mark.with_tables


class Small(Space):
    width: int = choice(1, 2)


class Large(Space):
    width: int = choice(3, 4)
    slope: float = uniform(0.0, 1.0)


class HParams(Space):
    net: Small | Large = choice(Small, Large)
    learning_rate: float = log_uniform(1e-3, 1.0)


BASELINE = HParams(net=Large(width=4, slope=0.25), learning_rate=0.5)
PARAMS = {"net": "Large", "net.Large.width": 4, "net.slope": 0.25, "learning_rate": 0.5}


class Trainer(FakeTrainer):
    """Reports losses of which the baseline's is the worst of all."""

    def values(self, hparams: Any, epoch: int) -> dict[str, float]:
        loss = getattr(hparams, "learning_rate", 1.0)
        return {"loss": 9.0 if loss == BASELINE.learning_rate else loss}


def a_study(**settings: Any) -> Study:
    given: dict[str, Any] = {
        "name": "compared",
        "space": HParams,
        "trainer": Trainer(),
        "data": small_data,
        "objective": "loss",
        "direction": "minimize",
        "epochs": 9,
        "trials": 12,
        "keep_best": 0,
        "baseline": BASELINE,
    }
    return Study(**{**given, **settings})


def trials_of(url: str, study: Study) -> list[optuna.trial.FrozenTrial]:
    with opened(url) as storage:
        return storage.get_all_trials(storage.get_study_id_from_name(study.name))


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
@pytest.mark.slow
def test_the_first_trial_has_it_and_is_not_pruned(sampler: str, tmp_path: Path, sqlite_url: str) -> None:
    study = a_study(sampler=sampler, pruner="asha")
    run_worker(study, sqlite_url, artifacts=str(tmp_path))
    first, *others = trials_of(sqlite_url, study)
    assert first.params == PARAMS
    assert first.state.name == "COMPLETE"
    assert all(trial.params["learning_rate"] != 0.5 for trial in others)
    assert {trial.state.name for trial in others} == {"COMPLETE", "PRUNED"}
    assert "fixed_params" not in others[0].system_attrs


@pytest.mark.slow
def test_another_trial_with_its_hyperparameters_is_not_pruned_either(tmp_path: Path, sqlite_url: str) -> None:
    study = a_study(trials=9, pruner="asha")
    run_worker(study, sqlite_url, artifacts=str(tmp_path))
    with opened(sqlite_url) as storage:
        stored = optuna.load_study(study_name=study.name, storage=storage)
        stored.enqueue_trial(PARAMS)
        stored.enqueue_trial({**PARAMS, "learning_rate": 0.5, "net.slope": 0.75})  # as bad, and nothing special
    run_worker(a_study(trials=11, pruner="asha"), sqlite_url, artifacts=str(tmp_path))
    assert [trial.state.name for trial in trials_of(sqlite_url, study)[9:]] == ["COMPLETE", "PRUNED"]


@pytest.mark.parametrize("sampler", [{"name": "grid", "values": {"learning_rate": [0.01, 0.1]}}, "qmc"])
@pytest.mark.slow
def test_it_takes_no_point_of_a_grid_or_a_sequence(sampler: Any, tmp_path: Path) -> None:
    class Flat(Space):
        width: int = choice(1, 2, 3)
        learning_rate: float = log_uniform(1e-3, 1.0)

    def points(count: int, **settings: Any) -> list[Any]:
        study = a_study(space=Flat, sampler=sampler, pruner="none", trials=count, **settings)
        url = f"sqlite:///{tmp_path}/{count}.db"
        run_worker(study, url, artifacts=str(tmp_path / str(count)))
        return [trial.params for trial in trials_of(url, study)]

    compared = points(7, baseline=Flat(width=2, learning_rate=0.5))
    assert compared[0] == {"width": 2, "learning_rate": 0.5}
    plain = points(6, baseline=None)
    if sampler == "qmc":  # random until a trial is complete, of another number's seed
        assert compared[2:] == plain[1:]
    else:
        assert compared[1:] == plain
        # As many trials as there is something to try, whatever the number asked for.
        assert points(8, baseline=Flat(width=2, learning_rate=0.5)) == compared
        on_grid = points(9, baseline=Flat(width=2, learning_rate=0.1))
        assert on_grid[0] == {"width": 2, "learning_rate": 0.1}
        assert len(on_grid) == 6
        assert sorted(map(str, on_grid)) == sorted(map(str, plain))


@pytest.mark.slow
def test_what_is_fixed_is_fixed_in_it(tmp_path: Path, sqlite_url: str) -> None:
    study = a_study(pruner="none", trials=2).changed(fixed={"net.Large.width": "3", "net": "Large"})
    assert study.baseline_params == {**PARAMS, "net.Large.width": 3}
    run_worker(study, sqlite_url, artifacts=str(tmp_path))
    assert trials_of(sqlite_url, study)[0].params == {**PARAMS, "net.Large.width": 3}
    with pytest.raises(StudyError, match=r"baseline is not in the search space: .*'net.Small.width' .* is missing"):
        a_study().changed(fixed={"net": "Small"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": PARAMS}, r"baseline must be hyperparameters, HParams\(\.\.\.\): got \{'net'"),
        ({"baseline": Small(width=1)}, r"baseline must be hyperparameters, HParams\(\.\.\.\): got Small"),
        (
            {"baseline": HParams(net=Small(width=1), learning_rate=7.0)},
            r"the baseline is not in the search space: learning_rate must be in .*: got 7\.0",
        ),
        (
            {"baseline": HParams(net=Small(width=3), learning_rate=0.1)},
            r"the baseline is not in the search space: .*width",
        ),
        (
            {"space": lambda trial: HParams(net=Small(width=1), learning_rate=0.1)},
            "a study with a baseline needs a Space class",
        ),
    ],
)
def test_a_baseline_that_no_trial_can_have_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        a_study(**settings)


def test_it_belongs_to_what_a_study_is() -> None:
    recorded = a_study().record()
    a_study(trials=99).check_unchanged(recorded)
    changed = HParams(net=Large(width=4, slope=0.25), learning_rate=0.4)
    with pytest.raises(StudyError, match=r"baseline\.learning_rate was 0\.5 and is now 0\.4"):
        a_study(baseline=changed).check_unchanged(recorded)
    assert "baseline" not in a_study(baseline=None).record()


@pytest.mark.slow
def test_one_that_failed_is_tried_again_and_then_compared_with(tmp_path: Path, sqlite_url: str) -> None:
    class Broken(Trainer):
        def train_model(self, hparams: Any, splits: Any, *, epochs: int, **options: Any) -> Any:
            if hparams.learning_rate == 0.5:
                raise RuntimeError("planted")
            yield from super().train_model(hparams, splits, epochs=epochs, **options)

    broken = a_study(trainer=Broken(), trials=1, pruner="none", retries=0)
    run_worker(broken, sqlite_url, artifacts=str(tmp_path))
    engine = connect(sqlite_url)
    (row,) = best_rows(engine, "compared", None)
    assert (row["number"], row["baseline"]) == (1, None)
    retry(sqlite_url, "compared", 0)
    run_worker(a_study(trials=2, pruner="none"), sqlite_url, artifacts=str(tmp_path))
    rows: Any = best_rows(engine, "compared", None)
    engine.dispose()
    assert rows[0]["baseline"]["number"] == 2
    assert rows[0]["baseline"]["better_by"] == pytest.approx(9.0 - rows[0]["value"])


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.slow
def test_the_best_is_held_against_it(
    direction: str, tmp_path: Path, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = a_study(trials=5, pruner="none", direction=direction)
    run_worker(study, sqlite_url, artifacts=str(tmp_path))
    engine = connect(sqlite_url)
    sign = 1 if direction == "maximize" else -1
    rows: Any = best_rows(engine, "compared", None)
    for row in rows:
        assert row["baseline"]["better_by"] == sign * (row["value"] - 9.0)
        assert (row["baseline"]["low"], row["baseline"]["seeds"]) == (None, 0)
    say_how_sure(rows)
    said = capsys.readouterr().err
    if direction == "maximize":
        assert said == "tuner: the best trial, 0, is the baseline\n"
    else:
        assert said.startswith(f"tuner: trial {rows[0]['number']} is better than the baseline (trial 0, 9) by ")
        assert said.endswith(", of one seed: run `tuner confirm` with more seeds to see how certain that is\n")

    # Over the seeds of both: the paired t test's interval, where there are two trials.
    generator = np.random.default_rng(0)
    own, other = generator.normal(size=(2, 6)) + generator.normal(size=6) * 10
    by_number = {trial.number: trial._trial_id for trial in trials_of(sqlite_url, study)}
    chosen = next(row["number"] for row in rows if row["number"])
    study_id = 1
    for repeat in range(6):
        store_confirmation(engine, study_id, by_number[chosen], repeat + 1, float(own[repeat]))
        store_confirmation(engine, study_id, by_number[0], repeat + 1, float(other[repeat]))
    rows: Any = best_rows(engine, "compared", None)
    row = next(row for row in rows if row["number"] == chosen)
    expected = scipy.stats.ttest_rel(sign * own, sign * other)
    interval: Any = expected.confidence_interval(0.95)  # pyright: ignore[reportAttributeAccessIssue]
    baseline = row["baseline"]
    assert baseline["better_by"] == pytest.approx(np.mean(sign * (own - other)))
    assert [baseline["low"], baseline["high"]] == pytest.approx(list(interval), rel=1e-6)
    assert (baseline["seeds"], baseline["value"]) == (6, pytest.approx(other.mean()))
    itself = next(row for row in rows if row["number"] == 0)["baseline"]
    assert (itself["better_by"], itself["low"], itself["high"]) == (0.0, None, None)
    capsys.readouterr()
    say_how_sure([row])
    low, high = interval if direction == "maximize" else (-interval[1], -interval[0])
    word = "better" if direction == "maximize" else "worse"
    said = capsys.readouterr().err
    assert f"trial {chosen} is {word} than the baseline (trial 0, " in said
    assert said.endswith(f"by {abs(baseline['better_by']):.5g} [{low:.5g}, {high:.5g}] (95 %, Tukey, 6 seeds)\n")
    without_interval: Any = {**row, "baseline": {**baseline, "low": None, "high": None}}
    say_how_sure([without_interval])
    assert ", over 6 seeds that show no noise: run `tuner confirm` with more seeds" in capsys.readouterr().err
    header, *_ = to_csv(rows).splitlines()
    assert "baseline.number,baseline.value,baseline.better_by,baseline.low,baseline.high,baseline.seeds" in header
    engine.dispose()


def test_a_seed_at_which_it_was_not_finite_leaves_nothing_to_compare(tmp_path: Path, sqlite_url: str) -> None:
    study = a_study(trials=3, pruner="none")
    run_worker(study, sqlite_url, artifacts=str(tmp_path))
    engine = connect(sqlite_url)
    for trial in trials_of(sqlite_url, study)[:2]:
        store_confirmation(engine, 1, trial._trial_id, 1, None if trial.number == 0 else 0.5)
    best = best_rows(engine, "compared")[0]
    engine.dispose()
    assert best["number"] == 1
    assert (best["baseline"]["better_by"], best["baseline"]["value"]) == (None, None)
