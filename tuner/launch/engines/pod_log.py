"""The log of a pod, read from the Kubernetes API while it grows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.launch.engines.cluster import Cluster

_MARGIN_S = 5
"""Seconds of which lines are read again: the API takes the age of lines in whole seconds."""


class PodLog:
    """See `WorkerLog`.

    The API cannot continue at a position, but it returns the lines of the last seconds, each with its time to the
    nanosecond. Of those, lines up to the last time are known.
    """

    poll_s = 2.0

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self.name = name
        self._cluster, self._namespace = cluster, namespace
        self._last, self._read_s = b"", 0.0

    def lines(self) -> Iterator[bytes]:
        """See `WorkerLog.lines`."""
        now_s = time.monotonic()
        since_s = math.ceil(now_s - self._read_s) + _MARGIN_S if self._last else None
        for line in self._cluster.log(self._namespace, self.name, since_s):
            at, _, text = line.partition(b" ")
            if at > self._last:
                self._last = at
                yield text
        self._read_s = now_s
