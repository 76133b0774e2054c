"""Reports beside the training: what training waits for, and what it learns later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import sqlalchemy as sa

from tuner.errors import LeaseLost, StorageLost
from tuner.storage.sql.background_calls import Background, aside
from tuner.storage.sql.wait_time import database_s, waiting
from tuner.storage.worker.reporter import Reporter
from tuner.trial import Report
from tuner.worker import reports as reports_
from tuner.worker.reports import Reports

ENGINE = cast("sa.Engine", None)


class Database:
    """Stands in for `Reporter`: a database that is silent until it is told to go on."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.is_away = False
        self.stored: list[int] = []
        self.error: Exception | None = None

    def store(self, one: Report) -> bool:
        with waiting():
            assert self.may_answer.wait(300)
        if self.error is not None:
            raise self.error
        if not self.is_away:
            self.stored.append(one.epoch)
        return not self.is_away

    def keep(self, several: list[Report]) -> None:
        self.stored += [one.epoch for one in several]

    def flush(self, engine: sa.Engine) -> None:
        self.stored.append(-1)


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


def test_a_call_aside_returns_and_raises_as_any() -> None:
    here = threading.current_thread()
    assert aside(threading.current_thread) is not here
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 / 0)
