"""The clock of leases on SQLite: the wall clock, corrected when it jumps or when the machine was suspended.

A SQLite database serves one machine, whose processes share a clock that does neither: the time since the boot without
suspension (`time.monotonic`). A lease has its end on the wall clock, `expires_at_s`, and how far that clock was then
ahead of the other, `ahead_s`. If this has changed, the wall clock has jumped: all leases move with it.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from tuner.storage.sql import statements
from tuner.storage.sql.dialect import clock
from tuner.storage.sql.prepared_statements import run
from tuner.storage.sql.tables import attempts, leases

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = "/proc/self/ns/time"
_SYSCTL = ("sysctl", "-n", "kern.bootsessionuuid")
_CHECKED = "tuner_ahead_s"


def boot_id() -> str | None:
    """Return the boot id of Linux or macOS; None if the system has none."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        pass
    try:
        done = subprocess.run(_SYSCTL, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


@dataclass(frozen=True)
class Boot:
    """Identifies the clock of this process in a lease: boot id, time namespace and host.

    Processes with the same id and namespace share `time.monotonic`, also in different containers.
    """

    id: str
    namespace: str
    host: str

    def __str__(self) -> str:
        return f"{self.id} {self.namespace} {self.host}"


@functools.cache
def this_boot() -> Boot | None:
    """Return the `Boot` of this process; None if the system has no boot id: leases then use the wall clock."""
    found = boot_id()
    if found is None:
        return None
    try:
        namespace = os.readlink(_TIME_NAMESPACE)
    except OSError:  # before Linux 5.6, on macOS
        namespace = "-"
    return Boot(found[:100], namespace[:50], socket.gethostname()[:100])


def lease_clock(dialect: str, fence: object) -> dict[str, Any]:
    """Return the columns to store with a lease's end, if the clock has not jumped since `rebase`.

    Args:
        dialect: The database's dialect; there are no columns on Postgres, or without a boot id.
        fence: The lease's fence. A version without these columns changes only the fence.
    """
    boot = this_boot()
    if dialect != "sqlite" or boot is None:
        return {}
    return {"boot": str(boot), "ahead_s": _ahead_s(), "ahead_fence": fence}


def _ahead_s() -> float:
    """Return how far the wall clock is ahead of the time since boot, without suspension."""
    while True:
        before_s, wall_s, after_s = time.monotonic(), time.time(), time.monotonic()
        if after_s < before_s + statements.CLOCK_JUMP_S / 10:  # otherwise this process was paused between two readings
            return wall_s - before_s


def rebase(connection: Connection) -> None:
    """Move leases and running attempts with the wall clock if it has jumped, and end leases of earlier boots.

    Attempts therefore include only time at work: the hours of a suspended machine do not count.

    Args:
        connection: A connection in a transaction that writes; on Postgres nothing is done.
    """
    boot = this_boot()
    if connection.dialect.name != "sqlite" or boot is None:
        return
    ahead_s = _ahead_s()
    if abs(ahead_s - connection.info.get(_CHECKED, math.inf)) < statements.CLOCK_JUMP_S / 2:
        return  # the clock has not jumped since this connection checked all leases
    values: dict[str, Any] = {
        "id": f"{boot.id} ", "clock": f"{boot.id} {boot.namespace} ", "host": f" {boot.host}", "ahead_s": ahead_s
    }  # fmt: skip
    named = {f"now_{name}": value for name, value in values.items()}
    if run(connection, statements.outdated_leases, named).first() is None:
        connection.info[_CHECKED] = ahead_s  # not after a change, which may be rolled back
        return
    of_lease = (
        (leases.c.trial_id == attempts.c.trial_id)
        & (leases.c.fence == attempts.c.fence)
        & statements.has_jumped(values)
    )
    jump_s = sa.select(values["ahead_s"] - leases.c.ahead_s).where(of_lease)
    connection.execute(
        attempts.update()
        .where(attempts.c.ended_at_s.is_(None), jump_s.exists())
        .values(started_at_s=attempts.c.started_at_s + jump_s.scalar_subquery())
    )
    moved_s = leases.c.expires_at_s + values["ahead_s"] - leases.c.ahead_s
    connection.execute(
        leases.update().where(statements.has_jumped(values)).values(expires_at_s=moved_s, ahead_s=values["ahead_s"])
    )
    ended_s = sa.func.min(leases.c.expires_at_s, clock("sqlite"))
    connection.execute(leases.update().where(statements.is_of_earlier_boot(values)).values(expires_at_s=ended_s))
