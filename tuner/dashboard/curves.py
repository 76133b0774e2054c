"""The curves of several trials as JSON of a limited size: the database thins those with many reports."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import UsageError
from tuner.storage.read.curves import Curves, read_thinned
from tuner.storage.read.queries import StudyRow, TrialRow, read_by_ids, read_numbers
from tuner.storage.read.ranking import best_trials
from tuner.storage.sql.retry import read
from tuner.storage.sql.tables import trials

MOST_TRIALS = 200
"""Trials in one answer."""
MOST_POINTS = 10_000
"""Reports in one answer, but for the last one of each trial; each trial has the same part of them."""
MOST_OF_ONE = 2_000
"""Reports of one trial."""
MOST_METRICS = 24
DEFAULT_COUNT = 20
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_DIGITS = 6


class CurveJson(TypedDict):
    """The curve of a trial; `x` by name, and metrics by name, are lists of equal length with null for no number."""

    number: int
    outcome: str
    has_ended: bool
    reports: int
    """How many reports the trial has; more than there are points if it was thinned."""
    epoch: list[int]
    step: list[int | None]
    time: list[float | None]
    metrics: dict[str, list[float | None]]


class CurvesJson(TypedDict):
    """The answer of `/curves.json`."""

    study: str
    objective: str | None
    metrics: list[str]
    """The names of the metrics here: the objectives first, at most `MOST_METRICS`."""
    hidden_metrics: int
    """The number of other metrics, which are not here."""
    numbers: list[int]
    """All selected trials, also those that the client has said it knows."""
    points_each: int
    """The largest number of reports of a trial here, but for its last one."""
    is_thinned: bool
    """Whether a trial here has more reports than that."""
    trials: list[CurveJson]


@dataclass(frozen=True)
class Selection:
    """Which trials' curves are asked for.

    Attributes:
        numbers: These trials; None to choose them by `show`.
        show: `best`, `latest` or `running`.
        count: The maximum number of trials.
    """

    numbers: Sequence[int] | None = None
    show: str = "best"
    count: int = DEFAULT_COUNT


def parse_selection(words: Mapping[str, str | None]) -> Selection:
    """Return the selection in a query: `trials` as in `1,4,7-9`, or `show` and `count`.

    Raises:
        UsageError: A text is not valid; or these are more than `MOST_TRIALS` trials.
    """
    show, count = words.get("show") or "best", words.get("count") or str(DEFAULT_COUNT)
    if show not in ("best", "latest", "running"):
        raise UsageError(f"show must be best, latest or running: got {show[:60]!r}")
    if not (count.isascii() and count.isdecimal() and len(count) < 10 and 1 <= int(count) <= MOST_TRIALS):
        raise UsageError(f"count must be an integer from 1 to {MOST_TRIALS}: got {count[:60]!r}")
    text = words.get("trials")
    return Selection(None if text is None else parse_numbers(text), show, int(count))


def parse_numbers(text: str) -> list[int]:
    """Return trial numbers as in `1,4,7-9`.

    Raises:
        UsageError: The text is not valid, or names more than `MOST_TRIALS` trials.
    """
    numbers: dict[int, None] = {}
    for part in filter(None, re.split(r"[,\s]+", text.strip())):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise UsageError(f"trials must be numbers such as 1, 4, 7-9: got {part[:60]!r}")
        first, last = int(found[1]), int(found[2] or found[1])
        if last - first >= MOST_TRIALS:
            raise UsageError(f"at most {MOST_TRIALS} trials are shown at once: got {part}")
        numbers |= dict.fromkeys(range(first, last + 1))
    if not 1 <= len(numbers) <= MOST_TRIALS:
        raise UsageError(f"trials must name 1 to {MOST_TRIALS} trials: got {len(numbers)}")
    return list(numbers)


def read_curves_json(engine: Engine, study: StudyRow, asked: Selection, known: Collection[int]) -> CurvesJson:
    """Return the curves of the selected trials.

    Each trial has at most `MOST_POINTS` divided by the number of trials, and at most `MOST_OF_ONE`, of its reports, at
    equal distances; and its last one.

    Args:
        engine: The storage's engine.
        study: The study.
        asked: The trials.
        known: Numbers of trials whose curves are not needed, if they have ended: the client has them.
    """
    rows = _selected(engine, study, asked)
    each = max(1, min(MOST_OF_ONE, MOST_POINTS // max(1, len(rows))))
    missing = [row for row in rows if row.completed is None or row.number not in known]
    found = read_thinned(engine, [row.trial_id for row in missing], each)
    names = dict.fromkeys([*study.objectives, *_names(found)] if study.named_objectives else _names(found))
    reported = set(_names(found))
    metrics = [name for name in names if name in reported]
    shown = metrics[:MOST_METRICS]
    return {
        "study": study.name,
        "objective": next(iter(study.named_objectives), None),
        "metrics": shown,
        "hidden_metrics": len(metrics) - len(shown),
        "numbers": [row.number for row in rows],
        "points_each": each,
        "is_thinned": any(curves.total > each for curves in found.values()),
        "trials": [_curve(row, found.get(row.trial_id, Curves(0)), shown) for row in missing],
    }


def _names(found: Mapping[int, Curves]) -> list[str]:
    names: dict[str, None] = {}
    for curves in found.values():
        for metrics in (curves.metrics[0], curves.metrics[-1]):  # trials report the same in each epoch
            names |= dict.fromkeys(metrics)
    return list(names)


def _curve(row: TrialRow, curves: Curves, metrics: Sequence[str]) -> CurveJson:
    return {
        "number": row.number,
        "outcome": row.outcome.value,
        "has_ended": row.completed is not None,
        "reports": curves.total,
        "epoch": curves.epochs,
        "step": curves.steps,
        "time": [None if time is None else round(time, 3) for time in curves.times],
        "metrics": {name: [_rounded(one.get(name)) for one in curves.metrics] for name in metrics},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")


def _selected(engine: Engine, study: StudyRow, asked: Selection) -> list[TrialRow]:
    if asked.numbers is not None:
        found = {row.number: row for row in read_numbers(engine, study, asked.numbers)}
        return [found[number] for number in asked.numbers if number in found]

    def work(connection: Connection) -> list[int]:
        if asked.show == "best":
            maximize = study.maximize[0]
            best = best_trials(connection, study.study_id, maximize=maximize, limit=asked.count)
            return [one.trial_id for one in best]
        query = sa.select(trials.c.trial_id).where(trials.c.study_id == study.study_id)
        states = ["RUNNING"] if asked.show == "running" else ["RUNNING", "COMPLETE", "PRUNED", "FAIL"]
        query = query.where(trials.c.state.in_(states)).order_by(trials.c.number.desc()).limit(asked.count)
        return list(connection.execute(query).scalars())

    return read_by_ids(engine, study, read(engine, work))
