"""What the page of checkpoints shows about each: read from the disk, or from object storage with a limit of time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

from tuner.errors import TunerError
from tuner.object_storage import is_url
from tuner.storage.artifacts import CheckpointAbout, describe_checkpoint

_WAIT_S = 5.0
"""Seconds that a page waits for object storage; what is read later is on the next page."""
_AT_ONCE = 8

Described = tuple[CheckpointAbout | None, bool]
"""What is known about a checkpoint, and whether it would be known if it existed."""


class Descriptions:
    """Describes checkpoints. Those in object storage never change under their URL, so each is read once.

    Concurrency: safe from several threads.
    """

    def __init__(self) -> None:
        self._reading: dict[str, Future[Described]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def read(self, recorded: Sequence[str]) -> list[Described]:
        """Return what is known about checkpoints, for the paths or URLs in the records of trials."""
        for url in filter(is_url, recorded):
            known = self._reading.get(url)
            if known is None or (known.done() and known.result()[0] is None):  # perhaps it can be read now
                self._pool = self._pool or ThreadPoolExecutor(_AT_ONCE, "checkpoints")
                self._reading[url] = self._pool.submit(_read_url, url)
        end_s = time.monotonic() + _WAIT_S
        return [self._result(one, end_s) if is_url(one) else _read_folder(one) for one in recorded]

    def _result(self, url: str, end_s: float) -> Described:
        try:
            return self._reading[url].result(max(0.0, end_s - time.monotonic()))
        except FutureTimeout:
            return None, False


def _read_folder(recorded: str) -> Described:
    return describe_checkpoint(recorded), Path(recorded).parent.parent.is_dir()


def _read_url(url: str) -> Described:
    try:
        return describe_checkpoint(url), True
    except TunerError:
        return None, False
