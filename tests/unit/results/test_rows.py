"""What the query commands print: every row against what Optuna itself says of the same database."""

import contextlib
import datetime
import itertools
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from sqlalchemy import event

import tuner
from tuner.errors import UnknownStudy, UsageError
from tuner.results.rows import best_rows, pareto_front, show_row, study_row, study_rows, trial_rows
from tuner.storage import connect
from tuner.storage.read.queries import TrialRow, find_study, last_errors
from tuner.storage.sql import tables
from tuner.storage.sql.dialect import now_s
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import (
    Budget,
    forget_search_end,
    join,
    note_search_ended,
    register,
    resume,
    stop,
    store_budget,
)
from tuner.trial import Outcome, Report

pytestmark = pytest.mark.with_tables

nan, inf = math.nan, math.inf
ENDS = [Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT, Outcome.FAILED]


class Shelf:
    """A database, and the ways in which trials get into it."""

    def __init__(self, storage: optuna.storages.BaseStorage, engine: sa.Engine) -> None:
        self.storage, self.engine = storage, engine

    def add_study(self, name: str, *directions: str, **record: Any) -> optuna.Study:
        register(self.storage, self.engine, name, directions or ("minimize",), record)
        return optuna.load_study(study_name=name, storage=self.storage)

    def claim(self, study: optuna.Study) -> Lease:
        lease = claim(self.engine, Claimant(study._study_id, "worker", trials=10**6, lease_s=300.0))
        assert isinstance(lease, Lease)
        return lease

    def end(self, study: optuna.Study, outcome: Outcome, *values: float, **record: Any) -> int:
        """Run a trial as our workers do and return its number."""
        lease = self.claim(study)
        leases.tell(self.engine, lease, outcome, values or None, record)
        return lease.number


@contextlib.contextmanager
def shelf_at(url: str) -> Iterator[Shelf]:
    storage: Any = tuner.open_storage(url)
    engine = connect(url)
    try:
        yield Shelf(storage, engine)
    finally:
        engine.dispose()
        storage.close()


@pytest.fixture
def shelf(sqlite_url: str) -> Iterator[Shelf]:
    with shelf_at(sqlite_url) as shelf:
        yield shelf


@pytest.fixture
def any_shelf(storage_url: str) -> Iterator[Shelf]:
    with shelf_at(storage_url) as shelf:
        yield shelf


def end_in_every_way(shelf: Shelf, study: optuna.Study) -> None:
    """Add trials 0 to 9: six of our workers, four of plain Optuna; 0 and 7 are complete."""
    shelf.end(study, Outcome.COMPLETE, 0.5, worker="worker")
    for outcome in ENDS[1:]:
        shelf.end(study, outcome, worker="worker")
    shelf.claim(study)
    study.ask()
    study.tell(study.ask(), 0.25)
    study.tell(study.ask(), state=TrialState.FAIL)
    pruned = study.ask()
    pruned.report(0.125, 1)
    study.tell(pruned, state=TrialState.PRUNED)  # Optuna keeps its last report as its value
    study.enqueue_trial({})


# --- Trials and studies


def test_every_outcome_is_told_apart(any_shelf: Shelf) -> None:
    end_in_every_way(any_shelf, any_shelf.add_study("ours", objective=["loss"]))
    rows: Any = trial_rows(any_shelf.engine, "ours")

    ours, theirs = [*ENDS, Outcome.RUNNING], ["running", "complete", "failed", "pruned", "waiting"]
    assert [row["outcome"] for row in rows] == [*ours, *theirs]
    assert [row["number"] for row in rows] == list(range(12))
    assert [row["value"] for row in rows] == [0.5, *[None] * 7, 0.25, None, None, None]
    unfinished = {number for number, row in enumerate(rows) if row["seconds"] is None}
    assert unfinished == {6, 7, 11}
    assert all(0.0 <= row["seconds"] < 60.0 for row in rows if row["number"] not in unfinished)

    study: Any
    (study,) = study_rows(any_shelf.engine)
    assert {key: study[key] for key in Outcome} == {key: [row["outcome"] for row in rows].count(key) for key in Outcome}
    assert (study["study"], study["trials"], study["best"]) == ("ours", 12, 0.25)
    assert [row["number"] for row in best_rows(any_shelf.engine, "ours", None)] == [8, 0]


def test_studies_come_in_the_order_of_their_creation(shelf: Shelf) -> None:
    shelf.add_study("second", "maximize", objective=["accuracy"])
    optuna.create_study(study_name="plain", storage=shelf.storage)
    shelf.end(shelf.add_study("a pair", "minimize", "maximize", objective=["loss", "accuracy"]), Outcome.COMPLETE, 1, 2)

    keys = ("study", "objective", "direction", "trials", "best")
    assert [tuple(row[key] for key in keys) for row in study_rows(shelf.engine)] == [
        ("second", "accuracy", "maximize", 0, None),
        ("plain", None, "minimize", 0, None),
        ("a pair", "loss, accuracy", "minimize, maximize", 1, None),
    ]


def test_a_study_has_its_own_trials_only(shelf: Shelf) -> None:
    for name, value in (("one", 1.0), ("two", 2.0)):
        shelf.end(shelf.add_study(name), Outcome.COMPLETE, value)

    assert [(row["number"], row["value"]) for row in trial_rows(shelf.engine, "two")] == [(0, 2.0)]
    assert [(row["number"], row["value"]) for row in best_rows(shelf.engine, "two", None)] == [(0, 2.0)]
    assert [row["best"] for row in study_rows(shelf.engine)] == [1.0, 2.0]


@pytest.mark.timezone
def test_a_trial_is_shown_with_its_reports_and_its_error(any_shelf: Shelf) -> None:
    study = any_shelf.add_study("ours")
    any_shelf.claim(study)
    lease = any_shelf.claim(study)
    for epoch, value in [(2, inf), (1, 0.5), (10, nan), (3, -inf), (2, 0.25)]:
        leases.report(any_shelf.engine, lease, [Report(epoch, 9, {"loss": value})], "loss")
    record = {"worker": "w", "compile_s": 0.5, "train_s": 1.5, "error": "Traceback ...\n", "compilations": 1}
    attributes = {leases.FETCHED_KEY: 3, leases.SAVED_KEY: 2.5}
    leases.tell(any_shelf.engine, lease, Outcome.FAILED, None, record, attributes)

    row = show_row(any_shelf.engine, "ours", 1)
    assert (row["compilations"], row["programs_fetched"], row["compile_saved_s"]) == (1, 3, 2.5)
    stored = any_shelf.storage.get_trial(lease.trial_id)
    assert row["reports"] == [
        {"epoch": epoch, "step": 9, "value": value, "metrics": {"loss": value}}
        for epoch, value in [(1, 0.5), (2, 0.25), (3, "-inf"), (10, "nan")]
    ]
    assert {key: row[key] for key in ("worker", "compile_s", "train_s", "error")} == {
        key: record[key] for key in ("worker", "compile_s", "train_s", "error")
    }
    assert (row["study"], row["number"], row["outcome"], row["value"]) == ("ours", 1, "failed", None)
    assert stored.duration is not None
    assert row["seconds"] == pytest.approx(stored.duration.total_seconds(), abs=0.001)
    assert row["started"] is not None
    assert row["started"].endswith("Z")
    assert row["completed"] is not None
    assert row["started"] <= row["completed"]
    running = show_row(any_shelf.engine, "ours", 0)
    assert [running[key] for key in ("outcome", "completed", "reports", "error")] == ["running", None, [], None]
    unknown = ("compile_s", "compilations", "programs_fetched", "compile_saved_s", "train_s", "wait_s", "ran_with")
    assert [running[key] for key in unknown] == [None] * 7
    theirs = study.ask()
    theirs.report(0.5, 3)
    plain = show_row(any_shelf.engine, "ours", theirs.number)
    assert plain["reports"] == [{"epoch": 3, "step": None, "value": 0.5, "metrics": {}}]
    assert plain["attempts"] == []


@pytest.mark.timezone
def test_where_a_trials_seconds_went(any_shelf: Shelf) -> None:
    study = any_shelf.add_study("ours")
    numbers = [
        any_shelf.end(study, Outcome.COMPLETE, 1.0, compile_s=compile_s, train_s=train_s)
        for compile_s, train_s in [(0.5, 2.25), (4.0, 7.0), (None, 2.0)]
    ]
    with any_shelf.engine.begin() as connection:
        (start,) = connection.execute(sa.select(sa.func.min(tables.trials.c.datetime_start))).one()
        ten_later = start + datetime.timedelta(seconds=10)
        connection.execute(tables.trials.update().values(datetime_start=start, datetime_complete=ten_later))

    shown = [show_row(any_shelf.engine, "ours", number) for number in numbers]
    assert [(row["seconds"], row["wait_s"]) for row in shown] == [(10.0, 7.25), (10.0, 0.0), (10.0, None)]


def test_a_trial_is_shown_with_what_its_last_worker_ran_with(any_shelf: Shelf) -> None:
    study, engine = any_shelf.add_study("ours"), any_shelf.engine
    claimant = Claimant(study._study_id, "worker", trials=9, lease_s=300.0)
    about = {"file": "/a/study.py", "git": {"commit": "c0ffee", "is_changed": True}, "versions": {"jax": "0.8"}}
    join(engine, claimant, {"host": "here", "pid": 7, "devices": "cpu 2", **about})
    number = any_shelf.end(study, Outcome.COMPLETE, 1.0)

    assert show_row(engine, "ours", number)["ran_with"] == {"host": "here", "devices": "cpu 2", **about}


def test_a_study_says_what_it_is_doing(any_shelf: Shelf) -> None:
    engine = any_shelf.engine
    optuna.create_study(study_name="plain", storage=any_shelf.storage)
    study = any_shelf.add_study("ours")

    def state() -> tuple[str | None, int]:
        plain, ours = study_rows(engine)
        assert (plain["state"], plain["workers"]) == (None, 0)
        return ours["state"], ours["workers"]

    def ask_for(**budget: Any) -> None:
        claimant = Claimant(study._study_id, "worker", lease_s=300.0, **{"trials": 3, **budget})
        join(engine, claimant, {"host": "here", "pid": 7, "devices": "cpu"})

    assert state() == ("idle", 0)
    ask_for()
    leases_held = [any_shelf.claim(study), any_shelf.claim(study)]
    assert state() == ("running", 2)
    leases.tell(engine, leases_held[0], Outcome.DIVERGED, None, {})
    leases.release(engine, leases_held[1])
    assert state() == ("idle", 0)
    ask_for(wall_s=1e-9)
    assert state() == ("out of hours", 0)
    ask_for(device_s=1e-9)
    assert state() == ("out of hours", 0)
    ask_for(wall_s=1e9, device_s=1e9)
    assert state() == ("idle", 0)
    any_shelf.end(study, Outcome.FAILED)
    ask_for(trials=1)
    assert state() == ("finished", 0)
    stop(engine, study._study_id)
    assert state() == ("stopped", 0)


def test_a_study_whose_sampler_has_ended_the_search_is_finished_until_it_is_launched_again(any_shelf: Shelf) -> None:
    engine, study = any_shelf.engine, any_shelf.add_study("ours")
    claimant = Claimant(study._study_id, "worker", lease_s=300.0, trials=30)
    join(engine, claimant, {"host": "here", "pid": 7, "devices": "cpu"})
    lease = any_shelf.claim(study)
    note_search_ended(engine, study._study_id)

    def state() -> tuple[str | None, str | None]:
        row = study_row(engine, "ours")
        return row["state"], row["reason"]

    assert state() == ("running", None)
    leases.release(engine, lease)
    assert state() == ("idle", None), "a trial waits to be resumed"
    leases.tell(engine, any_shelf.claim(study), Outcome.COMPLETE, [0.5], {})
    reason = "the sampler has ended the search"
    assert state() == ("finished", reason)
    stop(engine, study._study_id)
    join(engine, claimant, {"host": "here", "pid": 7, "devices": "cpu"})  # it claims nothing
    assert state() == ("stopped", None)
    resume(engine, study._study_id)
    assert state() == ("finished", reason)
    store_budget(engine, study._study_id, Budget(30, None, None))
    assert state() == ("idle", None)
    note_search_ended(engine, study._study_id)
    forget_search_end(engine, study._study_id)
    assert state() == ("idle", None)


def test_trials_are_filtered_sorted_and_cut(shelf: Shelf) -> None:
    study = shelf.add_study("ours")
    for x in (3.0, 1.0, 2.0, 0.0):
        trial = study.ask()
        trial.suggest_float("x", x, x)
        study.tell(trial, x**2) if x else study.tell(trial, state=TrialState.FAIL)

    def numbers(**options: Any) -> list[int]:
        return [row["number"] for row in trial_rows(shelf.engine, "ours", **options)]

    assert numbers(sort="x") == [3, 1, 2, 0]
    assert numbers(sort="-value", limit=2) == [0, 2]
    assert numbers(where=["x>=2"]) == [0, 2]
    assert numbers(where=["x>=0"], outcomes=[Outcome.FAILED]) == [3]
    assert numbers(outcomes=[Outcome.FAILED, Outcome.COMPLETE], limit=3) == [0, 1, 2]


def define(trial: optuna.Trial) -> None:
    trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    trial.suggest_float("share", 0.0, 1.0, step=0.25)
    trial.suggest_int("width", 1, 2**40, log=True)
    trial.suggest_int("depth", -6, 6, step=3)
    trial.suggest_categorical("kind", ("a", "Ä 'quoted'", None, True, False, 3, 2.5, ""))


def test_hparams_are_what_optuna_says(any_shelf: Shelf) -> None:
    study = any_shelf.add_study("ours")
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    for _ in range(16):
        trial = study.ask()
        define(trial)
        study.tell(trial, 0.0)
    study.ask()

    rows: Any = trial_rows(any_shelf.engine, "ours")
    expected = [trial.params for trial in study.trials]
    assert [row["hparams"] for row in rows] == expected
    for row, params in zip(rows, expected, strict=True):
        assert {name: type(value) for name, value in row["hparams"].items()} == {
            name: type(value) for name, value in params.items()
        }
    assert len({repr(params.get("kind")) for params in expected}) > 4  # else little was compared
    assert rows[-1]["hparams"] == {}
    assert show_row(any_shelf.engine, "ours", 3)["hparams"] == expected[3]


# --- The best


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_best_come_first_and_of_equals_the_earliest(any_shelf: Shelf, direction: str) -> None:
    study = any_shelf.add_study("ours", direction)
    values = [2.0, inf, -1.0, 2.0, -inf, 0.5, -1.0, inf, 1e-300, -0.0]
    for value in values:
        any_shelf.end(study, Outcome.PRUNED)
        any_shelf.end(study, Outcome.COMPLETE, value)

    rows: Any = best_rows(any_shelf.engine, "ours", None)
    ranked = sorted(enumerate(values), key=lambda pair: -pair[1] if direction == "maximize" else pair[1])
    assert [row["number"] for row in rows] == [2 * index + 1 for index, _ in ranked]
    assert [float(row["value"]) for row in rows] == [value for _, value in ranked]
    assert best_rows(any_shelf.engine, "ours", 3) == rows[:3]
    assert best_rows(any_shelf.engine, "ours") == rows[:1]
    assert rows[0]["number"] == study.best_trial.number
    assert {row["outcome"] for row in rows} == {"complete"}


def test_without_a_complete_trial_there_is_no_best(shelf: Shelf) -> None:
    for name, directions in (("one", ["maximize"]), ("two", ["minimize", "maximize"])):
        study = shelf.add_study(name, *directions)
        for outcome in ENDS[1:]:
            shelf.end(study, outcome)
        shelf.claim(study)

        assert best_rows(shelf.engine, name, None) == []
    assert [row["best"] for row in study_rows(shelf.engine)] == [None, None]


points = st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, inf, -inf]), min_size=3, max_size=3), max_size=12)


@settings(deadline=None, max_examples=200)
@given(points=points, maximize=st.lists(st.booleans(), min_size=3, max_size=3))
@pytest.mark.slow
def test_the_pareto_front_is_what_nothing_beats(points: list[list[float]], maximize: list[bool]) -> None:
    others = [outcome for outcome in Outcome if outcome is not Outcome.COMPLETE]
    trials = [
        TrialRow(number, number, outcome, None, None, values)
        for number, (values, outcome) in enumerate(
            [*[(values, Outcome.COMPLETE) for values in points], *[(None, outcome) for outcome in others]]
        )
    ]

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        gains = [(a - b if a != b else 0.0) * (1 if up else -1) for a, b, up in zip(one, other, maximize, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    expected = [number for number, own in enumerate(points) if not any(beats(other, own) for other in points)]
    assert [trial.number for trial in pareto_front(trials, maximize)] == expected


@pytest.mark.parametrize("directions", [("minimize", "maximize"), ("maximize", "maximize", "minimize")])
def test_the_best_of_several_objectives_are_optunas(shelf: Shelf, directions: tuple[str, ...]) -> None:
    study, generator = shelf.add_study("ours", *directions), random.Random(0)
    for number in range(30):
        shelf.end(study, Outcome.FAILED if number % 7 == 3 else Outcome.PRUNED) if number % 3 == 2 else None
        shelf.end(study, Outcome.COMPLETE, *(generator.random() for _ in directions))

    rows: Any = best_rows(shelf.engine, "ours", None)
    assert [(row["number"], row["values"]) for row in rows] == [(t.number, t.values) for t in study.best_trials]
    assert 1 < len(rows) < 30
    assert best_rows(shelf.engine, "ours", 2) == rows[:2]
    assert "value" not in rows[0]


def test_several_objectives_are_asked_for_by_name(shelf: Shelf) -> None:
    study = shelf.add_study("pair", "minimize", "maximize")
    for first, second in ((3.0, 1.0), (1.0, 2.0), (2.0, inf)):
        shelf.end(study, Outcome.COMPLETE, first, second)
    shelf.end(study, Outcome.FAILED)

    (one, other), everything = find_study(shelf.engine, "pair").objectives, trial_rows(shelf.engine, "pair")
    by_first = trial_rows(shelf.engine, "pair", sort=f"values.{one}")
    assert [row["number"] for row in by_first] == [1, 2, 0, 3]
    kept = trial_rows(shelf.engine, "pair", where=[f"values.{other}>1", f"values.{one}<2"])
    assert kept == [everything[1]]
    columns = ["number", "outcome", "values", "objectives", "is_feasible", "seconds", "hparams", "user_attrs"]
    assert list(everything[0]) == columns, "they are no columns"
    with pytest.raises(UsageError, match=rf"`sort` must name one of .*values\.{one}, values\.{other}.*: got 'values'"):
        trial_rows(shelf.engine, "pair", sort="values")


# --- Plain JSON


def test_every_row_is_json(shelf: Shelf) -> None:
    study = shelf.add_study("one")
    end_in_every_way(shelf, study)
    for value in (inf, -inf):
        lease = shelf.claim(study)
        leases.report(shelf.engine, lease, [Report(1, 9, {"loss": nan})], "loss")
        leases.tell(shelf.engine, lease, Outcome.COMPLETE, [value], {})
    shelf.end(shelf.add_study("two", "minimize", "maximize"), Outcome.COMPLETE, inf, 1.0)

    for name in ("one", "two"):
        rows = [*trial_rows(shelf.engine, name), *best_rows(shelf.engine, name, None)]
        rows += [show_row(shelf.engine, name, row["number"]) for row in rows]
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [row["value"] for row in trial_rows(shelf.engine, "one")[-2:]] == ["inf", "-inf"]
    assert best_rows(shelf.engine, "two")[0]["values"] == ["inf", 1.0]


def test_a_study_whose_best_value_is_infinite_is_json(shelf: Shelf) -> None:
    shelf.end(shelf.add_study("ours"), Outcome.COMPLETE, -inf)

    assert '"best": "-inf"' in json.dumps(study_rows(shelf.engine), allow_nan=False)


def test_an_infinite_choice_is_json(shelf: Shelf) -> None:
    study = shelf.add_study("ours")
    study.ask().suggest_categorical("clip", (inf,))

    json.dumps(trial_rows(shelf.engine, "ours"), allow_nan=False)


# --- What is not there


def test_an_unknown_study_is_named_with_the_nearest(shelf: Shelf) -> None:
    for query in (trial_rows, best_rows, lambda engine, name: show_row(engine, name, 0)):
        with pytest.raises(UnknownStudy, match=r"no study 'digits' in this storage: it has none$"):
            query(shelf.engine, "digits")
    shelf.add_study("digits_mlp")
    shelf.add_study("faces")

    with pytest.raises(UnknownStudy, match=r"'digits_cnn' .*: it has digits_mlp, faces; did you mean 'digits_mlp'\?"):
        trial_rows(shelf.engine, "digits_cnn")
    with pytest.raises(UnknownStudy, match=r"no study 'zzz' .*: it has digits_mlp, faces$"):
        best_rows(shelf.engine, "zzz")


def test_an_unknown_trial_is_named_with_those_that_there_are(shelf: Shelf) -> None:
    study = shelf.add_study("ours")
    with pytest.raises(UnknownStudy, match="study 'ours' has no trial 0: it has none yet"):
        show_row(shelf.engine, "ours", 0)
    shelf.end(study, Outcome.COMPLETE, 1.0)
    shelf.claim(study)

    for number in (2, -1):
        with pytest.raises(UnknownStudy, match=f"study 'ours' has no trial {number}: it has 0 to 1"):
            show_row(shelf.engine, "ours", number)


def test_an_empty_database_has_no_studies(shelf: Shelf) -> None:
    assert study_rows(shelf.engine) == []
    shelf.add_study("ours")
    assert trial_rows(shelf.engine, "ours") == []
    assert best_rows(shelf.engine, "ours", None) == []


def assert_complete(shelf: Shelf, attribute: Any) -> None:
    study = shelf.add_study("ours")
    trial = study.ask()
    trial.set_user_attr("outcome", attribute)
    study.tell(trial, 1.0)

    assert [row["outcome"] for row in trial_rows(shelf.engine, "ours")] == ["complete"]
    assert [row["value"] for row in best_rows(shelf.engine, "ours")] == [1.0]
    assert study_rows(shelf.engine)[0]["complete"] == 1


def test_a_trial_that_was_tried_again_is_shown_with_each_attempt(any_shelf: Shelf) -> None:
    study, engine = any_shelf.add_study("ours"), any_shelf.engine
    assert leases.retry(engine, any_shelf.claim(study), "Traceback ...\nOSError: once", 1)
    again = any_shelf.claim(study)
    running = show_row(engine, "ours", 0)["attempts"]
    leases.tell(engine, again, Outcome.COMPLETE, [0.5], {})

    shown = show_row(engine, "ours", 0)["attempts"]
    assert [(row["worker"], row["devices"], row["ending"]) for row in shown] == [
        ("worker", 1, "failed"),
        ("worker", 1, "complete"),
    ]
    assert [row["error"] for row in shown] == ["Traceback ...\nOSError: once", None]
    assert all(row["seconds"] >= 0 for row in shown)
    assert (running[1]["ending"], running[1]["seconds"]) == (None, None)


@pytest.mark.parametrize("attribute", [["a", "list"], {"a": "mapping"}, "running", "failed"])
@pytest.mark.slow
def test_an_attribute_of_another_tool_is_not_an_outcome(shelf: Shelf, attribute: Any) -> None:
    assert_complete(shelf, attribute)


@pytest.mark.parametrize("attribute", ["good", 3, None])
def test_an_attribute_that_is_no_outcome_is_none(shelf: Shelf, attribute: Any) -> None:
    assert_complete(shelf, attribute)


# --- Cost


def insert_many(shelf: Shelf, study: optuna.Study, count: int) -> None:
    """Insert complete trials with two parameters, a value, a report and an attribute each."""
    floating = '{"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 1.0, "step": null, "log": false}}'
    ids = [study._study_id * 10**6 + number for number in range(count)]

    def insert(table: sa.Table, **columns: Any) -> None:
        rows = [{"trial_id": id, **columns} for id in ids]
        connection.execute(table.insert(), rows)

    with shelf.engine.begin() as connection:
        shared = {"study_id": study._study_id, "state": "COMPLETE"}
        rows = [{"trial_id": id, "number": number, **shared} for number, id in enumerate(ids)]
        connection.execute(tables.trials.insert(), rows)
        for name in ("one", "two"):
            insert(tables.trial_params, param_name=name, param_value=0.5, distribution_json=floating)
        insert(tables.trial_values, objective=0, value=0.25, value_type="FINITE")
        insert(tables.trial_intermediate_values, step=1, intermediate_value=1.0, intermediate_value_type="FINITE")
        insert(tables.trial_user_attributes, key="outcome", value_json='"complete"')


@pytest.mark.slow
def test_the_number_of_statements_does_not_grow_with_the_trials(any_shelf: Shelf) -> None:
    engine = any_shelf.engine
    counts = {}
    for count in (1, 500, 501, 1200):
        insert_many(any_shelf, any_shelf.add_study(f"of {count}"), count)
    statements = itertools.count()
    event.listen(engine, "before_cursor_execute", lambda *_: next(statements))
    for count in (1, 500, 501, 1200):
        before = next(statements)
        rows: Any = trial_rows(engine, f"of {count}")
        best = best_rows(engine, f"of {count}", 3)
        show_row(engine, f"of {count}", count - 1)
        counts[count] = next(statements) - before
        assert len(rows) == count
        assert rows[-1]["hparams"] == {"one": 0.5, "two": 0.5}
        assert [row["number"] for row in best] == [0, 1, 2][:count]

    assert counts[1] == counts[500] < 48
    # Three tables (parameters, values, user attributes), a statement for each 500 trials.
    assert counts[501] == counts[500] + 3
    assert counts[1200] == counts[500] + 6


@pytest.mark.slow
def test_queries_start_without_optuna_and_jax(shelf: Shelf, sqlite_url: str) -> None:
    shelf.end(shelf.add_study("ours"), Outcome.COMPLETE, 0.5)
    script = (
        f"import sys, tuner.results.rows as r, tuner.storage as s; e = s.connect({sqlite_url!r}); "
        "print(r.best_rows(e, 'ours')[0]['value'], r.trial_rows(e, 'ours')[0]['value'], r.study_rows(e)[0]['best'])\n"
        "print({'jax', 'flax', 'optuna', 'numpy', 'pandas'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "0.5 0.5 0.5\nset()\n"


# --- The last errors, after which a study stops


def test_the_last_errors_are_those_since_the_last_success(any_shelf: Shelf) -> None:
    study, engine = any_shelf.add_study("ours"), any_shelf.engine

    def errors() -> list[tuple[str, str]]:
        time.sleep(0.005)  # SQLite's clock counts milliseconds
        return last_errors(engine, study._study_id, 0.0)

    slow = any_shelf.claim(study)
    assert errors() == []
    any_shelf.end(study, Outcome.FAILED, error="first", error_kind="A")
    any_shelf.end(study, Outcome.COMPLETE, 1.0)
    assert errors() == []
    any_shelf.end(study, Outcome.FAILED, error="second", error_kind="A")
    assert errors() == [("A", "second")]
    any_shelf.end(study, Outcome.FAILED, error="third", error_kind="B")
    any_shelf.claim(study)

    assert errors() == [("B", "third"), ("A", "second")]
    leases.tell(engine, slow, Outcome.FAILED, None, {})  # the first to begin, the last to end; it says nothing
    assert errors() == [("", ""), ("B", "third"), ("A", "second")]
    any_shelf.end(study, Outcome.DIVERGED)
    assert errors() == []


def test_errors_from_before_a_launch_can_be_left_out(shelf: Shelf) -> None:
    study, other = shelf.add_study("ours"), shelf.add_study("other")
    shelf.end(study, Outcome.COMPLETE, 1.0)
    time.sleep(0.005)
    shelf.end(study, Outcome.FAILED, error="old", error_kind="A")
    time.sleep(0.005)
    since_s = now_s(shelf.engine)
    shelf.end(study, Outcome.FAILED, error="new", error_kind="B")

    assert last_errors(shelf.engine, study._study_id, since_s) == [("B", "new")]
    assert last_errors(shelf.engine, study._study_id, 0.0) == [("B", "new"), ("A", "old")]
    assert last_errors(shelf.engine, other._study_id, 0.0) == []
