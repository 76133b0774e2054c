"""Who works on a study: workers in the database, and what the latest launch asked for."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from budgeted_study import TICK_S, BudgetedStudy

from tuner.storage.artifacts import Artifacts
from tuner.storage.sql.tables import budgets, workers
from tuner.storage.worker import claims
from tuner.storage.worker.studies import join, leave
from tuner.study.source import git_state
from tuner.worker.context import Place
from tuner.worker.gpu_use import GpuWatch
from tuner.worker.runtime import make_runtime
from tuner.worker.time_use import TimeUse

ABOUT = {"host": "here", "pid": 7, "devices": "0,1", "versions": {"python": "3.11.9"}, "git": None}


def worker_row(db: BudgetedStudy, name: str) -> dict[str, Any]:
    (row,) = db.execute(sa.select(workers).where(workers.c.worker == name))
    return {**row._mapping, "about": json.loads(row.about)}


def test_a_worker_is_entered_and_its_signs_of_life(db: BudgetedStudy) -> None:
    name, before_s = uuid.uuid4().hex, db.now_s()
    claimant = db.claimant(name)
    join(db.engine, claimant, ABOUT)

    first = worker_row(db, name)
    assert first["study_id"] == db.study_id
    assert (first["host"], first["pid"], first["devices"]) == ("here", 7, "0,1")
    assert first["about"] == {"versions": {"python": "3.11.9"}, "git": None}
    assert before_s <= first["started_at_s"] <= first["seen_at_s"] <= db.now_s()
    assert first["ended_at_s"] is None

    time.sleep(TICK_S)
    claims.must_stop(db.engine, claimant)
    second = worker_row(db, name)
    assert second["seen_at_s"] > first["seen_at_s"]
    assert second | {"seen_at_s": None} == first | {"seen_at_s": None}

    time.sleep(TICK_S)
    leave(db.engine, name)
    third = worker_row(db, name)
    assert second["seen_at_s"] < third["ended_at_s"] <= db.now_s()
    assert third | {"ended_at_s": None} == second


def test_a_worker_that_comes_again_under_its_name_has_not_ended(db: BudgetedStudy) -> None:
    name = uuid.uuid4().hex
    join(db.engine, db.claimant(name), ABOUT)
    leave(db.engine, name)
    first = worker_row(db, name)
    time.sleep(TICK_S)
    join(db.engine, db.claimant(name), {**ABOUT, "pid": 8, "git": {"commit": "abc"}})

    again = worker_row(db, name)
    assert again["ended_at_s"] is None
    assert (again["pid"], again["about"]["git"]) == (8, {"commit": "abc"})
    assert again["started_at_s"] > first["started_at_s"]


@pytest.mark.parametrize("died", [True, False])
def test_a_worker_whose_launcher_saw_it_end_has_ended(db: BudgetedStudy, died: bool) -> None:
    name, other = uuid.uuid4().hex, uuid.uuid4().hex
    for each in (name, other):
        join(db.engine, db.claimant(each), ABOUT)
    claims.release_all(db.engine, name, died=died)

    ended_at_s = worker_row(db, name)["ended_at_s"]
    assert ended_at_s is not None
    assert worker_row(db, other)["ended_at_s"] is None
    time.sleep(TICK_S)
    claims.release_all(db.engine, name, died=died)
    assert worker_row(db, name)["ended_at_s"] == ended_at_s


def test_the_database_has_what_the_latest_launch_asked_for(db: BudgetedStudy) -> None:
    query = sa.select(budgets.c.trials, budgets.c.wall_s, budgets.c.device_s).where(budgets.c.study_id == db.study_id)
    assert [tuple(row) for row in db.execute(query)] == [(None, None, None)]
    for asked in ((10, 3600.0, None), (20, None, 7200.0)):
        trials, wall_s, device_s = asked
        join(db.engine, db.claimant("one", trials=trials, wall_s=wall_s, device_s=device_s), ABOUT)
        assert [tuple(row) for row in db.execute(query)] == [asked]


def test_a_real_worker_says_where_it_runs_and_with_what(db: BudgetedStudy) -> None:
    name = uuid.uuid4().hex
    runtime, gpus = make_runtime("", needs_jax=True), GpuWatch({}, is_wanted=False)
    place = Place(Artifacts(Path()), {"file": __file__}, None, "", runtime, TimeUse({}), gpus)
    join(db.engine, db.claimant(name), place.describe())

    row = worker_row(db, name)
    assert row["host"]
    assert row["pid"] > 0
    assert row["devices"].startswith("cpu ")
    assert set(row["about"]) == {"file", "code", "git", "versions"}
    assert row["about"]["git"] == git_state(Path(__file__))
    assert {"python", "jax", "numpy"} <= set(row["about"]["versions"])
