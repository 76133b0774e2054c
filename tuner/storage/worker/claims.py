"""Claims trials: exactly as many as the budget allows, for any number of workers.

The study's row is the lock under which trials are claimed.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.errors import StudyChanged, UnknownStudy
from tuner.storage.read.budget import effective_trials
from tuner.storage.read.hours import Hours, count_hours
from tuner.storage.sql import statements
from tuner.storage.sql.dialect import clock, greatest, ids_value, utc_now
from tuner.storage.sql.lease_clock import lease_clock, rebase
from tuner.storage.sql.prepared_statements import run
from tuner.storage.sql.retry import is_recovering, read, write, write_once
from tuner.storage.sql.tables import attempts, budgets, leases, trials, workers
from tuner.storage.worker.fences import Lease, Write, insertion, run_with, run_write
from tuner.storage.worker.leases import DIED, endings
from tuner.storage.worker.preference import Preference, params_of, queued_params
from tuner.trial import DEADLY, Outcome
from tuner.trial.failures import reason_to_stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.storage.sql.row_types import AnyRow

MAX_DEATHS = 3
"""The number of workers that may die in a trial, without it getting further, before it fails.

A fourth would probably die as well.
"""
_SETTLE_AFTER = 200
_MOST_OPEN = 200


class NoTrial(enum.Enum):
    """Why there is nothing to claim."""

    WAIT = "the rest of the budget is running elsewhere; a trial may still be returned"
    DONE = "the budget is used up"
    HOURS = "the hours of the budget are used up"
    STOPPED = "the study was stopped"
    FAILING = "the latest trials failed"


@dataclass(frozen=True)
class Settled:
    """Ended trials up to an id, which a worker need not count again.

    Attributes:
        up_to: The id.
        total: The number of ended trials.
        used: The number of them that count against the budget.
        still_open: The other trials up to the id. A killed plain Optuna process leaves its trial open for ever.
    """

    up_to: int = -1
    total: int = 0
    used: int = 0
    still_open: tuple[int, ...] = ()


@dataclass
class Claimant:
    """A worker for the storage, and the limits of its claims.

    Attributes:
        study_id: The study.
        worker: The worker's name.
        trials: The requested trials: all that ended count, except failed ones.
            Running ones are expected to count, also those of plain Optuna processes.
        new_trials: A new trial is created only while fewer count or run; queued trials may start up to `trials`. None
            for no limit.
        lease_s: How long a lease lasts without a renewal, in seconds.
        wall_s: Seconds during which at least one worker may run.
        device_s: Seconds of training that may be used, multiplied by the devices of each worker.
        devices: The number of this worker's devices.
        identity: Distinguishes the study from a later one with its id.
        failures_since_s: Failures that ended before, in seconds of the database's clock, do not stop the study; None
            for no such check.
        settled: The trials that it has already counted; each claim updates it.
        space_version: The version of the study's space with which the worker works; None if it was never changed.
        preference: Which of several trials that wait it takes first.
        held: The ids of the trials that the worker has claimed and not ended or given back.
        deadly: The leases of the trials that the latest claim failed because too many workers had died in them.
        launched: The number of trials with which the claimant was made.
        asked: The number that applies instead if a user has changed it since; each claim updates it, and then `trials`.
        hours: The hours used until an earlier time; each claim updates it.
    """

    study_id: int
    worker: str
    trials: int
    lease_s: float
    wall_s: float | None = None
    device_s: float | None = None
    devices: int = 1
    identity: str | None = None
    new_trials: int | None = None
    failures_since_s: float | None = None
    space_version: str | None = None
    settled: Settled = field(default_factory=Settled)
    hours: Hours = field(default_factory=Hours)
    preference: Preference = field(default_factory=Preference)
    held: set[int] = field(default_factory=set[int])
    deadly: list[Lease] = field(default_factory=list[Lease])
    launched: int = field(init=False)
    asked: int = field(init=False)

    def __post_init__(self) -> None:
        self.launched = self.asked = self.trials


@dataclass(frozen=True)
class _Standing:
    """The state of a study at a claim; the first four are counts of trials that are not settled.

    `running` trials use budget: those that our workers hold or have lost, and those of plain Optuna processes that
    have begun lately or have a heartbeat.
    """

    total: int
    used: int
    running: int
    still_open: int
    queued: int | None
    expired: int
    now_s: float


def claim(engine: Engine, claimant: Claimant) -> Lease | NoTrial:
    """Take over a trial whose lease has ended, or start a queued one, or create the next if the budget allows it.

    Returns:
        The lease, or the reason why there is none.

    Raises:
        UnknownStudy: the study has been deleted.

    Concurrency: one transaction that locks the study's row.
    """
    claimed = claim_several(engine, claimant, 1)
    return claimed if isinstance(claimed, NoTrial) else claimed[0]


def claim_several(engine: Engine, claimant: Claimant, most: int) -> list[Lease] | NoTrial:
    """Claim trials like `claim`, in one transaction: at least one, and at most `most`.

    If several workers run, a worker claims no more than its part of the trials that are left.

    Returns:
        The leases, or the reason why there are none.

    Raises:
        UnknownStudy: the study has been deleted.
    """
    if claimant.settled.up_to < 0:
        claimant.settled = _settle_without_lock(engine, claimant)
    settled = claimant.settled

    def work(connection: Connection, tries: int) -> list[Lease] | NoTrial:
        nonlocal settled
        settled = claimant.settled  # the earlier try may not have been committed
        is_stopped = _lock_study(connection, claimant)
        if tries and (own := _own_leases(connection, claimant)):
            return own  # also if the study was stopped since: they are given back like any other
        rebase(connection)
        claimant.deadly = []
        several: list[Lease] = []
        limit = most if most == 1 else min(most, _part(connection, claimant))
        if limit < 1:
            return NoTrial.WAIT
        if is_stopped:
            return NoTrial.STOPPED
        while True:
            standing = _standing(connection, claimant)
            claimed = one(connection, standing)
            if isinstance(claimed, NoTrial) and not several:
                return claimed
            if isinstance(claimed, NoTrial):
                break
            several.append(claimed)
            if claimed.is_new and standing.queued is None:
                several += _create_more(connection, claimant, standing, limit - len(several))
            if len(several) == limit:
                break
        settled = _settle(connection, claimant, standing, max(lease.trial_id for lease in several))
        return several

    def one(connection: Connection, standing: _Standing) -> Lease | NoTrial:
        nonlocal settled
        now_s = standing.now_s
        if claimant.settled.used + standing.used >= claimant.trials:
            return NoTrial.DONE
        if _is_failing(connection, claimant):
            return NoTrial.FAILING
        if _hours_are_spent(connection, claimant, now_s):
            return NoTrial.HOURS
        if claimant.settled.used + standing.used + standing.running - standing.expired >= claimant.trials:
            settled = _settle(connection, claimant, standing, claimant.settled.up_to)
            return NoTrial.WAIT  # also for trials that were given back: the budget may have been lowered since
        if standing.expired and is_recovering(engine):
            return NoTrial.WAIT  # their workers were cut off as well, and may renew them first
        if standing.expired:
            adopted = _adopt(connection, claimant, now_s)
            if adopted is not None:
                return adopted
            # Count again: a trial may just have failed because too many workers died in it.
            standing = _standing(connection, claimant)
        if claimant.settled.used + standing.used + standing.running >= claimant.trials:
            return NoTrial.WAIT
        queued = _start_queued(connection, claimant, standing)
        if queued is None and claimant.settled.used + standing.used + standing.running >= _most_new(claimant):
            return NoTrial.WAIT  # queued trials may have started since the limit was counted
        trial_id, number = queued or _create(connection, claimant, standing)
        return Lease(trial_id, number, claimant.worker, 1, claimant.lease_s, is_new=queued is None)

    claimed = write(engine, work)
    claimant.settled = settled
    return claimed


def _create_more(connection: Connection, claimant: Claimant, standing: _Standing, most: int) -> list[Lease]:
    """Create trials after the first, without counting again: nobody else creates trials while the study is locked."""
    counted = claimant.settled.used + standing.used + standing.running + 1
    more: list[Lease] = []
    for at in range(1, 1 + min(most, min(claimant.trials, _most_new(claimant)) - counted)):
        trial_id, number = _create(connection, claimant, dataclasses.replace(standing, total=standing.total + at))
        more.append(Lease(trial_id, number, claimant.worker, 1, claimant.lease_s, is_new=True))
    return more


def _most_new(claimant: Claimant) -> int:
    return claimant.trials if claimant.new_trials is None else claimant.new_trials


def _lock_study(connection: Connection, claimant: Claimant) -> bool:
    """Lock the study's row until the end of the transaction; return whether the study is stopped."""
    row = run(connection, statements.lock_study, {"study_id": claimant.study_id}).first()
    if row is None or claimant.identity not in (None, row[0]):
        raise UnknownStudy(f"the study was deleted while it ran: id {claimant.study_id}")
    asked = effective_trials(claimant.launched, row[2])
    if asked is not None and asked != claimant.asked:
        claimant.trials = claimant.asked = asked
    return row[1] is not None


def _part(connection: Connection, claimant: Claimant) -> int:
    """Return how many trials a worker may claim so that all workers that run have the same number of the rest."""
    standing, now = _standing(connection, claimant), clock(connection.dialect.name)
    rest = claimant.trials - claimant.settled.used - standing.used
    are_alive = workers.c.ended_at_s.is_(None) & (workers.c.seen_at_s > now - 4 * claimant.lease_s)
    query = sa.select(sa.func.count()).where(workers.c.study_id == claimant.study_id, are_alive)
    part = -(-rest // max(1, connection.execute(query).scalar_one()))
    return max(part, 1) - len(claimant.held)


def _own_leases(connection: Connection, claimant: Claimant) -> list[Lease]:
    """Return the leases of a claim that was committed although its answer was lost."""
    query = (
        sa.select(leases.c.trial_id, trials.c.number, leases.c.fence)
        .select_from(leases.join(trials, trials.c.trial_id == leases.c.trial_id))
        .where(leases.c.worker == claimant.worker, trials.c.study_id == claimant.study_id)
        .where(trials.c.state == "RUNNING")  # not a trial that another tool has ended
    )
    rows = connection.execute(query.order_by(trials.c.number)).all()
    return [Lease(*row[:2], claimant.worker, row[2], claimant.lease_s) for row in rows if row[0] not in claimant.held]


def _standing(connection: Connection, claimant: Claimant) -> _Standing:
    """Count the trials that are not settled, and read the clock after waiting for the lock."""
    are_new = claimant.settled.up_to >= 0
    values = _unsettled(connection.dialect.name, claimant)
    *counts, expired, now_s, version = run(connection, statements.standing.of(are_new), values).one()
    if version != claimant.space_version:
        raise StudyChanged("the study's space was changed by `tuner migrate` while this worker ran: launch it again")
    return _Standing(*counts, expired=expired, now_s=now_s)


def _unsettled(dialect: str, claimant: Claimant) -> dict[str, Any]:
    settled = claimant.settled
    still_open = ids_value(dialect, settled.still_open)
    return {"study_id": claimant.study_id, "up_to": settled.up_to, "still_open": still_open}


def _settle(connection: Connection, claimant: Claimant, standing: _Standing, newest: int) -> Settled:
    """Return the trials that need not be counted again; updated at first and after many new trials.

    That is, after many ended trials, or many trials of other studies between the last id and the newest trial. Trials
    of a study get their ids while its row is locked, so none can appear below its newest.
    """
    settled = claimant.settled
    if settled.up_to >= 0 and max(standing.total - standing.still_open, newest - settled.up_to) < _SETTLE_AFTER:
        return settled
    dialect = connection.dialect.name
    values, is_unsettled = _unsettled(dialect, claimant), statements.is_unsettled(dialect, settled.up_to >= 0)
    of_trial, state = trials.c.trial_id, trials.c.state
    are_open = is_unsettled & state.in_(["RUNNING", "WAITING"])
    oldest = sa.select(of_trial).where(are_open).order_by(of_trial).limit(_MOST_OPEN)
    still_open = tuple(connection.execute(oldest, values).scalars())
    have_ended = is_unsettled & of_trial.not_in(still_open)  # one of these may be ending now
    if len(still_open) == _MOST_OPEN:  # many are queued
        have_ended &= of_trial <= still_open[-1]
    counts = sa.select(sa.func.max(of_trial), sa.func.count(), sa.func.count(sa.case((statements.is_used(state), 1))))
    newest, total, used = connection.execute(counts.where(have_ended), values).one()
    up_to = max(newest or -1, settled.up_to, *still_open[-1:])
    return Settled(up_to, settled.total + total, settled.used + used, still_open)


def _settle_without_lock(engine: Engine, claimant: Claimant) -> Settled:
    """Count the trials of a large study before a worker's first claim, so that other workers need not wait for it."""
    of_study, of_trial = trials.c.study_id == claimant.study_id, trials.c.trial_id
    newest = sa.select(of_trial, trials.c.number).where(of_study).order_by(of_trial.desc()).limit(1)
    found = read(engine, lambda connection: connection.execute(newest).first())
    if found is None or found[1] < _SETTLE_AFTER:
        return claimant.settled

    def locked(connection: Connection, _: int) -> int:
        # A worker that creates a trial holds the lock, so no trial can appear below the newest of now.
        _lock_study(connection, claimant)
        return connection.execute(newest).one()[0]

    def count(connection: Connection, up_to: int) -> Settled:
        is_counted = of_study & (of_trial <= up_to)
        are_open = is_counted & trials.c.state.in_(["RUNNING", "WAITING"])
        oldest = sa.select(of_trial).where(are_open).order_by(of_trial).limit(_MOST_OPEN)
        # Read first: a trial that ends meanwhile then is only counted later.
        still_open = tuple(connection.execute(oldest).scalars())
        if len(still_open) == _MOST_OPEN:
            up_to = still_open[-1]
            is_counted &= of_trial <= up_to
        used = sa.func.count(sa.case((statements.is_used(trials.c.state), 1)))
        have_ended = is_counted & of_trial.not_in(still_open)
        total, used = connection.execute(sa.select(sa.func.count(), used).where(have_ended)).one()
        return Settled(up_to, total, used, still_open)

    up_to = write(engine, locked)
    return read(engine, lambda connection: count(connection, up_to))


def _is_failing(connection: Connection, claimant: Claimant) -> bool:
    """Return whether the latest failures stop the study; called under the lock, so that no trial starts afterwards."""
    if claimant.failures_since_s is None:
        return False
    errors = latest_errors(connection, claimant.study_id, claimant.failures_since_s)
    return reason_to_stop([kind for kind, _ in errors]) is not None


def latest_errors(connection: Connection, study_id: int, since_s: float) -> list[tuple[str, str]]:
    """Return kind and traceback of the latest errors, newest first, up to the first trial that did not fail."""
    errors: list[tuple[str, str]] = []
    values = {"study_id": study_id, "since_s": since_s}
    for outcome, kind, error in run(connection, statements.latest_errors, values):
        if outcome != Outcome.FAILED:
            break
        errors.append((kind or "", error or ""))
    return errors


def _hours_are_spent(connection: Connection, claimant: Claimant, now_s: float) -> bool:
    if claimant.wall_s is None and claimant.device_s is None:
        return False
    used, claimant.hours = count_hours(connection, claimant.study_id, now_s, claimant.hours)
    return used.wall_s >= (claimant.wall_s or math.inf) or used.device_s >= (claimant.device_s or math.inf)


def _first_lease(connection: Connection, claimant: Claimant, now_s: float) -> list[Write]:
    """Return the writes for the lease and the first attempt of a trial that is being started."""
    lease = {"worker": claimant.worker, "fence": 1, "deaths": 0, "expires_at_s": now_s + claimant.lease_s}
    lease |= lease_clock(connection.dialect.name, 1)
    return [insertion(leases, lease), _attempt(claimant, 1, now_s)]


def _attempt(claimant: Claimant, fence: int, now_s: float) -> Write:
    row = {"fence": fence, "study_id": claimant.study_id, "worker": claimant.worker}
    return insertion(attempts, {**row, "devices": claimant.devices, "started_at_s": now_s})


def _adopt(connection: Connection, claimant: Claimant, now_s: float) -> Lease | None:
    query = (
        sa.select(
            leases.c.trial_id,
            trials.c.number,
            leases.c.worker,
            leases.c.fence,
            leases.c.deaths,
            leases.c.expires_at_s,
        )
        .select_from(trials.join(leases, leases.c.trial_id == trials.c.trial_id))
        .where(
            trials.c.study_id == claimant.study_id,
            trials.c.state == "RUNNING",
            statements.has_expired(connection.dialect.name, now_s),
        )
        .order_by(trials.c.number)
        # Skip leases that their owners are writing to.
        .with_for_update(of=leases, skip_locked=True)
    )
    for row in _preferred(connection, claimant, connection.execute(query).all()):
        _close_attempts(connection, attempts.c.trial_id == row.trial_id, DIED, min(now_s, row.expires_at_s))
        deaths = row.deaths + (row.worker is not None)
        if deaths >= MAX_DEATHS:
            _end_deadly(connection, claimant, row, deaths)
            continue
        connection.execute(
            leases.update()
            .where(leases.c.trial_id == row.trial_id)
            .values(worker=claimant.worker, fence=row.fence + 1, deaths=deaths, expires_at_s=now_s + claimant.lease_s)
            .values(lease_clock(connection.dialect.name, row.fence + 1))
        )
        run_write(connection, row.trial_id, _attempt(claimant, row.fence + 1, now_s))
        return Lease(row.trial_id, row.number, claimant.worker, row.fence + 1, claimant.lease_s)
    return None


def _preferred(connection: Connection, claimant: Claimant, rows: Sequence[AnyRow]) -> list[AnyRow]:
    """Return the trials in the order in which the worker takes them."""
    if claimant.preference.is_empty or len(rows) < 2:
        return list(rows)
    params = params_of(connection, (row.trial_id for row in rows))
    first = rows[claimant.preference.choose([params[row.trial_id] for row in rows])]
    return [first, *(row for row in rows if row is not first)]


def _close_attempts(
    connection: Connection, which: sa.ColumnElement[bool], ending: str, end_s: float | sa.ColumnElement[float]
) -> None:
    connection.execute(
        attempts.update()
        .where(which, attempts.c.ended_at_s.is_(None))
        .values(ended_at_s=greatest(connection.dialect.name, attempts.c.started_at_s, end_s), ending=ending)
    )


def _end_deadly(connection: Connection, claimant: Claimant, row: AnyRow, deaths: int) -> None:
    # A worker that gave back a trial without progress is not in its lease.
    last = "" if row.worker is None else f", the last was {row.worker}"
    error = f"{deaths} workers in a row died without the trial getting further{last}"
    record = {"worker": row.worker, "error_kind": DEADLY, "error": error}
    lease = Lease(row.trial_id, row.number, row.worker or "", row.fence, claimant.lease_s)
    for ending in endings(lease, Outcome.FAILED, None, record):
        run_write(connection, row.trial_id, ending)
    connection.execute(leases.delete().where(leases.c.trial_id == row.trial_id))
    claimant.deadly.append(lease)


def _start_queued(connection: Connection, claimant: Claimant, standing: _Standing) -> tuple[int, int] | None:
    queued = standing.queued
    if queued is None:
        return None
    if not claimant.preference.is_empty:
        waiting = queued_params(connection, claimant.study_id)
        if len(waiting) > 1:
            queued = list(waiting)[claimant.preference.choose(list(waiting.values()))]
    statement = (
        trials.update()
        .where(trials.c.trial_id == queued, trials.c.state == "WAITING")
        .values(state="RUNNING", datetime_start=utc_now(connection.dialect.name))
        .returning(trials.c.trial_id, trials.c.number)
    )
    row = connection.execute(statement).first()
    if row is None:
        return None
    for one in _first_lease(connection, claimant, standing.now_s):
        run_write(connection, row[0], one)
    return row[0], row[1]


def _create(connection: Connection, claimant: Claimant, standing: _Standing) -> tuple[int, int]:
    number = claimant.settled.total + standing.total

    values = {"number": number, "study_id": claimant.study_id}
    trial_id = run_with(connection, statements.create_trial, values, _first_lease(connection, claimant, standing.now_s))
    assert trial_id is not None
    return trial_id, number


def release_all(engine: Engine, worker: str, *, died: bool) -> None:
    """End the leases of a worker that has exited, so that its trials are free before the leases expire.

    Args:
        engine: The storage's engine.
        worker: The worker's name.
        died: Whether it exited by itself during its trial, which counts against the trial.
    """
    values: dict[str, Any] = {"expires_at_s": 0.0} if died else {"expires_at_s": 0.0, "worker": None}

    def work(connection: Connection, _: int) -> None:
        now_s = clock(connection.dialect.name)
        rebase(connection)
        connection.execute(leases.update().where(leases.c.worker == worker).values(values))
        ending = DIED if died else Outcome.PREEMPTED.value
        _close_attempts(connection, attempts.c.worker == worker, ending, now_s)
        connection.execute(
            workers.update().where(workers.c.worker == worker, workers.c.ended_at_s.is_(None)).values(ended_at_s=now_s)
        )

    write(engine, work)


def must_stop(engine: Engine, claimant: Claimant) -> bool:
    """Store that a worker is alive; return whether it must give back its trial."""
    now = clock(engine.dialect.name)
    seen = workers.update().where(workers.c.worker == claimant.worker).values(seen_at_s=now)
    query = sa.select(budgets.c.stopped_at_s, now).where(budgets.c.study_id == claimant.study_id)

    def work(connection: Connection) -> bool:
        row = connection.execute(query).first()
        return row is not None and (row[0] is not None or _hours_are_spent(connection, claimant, row[1]))

    write_once(engine, lambda connection, _: connection.execute(seen))
    return read(engine, work)
