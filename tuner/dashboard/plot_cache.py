"""Plots of studies for the dashboard: drawn on request, one at a time, and cached for a while."""

from __future__ import annotations

import html
import threading
import time
from collections import OrderedDict

from tuner.errors import UsageError
from tuner.results.plots import KINDS, draw, subject_of
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.queries import StudyRow

FRESH_S = 30.0
"""Seconds for which a plot is cached: on a large study drawing takes seconds."""
_MOST_KEPT = 64

_REASON = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="800" height="40" font-family="sans-serif" font-size="14">'
    '<text x="4" y="25" fill="#51606f">{}</text></svg>'
)


class PlotCache:
    """Draws plots as SVG.

    Args:
        storage: The dashboard's.

    Concurrency: matplotlib draws for one thread at a time; the others wait.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, str, str], tuple[float, bytes]] = OrderedDict()

    def svg(self, row: StudyRow, kind: str) -> bytes:
        """Return a plot as SVG, or an SVG with the reason why it cannot be drawn.

        Args:
            row: The study.
            kind: One of `KINDS`.

        Raises:
            KeyError: the kind is unknown.
        """
        if kind not in KINDS:
            raise KeyError(kind)
        key = row.study_id, row.name, kind
        with self._lock:
            drawn_s, picture = self._kept.pop(key, (-FRESH_S, b""))
            if time.monotonic() >= drawn_s + FRESH_S:
                try:
                    picture = draw(subject_of(self._storage, row), kind, "svg")
                except UsageError as error:
                    picture = _REASON.format(html.escape(str(error))).encode()
                drawn_s = time.monotonic()
            self._kept[key] = drawn_s, picture
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
            return picture
