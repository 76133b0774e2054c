"""The curves as JSON: which trials, in which order, and never more than the limit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from storage_tools import opened

from tuner.dashboard import curves
from tuner.dashboard.curves import Selection, parse_numbers, parse_selection, read_curves_json
from tuner.errors import UsageError
from tuner.storage.read.queries import find_study
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import register
from tuner.trial import Outcome, Report

pytestmark = pytest.mark.with_tables


class Db:
    """A study with one objective, `loss`, that is minimised."""

    def __init__(self, storage: Any) -> None:
        self.engine = storage.engine
        record = {"objective": ["loss"]}
        study_id = register(storage, storage.engine, "ours", ["minimize"], record).study_id
        self.claimant = Claimant(study_id, "one", trials=10**6, lease_s=300.0)

    def run(self, *losses: float, ends: bool = True, **others: float) -> int:
        lease = claim(self.engine, self.claimant)
        assert isinstance(lease, Lease)
        several = [Report(at, 10 * at, {**others, "loss": loss}) for at, loss in enumerate(losses, 1)]
        leases.report(self.engine, lease, several, "loss")
        if ends:
            leases.tell(self.engine, lease, Outcome.COMPLETE, [losses[-1]], {})
        return lease.number

    def read(self, known: tuple[int, ...] = (), **asked: Any) -> dict[str, Any]:
        found = read_curves_json(self.engine, find_study(self.engine, "ours"), Selection(**asked), known)
        return json.loads(json.dumps(found, allow_nan=False))


@pytest.fixture
def db(sqlite_url: str) -> Iterator[Db]:
    with opened(sqlite_url) as storage:
        yield Db(storage)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3", [3]), ("1,4, 7-9", [1, 4, 7, 8, 9]), ("9 2,,2-3", [9, 2, 3]), ("0-199", list(range(200)))],
)
def test_trials_are_numbers_and_ranges(text: str, numbers: list[int]) -> None:
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize("text", ["x", "1-", "-1", "9-3", "0-200", "1.5", ",", "1" * 12, "\uff11"])
def test_what_names_no_trials_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"trials"):
        parse_numbers(text)


def test_a_selection_is_checked() -> None:
    assert parse_selection({}) == Selection(None, "best", 20)
    assert parse_selection({"show": "running", "count": "200", "trials": None}) == Selection(None, "running", 200)
    for words in ({"show": "all"}, {"count": "0"}, {"count": "201"}, {"count": "x"}, {"trials": "0-200"}):
        with pytest.raises(UsageError):
            parse_selection(words)


def test_the_best_the_latest_and_those_that_run(db: Db) -> None:
    for loss in (0.5, 0.1, 0.3):
        db.run(1.0, loss, train_loss=2 * loss)
    db.run(0.9, ends=False)
    best = db.read(show="best", count=2)
    assert best["numbers"] == [1, 2]
    assert best["metrics"] == ["loss", "train_loss"], "the objective first"
    assert best["trials"][0]["metrics"] == {"loss": [1.0, 0.1], "train_loss": [0.2, 0.2]}
    assert (best["trials"][0]["epoch"], best["trials"][0]["step"]) == ([1, 2], [10, 20])
    assert all(0 <= time < 60 for time in best["trials"][0]["time"])
    assert db.read(show="latest", count=3)["numbers"] == [3, 2, 1]
    running = db.read(show="running")
    assert [(one["number"], one["has_ended"]) for one in running["trials"]] == [(3, False)]
    assert db.read(numbers=[2, 0, 77])["numbers"] == [2, 0], "in the order that is asked for, without those missing"


def test_what_the_client_knows_is_not_sent_again(db: Db) -> None:
    db.run(0.5)
    db.run(0.4, ends=False)
    found = db.read(known=(0, 1), show="latest")
    assert found["numbers"] == [1, 0]
    assert [one["number"] for one in found["trials"]] == [1], "the other trial still runs"


def test_an_answer_has_a_limited_size(db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MOST_POINTS", 30)
    monkeypatch.setattr(curves, "MOST_OF_ONE", 20)
    monkeypatch.setattr(curves, "MOST_METRICS", 2)
    for _ in range(3):
        db.run(*[1 / at for at in range(1, 101)], metric_0=1.0, metric_1=1.0, metric_2=1.0)
    several, one = db.read(), db.read(count=1)
    assert (several["points_each"], several["is_thinned"], several["trials"][0]["reports"]) == (10, True, 100)
    assert [len(trial["epoch"]) for trial in several["trials"]] == [11] * 3, "every tenth, and the last"
    assert several["trials"][0]["epoch"][-1] == 100
    assert (one["points_each"], len(one["trials"][0]["epoch"])) == (20, 21)
    assert (several["metrics"], several["hidden_metrics"]) == (["loss", "metric_0"], 2)
    short = db.run(0.5)
    assert db.read(numbers=[short])["is_thinned"] is False


def test_what_is_no_number_is_null(db: Db) -> None:
    db.run(1.0, math.nan, math.inf, 0.123456789)
    assert db.read()["trials"][0]["metrics"]["loss"] == [1.0, None, None, 0.123457]


def test_a_study_of_plain_optuna_has_its_values(sqlite_url: str) -> None:
    with opened(sqlite_url) as storage:
        study = optuna.create_study(study_name="theirs", storage=storage)
        trial = study.ask()
        trial.report(0.5, 3)
        study.tell(trial, 0.5)
        found = read_curves_json(storage.engine, find_study(storage.engine, "theirs"), Selection(), ())
        assert (found["metrics"], found["objective"]) == (["value"], None)
        assert found["trials"][0]["epoch"] == [3]
