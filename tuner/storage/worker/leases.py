"""Operations of the worker that holds a trial: renew, report, tell, release. Each is one transaction with a fence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from tuner.storage.sql import statements
from tuner.storage.sql.dialect import utc_now
from tuner.storage.sql.encoding import encode_metric, stored_number
from tuner.storage.sql.outcomes import encode_outcome
from tuner.storage.sql.retry import read, write, write_once
from tuner.storage.sql.tables import (
    attempts,
    leases,
    logs,
    reports,
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)
from tuner.storage.worker.fences import Change, Lease, Write, fenced, lost_lease, run_write, upsert, write_held
from tuner.trial import Outcome, Report
from tuner.trial.failures import storable

FETCHED_KEY = "tuner:fetched"
"""The system attribute of a trial with the number of programs that came from the compile cache; missing for none."""
SAVED_KEY = "tuner:compile_saved_s"
"""The system attribute with the seconds that this saved: of compiling the fetched programs, less those of reading."""
LANES_KEY = "tuner:lanes"
"""The system attribute of a trial that trained together with others: the number of lanes of their program."""
OUTCOME_ATTRIBUTE = "outcome"
"""The user attribute of a trial that tells other tools how it ended."""
DIED = "died"
"""The ending of an attempt whose worker died."""
_MOST_LOG_CHARACTERS = 20_000
_FEW_REPORTS, _MOST_REPORTS = 8, 64
"""Statements store up to 8, 16, 32 or 64 reports, because each number has a plan of its own in the database."""


def renew(engine: Engine, lease: Lease) -> None:
    """Extend a lease by its length from now.

    Raises:
        LeaseLost: another worker has the trial.
    """
    write_held(engine, lease)


def renew_together(engine: Engine, several: Sequence[Lease]) -> list[bool]:
    """Extend leases by their length from now, in one transaction; return whether each was still held."""
    return _together(engine, several, lambda connection, at, _: fenced(connection, several[at], Change.EXTEND, []))


def _together(engine: Engine, several: Sequence[Lease], one: Callable[[Connection, int, int], bool]) -> list[bool]:
    """Make a write for each of several leases, in one transaction.

    Args:
        engine: The storage's engine.
        several: The leases.
        one: Makes the write for the lease at an index; its last argument is the number of earlier tries.

    Returns:
        What it returned for each lease.
    """
    # All such transactions lock leases in the same order.
    ordered = sorted(range(len(several)), key=lambda at: several[at].trial_id)

    def work(connection: Connection, tries: int) -> list[bool]:
        held = {at: one(connection, at, tries) for at in ordered}
        return [held[at] for at in range(len(several))]

    return write(engine, work)


@dataclass(frozen=True)
class Suggested:
    """What a sampler has suggested for a trial.

    Attributes:
        lease: The trial's lease.
        params: Hyperparameters, each as name, Optuna's number for the value, and distribution as JSON.
        attributes: System attributes as JSON.
    """

    lease: Lease
    params: Sequence[tuple[str, float, str]]
    attributes: Mapping[str, str]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to store."""
        return not (self.params or self.attributes)

    def writes(self) -> list[Write]:
        """Return the writes that store it, except that of the lease."""
        writes: list[Write] = []
        if self.params:
            rows = [
                {"param_name": name, "param_value": number, "distribution_json": text}
                for name, number, text in self.params
            ]
            writes.append(upsert(trial_params, rows, "param_name"))
        if self.attributes:
            rows = [{"key": key, "value_json": text} for key, text in self.attributes.items()]
            writes.append(upsert(trial_system_attributes, rows, "key"))
        return writes


def store_suggested(engine: Engine, suggested: Suggested) -> None:
    """Store a sampler's suggestions and its attributes.

    Raises:
        LeaseLost: another worker has the trial.
    """
    write_held(engine, suggested.lease, *suggested.writes())


def store_suggested_together(engine: Engine, several: Sequence[Suggested]) -> list[bool]:
    """Store the suggestions for several trials like `store_suggested`, in one transaction.

    Returns:
        For each trial, whether its lease was still held; if not, nothing of it was stored.
    """
    held, writes = [one.lease for one in several], [one.writes() for one in several]
    return _together(engine, held, lambda connection, at, _: fenced(connection, held[at], Change.EXTEND, writes[at]))


def store_attribute(engine: Engine, lease: Lease, table: sa.Table, key: str, value: object) -> None:
    """Store one of Optuna's user or system attributes of a trial.

    Raises:
        LeaseLost: another worker has the trial.
    """
    assert table in (trial_user_attributes, trial_system_attributes)
    row = {"key": key, "value_json": json.dumps(value)}
    write_held(engine, lease, upsert(table, [row], "key"))


def delete_attributes(engine: Engine, lease: Lease, keys: Sequence[str]) -> None:
    """Delete system attributes of a trial.

    Raises:
        LeaseLost: another worker has the trial.
    """
    write_held(engine, lease, *(Write(statements.delete_attribute, {"key": key}) for key in keys))


def report(engine: Engine, lease: Lease, several: Sequence[Report], objective: str | None) -> None:
    """Store the metrics of epochs and extend the lease. Existing reports are overwritten, not duplicated.

    If an epoch is beyond all that were ever reported for the trial, earlier deaths of its workers no longer count.

    Args:
        engine: The storage's engine.
        lease: The trial's lease.
        several: The reports, usually one.
        objective: The metric to report to Optuna as well; None with several objectives.

    Raises:
        LeaseLost: another worker has the trial.
    """
    for part in parts_of(several):
        write_held(engine, lease, *_report_writes(part, objective), epoch=_last_epoch(part))


def report_together(
    engine: Engine, reports: Sequence[tuple[Lease, Sequence[Report]]], objective: str | None
) -> list[bool]:
    """Store the reports of several trials like `report`, in one transaction.

    Returns:
        For each trial, whether its lease was still held; if not, nothing of it was stored.
    """
    held = [lease for lease, _ in reports]
    return _together(engine, held, lambda connection, at, _: _store_reports(connection, *reports[at], objective))


def _store_reports(connection: Connection, lease: Lease, several: Sequence[Report], objective: str | None) -> bool:
    return all(
        fenced(connection, lease, Change.EXTEND, _report_writes(part, objective), epoch=_last_epoch(part))
        for part in parts_of(several)
    )


def parts_of(several: Sequence[Report]) -> Iterator[Sequence[Report]]:
    """Yield the parts of several reports that are stored in a statement each."""
    at = 0
    while at < len(several):
        left = len(several) - at
        size = left if left <= _FEW_REPORTS else min(_MOST_REPORTS, 1 << (left.bit_length() - 1))
        yield several[at : at + size]
        at += size


def _last_epoch(several: Sequence[Report]) -> int:
    return max(one.epoch for one in several)


def _report_writes(several: Sequence[Report], objective: str | None) -> list[Write]:
    rows = [
        {
            "epoch": one.epoch,
            "step": one.step,
            "metrics": json.dumps({name: encode_metric(value) for name, value in one.metrics.items()}),
        }
        for one in several
    ]
    writes = [upsert(reports, rows, "epoch", time_column="reported_at_s")]
    if objective is not None:
        rows: list[dict[str, Any]] = []
        for one in several:
            stored, kind = stored_number(one.metrics[objective])
            rows.append({"step": one.epoch, "intermediate_value": stored, "intermediate_value_type": kind})
        writes.append(upsert(trial_intermediate_values, rows, "step"))
    return writes


def forget_reports(engine: Engine, lease: Lease, first: int = 0) -> None:
    """Remove the reports of a trial from an epoch on, and extend the lease.

    Its entries in rungs are kept, because other trials were compared with them; see `tuner.storage.worker.rungs`. Its
    lease still has the greatest epoch that was reported: epochs that are repeated are no progress.

    Args:
        engine: The storage's engine.
        lease: The trial's lease.
        first: The first epoch to remove; by default all are removed.

    Raises:
        LeaseLost: another worker has the trial.
    """
    places = ((reports, "epoch"), (trial_intermediate_values, "step"))
    write_held(engine, lease, *(Write(statements.delete_rows.of(*place), {"first": first}) for place in places))


def store_log(engine: Engine, lease: Lease, lines: Sequence[str]) -> None:
    """Store the last lines of a trial's log, and extend the lease.

    Raises:
        LeaseLost: another worker has the trial.
    """
    write_held(engine, lease, _log_write(lease, lines))


def _log_write(lease: Lease, lines: Sequence[str]) -> Write:
    row = {"fence": lease.fence, "lines": storable("\n".join(lines)[-_MOST_LOG_CHARACTERS:])}
    return upsert(logs, [row], "fence", time_column="written_at_s")


# --- Ends


@dataclass(frozen=True)
class Ending:
    """The end of a trial: its state, values and record, and its last reports.

    Optuna has no state for a trial that diverged, ran out of memory or timed out: they are stored as pruned, so that
    TPE learns to avoid them (a failed trial is invisible to samplers), with the outcome as an attribute.

    Attributes:
        lease: The trial's lease.
        outcome: How the trial ended.
        values: The values of its objectives, if it has any.
        record: Columns of `tuner_records`.
        attributes: System attributes of the trial.
        log: The last lines of its log, unless they are stored.
        several: A few reports of the trial that are not stored yet.
        objective: See `report`.
    """

    lease: Lease
    outcome: Outcome
    values: Sequence[float] | None
    record: Mapping[str, object]
    attributes: Mapping[str, object] = field(default_factory=dict[str, object])
    log: Sequence[str] | None = None
    several: Sequence[Report] = ()
    objective: str | None = None

    def writes(self) -> list[Write]:
        """Return the writes of the end, except that of the lease."""
        writes = endings(self.lease, self.outcome, self.values, self.record)
        if self.attributes:
            rows = [{"key": key, "value_json": json.dumps(value)} for key, value in self.attributes.items()]
            writes.insert(0, upsert(trial_system_attributes, rows, "key"))
        if self.log is not None:
            writes.insert(0, _log_write(self.lease, self.log))
        if self.several:
            writes[:0] = _report_writes(self.several, self.objective)
        return writes


def tell(
    engine: Engine,
    lease: Lease,
    outcome: Outcome,
    values: Sequence[float] | None,
    record: Mapping[str, object],
    attributes: Mapping[str, object] | None = None,
) -> None:
    """End a trial; see `Ending` and `end`."""
    end(engine, Ending(lease, outcome, values, record, attributes or {}))


def end(engine: Engine, ending: Ending, *, may_be_stored: bool = False) -> None:
    """End a trial, in one transaction.

    Args:
        engine: The storage's engine.
        ending: The end.
        may_be_stored: Whether it may have been stored already, by a call whose answer was lost.

    Raises:
        LeaseLost: another worker has the trial.
    """
    writes = ending.writes()

    def work(connection: Connection, tries: int) -> bool:
        return _end(connection, ending, writes, may_be_stored=may_be_stored or tries > 0)

    if not write_once(engine, work):
        raise lost_lease(ending.lease)


def end_together(engine: Engine, several: Sequence[Ending]) -> list[bool]:
    """End several trials like `end`, in one transaction.

    Returns:
        For each trial, whether its lease was still held; if not, nothing of it was stored.
    """
    writes = [one.writes() for one in several]

    def one(connection: Connection, at: int, tries: int) -> bool:
        return _end(connection, several[at], writes[at], may_be_stored=tries > 0)

    return _together(engine, [ending.lease for ending in several], one)


def _end(connection: Connection, ending: Ending, writes: Sequence[Write], *, may_be_stored: bool) -> bool:
    is_held = fenced(connection, ending.lease, Change.END, writes)
    return is_held or (may_be_stored and _has_ended(connection, ending.lease, ending.outcome))


def _has_ended(connection: Connection, lease: Lease, ending: str) -> bool:
    """Return whether this attempt has already ended like this: it was committed although the answer was lost."""
    return _ending(connection, lease) == ending


def find_ending(engine: Engine, lease: Lease) -> str | None:
    """Return how the attempt of a lease has ended: an outcome, or `DIED`; None if it has not."""
    return read(engine, lambda connection: _ending(connection, lease))


def _ending(connection: Connection, lease: Lease) -> str | None:
    query = sa.select(attempts.c.ending).where(
        attempts.c.trial_id == lease.trial_id, attempts.c.fence == lease.fence, attempts.c.worker == lease.worker
    )
    return connection.execute(query).scalar_one_or_none()


def endings(lease: Lease, outcome: Outcome, values: Sequence[float] | None, record: Mapping[str, Any]) -> list[Write]:
    """Return the writes that end a trial, except that of its lease; the arguments are those of `tell`."""
    state = {Outcome.COMPLETE: "COMPLETE", Outcome.FAILED: "FAIL"}.get(outcome, "PRUNED")
    writes = [_attempt_ending(lease, outcome, record.get("error"))]
    if values is not None:
        rows: list[dict[str, Any]] = []
        for objective, value in enumerate(values):
            stored, kind = stored_number(value)
            rows.append({"objective": objective, "value": stored, "value_type": kind})
        writes.append(upsert(trial_values, rows, "objective"))
    told = {"key": OUTCOME_ATTRIBUTE, "value_json": json.dumps(outcome)}
    writes.append(upsert(trial_user_attributes, [told], "key"))

    given = {**record, **encode_outcome(outcome)}
    return [
        *writes,
        Write(statements.end_trial, {"state": state}),
        Write(statements.insert_record.of(tuple(given)), given),
    ]


def _attempt_ending(lease: Lease, ending: str, error: str | None = None) -> Write:
    return Write(statements.end_attempt, {"fence": lease.fence, "ending": str(ending), "error": error})


def end_by_hand(engine: Engine, trial_id: int) -> Outcome | None:
    """End a trial that has not ended, whoever holds it; its worker drops it at its next write.

    A trial that has started ends as pruned: it counts against the budget, and samplers learn from its reports. A queued
    trial, and one of a plain Optuna process, end as failed.

    Args:
        engine: The storage's engine.
        trial_id: The trial.

    Returns:
        The outcome; None if the trial had ended already, or does not exist.

    Concurrency: one transaction; safe while workers claim, report and end the trial.
    """
    is_running = sa.exists().where(trials.c.trial_id == trial_id, trials.c.state == "RUNNING")
    take = leases.delete().where(leases.c.trial_id == trial_id, is_running)

    def work(connection: Connection, _: int) -> Outcome | None:
        taken = connection.execute(take.returning(leases.c.fence, leases.c.worker)).first()
        if taken is not None:
            lease = Lease(trial_id, -1, taken.worker or "", taken.fence, 0.0)
            for ending in endings(lease, Outcome.PRUNED, None, {"worker": taken.worker}):
                run_write(connection, trial_id, ending)
            return Outcome.PRUNED
        is_open = (trials.c.trial_id == trial_id) & trials.c.state.in_(["RUNNING", "WAITING"])
        changes = {"state": "FAIL", "datetime_complete": utc_now(connection.dialect.name)}
        changed = connection.execute(trials.update().where(is_open).values(changes)).rowcount
        return Outcome.FAILED if changed else None

    return write(engine, work)


def release(engine: Engine, lease: Lease) -> None:
    """Give back an unfinished trial, which another worker can take over immediately.

    Raises:
        LeaseLost: another worker has the trial already.
    """
    if not _give_back(engine, lease, Outcome.PREEMPTED, None):
        raise lost_lease(lease)


def bury(engine: Engine, lease: Lease) -> None:
    """Give back a trial that makes no progress, and count a death of its worker.

    The worker may go on with other trials, or may be unable to end this one: its lease is over in both cases.

    Raises:
        LeaseLost: another worker has the trial already.
    """
    if not _give_back(engine, lease, DIED, None, Change.BURY):
        raise lost_lease(lease)


def earlier_s(engine: Engine, lease: Lease) -> float:
    """Return the seconds of the earlier attempts at a trial."""
    seconds = sa.func.sum(attempts.c.ended_at_s - attempts.c.started_at_s)
    query = sa.select(seconds).where(attempts.c.trial_id == lease.trial_id, attempts.c.fence < lease.fence)
    return read(engine, lambda connection: connection.execute(query).scalar_one()) or 0.0


def _give_back(engine: Engine, lease: Lease, ending: str, error: str | None, change: Change = Change.RELEASE) -> bool:
    writes = [_attempt_ending(lease, ending, error)]

    def work(connection: Connection, tries: int) -> bool:
        return fenced(connection, lease, change, writes) or (tries > 0 and _has_ended(connection, lease, ending))

    return write_once(engine, work)


def withdraw_death(engine: Engine, lease: Lease) -> None:
    """Store that a worker whose trial was taken over is alive: its lease ended, but it did not die.

    If a later attempt has got further, the death does not count any more.
    """

    def work(connection: Connection, _: int) -> None:
        own = (attempts.c.trial_id == lease.trial_id) & (attempts.c.fence == lease.fence)
        own &= (attempts.c.worker == lease.worker) & (attempts.c.ending == DIED)
        # The end of the attempt shows whether this was done before.
        if connection.execute(attempts.update().where(own).values(ending=Outcome.PREEMPTED.value)).rowcount:
            is_counted = (leases.c.trial_id == lease.trial_id) & (leases.c.fence > lease.fence) & (leases.c.deaths > 0)
            is_counted &= sa.func.coalesce(leases.c.farthest_fence, 0) <= lease.fence
            connection.execute(leases.update().where(is_counted).values(deaths=leases.c.deaths - 1))

    write(engine, work)


def may_retry(engine: Engine, lease: Lease, limit: int) -> bool:
    """Return whether a trial has failed less often than `limit`, so that `retry` would give it back."""
    query = sa.select(sa.func.count()).where(
        attempts.c.trial_id == lease.trial_id, attempts.c.ending == Outcome.FAILED.value
    )
    return read(engine, lambda connection: connection.execute(query).scalar_one()) < limit


def retry(engine: Engine, lease: Lease, error: str, limit: int) -> bool:
    """Give back a failed trial to be retried, unless it has failed too often; return whether it is retried.

    Args:
        engine: The storage's engine.
        lease: The trial's lease.
        error: The traceback, which is stored with the attempt.
        limit: The maximum number of retries.

    Raises:
        LeaseLost: another worker has the trial already.
    """
    if not may_retry(engine, lease, limit):
        return False
    if not _give_back(engine, lease, Outcome.FAILED, error):
        raise lost_lease(lease)
    return True
