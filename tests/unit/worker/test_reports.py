"""Reports beside the training: what training waits for, and what it learns later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest
import sqlalchemy as sa

from tuner.errors import LeaseLost, StorageLost
from tuner.storage.sql.background_calls import Background, aside
from tuner.storage.sql.wait_time import database_s, waiting
from tuner.storage.worker.reporter import Reporter
from tuner.trial import Report
from tuner.worker.attempts import reports as reports_
from tuner.worker.attempts.reports import Reports

ENGINE = cast("sa.Engine", None)


class Database:
    """Stands in for `Reporter`: a database that is silent until it is told to go on."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.is_away = False
        self.stored: list[int] = []
        self.together: list[list[int]] = []
        self.kept: list[int] = []
        self.error: Exception | None = None

    def store(self, one: Report) -> bool:
        self.keep([one])
        return self.store_kept()

    def store_kept(self) -> bool:
        with waiting():
            assert self.may_answer.wait(300)
        if self.error is not None:
            raise self.error
        if self.kept and not self.is_away:
            self.stored += self.kept
            self.together.append(self.kept)
        self.kept = []
        return not self.is_away

    def keep(self, several: list[Report]) -> None:
        self.kept += [one.epoch for one in several]

    def flush(self, engine: sa.Engine) -> None:
        self.store_kept()
        self.stored.append(-1)

    def take_last(self, engine: sa.Engine) -> list[int]:
        kept, self.kept = self.kept, []
        return kept


@pytest.fixture(autouse=True)
def _brief_waiting(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """Use the real waiting time; `conftest.py` makes it long for the other unit tests."""
    monkeypatch.setattr(reports_, "_ANSWER_S", 1.5)


@pytest.fixture
def background() -> Iterator[Background]:
    background = Background("test")
    yield background
    background.close()


@pytest.fixture
def database() -> Iterator[Database]:
    database = Database()
    yield database
    database.may_answer.set()


def reports_of(
    background: Background,
    database: Database,
    is_hopeless: Callable[[Report], bool] = lambda report: False,
    is_over: Callable[[], bool] = lambda: False,
) -> Reports:
    return Reports(background, cast("Reporter", database), is_hopeless, is_over)


def report(epoch: int) -> Report:
    return Report(epoch, epoch, {"loss": 1 / epoch})


def test_each_report_is_judged_before_the_next_epoch(background: Background, database: Database) -> None:
    asked: list[int] = []

    def is_hopeless(one: Report) -> bool:
        assert database.stored[-1] == one.epoch, "stored first"
        asked.append(one.epoch)
        return one.epoch == 3

    ours = reports_of(background, database, is_hopeless)
    ours.keep([report(1)])
    assert [ours.store(report(epoch), may_prune=True) for epoch in (2, 3)] == [False, True]
    assert not ours.store(report(4), may_prune=False)
    ours.finish(ENGINE)

    assert asked == [2, 3]
    assert database.stored == [1, 2, 3, 4, -1]


def test_a_pruner_that_computes_long_is_waited_for(
    background: Background, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only waiting for the database is limited: with a healthy one every decision comes at its epoch."""
    monkeypatch.setattr(reports_, "_ANSWER_S", 0.1)

    def is_hopeless(one: Report) -> bool:
        time.sleep(0.5)
        return True

    assert reports_of(background, database, is_hopeless).store(report(1), may_prune=True)


def test_training_goes_on_while_the_database_is_silent_and_learns_the_decision_later(
    background: Background, database: Database, wait_until: Callable[..., Any]
) -> None:
    ours = reports_of(background, database, lambda one: one.epoch == 2)
    assert not ours.store(report(1), may_prune=True)
    database.may_answer.clear()
    before_s = database_s()
    assert not ours.store(report(2), may_prune=True)
    assert database_s() - before_s >= 1.4, "it waited a moment, which counts as the database's"
    before_s = database_s()
    for epoch in range(3, 100):
        assert not ours.store(report(epoch), may_prune=True)
    assert database_s() == before_s, "and once only"
    database.may_answer.set()
    wait_until(lambda: len(database.stored) == 99)

    assert ours.store(report(100), may_prune=True), "epoch 2 was hopeless"
    assert not ours.store(report(101), may_prune=False), "at the last epoch nothing is left to save"
    assert database.stored == list(range(1, 102)), "in their order"


def test_a_database_that_is_away_is_not_waited_for_again_and_nothing_is_judged(
    background: Background, database: Database, wait_until: Callable[..., Any]
) -> None:
    ours = reports_of(background, database, lambda one: True)
    database.is_away = True
    assert not ours.store(report(1), may_prune=True)
    database.may_answer.clear()
    before_s = database_s()
    assert not ours.store(report(2), may_prune=True)
    assert database_s() == before_s
    database.is_away = False
    database.may_answer.set()
    wait_until(lambda: database.stored == [2])
    assert ours.store(report(3), may_prune=True)


@pytest.mark.parametrize("place", ["at once", "later", "at the end"])
def test_a_lost_trial_is_learnt_of(
    background: Background, database: Database, place: str, wait_until: Callable[..., Any]
) -> None:
    ours = reports_of(background, database)
    database.error = LeaseLost("gone")
    if place == "at once":
        with pytest.raises(LeaseLost):
            ours.store(report(1), may_prune=True)
        return
    database.may_answer.clear()
    assert not ours.store(report(1), may_prune=True)
    database.may_answer.set()
    if place == "at the end":
        with pytest.raises(LeaseLost):
            ours.finish(ENGINE)
        return
    wait_until(background.submit(int).done)
    with pytest.raises(LeaseLost):
        ours.store(report(2), may_prune=True)


def test_a_pruners_error_is_raised_where_training_is(background: Background, database: Database) -> None:
    def fail(one: Report) -> bool:
        raise ZeroDivisionError("the pruner's")

    with pytest.raises(ZeroDivisionError, match="the pruner's"):
        reports_of(background, database, fail).store(report(1), may_prune=True)


def test_a_pruners_error_that_comes_after_the_training_is_no_error(
    background: Background, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports_, "_ANSWER_S", 0.1)
    asked: list[int] = []

    def fail(one: Report) -> bool:
        asked.append(one.epoch)
        raise ZeroDivisionError("the pruner's")

    ours = reports_of(background, database, fail)
    database.may_answer.clear()
    assert not ours.store(report(1), may_prune=True)
    database.may_answer.set()
    ours.finish(ENGINE)

    assert asked == [1]
    assert database.stored == [1, -1]


def test_the_end_waits_for_all_reports_unless_the_worker_ends(
    background: Background, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports_, "_LAST_S", 0.1)
    is_over = threading.Event()
    ours = reports_of(background, database, is_over=is_over.is_set)
    database.may_answer.clear()
    ours.store(report(1), may_prune=True)
    threading.Timer(0.3, database.may_answer.set).start()
    ours.finish(ENGINE)
    assert database.stored == [1, -1]

    database.may_answer.clear()
    ours.store(report(2), may_prune=True)
    is_over.set()
    with pytest.raises(StorageLost, match="the last reports are not stored"):
        ours.finish(ENGINE)
    assert database.stored == [1, -1]


# --- Reports that the pruner does not judge


def gathering(
    background: Background, database: Database, rungs: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, seconds: float
) -> Reports:
    """Return reports of which those at rungs are judged, and others gathered for so many seconds."""
    monkeypatch.setattr(reports_, "GATHER_S", seconds)
    given = (background, cast("Reporter", database), lambda report: report.epoch == 6, lambda: False)
    return Reports(*given, is_judged=lambda epoch: epoch in rungs, gatherer=background)


def test_reports_between_rungs_are_stored_with_the_next_rung_and_the_rest_with_the_end(
    background: Background, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = gathering(background, database, (2, 6), monkeypatch, 300)
    assert [ours.store(report(epoch), may_prune=True) for epoch in range(1, 6)] == [False] * 5
    assert database.together == [[1, 2]]
    assert ours.store(report(6), may_prune=True), "the pruner's answer is waited for"
    assert ours.store(report(7), may_prune=True), "it stays"
    assert not ours.store(report(8), may_prune=False)
    ours.settle()
    assert database.together == [[1, 2], [3, 4, 5, 6]]
    assert cast("Any", ours.rest(ENGINE)) == [7, 8]


def test_gathered_reports_are_stored_a_moment_later(
    background: Background, database: Database, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    ours = gathering(background, database, (), monkeypatch, 0.05)
    for _ in range(2):
        began, stored = len(database.stored), threading.Event()
        background.submit(partial(stored.wait, 300))  # nothing is stored before all three are gathered
        for epoch in (1, 2, 3):
            ours.store(report(began + epoch), may_prune=True)
        stored.set()
        wait_until(lambda: len(database.stored) == began + 3)  # noqa: B023
    assert database.together == [[1, 2, 3], [4, 5, 6]]
    ours.finish(ENGINE)
    assert database.stored == [1, 2, 3, 4, 5, 6, -1]


def test_the_end_does_not_wait_for_the_moment(
    background: Background, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = gathering(background, database, (), monkeypatch, 300)
    ours.keep([report(1)])
    ours.store(report(2), may_prune=True)
    ours.finish(ENGINE)
    assert database.together == [[1, 2]]
    background.submit(int).result(timeout=300)


def test_a_trial_that_was_lost_is_learnt_of_after_gathered_reports(
    background: Background, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = gathering(background, database, (), monkeypatch, 0.05)
    database.error = LeaseLost("gone")
    ours.store(report(1), may_prune=True)
    background.submit_later(int, 0.1).result(timeout=300)
    with pytest.raises(LeaseLost):
        ours.store(report(2), may_prune=True)


def test_later_calls_are_made_in_order_and_not_if_they_are_cancelled(background: Background) -> None:
    made: list[int] = []
    begun = threading.Event()
    background.submit(partial(begun.wait, 300))
    futures = [background.submit_later(partial(made.append, at), seconds) for at, seconds in enumerate((0.3, 0.1, 0.2))]
    assert futures[2].cancel()
    background.submit(lambda: made.append(-1))
    begun.set()
    for future in futures[:2]:
        future.result(timeout=300)
    assert made in ([-1, 1, 0], [1, -1, 0], [1, 0, -1])  # those that are due already may come first


def test_a_call_aside_returns_and_raises_as_any() -> None:
    here = threading.current_thread()
    assert aside(threading.current_thread) is not here
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 / 0)
