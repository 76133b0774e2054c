"""The trials that a sampler sees of a large study: the best, those that run, and a sample of the rest.

The time of a suggestion by TPE grows with the number of trials, and soon takes longer than a short training. TPE splits
trials into the best few and the rest, so a sample of the rest says nearly as much. Every worker sees the same sample,
because a hash of a trial's number decides. Below twice `SAMPLE` ended trials a sampler sees all of them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from tuner.storage.optuna.fronts import Ended, Fronts, split, violation_of
from tuner.storage.optuna.loading import Loaded, load_trials
from tuner.storage.read.ranking import is_feasible, read_constraints
from tuner.storage.sql.encoding import loaded_number
from tuner.storage.sql.tables import trial_intermediate_values, trial_values, trials
from tuner.trial import optuna_private as private

if TYPE_CHECKING:
    import datetime

SAMPLE = 500
"""The least number of trials in the sample of a large study; it has at most twice as many.

There is a window once twice as many trials have ended.
"""
BEST = 25
"""The number of best trials that are always seen: as many as TPE takes. More would be too many among the others."""
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_HASH, _RANGE = 2654435761, 2**32  # multiplicative hashing, Knuth, The Art of Computer Programming, volume 3, 6.4

_MOST_HALVED = 64

Rank = tuple[int, float, float, int]


class Best(NamedTuple):
    """The numbers of the best trials.

    Attributes:
        seen: Those that a sampler sees whatever their numbers are.
        known: Those that this process must know to find them again after more trials.
    """

    seen: set[int]
    known: set[int]


def best_of_several() -> int:
    """Return the number of best trials that are always seen with several objectives.

    TPE takes a tenth of all that it sees as its best. A sampler sees up to twice `SAMPLE` trials and these.
    """
    return SAMPLE // 4


def level(ended: int) -> int:
    """Return how often the sample has been halved, so that it has between `SAMPLE` trials and twice as many."""
    return max(0, int(math.log2(max(ended, 1) / SAMPLE))) if ended >= SAMPLE else 0


def is_sampled(number: int, level: int) -> bool:
    """Return whether a trial is in a sample of one in 2**level trials; each sample contains the next smaller one."""
    return (number * _HASH) % _RANGE < _RANGE >> level


def rank(state: str, number: int, value: float | None, step: int | None, *, maximize: bool) -> Rank | None:
    """Return the place of an ended trial as TPE orders them: complete ones by value, pruned ones by how long they ran.

    Args:
        state: The name of its state.
        number: Its number.
        value: Its value, or the last one reported if it was pruned.
        step: The step of that report.
        maximize: Whether larger values are better.

    Returns:
        The place; the least is the best. None for a trial that is not ordered.
    """
    if value is None or (state == "PRUNED" and step is None):
        return None
    cost = math.inf if math.isnan(value) else -value if maximize else value
    return (0, 0.0, cost, number) if state == "COMPLETE" else (1, -float(step or 0), cost, number)


@dataclass
class Window:
    """The trials that a sampler sees, as far as this process has read them.

    Attributes:
        maximize: Whether larger values are better, for each objective.
        name: The study's name; None before the first load.
        version: The version of its space.
        trials: Those that are known, by number.
        seen: Those that a sampler sees, by number.
        unfinished: Ids of trials that may change.
        newest: The greatest id that was read.
        ended: The number of complete and pruned trials of the study.
        depth: With several objectives: the rank up to which all trials are known; see `fronts.split`.
        is_short: Whether trials that are not known might be among the best, so that all must be read again.
    """

    maximize: Sequence[bool]
    name: str | None = None
    version: str | None = None
    trials: list[FrozenTrial] = field(default_factory=list[FrozenTrial])
    seen: list[FrozenTrial] = field(default_factory=list[FrozenTrial])
    unfinished: set[int] = field(default_factory=set[int])
    newest: int = -1
    ended: int = 0
    depth: float = math.inf
    is_short: bool = False
    _order: list[tuple[Rank, int]] = field(default_factory=list["tuple[Rank, int]"])
    """The best trials with one objective, best first."""
    _shrunk_at: int = -1
    _best: Best = field(default_factory=lambda: Best(set(), set()))

    def add(self, changed: Iterable[FrozenTrial]) -> None:
        """Add trials that are new or have changed, each ended one only once."""
        for trial in changed:
            trial_id = private.trial_id(trial)
            self.newest = max(self.newest, trial_id)
            self.ended += trial.state in _ENDED
            if trial.state.is_finished():
                self.unfinished.discard(trial_id)
            else:
                self.unfinished.add(trial_id)
            at = bisect_left(self.trials, trial.number, key=attrgetter("number"))
            is_known = at < len(self.trials) and self.trials[at].number == trial.number
            self.trials[at : at + is_known] = [trial]
            place = self._rank(trial)
            if place is not None:
                insort(self._order, (place, trial.number))
        del self._order[BEST:]

    def shrink(self) -> None:
        """Forget what need not be known, and set what a sampler sees."""
        halved = level(self.ended)
        if not halved:
            self.seen = self.trials
            return
        if self._shrunk_at != self.ended:  # a trial has ended since
            self._best, self._shrunk_at = self._find_best(), self.ended
            self.trials = [trial for trial in self.trials if _is_kept(trial, self._best.known, halved)]
        self.seen = self.trials
        if len(self._best.known) > len(self._best.seen):
            self.seen = [trial for trial in self.trials if _is_kept(trial, self._best.seen, halved)]

    def _find_best(self) -> Best:
        if len(self.maximize) > 1:
            return self._find_fronts()
        best = {number for _, number in self._order}
        return Best(best, best)

    def _find_fronts(self) -> Best:
        ended = [
            Ended(
                trial.number,
                private.values(trial) if trial.state is TrialState.COMPLETE else None,
                violation_of(trial.constraints.values()),
            )
            for trial in self.trials
            if trial.state in _ENDED
        ]
        found = split(ended, self.maximize, best_of_several(), self.depth)
        self.depth, self.is_short = found.depth, found.is_short
        return Best(_without_most(found), found.known)

    def _rank(self, trial: FrozenTrial) -> Rank | None:
        if len(self.maximize) > 1 or trial.state not in _ENDED or not is_feasible(trial.constraints):
            return None
        step = trial.last_step
        value = trial.values[0] if trial.state is TrialState.COMPLETE else trial.intermediate_values.get(step or 0)
        return rank(trial.state.name, trial.number, value, step, maximize=self.maximize[0])


def _is_kept(trial: FrozenTrial, best: Container[int], halved: int) -> bool:
    return not trial.state.is_finished() or trial.number in best or is_sampled(trial.number, halved)


def _without_most(found: Fronts) -> set[int]:
    """Return the best trials; a sample of the last rank if it makes them more than `SAMPLE`."""
    halved, best = 0, found.best
    while found.last and len(best) > SAMPLE and halved < _MOST_HALVED:
        halved += 1
        best = {number for number in best if number not in found.last or is_sampled(number, halved)}
    return best


def load_window(connection: Connection, window: Window, study_id: int, zone: datetime.tzinfo | None) -> Loaded | None:
    """Read the window of a study that has ended trials; sets `newest` and `ended` of the window.

    Trials outside are not read, except for their ids, numbers, values and constraints.

    Returns:
        What was read; None if there is no such study.
    """
    columns = (trials.c.trial_id, trials.c.number, trials.c.state)
    rows = connection.execute(sa.select(*columns).where(trials.c.study_id == study_id)).all()
    ended = [row for row in rows if row.state in ("COMPLETE", "PRUNED")]
    halved = level(len(ended))
    if not halved:
        return load_trials(connection, study_id, -1, zone=zone)
    best = (_best if len(window.maximize) == 1 else _fronts)(connection, study_id, ended, window)
    wanted = [
        row.trial_id
        for row in rows
        if row.state in ("RUNNING", "WAITING") or row.trial_id in best or is_sampled(row.number, halved)
    ]
    newest = max(row.trial_id for row in rows)
    found = load_trials(connection, study_id, newest, wanted, zone=zone)
    # The trials that are read now are counted when they are added.
    unseen = {row.trial_id for row in ended} - set(wanted)
    window.newest, window.ended = newest, len(unseen)
    return found


def _values(connection: Connection, study_id: int) -> dict[int, list[float]]:
    """Return the objectives of the complete trials, by id."""
    columns = (trial_values.c.trial_id, trial_values.c.value, trial_values.c.value_type)
    query = sa.select(*columns).join(trials, trials.c.trial_id == trial_values.c.trial_id)
    query = query.where(trials.c.study_id == study_id, trials.c.state == "COMPLETE")
    found: dict[int, list[float]] = {}
    for trial_id, value, kind in connection.execute(query.order_by(trial_values.c.trial_id, trial_values.c.objective)):
        found.setdefault(trial_id, []).append(loaded_number(value, kind))
    return found


def _fronts(connection: Connection, study_id: int, ended: Collection[Any], window: Window) -> set[int]:
    """Return the ids of the best trials with several objectives; sets `depth` of the window."""
    values = _values(connection, study_id)
    constraints = read_constraints(connection, [row.trial_id for row in ended])
    several = [
        Ended(row.number, values.get(row.trial_id), violation_of(constraints.get(row.trial_id, {}).values()))
        for row in sorted(ended, key=attrgetter("number"))
    ]
    found = split(several, window.maximize, best_of_several())
    window.depth = found.depth
    return {row.trial_id for row in ended if row.number in found.known}


def _best(connection: Connection, study_id: int, ended: Collection[Any], window: Window) -> set[int]:
    """Return the ids of the best trials; trials that violate a constraint are not among them."""
    maximize, values = window.maximize[0], _values(connection, study_id)
    complete = {
        row.trial_id: rank("COMPLETE", row.number, values[row.trial_id][0], None, maximize=maximize)
        for row in ended
        if row.trial_id in values
    }
    best = _feasible(connection, complete, BEST)
    if len(best) < BEST:
        numbers = {row.trial_id: row.number for row in ended if row.state == "PRUNED"}
        pruned = {
            trial_id: rank("PRUNED", numbers[trial_id], value, step, maximize=maximize)
            for trial_id, step, value in _last_reports(connection, study_id)
            if trial_id in numbers
        }
        best |= _feasible(connection, pruned, BEST - len(best))
    return best


def _feasible(connection: Connection, ranks: Mapping[int, Rank | None], count: int) -> set[int]:
    """Return the first trials, at most so many, that violate no constraint."""
    found: list[int] = []
    order = sorted((place, trial_id) for trial_id, place in ranks.items() if place is not None)
    for start in range(0, len(order), 2 * BEST):
        part = [trial_id for _, trial_id in order[start : start + 2 * BEST]]
        constraints = read_constraints(connection, part)
        found += [trial_id for trial_id in part if is_feasible(constraints.get(trial_id, {}))]
        if len(found) >= count:
            break
    return set(found[:count])


def _last_reports(connection: Connection, study_id: int) -> list[tuple[int, int, float]]:
    """Return the last report of each pruned trial: its id, the step and the value."""
    reports = trial_intermediate_values.c
    last = (
        sa.select(reports.trial_id, sa.func.max(reports.step).label("step"))
        .join(trials, trials.c.trial_id == reports.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "PRUNED")
        .group_by(reports.trial_id)
        .subquery()
    )
    query = sa.select(reports.trial_id, reports.step, reports.intermediate_value, reports.intermediate_value_type)
    query = query.join(last, (last.c.trial_id == reports.trial_id) & (last.c.step == reports.step))
    return [(trial_id, step, loaded_number(value, kind)) for trial_id, step, value, kind in connection.execute(query)]
