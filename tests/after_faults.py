"""What must hold after any fault: the budget exact, nothing lost, doubled or torn, nobody left behind."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tuner.results.json_rows import TrialJson
from tuner.results.rows import trial_rows
from tuner.storage import connect
from tuner.storage.artifacts import RECORD
from tuner.storage.sql.tables import attempts, leases, records, reports, trial_intermediate_values, trials
from tuner.training.saved.checkpoints import read
from tuner.trial import Outcome
from tuner.worker.trainables import saves
from tuner.worker.trainables.saves import load_state

UNFINISHED = {"died", "failed", "preempted"}
"""How attempts end that are not the last of their trial."""


def processes_of(url: str) -> list[int]:
    """Return the processes that were started with a storage's URL and still run, whoever is their parent now."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            environment = (folder / "environ").read_bytes()  # of a zombie it is empty
        except OSError:
            continue
        if f"TUNER_STORAGE={url}".encode() in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


def table(
    url: str, *columns: sa.Column[Any], by: tuple[sa.Column[Any], ...] = (), source: sa.FromClause | None = None
) -> list[Any]:
    """Return columns of one of the tables, or of tables that are joined."""
    query = sa.select(*columns).order_by(*by)
    engine = connect(url)
    try:
        with engine.connect() as connection:
            return list(connection.execute(query if source is None else query.select_from(source)).all())
    finally:
        engine.dispose()


def attempts_of(url: str) -> dict[int, list[Any]]:
    """Return the attempts of each trial by number, in their order: fence, worker, start, end, ending, error."""
    c = attempts.c
    # One query: others may add trials meanwhile.
    joined = trials.join(attempts, c.trial_id == trials.c.trial_id)
    columns = (trials.c.number, c.fence, c.worker, c.started_at_s, c.ended_at_s, c.ending, c.error)
    found: dict[int, list[Any]] = {}
    for row in table(url, *columns, by=(trials.c.number, c.fence), source=joined):
        found.setdefault(row.number, []).append(row)
    return found


def endings_of(url: str) -> dict[int, list[str | None]]:
    """Return how the attempts of each trial ended, by its number; None of one that goes on."""
    return {number: [row.ending for row in rows] for number, rows in attempts_of(url).items()}


def results(url: str) -> dict[int, tuple[Any, ...]]:
    """Return what a complete trial came to, by its number: to be the same, bit for bit, with a fault and without."""
    numbers = dict(table(url, trials.c.trial_id, trials.c.number))
    curves: dict[int, list[Any]] = {number: [] for number in numbers.values()}
    c = reports.c
    for trial_id, *point in table(url, c.trial_id, c.epoch, c.step, c.metrics, by=(c.trial_id, c.epoch)):
        curves[numbers[trial_id]].append(tuple(point))
    return {
        row["number"]: (row["hparams"], row["value"], curves[row["number"]])
        for row in _rows(url)
        if row["outcome"] == Outcome.COMPLETE
    }


def _rows(url: str) -> list[TrialJson]:
    engine = connect(url)
    try:
        return trial_rows(engine, "tiny")
    finally:
        engine.dispose()


def check_study_after_faults(
    url: str,
    artifacts: Path,
    budget: int,
    *,
    epochs: int = 3,
    failed: int = 0,
    keeps_best: int = 3,
    left_behind: int = 0,
) -> None:
    """Check a study whose budget is spent.

    Args:
        url: The storage's URL; it has this study only.
        artifacts: The folder for checkpoints.
        budget: How many trials must have used the budget.
        epochs: How many a complete trial has.
        failed: How many trials must have failed.
        keeps_best: How many of the best must have their checkpoint; 0 if the disk lost some.
        left_behind: How many trials may still have checkpoints to resume from: a worker died after it had told.
    """
    assert processes_of(url) == [], "nobody is left behind"
    rows = _rows(url)
    outcomes = Counter(Outcome(row["outcome"]) for row in rows)
    assert sum(count for outcome, count in outcomes.items() if outcome.uses_budget) == budget, outcomes
    assert outcomes[Outcome.FAILED] == failed, outcomes
    assert [row["number"] for row in rows] == list(range(budget + failed))
    assert table(url, leases.c.trial_id, leases.c.worker) == []
    _check_reports(url, {row["number"] for row in rows if row["outcome"] == Outcome.COMPLETE}, epochs)
    _check_attempts(url, {row["number"]: row["outcome"] for row in rows})
    _check_checkpoints(url, artifacts, rows, keeps_best, left_behind)


def _check_reports(url: str, complete: set[int], epochs: int) -> None:
    numbers = dict(table(url, trials.c.trial_id, trials.c.number))
    told = Counter((numbers[trial_id], epoch) for trial_id, epoch in table(url, reports.c.trial_id, reports.c.epoch))
    steps = trial_intermediate_values.c
    told_optuna = Counter((numbers[trial_id], step) for trial_id, step in table(url, steps.trial_id, steps.step))
    assert told == told_optuna
    assert set(told.values()) == {1}, "no epoch is doubled"
    found = {number: sorted(epoch for of, epoch in told if of == number) for number in complete}
    assert found == {number: list(range(1, epochs + 1)) for number in complete}, "no epoch is missing"


def _check_attempts(url: str, outcomes: dict[int, str]) -> None:
    recorded = table(url, records.c.trial_id, records.c.outcome)
    assert len(recorded) == len(outcomes), "each trial has one end"
    found = attempts_of(url)
    assert found.keys() == outcomes.keys()
    for number, tries in found.items():
        assert all(row.ended_at_s is not None for row in tries), f"an attempt of trial {number} goes on"
        assert [row.fence for row in tries] == list(range(1, len(tries) + 1))
        *before, last = [row.ending for row in tries]
        assert set(before) <= UNFINISHED
        assert last == outcomes[number] or (last == "died" and outcomes[number] == Outcome.FAILED)
        for earlier, later in itertools.pairwise(tries):
            assert later.started_at_s >= earlier.ended_at_s - 0.01, f"two workers had trial {number} at once"


def _check_checkpoints(url: str, artifacts: Path, rows: list[TrialJson], keeps_best: int, left_behind: int) -> None:
    for record in artifacts.rglob(RECORD):
        _saved_record(record.parent)  # raises if it is torn
    assert list(artifacts.rglob(".tmp-*")) == [], "nothing half written is left"
    assert len(list(artifacts.glob("*/*/latest"))) <= left_behind
    complete: list[Any] = [row for row in rows if row["outcome"] == Outcome.COMPLETE]
    paths = dict(table(url, records.c.trial_id, records.c.checkpoint))
    of_number = {number: paths[trial_id] for trial_id, number in table(url, trials.c.trial_id, trials.c.number)}
    for row in sorted(complete, key=lambda row: row["value"])[:keeps_best]:
        path = of_number[row["number"]]
        assert path is not None, f"trial {row['number']} is among the best"
        assert _saved_record(Path(path))["trial"] == row["number"]


def _saved_record(folder: Path) -> Any:
    """Read a trainer's checkpoint, or a training function's state; return what is saved about it."""
    record = folder / RECORD
    if record.exists() and "state" in json.loads(record.read_text()):
        load_state(folder, None)
        return saves._head(folder)
    return read(folder)[1]


def holders(url: str) -> list[str]:
    """Return the workers that have a trial; none while there are no tables."""
    try:
        return [worker for (worker,) in table(url, leases.c.worker) if worker is not None]
    except Exception:
        return []


def are_at_work(url: str, count: int = 2) -> Callable[[], bool]:
    """Return whether so many workers have a trial with three epochs, after which a trial that is held waits."""

    def check() -> bool:
        if len(holders(url)) < count:
            return False
        trials = [trial_id for (trial_id,) in table(url, reports.c.trial_id)]
        return len([one for one in set(trials) if trials.count(one) >= 3]) >= count

    return check
