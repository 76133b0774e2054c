"""The hours that a study has used: wall-clock time and device time, counted from the attempts at its trials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from tuner.storage.sql.dialect import greatest, least, run_prepared
from tuner.storage.sql.tables import attempts, leases

_SETTLE_AFTER = 200


@dataclass(frozen=True)
class Hours:
    """What a study has used until a moment.

    Attributes:
        wall_s: Seconds in which at least one worker was at work on it.
        device_s: Seconds of all workers, times the devices of each.
        until_s: The moment, in seconds of the database's clock.
    """

    wall_s: float = 0.0
    device_s: float = 0.0
    until_s: float = 0.0


def count_hours(connection: Connection, study_id: int, now_s: float, settled: Hours) -> tuple[Hours, Hours]:
    """Return what a study has used until now, and until a moment before which nothing can change any more.

    An attempt that goes on counts until now, one whose worker vanished until the end of its lease.

    Args:
        connection: A connection.
        study_id: The study.
        now_s: The database's time.
        settled: The second result of an earlier call; attempts that ended before it are not read again.
    """
    wall_s, device_s, several, final_s = _used(connection, study_id, now_s, settled.until_s, math.inf)
    used = Hours(settled.wall_s + wall_s, settled.device_s + device_s, now_s)
    # What goes on now may yet be found to have ended when its lease did, but not earlier.
    until_s = min(now_s, math.inf if final_s is None else final_s)
    if several < _SETTLE_AFTER or until_s <= settled.until_s:
        return used, settled
    wall_s, device_s, *_ = _used(connection, study_id, now_s, settled.until_s, until_s)
    return used, Hours(settled.wall_s + wall_s, settled.device_s + device_s, until_s)


def _used(connection: Connection, study_id: int, now_s: float, since_s: float, until_s: float) -> sa.Row[Any]:
    """Return wall and device seconds between two moments, of how many attempts, and the end of the earliest lease."""

    def build() -> Any:
        now, since, until = (sa.cast(sa.bindparam(name), sa.Float(53)) for name in ("now_s", "since_s", "until_s"))
        started, ended, expires = attempts.c.started_at_s, attempts.c.ended_at_s, leases.c.expires_at_s
        start = greatest(connection, started, since)
        end = sa.func.coalesce(ended, least(connection, now, sa.func.coalesce(expires, started)))
        tried = (
            sa.select(
                start.label("start"),
                greatest(connection, start, least(connection, end, until)).label("end"),
                attempts.c.devices,
                sa.case((ended.is_(None), expires)).label("expires_at_s"),
            )
            .select_from(attempts.outerjoin(leases, leases.c.trial_id == attempts.c.trial_id))
            .where(attempts.c.study_id == sa.bindparam("study_id"), ended.is_(None) | (ended > since))
            .subquery("tried")
        )
        # Their union: of each, what lies behind the end of all that began before it.
        before = sa.func.max(tried.c.end).over(order_by=tried.c.start, rows=(None, -1))
        fresh = tried.c.end - greatest(connection, tried.c.start, sa.func.coalesce(before, tried.c.start))
        covered = sa.select(
            greatest(connection, fresh, sa.literal_column("0.0")).label("wall_s"),
            ((tried.c.end - tried.c.start) * tried.c.devices).label("device_s"),
            tried.c.expires_at_s,
        ).subquery("covered")
        zero = sa.literal_column("0.0")
        return sa.select(
            sa.func.coalesce(sa.func.sum(covered.c.wall_s), zero),
            sa.func.coalesce(sa.func.sum(covered.c.device_s), zero),
            sa.func.count(),
            sa.func.min(covered.c.expires_at_s),
        )

    values = {"study_id": study_id, "now_s": now_s, "since_s": since_s, "until_s": until_s}
    return run_prepared(connection, "hours", build, values).one()
