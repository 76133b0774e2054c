"""`tuner replay`: savings, regret and bounds of small studies, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from storage_tools import opened

import tuner
from tuner.errors import StudyError, UsageError
from tuner.results.replay import percentile, replay_rows
from tuner.storage.sql.tables import attempts, reports
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import register
from tuner.trial import Outcome, Report

pytestmark = pytest.mark.with_tables

ABOVE_5: dict[str, Any] = {"name": "threshold", "upper": 5.0}


class Recording:
    """A study whose trials are written by hand: two devices, a minute for each epoch."""

    def __init__(self, storage: Any) -> None:
        self.engine = storage.engine
        record = {"objective": ["loss"], "epochs": 4, "train": "function"}
        self.study_id = register(storage, self.engine, "recorded", ["minimize"], record).study_id

    def trial(self, values: Sequence[float], outcome: Outcome = Outcome.COMPLETE) -> None:
        lease = claim(self.engine, Claimant(self.study_id, "worker", trials=100, lease_s=300.0, devices=2))
        assert isinstance(lease, Lease)
        for epoch, value in enumerate(values, 1):
            leases.report(self.engine, lease, [Report(epoch, epoch, {"loss": value})], "loss")
        leases.tell(self.engine, lease, outcome, [values[-1]] if outcome is Outcome.COMPLETE else None, {})

    def replay(self, *pruners: Any, **options: Any) -> list[Any]:
        with self.engine.begin() as connection:
            connection.execute(reports.update().values(reported_at_s=100.0 + 60.0 * reports.c.epoch))
            connection.execute(attempts.update().values(started_at_s=0.0, ended_at_s=300.0))
        return replay_rows(self.engine, "recorded", pruners, **options)[0]


@pytest.fixture
def recording(sqlite_url: str) -> Iterator[Recording]:
    with opened(sqlite_url) as storage:
        yield Recording(storage)


def test_savings_and_regret_of_a_pruner_that_does_not_depend_on_the_order(recording: Recording) -> None:
    recording.trial([3.0, 3.0, 3.0, 3.0])
    recording.trial([9.0, 4.0, 2.0, 1.0])  # the best, which it stops after one epoch of four
    recording.trial([4.0, 6.0], Outcome.DIVERGED)  # is stopped at its last report, which saves nothing
    recording.trial([8.0, 8.0], Outcome.FAILED)
    (row,) = recording.replay(ABOVE_5, orders=5)

    def always(value: float) -> dict[str, float]:
        return {"mean": value, "low": value, "high": value}

    assert row == {
        "pruner": '{"name": "threshold", "upper": 5.0}', "trials": 4, "censored": 0, "orders": 5, "workers": 4,
        "stopped": always(3), "epochs": 12, "epochs_saved": always(3 + 0 + 1),
        "hours": pytest.approx((2 * 10 + 2 * 10) / 60),  # five minutes on two devices each
        "hours_saved": always(round(4 * 2 / 60, 6)), "best": 1.0, "regret": always(2.0),
    }  # fmt: skip


def test_pruners_are_ordered_by_regret_and_then_by_what_they_save(recording: Recording) -> None:
    recording.trial([9.0, 4.0, 2.0, 1.0])
    recording.trial([3.0, 3.0, 3.0, 3.0])
    recording.trial([10.0, 10.0, 10.0, 10.0])
    above_9 = {"name": "threshold", "upper": 9.5}
    rows = recording.replay(ABOVE_5, "none", above_9, {"name": "threshold", "upper": 2.0}, orders=2)
    assert [row["regret"]["mean"] for row in rows] == [0.0, 0.0, 2.0, "inf"]
    assert [row["epochs_saved"]["mean"] for row in rows[:2]] == [3, 0]
    assert rows[0]["pruner"] == '{"name": "threshold", "upper": 9.5}'


def test_a_study_that_ran_with_pruning_gives_bounds(recording: Recording) -> None:
    recording.trial([1.0, 1.0, 1.0, 2.0])
    recording.trial([9.0, 9.0, 9.0, 9.0])
    recording.trial([4.0, 4.0], Outcome.PRUNED)
    (row,) = recording.replay(ABOVE_5, orders=3)
    # The pruned trial continues with 9.0 and is stopped in epoch 3, or with 1.0 and is kept.
    assert (row["trials"], row["censored"], row["epochs"]) == (3, 1, 12)
    assert row["stopped"] == {"mean": None, "low": 1, "high": 2}
    assert row["epochs_saved"] == {"mean": None, "low": 3, "high": 4}
    assert row["regret"] == {"mean": None, "low": 0.0, "high": 0.0}


def test_a_trial_of_unknown_value_may_be_the_best_or_the_worst_that_is_kept(recording: Recording) -> None:
    recording.trial([9.0, 9.0, 9.0, 1.0])
    recording.trial([4.0, 4.0], Outcome.PRUNED)
    (row,) = recording.replay(ABOVE_5, orders=3)
    assert row["regret"] == {"mean": None, "low": 0.0, "high": "inf"}


def test_all_pruners_see_the_same_orders_and_a_study_gives_the_same_answer_again(recording: Recording) -> None:
    for at in range(12):
        value = 1.0 + (at * 5 % 12)
        recording.trial([value] * 4)
    first, second = recording.replay("asha", "asha")
    assert first == second == recording.replay("asha")[0]
    assert first["stopped"]["low"] < first["stopped"]["high"]


def test_percentiles_are_those_of_numpy() -> None:
    chance = np.random.default_rng(0)
    for count in (1, 2, 19, 20, 40, 100):
        values = sorted(chance.normal(size=count).tolist())
        for share in (0.025, 0.5, 0.975):
            assert percentile(values, share) == np.percentile(values, 100 * share, method="inverted_cdf")
    assert percentile([0.0, math.inf], 0.975) == math.inf


def test_a_study_of_plain_optuna_can_be_replayed(sqlite_url: str) -> None:
    with opened(sqlite_url) as storage:
        study = optuna.create_study(study_name="plain", storage=storage, direction="maximize")
        for value in (1.0, 2.0):
            trial = study.ask()
            for step in range(3):
                trial.report(value, step)
            study.tell(trial, value)
        pruner = optuna.pruners.ThresholdPruner(lower=1.5)
        (row,), _ = replay_rows(storage.engine, "plain", [pruner], orders=2)
    assert (row["pruner"], row["hours"], row["hours_saved"]) == ("ThresholdPruner", None, None)
    assert (row["stopped"]["mean"], row["epochs_saved"]["mean"], row["regret"]["mean"]) == (1, 2, 0.0)


def test_what_cannot_be_replayed(recording: Recording, sqlite_url: str) -> None:
    with pytest.raises(UsageError, match="needs trials that have reported epochs: study 'recorded' has none"):
        recording.replay("asha")
    recording.trial([1.0], Outcome.DIVERGED)
    with pytest.raises(UsageError, match="that satisfies the study's constraints: study 'recorded' has none"):
        recording.replay("asha")
    recording.trial([1.0])
    with pytest.raises(StudyError, match="did you mean 'asha'"):
        recording.replay("ashaa")
    with pytest.raises(UsageError, match="the pruner 'pbt' cannot be replayed"):
        recording.replay({"name": "pbt", "every": 1})
    with pytest.raises(UsageError, match="a replay has only the curves of the objective: remove metric and mode from"):
        recording.replay({"name": "asha", "metric": "val_loss", "mode": "min"})
    for option in ("orders", "workers"):
        with pytest.raises(UsageError, match=f"`{option}` must be at least 1: got 0"):
            recording.replay("asha", **{option: 0})
    with pytest.raises(UsageError, match="pass at least one pruner"):
        recording.replay()
    with opened(sqlite_url) as storage:
        optuna.create_study(study_name="two", storage=storage, directions=["minimize", "minimize"])
    with pytest.raises(UsageError, match="needs a study with one objective"):
        replay_rows(recording.engine, "two", ["asha"])


def test_the_command_prints_a_table_csv_and_json_and_python_a_frame(recording: Recording, tuner_on_sqlite: Any) -> None:
    recording.trial([1.0, 1.0, 1.0, 1.0])
    recording.trial([6.0, 7.0, 8.0, 9.0])
    recording.replay("none")
    words = ("replay", "recorded", "--pruner", '{"name": "threshold", "upper": 5.0}', "--orders", "2")
    done = tuner_on_sqlite.run_here(*words)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split() == [
        "pruner", "stopped", "epochs_saved", "epochs", "hours_saved", "hours", "regret", "best",
    ]  # fmt: skip
    assert "1 [1, 1]" in done.stdout
    assert "over 2 random orders of arrival (seed 0)" in done.stderr
    assert "stopped.mean,stopped.low,stopped.high" in tuner_on_sqlite.run_here(*words, "--format", "csv").stdout
    (row,) = tuner_on_sqlite.rows(*words)
    assert row["stopped"] == {"mean": 1, "low": 1, "high": 1}
    frame = tuner.open_study("recorded", tuner_on_sqlite.env["TUNER_STORAGE"]).replay([ABOVE_5], orders=2)
    assert frame["epochs_saved.mean"].tolist() == [3]
