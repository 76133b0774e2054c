"""What a worker's time goes on, by hand."""

import contextlib
import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa

from tuner.storage import connect
from tuner.storage.sql.retry import read, write
from tuner.storage.sql.wait_time import database_s
from tuner.worker.time_use import TimeUse


class Day:
    """A clock, and how much of its time went on what is measured by itself."""

    def __init__(self) -> None:
        self.now_s, self.compiling, self.database = 1000.0, 50.0, 7.0
        measured = {"compiling": lambda: self.compiling, "database": lambda: self.database}
        self.time_use = TimeUse(measured, lambda: self.now_s)

    def spend(self, seconds: float, *, compiling: float = 0.0, database: float = 0.0) -> None:
        self.now_s += seconds
        self.compiling += compiling
        self.database += database


def test_each_second_counts_under_one_name() -> None:
    day = Day()
    day.spend(2.0, database=0.5)  # starting has no name
    with day.time_use.doing("training"):
        day.spend(10.0, compiling=3.0, database=1.0)
        day.spend(4.0, database=0.25)
    day.spend(1.0)
    with day.time_use.doing("waiting"):
        day.spend(5.0)
    assert day.time_use.take() == {"database": 1.75, "compiling": 3.0, "training": 9.75, "waiting": 5.0}
    assert day.time_use.take() == {}


def test_what_is_taken_in_the_middle_is_not_taken_again() -> None:
    day = Day()
    with day.time_use.doing("training"):
        day.spend(10.0, compiling=4.0)
        assert day.time_use.take() == {"compiling": 4.0, "training": 6.0}
        day.spend(1.5)
    assert day.time_use.take() == {"training": 1.5}


def test_a_trial_that_fails_has_taken_its_time_and_what_follows_is_not_training() -> None:
    day = Day()
    with contextlib.suppress(ZeroDivisionError), day.time_use.doing("training"):
        day.spend(2.0)
        _ = 1 / 0
    day.spend(9.0)
    assert day.time_use.take() == {"training": 2.0}


def test_the_account_is_due_when_nobody_has_taken_it_for_five_seconds() -> None:
    day = Day()
    day.spend(4.9)
    assert not day.time_use.is_due()
    day.spend(0.1)
    assert day.time_use.is_due()
    day.time_use.take()
    assert not day.time_use.is_due()


def test_the_database_is_measured_once_and_for_the_thread_that_waits(sqlite_url: str) -> None:
    path = sqlite_url.removeprefix("sqlite:///")
    plain = sa.create_engine(f"sqlite:///{path}")
    with plain.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    plain.dispose()
    engine = connect(sqlite_url)
    pause = threading.Event()

    def slowly(connection: Any, *_: Any) -> None:
        connection.exec_driver_sql("SELECT 1")
        pause.wait(0.2)

    def nested(connection: Any, tries: int) -> None:
        read(engine, slowly)

    try:
        began_s, before_s = time.monotonic(), database_s()
        write(engine, slowly)
        write(engine, nested)
        spent_s, passed_s = database_s() - before_s, time.monotonic() - began_s
        assert 0.4 <= spent_s <= passed_s
        other = threading.Thread(target=lambda: read(engine, slowly))
        other.start()
        other.join()
        assert database_s() - before_s == spent_s
        with pytest.raises(ZeroDivisionError):
            read(engine, lambda connection: pause.wait(0.2) or 1 / 0)
        assert database_s() - before_s >= spent_s + 0.2
    finally:
        engine.dispose()
