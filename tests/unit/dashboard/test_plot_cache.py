"""The dashboard's plots: drawn once, one at a time, kept for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import optuna
import pytest
from storage_tools import opened

from tuner.dashboard import plot_cache
from tuner.dashboard.plot_cache import PlotCache
from tuner.results.plots import Subject
from tuner.storage.optuna.storage import Storage
from tuner.storage.read.queries import StudyRow, find_study

pytestmark = pytest.mark.with_tables


@pytest.fixture
def storage(sqlite_url: str) -> Iterator[Storage]:
    with opened(sqlite_url) as storage:
        for name in ("one", "two"):
            study = optuna.create_study(study_name=name, storage=storage)
            study.add_trial(optuna.create_trial(value=0.5))
        yield storage


class Drawer:
    """Stands in for matplotlib: says what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self._busy = threading.Lock()

    def __call__(self, subject: Subject, kind: str, format: str) -> bytes:
        assert self._busy.acquire(blocking=False), "two at once"
        try:
            time.sleep(0.01)  # others come meanwhile
            self.asked.append((subject.row.name, kind))
            return f"{subject.row.name} {kind} {len(self.asked)} {format}".encode()
        finally:
            self._busy.release()


@pytest.fixture
def drawer(monkeypatch: pytest.MonkeyPatch) -> Drawer:
    drawer = Drawer()
    monkeypatch.setattr(plot_cache, "draw", drawer)
    return drawer


def rows(storage: Storage) -> tuple[StudyRow, StudyRow]:
    return find_study(storage.engine, "one"), find_study(storage.engine, "two")


def test_a_plot_is_kept_for_a_while_of_each_study_and_kind(
    storage: Storage, drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = rows(storage)
    made = PlotCache(storage)

    assert made.svg(one, "edf") == made.svg(one, "edf") == b"one edf 1 svg"
    assert made.svg(two, "edf") == b"two edf 2 svg"
    assert made.svg(one, "history") == b"one history 3 svg"
    now_s = plot_cache.time.monotonic()
    monkeypatch.setattr(plot_cache.time, "monotonic", lambda: now_s + plot_cache.FRESH_S)
    assert made.svg(one, "edf") == b"one edf 4 svg"
    with pytest.raises(KeyError):
        made.svg(one, "unknown")


def test_few_are_kept(storage: Storage, drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = rows(storage)
    monkeypatch.setattr(plot_cache, "_MOST_KEPT", 2)
    made = PlotCache(storage)

    for row, kind in ((one, "edf"), (two, "edf"), (one, "edf"), (one, "slice"), (one, "edf"), (two, "edf")):
        made.svg(row, kind)

    assert drawer.asked == [("one", "edf"), ("two", "edf"), ("one", "slice"), ("two", "edf")]


def test_threads_draw_one_after_another(storage: Storage, drawer: Drawer) -> None:
    one, _ = rows(storage)
    made = PlotCache(storage)
    kinds = ["edf", "slice", "history", "contour"] * 4
    threads = [threading.Thread(target=made.svg, args=(one, kind)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(drawer.asked) == sorted(("one", kind) for kind in set(kinds))
