"""What pruning and shared compilation have saved in a study: counted from all its reports, and kept for a while."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy import Engine

from tuner.results.compare import compare_rows
from tuner.storage.read.activity import read_compiling
from tuner.storage.read.queries import StudyRow

FRESH_S = 30.0
"""Seconds for which the numbers are kept: an open page asks every few seconds, and a large study has many reports."""
_MOST_KEPT = 64


@dataclass(frozen=True)
class Saved:
    """Estimates of device seconds; None if not known.

    Attributes:
        pruning_s: What pruning has saved, as in `tuner compare`.
        compilation_s: What trials have saved that found their programs compiled.
    """

    pruning_s: float | None
    compilation_s: float | None


class SavingsCache:
    """Reads what was saved in a study.

    Args:
        engine: The storage's engine.

    Concurrency: safe from several threads.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, str], tuple[float, Saved]] = OrderedDict()

    def read(self, study: StudyRow) -> Saved:
        """Return what was saved in a study, at most half a minute ago.

        Raises:
            UnknownStudy: The study was deleted.
        """
        key = study.study_id, study.name
        with self._lock:
            read_s, saved = self._kept.get(key, (-FRESH_S, Saved(None, None)))
        if time.monotonic() < read_s + FRESH_S:
            return saved
        saved = _read(self._engine, study)
        with self._lock:
            self._kept[key] = time.monotonic(), saved
            self._kept.move_to_end(key)
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return saved


def _read(engine: Engine, study: StudyRow) -> Saved:
    hours = compare_rows(engine, [study.name])[0]["hours_saved"]
    compiling = [row["saved_s"] for row in read_compiling(engine, study.study_id) if row["saved_s"] is not None]
    return Saved(None if hours is None else 3600 * hours, sum(compiling) if compiling else None)
