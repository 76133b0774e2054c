"""Computes the hours that a study has used, wall-clock time and device time, from the attempts at its trials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from tuner.storage.sql import statements
from tuner.storage.sql.prepared_statements import run

if TYPE_CHECKING:
    from tuner.storage.sql.row_types import AnyRow

_SETTLE_AFTER = 200


@dataclass(frozen=True)
class Hours:
    """The hours that a study has used until a time.

    Attributes:
        wall_s: Seconds in which at least one worker was running.
        device_s: Seconds in which each worker trained, multiplied by its devices; trials at once count once.
        until_s: The time, in seconds on the database's clock.
    """

    wall_s: float = 0.0
    device_s: float = 0.0
    until_s: float = 0.0


def count_hours(connection: Connection, study_id: int, now_s: float, settled: Hours) -> tuple[Hours, Hours]:
    """Return the hours used until now, and until a time before which they cannot change any more.

    A running attempt counts until now, and one whose worker died until the end of its lease.

    Args:
        connection: A connection.
        study_id: The study.
        now_s: The database's time.
        settled: The second result of an earlier call; attempts that ended before it are not read again.
    """
    wall_s, device_s, several, final_s = _used(connection, study_id, now_s, settled.until_s, math.inf)
    used = Hours(settled.wall_s + wall_s, settled.device_s + device_s, now_s)
    # A running attempt may turn out to have ended with its lease, but not earlier.
    until_s = min(now_s, math.inf if final_s is None else final_s)
    if several < _SETTLE_AFTER or until_s <= settled.until_s:
        return used, settled
    wall_s, device_s, *_ = _used(connection, study_id, now_s, settled.until_s, until_s)
    return used, Hours(settled.wall_s + wall_s, settled.device_s + device_s, until_s)


def _used(connection: Connection, study_id: int, now_s: float, since_s: float, until_s: float) -> AnyRow:
    """Return wall and device seconds between two times, the number of attempts, and the end of the earliest lease."""
    values = {"study_id": study_id, "now_s": now_s, "since_s": since_s, "until_s": until_s}
    return run(connection, statements.hours, values).one()
