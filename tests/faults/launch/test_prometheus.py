"""Metrics of launches whose workers die, sleep through their leases, or wait for locks: nothing lost, nothing twice."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from after_faults import attempts_of, endings_of
from launch_output import Scrape, address_of, held_trial, rows_of

from tuner.storage import connect
from tuner.storage.sql.tables import studies

_PLANT = """
from pathlib import Path
import tiny_faults
study = tiny_faults.plant(study, Path(__file__).parent)
"""


def plant(tuner: Any, tiny_function: Path) -> None:
    tiny_function.write_text(tiny_function.read_text() + _PLANT)


def start(tuner: Any, workers: int = 2, trials: int = 7, **env: str) -> Any:
    many = ("--workers", str(workers), "--trials", str(trials))
    return tuner.start("launch", "tiny.py", *many, "--metrics-port", "0", **env)


class Scrapes:
    """Scrapes one address; a counter must never decrease, nor go away."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.last = Scrape(address)

    def next(self) -> Scrape:
        before, self.last = self.last.counters(), Scrape(self.address)
        after = self.last.counters()
        assert {key: value for key, value in before.items() if after[key] < value} == {}
        return self.last


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["after_tell 2", pytest.param("before_tell 2", marks=pytest.mark.long)], ids=["after_tell", "before_tell"]
)
def test_trials_of_workers_that_are_killed_count_once(
    place: str, tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    tuner, url = tuner_on_sqlite, tuner_on_sqlite.env["TUNER_STORAGE"]
    with held_trial(tiny_function, url) as give_back:
        plant(tuner, tiny_function)
        launcher = start(tuner, TINY_FAULT=f"SIGKILL {place}", TINY_PAUSE_S="0.1")
        scrapes = Scrapes(address_of(launcher))

        wait_until(lambda: scrapes.next().sum("tuner_trials_total") == 6)
        wait_until(lambda: all(scrapes.next().sum("tuner_seconds_total", at, "waiting") > 0 for at in "01"))

        last, rows = scrapes.next(), rows_of(url, launcher)
        assert len(rows) == 6
        assert last.sum("tuner_trials_total", "complete") == 6
        assert last.sum("tuner_worker_deaths_total") == 1
        assert last.sum("tuner_lease_losses_total") == 0
        assert last.samples["tuner_workers",] == 2
        attempts = [attempt for tries in attempts_of(url).values() for attempt in tries]
        assert Counter(attempt.ending for attempt in attempts if attempt.worker != "the test") == Counter(
            complete=6, **({"died": 1} if place.startswith("before") else {})
        )
        # Three pauses each, also in the trial whose worker died: it had told its reports.
        assert last.sum("tuner_seconds_total", "training") > 6 * 3 * 0.1
        give_back()
        output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, output


@pytest.mark.slow
def test_a_trial_that_kills_its_workers_counts_as_failed_once(
    tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    url = tuner_on_sqlite.env["TUNER_STORAGE"]
    with held_trial(tiny_function, url) as give_back:
        launcher = start(tuner_on_sqlite, workers=1, trials=3, TINY_MODE="kill")
        scrapes = Scrapes(address_of(launcher))

        wait_until(lambda: scrapes.next().sum("tuner_trials_total", "complete") == 2)

        last = scrapes.next()
        assert last.sum("tuner_trials_total") == 3
        assert last.sum("tuner_trials_total", "failed") == 1
        assert last.sum("tuner_worker_deaths_total") == 3
        assert Counter(row.outcome for row in rows_of(url)) == Counter(complete=2, failed=1, running=1)
        give_back()
        output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, output


@pytest.mark.long
@pytest.mark.slow
def test_a_worker_that_sleeps_through_its_lease_loses_it_once(
    tuner_on_postgres: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    tuner, url = tuner_on_postgres, tuner_on_postgres.env["TUNER_STORAGE"]
    with held_trial(tiny_function, url) as give_back:
        plant(tuner, tiny_function)
        launcher = start(tuner, TINY_FAULT="SIGSTOP before_report 2", TINY_LEASE_S="1.5", TINY_JUDGED="1")
        scrapes = Scrapes(address_of(launcher))
        wait_until(lambda: ["died", "complete"] in endings_of(url).values())
        assert scrapes.next().sum("tuner_lease_losses_total") == 0, "it does not know yet"

        os.kill(int((tiny_function.parent / "faulty").read_text()), signal.SIGCONT)

        wait_until(lambda: scrapes.next().sum("tuner_lease_losses_total") == 1)
        wait_until(lambda: scrapes.next().sum("tuner_trials_total", "complete") == 6)
        wait_until(lambda: all(scrapes.next().sum("tuner_seconds_total", at, "waiting") > 0 for at in "01"))
        last = scrapes.next()
        assert last.sum("tuner_lease_losses_total") == 1
        assert last.sum("tuner_trials_total") == len(rows_of(url, launcher)) == 6
        assert last.sum("tuner_worker_deaths_total") == 0
        give_back()
        output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, output


@pytest.mark.slow
def test_time_in_which_a_worker_waits_for_a_lock_is_time_in_the_database(
    tuner_on_postgres: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    url = tuner_on_postgres.env["TUNER_STORAGE"]
    engine = connect(url)
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    def is_waiting() -> bool:
        with engine.connect() as connection:
            return connection.execute(waiting).scalar_one() > 0

    with held_trial(tiny_function, url) as give_back:
        launcher = start(tuner_on_postgres, workers=1, trials=4, TINY_PAUSE_S="0.1")
        scrapes = Scrapes(address_of(launcher))
        wait_until(lambda: scrapes.next().sum("tuner_trials_total") >= 1)
        with engine.connect() as connection, connection.begin():
            connection.execute(sa.select(studies.c.study_id).with_for_update())
            wait_until(is_waiting)
            began_s = time.monotonic()
            stuck = scrapes.next()
            wait_until(lambda: time.monotonic() - began_s > 2.0)
            held_s = time.monotonic() - began_s
        wait_until(lambda: scrapes.next().sum("tuner_trials_total") == 3)
        wait_until(lambda: scrapes.next().sum("tuner_seconds_total", "waiting") > 0)
        last = scrapes.next()
        assert last.sum("tuner_seconds_total", "database") - stuck.sum("tuner_seconds_total", "database") > held_s
        train_s = sum(row.record.train_s or 0.0 for row in rows_of(url, launcher))
        assert last.sum("tuner_seconds_total", "training") <= train_s + 1e-3
        give_back()
        output, _ = launcher.communicate(timeout=300)
    engine.dispose()
    assert launcher.returncode == 0, output
