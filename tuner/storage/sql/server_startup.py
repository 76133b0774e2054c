"""Waits for a database server that is still starting up."""

from __future__ import annotations

import time

from sqlalchemy import Engine

from tuner.errors import StorageLost
from tuner.output.log import tell
from tuner.storage.sql.engine import ADVICE, connected_engine
from tuner.storage.sql.url import AnyURL

_STARTING_S = 60.0
"""Seconds to wait for a server that is starting up: it may have to recover from a crash."""
_ABSENT_S = 10.0
"""Seconds to wait if the port is closed: the address may also be mistyped."""
_POLL_S = 0.5
_STARTING = ("the database system is starting up", "the database system is not yet accepting connections")
_ABSENT = ("Connection refused", "No such file or directory Is the server running")


def engine_when_up(url: AnyURL) -> Engine:
    """See `tuner.storage.connect_when_up`."""
    began_s, is_told = time.monotonic(), False
    while True:
        try:
            return connected_engine(url)
        except StorageLost as error:
            limit_s = _limit_s(str(error))
            if time.monotonic() >= began_s + limit_s:
                raise
            if not is_told:
                tell(
                    f"{str(error).removesuffix(ADVICE)}; waiting up to {limit_s:.0f} s for it to start",
                    "storage_starting",
                )
                is_told = True
        time.sleep(_POLL_S)


def _limit_s(message: str) -> float:
    """Return how long to wait for a database with this error."""
    if any(text in message for text in _STARTING):
        return _STARTING_S
    return _ABSENT_S if any(text in message for text in _ABSENT) else 0.0
