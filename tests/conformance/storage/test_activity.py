"""What the dashboard tells of workers, against figures by hand, on both databases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa

from tuner.dashboard.app import _group, _state
from tuner.dashboard.descriptions import Descriptions
from tuner.storage import open_storage
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.activity import read_checkpoints, read_compiling, read_failures, read_workers
from tuner.storage.read.queries import StudyRow
from tuner.storage.sql.dialect import now_s
from tuner.storage.sql.tables import attempts, leases, records, reports, workers
from tuner.training.saved import files as checkpoint_files
from tuner.training.saved.files import Content

pytestmark = [pytest.mark.timezone, pytest.mark.with_tables]


@pytest.fixture
def storage(storage_url: str) -> Any:
    made = open_storage(storage_url)
    yield made
    made.close()


class Scene:
    """Studies, trials and workers, put into the tables row by row."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.now_s = now_s(storage.engine)
        self.studies: dict[str, optuna.Study] = {}

    def study(self, name: str, direction: Any = "minimize") -> int:
        self.studies[name] = optuna.create_study(storage=self.storage, study_name=name, direction=direction)
        return self.studies[name]._study_id

    def trial(self, study: str, value: float | None = None) -> int:
        trial = self.studies[study].ask()
        if value is not None:
            self.studies[study].tell(trial, value)
        return trial._trial_id

    def add(self, table: sa.Table, **row: Any) -> None:
        with self.storage.engine.begin() as connection:
            connection.execute(table.insert().values(**row))

    def worker(self, name: str, study_id: int, seen_ago_s: float, ended: bool = False) -> None:
        times = {"started_at_s": self.now_s - 1000.0, "seen_at_s": self.now_s - seen_ago_s}
        about = {"host": "h", "pid": 7, "devices": f"cpu {name}", "about": "{}"}
        ended_at_s = self.now_s - seen_ago_s if ended else None
        self.add(workers, worker=name, study_id=study_id, ended_at_s=ended_at_s, **times, **about)

    def lease(self, worker: str | None, trial_id: int, rest_s: float) -> None:
        self.add(leases, trial_id=trial_id, worker=worker, fence=2, deaths=1, expires_at_s=self.now_s + rest_s)

    def attempt(self, worker: str, study_id: int, trial_id: int, **more: Any) -> None:
        row = {"fence": 1, "devices": 1, "started_at_s": self.now_s - 500.0, "ended_at_s": None, **more}
        self.add(attempts, trial_id=trial_id, study_id=study_id, worker=worker, **row)


def test_workers_are_told_with_what_they_do_now(storage: Storage) -> None:
    scene = Scene(storage)
    first, second = scene.study("first"), scene.study("second")
    scene.worker("busy", first, 2.0)
    scene.worker("quick", first, 900.0)  # its trials end before a renewal: seen by its last one
    scene.worker("lost", first, 900.0)
    scene.worker("ended", first, 3.0, ended=True)
    scene.worker("other", second, 1.0)
    held, dead, done = scene.trial("first"), scene.trial("first"), scene.trial("first", 1.0)
    scene.lease("busy", held, 25.0)
    scene.lease("lost", dead, -100.0)
    scene.lease("other", done, 25.0)  # of a trial that another tool has ended
    for epoch in (1, 2, 10):
        scene.add(reports, trial_id=held, epoch=epoch, step=epoch * 3, metrics=json.dumps({"loss": 1 / epoch}))
    scene.attempt("quick", first, done, ended_at_s=scene.now_s - 4.0)

    rows = {row["worker"]: row for row in read_workers(storage.engine, None)}

    assert list(rows)[-1] == "ended"
    assert {name: _state(row) for name, row in rows.items()} == {
        "busy": "at work",
        "quick": "idle",
        "lost": "lost",
        "ended": "ended",
        "other": "idle",
    }
    busy = rows["busy"]
    assert [
        busy[name] for name in ("study", "host", "pid", "devices", "trial", "fence", "deaths", "epoch", "step")
    ] == [*("first", "h", 7, "cpu busy", 0, 2, 1, 10, 30)]
    assert busy["metrics"] == {"loss": 0.1}
    assert busy["lease_rest_s"] is not None
    assert 0.0 < busy["lease_rest_s"] <= 25.0
    assert busy["age_s"] >= 1000.0
    assert 4.0 <= rows["quick"]["unseen_s"] < 500.0
    assert rows["lost"]["unseen_s"] >= 900.0
    assert rows["other"]["trial"] is None
    assert rows["lost"]["metrics"] is None
    assert {row["worker"] for row in read_workers(storage.engine, second)} == {"other"}


def test_what_compiling_cost_and_saved(storage: Storage) -> None:
    scene = Scene(storage)
    first, second = scene.study("first"), scene.study("second")
    took = [("a", 2, 6.0), ("a", 0, 0.0), ("a", 0, 1.0), ("b", 1, 2.0), ("b", 0, 0.5)]
    for worker, compilations, compile_s in took:
        scene.add(
            records,
            trial_id=scene.trial("first", 1.0),
            study_id=first,
            outcome="complete",
            ended_at_s=scene.now_s,
            worker=worker,
            compile_s=compile_s,
            compilations=compilations,
            train_s=10.0,
        )
    for worker in ("c", None):  # neither compiled, nor does anything say what compiling takes there
        about = {
            "outcome": "failed",
            "ended_at_s": scene.now_s,
            "worker": worker,
            "compilations": 0 if worker else None,
        }
        scene.add(records, trial_id=scene.trial("second"), study_id=second, **about)

    rows = {row["worker"]: row for row in read_compiling(storage.engine, None)}

    # Two trials compiled, in 6 s and 2 s: 4 s each. Those that did not: 2 x 4 - 1 for a, 1 x 4 - 0.5 for b.
    assert rows["a"] == {
        "study_id": first,
        "worker": "a",
        "trials": 3,
        "train_s": 30.0,
        "compile_s": 7.0,
        "compilations": 2,
        "saved_s": 7.0,
    }
    assert (rows["b"]["compile_s"], rows["b"]["saved_s"]) == (2.5, 3.5)
    assert (rows["c"]["trials"], rows["c"]["compile_s"], rows["c"]["saved_s"]) == (1, 0.0, None)
    assert len(rows) == 3
    assert [row["worker"] for row in read_compiling(storage.engine, second)] == ["c"]


def test_failures_come_newest_first_and_with_their_tracebacks(storage: Storage) -> None:
    scene = Scene(storage)
    first, second = scene.study("first"), scene.study("second")
    endings = ["failed", "complete", "died", "preempted", "out_of_memory", None]
    for number, ending in enumerate(endings):
        more = {"ending": ending, "ended_at_s": scene.now_s - 100.0 + number if ending else None}
        more["error"] = "Traceback\nValueError: x" if ending == "failed" else None
        scene.attempt("w", first, scene.trial("first"), **more)
    scene.attempt("v", second, scene.trial("second"), ending="failed", ended_at_s=scene.now_s, error="e")

    rows = read_failures(storage.engine, None)

    assert [(row["study"], row["trial"], row["ending"]) for row in rows] == [
        ("second", 0, "failed"),
        ("first", 4, "out_of_memory"),
        ("first", 2, "died"),
        ("first", 0, "failed"),
    ]
    assert rows[-1]["error"] == "Traceback\nValueError: x"
    assert rows[-1]["ago_s"] >= 100.0
    assert [row["worker"] for row in read_failures(storage.engine, second)] == ["v"]
    assert len(read_failures(storage.engine, None, 2)) == 2


@pytest.mark.parametrize(("direction", "best"), [("minimize", [2, 0]), ("maximize", [1, 0])])
def test_checkpoints_come_best_first(storage: Storage, direction: str, best: list[int]) -> None:
    scene = Scene(storage)
    study_id = scene.study("first", direction)
    for value in (2.0, 3.0, 1.0, 9.0 if direction == "maximize" else 0.0):
        trial_id = scene.trial("first", value)
        path = "/best" if value not in (0.0, 9.0) else None  # the best of all has none
        about = {"outcome": "complete", "ended_at_s": scene.now_s, "worker": "w", "checkpoint": path}
        scene.add(records, trial_id=trial_id, study_id=study_id, **about)
        for epoch in (2, 1):
            scene.add(reports, trial_id=trial_id, epoch=epoch, step=epoch, metrics=json.dumps({"loss": value * epoch}))

    rows = read_checkpoints(storage.engine, study_id, 2)

    assert [row["trial"] for row in rows] == best
    assert rows[1]["value"] == 2.0
    assert rows[1]["curve"] == [(1, {"loss": 2.0}), (2, {"loss": 4.0})]
    assert (rows[1]["checkpoint"], rows[1]["worker"]) == ("/best", "w")


def test_checkpoints_are_described_where_their_files_are(storage: Storage, tmp_path: Path) -> None:
    scene = Scene(storage)
    study_id = scene.study("first")
    here = tmp_path / "first-1"
    checkpoint_files.add(here / "0" / "best", Content(7, {"a": np.zeros(3)}, {"best": {"epoch": 2}}), 1)
    checkpoint_files.add(here / "1" / "best", Content(7, {"a": np.zeros(3)}, {"best": None}), 1)
    head = here / "1" / "best" / "1" / "record.json"
    head.write_text(head.read_text().replace('"step": 7', '"step": []').replace('"files"', '"file"'))
    places = {0: here / "0", 1: here / "1", 2: here / "2", 3: tmp_path / "elsewhere" / "3"}  # 2 has been surpassed
    for number, place in places.items():
        trial_id = scene.trial("first", float(number))
        about = {"outcome": "complete", "ended_at_s": scene.now_s, "checkpoint": str(place / "best")}
        scene.add(records, trial_id=trial_id, study_id=study_id, **about)
        scene.add(reports, trial_id=trial_id, epoch=1, step=1, metrics=json.dumps({"value": "nan", "other": 1.0}))
    files = [path for path in (here / "0" / "best" / "1" / "arrays").rglob("*") if path.is_file()]

    found = _group(storage, StudyRow(study_id, "first", ("minimize",), {}), Descriptions())

    assert {row["trial"]: row["about"] for row in found["rows"]} == {
        0: {"step": 7, "epoch": 2, "size_bytes": sum(path.stat().st_size for path in files), "files": len(files)},
        3: None,
    }, "of a torn one nothing is told either"
    assert math.isnan(found["rows"][0]["curve"][0])
    files[0].unlink()
    assert [
        row["trial"] for row in _group(storage, StudyRow(study_id, "first", ("minimize",), {}), Descriptions())["rows"]
    ] == [3]


def test_a_storage_without_anything_tells_nothing(storage: Storage) -> None:
    assert read_workers(storage.engine, None) == []
    assert read_compiling(storage.engine, None) == []
    assert read_failures(storage.engine, None) == []
    assert read_checkpoints(storage.engine, 1) == []
