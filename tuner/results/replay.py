"""Replays pruners on the recorded curves of a study: what each would have stopped, saved and lost."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import optuna
from sqlalchemy import Engine

from tuner.errors import UsageError
from tuner.output.numbers import plain
from tuner.results.compare import typical_epoch_s
from tuner.results.json_rows import ReplayJson, SpreadJson
from tuner.results.simulation import Curve, Setting, simulate
from tuner.search import make_pruner
from tuner.search.population import PopulationPruner
from tuner.storage.read.lineage import Effort, read_efforts
from tuner.storage.read.population import read_copies
from tuner.storage.read.queries import StudyRow, TrialRow, find_baseline, find_study, read_trials
from tuner.study.launch_record import value_epoch_of
from tuner.trial import Outcome

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

    from tuner.search.options import Named

SEED = 0
"""The seed of the orders: the same for all pruners and all studies."""
_LOW, _HIGH = 0.025, 0.975
_NOT_ENDED = (Outcome.RUNNING, Outcome.WAITING, Outcome.PREEMPTED)


@dataclass(frozen=True)
class _Recorded:
    """The curves of a study, as far as they are known, and the study in which they are simulated.

    Attributes:
        curves: The trials that have ended, by number.
        censored: Numbers of those that were pruned, whose curves are not known to their end.
        best: The best value of a trial that satisfies its constraints.
        epochs: The study's epochs; None if it does not say.
        has_times: Whether it is known how long an epoch takes.
        setting: The study.
        value: The epoch whose objective is the value of a trial.
    """

    curves: tuple[Curve, ...]
    censored: frozenset[int]
    best: float
    epochs: int | None
    has_times: bool
    setting: Setting
    value: Literal["last", "best"]


@dataclass(frozen=True)
class _Result:
    """The result of one pruner for one order; `regret` is a range if kept trials have unknown values."""

    stopped: int
    epochs: int
    hours: float
    regret: tuple[float, float]


def replay_rows(
    engine: Engine, name: str, pruners: Sequence[Named | BasePruner], *, orders: int = 20, workers: int = 4
) -> tuple[list[ReplayJson], list[str]]:
    """Return for each pruner what it would have stopped, saved and lost in a study, and texts about that.

    The study's trials arrive in random orders, the same for all pruners, and the pruner itself decides on their
    recorded curves. If no trial was pruned when the study ran, rows are ordered by regret. Otherwise a row has only
    bounds: in one case all pruned trials continue with the worst value that was reported in the study, in the other
    with the best.

    Args:
        engine: The storage's engine.
        name: The study.
        pruners: Each as for `Study(pruner=...)`.
        orders: The number of orders; > 0.
        workers: The number of trials that run at once; > 0.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: the study cannot be pruned or has no curves or no complete trial, or a number is too small.
        StudyError: a pruner's name or an option is unknown.
    """
    for option, number in (("orders", orders), ("workers", workers)):
        if number < 1:
            raise UsageError(f"`{option}` must be at least 1: got {number}")
    if not pruners:
        raise UsageError("pass at least one pruner to replay, such as asha")
    recorded = _read(engine, find_study(engine, name), workers)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shuffled = _orders(len(recorded.curves), orders)
    rows = [_row(recorded, pruner, shuffled) for pruner in pruners]
    if not recorded.censored:
        rows.sort(key=lambda row: (float(row["regret"]["mean"] or 0.0), -float(row["epochs_saved"]["mean"] or 0.0)))
    return rows, _notes(recorded, orders)


# --- What was recorded


def _read(engine: Engine, study: StudyRow, workers: int) -> _Recorded:
    if len(study.directions) > 1:
        raise UsageError(f"a replay needs a study with one objective: {study.name!r} has {len(study.directions)}")
    if read_copies(engine, study.study_id):
        raise UsageError(
            f"a replay needs trials that did not copy each other: those of study {study.name!r} did (pruner pbt)"
        )
    trials = [trial for trial in read_trials(engine, study, with_reports=True) if trial.outcome not in _NOT_ENDED]
    if not any(trial.reports for trial in trials):
        raise UsageError(f"a replay needs trials that have reported epochs: study {study.name!r} has none that ended")
    efforts = {effort.number: effort for effort in read_efforts(engine, study.study_id)}
    typical_s = typical_epoch_s(efforts.values())
    curves = tuple(_curve(trial, efforts.get(trial.number), typical_s) for trial in trials)
    values = [curve.value for curve in curves if curve.value is not None]
    if not values:
        raise UsageError(
            f"a replay needs a complete trial that satisfies the study's constraints: study {study.name!r} has none"
        )
    epochs, baseline = study.record.get("epochs"), find_baseline(engine, study)
    is_objective = study.record.get("train", "trainer" if study.record else "objective") == "objective"
    setting = Setting(
        study.name, study.maximize[0], workers, None if is_objective else epochs, () if baseline is None else {baseline}
    )
    censored = frozenset(trial.number for trial in trials if trial.outcome is Outcome.PRUNED)
    best = max(values) if study.maximize[0] else min(values)
    return _Recorded(curves, censored, best, epochs, typical_s is not None, setting, value_epoch_of(study.record))


def _curve(trial: TrialRow, effort: Effort | None, typical_s: float | None) -> Curve:
    own_s = 0.0 if effort is None else effort.epoch_device_s
    epoch_s = own_s or typical_s or 1.0
    before_s = 0.0 if effort is None or not own_s else max(0.0, effort.device_s - effort.epochs * own_s)
    is_known = trial.values is not None and trial.is_feasible is not False and math.isfinite(trial.values[0])
    value = trial.values[0] if trial.values is not None and is_known else None
    return Curve(trial.number, tuple(trial.reports.items()), trial.outcome, value, before_s, epoch_s)


# --- The orders and what comes of them


def _orders(count: int, orders: int) -> list[list[int]]:
    """Return random orders of `count` trials."""
    chance = random.Random(SEED)
    return [chance.sample(range(count), count) for _ in range(orders)]


def _row(recorded: _Recorded, given: Named | BasePruner, orders: Sequence[Sequence[int]]) -> ReplayJson:
    if isinstance(given, Mapping) and not {"metric", "mode"}.isdisjoint(given):
        raise UsageError(f"a replay has only the curves of the objective: remove metric and mode from {dict(given)}")
    if isinstance(make_pruner(given, recorded.epochs, recorded.value), PopulationPruner):
        raise UsageError(
            "the pruner 'pbt' cannot be replayed: it changes the curves of trials instead of stopping them"
        )
    cases = [recorded.curves] if not recorded.censored else [_continued(recorded, good) for good in (False, True)]
    found = [[_result(recorded, case, order, given) for case in cases] for order in orders]
    is_certain = len(cases) == 1
    hours = _spread([[one.hours for one in several] for several in found], is_certain)
    return {
        "pruner": _label(given),
        "trials": len(recorded.curves),
        "censored": len(recorded.censored),
        "orders": len(orders),
        "workers": recorded.setting.workers,
        "stopped": _spread([[one.stopped for one in several] for several in found], is_certain),
        "epochs": sum(curve.last_epoch for curve in cases[0]),
        "epochs_saved": _spread([[one.epochs for one in several] for several in found], is_certain),
        "hours": round(_hours(cases[0]), 6) if recorded.has_times else None,
        "hours_saved": hours if recorded.has_times else None,
        "best": plain(recorded.best),
        "regret": _spread([[end for one in several for end in one.regret] for several in found], is_certain),
    }


def _result(recorded: _Recorded, case: Sequence[Curve], order: Sequence[int], given: Named | BasePruner) -> _Result:
    pruner = copy.deepcopy(make_pruner(given, recorded.epochs, recorded.value))  # an object keeps what it has inferred
    curves = [case[at] for at in order]
    stopped = simulate(curves, pruner, recorded.setting)
    left = [(curve, curve.last_epoch - stopped[curve.number]) for curve in curves if curve.number in stopped]
    kept = [curve for curve in curves if curve.number not in stopped]
    return _Result(
        len(stopped),
        sum(epochs for _, epochs in left),
        math.fsum(epochs * curve.epoch_s for curve, epochs in left) / 3600,
        _regret(recorded, kept),
    )


def _regret(recorded: _Recorded, kept: Sequence[Curve]) -> tuple[float, float]:
    """Return the least and the greatest regret of the best of some trials: infinite if none has a value.

    A censored trial may be as good as the best one, or have no value that counts.
    """
    values = [curve.value for curve in kept if curve.value is not None]
    best = (max if recorded.setting.maximize else min)(values, default=None)
    known = math.inf if best is None else abs(recorded.best - best)
    is_open = any(curve.number in recorded.censored for curve in kept)
    return 0.0 if is_open else known, known


def _continued(recorded: _Recorded, good: bool) -> tuple[Curve, ...]:
    """Return the curves, of which the censored ones continue with the best or the worst value of the study."""
    values = [value for curve in recorded.curves for _, value in curve.reports if math.isfinite(value)]
    value = max(values) if good == recorded.setting.maximize else min(values)
    epochs = sorted({epoch for curve in recorded.curves for epoch, _ in curve.reports})

    def continued(curve: Curve) -> Curve:
        if curve.number not in recorded.censored:
            return curve
        rest = tuple((epoch, value) for epoch in epochs if epoch > curve.last_epoch)
        return dataclasses.replace(curve, reports=curve.reports + rest, outcome=Outcome.COMPLETE)

    return tuple(map(continued, recorded.curves))


def _hours(curves: Sequence[Curve]) -> float:
    return math.fsum(curve.before_s + curve.last_epoch * curve.epoch_s for curve in curves) / 3600


# --- How it is told


def _spread(found: Sequence[Sequence[float]], is_certain: bool) -> SpreadJson:
    """Return mean and 95 % interval over the orders; of several cases only the interval, from the extreme cases."""
    lows, highs = sorted(map(min, found)), sorted(map(max, found))
    return {
        "mean": plain(round(statistics.fmean(lows), 6)) if is_certain else None,
        "low": plain(round(percentile(lows, _LOW), 6)),
        "high": plain(round(percentile(highs, _HIGH), 6)),
    }


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed; it may be infinite."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def _label(given: Named | BasePruner) -> str:
    if isinstance(given, str):
        return given
    return json.dumps(given) if isinstance(given, dict) else type(given).__name__


def _notes(recorded: _Recorded, orders: int) -> list[str]:
    count, censored, workers = len(recorded.curves), len(recorded.censored), recorded.setting.workers
    name = recorded.setting.name
    over = f"over {orders} random orders of arrival (seed {SEED})"
    notes = [f"{count} trials of {name!r}, {workers} at once, {over}"]
    if not censored:
        return [f"{notes[0]}: mean [2.5 %, 97.5 % of the orders]"]
    return [
        f"{notes[0]}: [2.5 % of the orders in the lower case, 97.5 % in the higher]",
        f"{censored} of {count} trials ({censored / count:.0%}) were pruned when the study ran, so their curves are "
        "not known to the end: in one case they continue with the worst value of the study, in the other with the "
        "best; to rank pruners, replay a study that ran with pruner='none'",
    ]


def flat_row(row: ReplayJson) -> dict[str, Any]:
    """Return a row without nested values: `stopped.mean`, `stopped.low`, `stopped.high` and so on."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        spread: Any = value
        flat |= {f"{name}.{end}": spread[end] for end in spread} if isinstance(value, dict) else {name: value}
    return flat
