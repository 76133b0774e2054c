"""Stopping, resuming and resizing a study by hand, as its workers and launchers see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from storage_tools import opened

from tuner.admin.lifecycle import change_trials, resume, stop
from tuner.errors import UnknownStudy, UsageError
from tuner.results.rows import study_row
from tuner.results.stopping import End
from tuner.storage.read.queries import read_standings
from tuner.storage.worker import leases
from tuner.storage.worker.claims import Claimant, NoTrial, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import end_study, join, register
from tuner.trial import Outcome

pytestmark = pytest.mark.with_tables

ABOUT = {"host": "here", "pid": 1, "devices": "cpu"}


@pytest.fixture
def engine(storage_url: str) -> Iterator[Engine]:
    with opened(storage_url) as storage:
        register(storage, storage.engine, "ours", ["minimize"], {"objective": ["loss"]})
        yield storage.engine


def worker(engine: Engine, trials: int, name: str = "one") -> Claimant:
    made = Claimant(1, name, trials=trials, lease_s=300.0)
    join(engine, made, ABOUT)
    return made


def run_one(engine: Engine, claimant: Claimant) -> NoTrial | int:
    lease = claim(engine, claimant)
    if isinstance(lease, NoTrial):
        return lease
    leases.tell(engine, lease, Outcome.COMPLETE, [1.0], {})
    return lease.number


def test_a_worker_that_runs_uses_the_changed_number(engine: Engine) -> None:
    one = worker(engine, 2)
    assert [run_one(engine, one) for _ in range(3)] == [0, 1, NoTrial.DONE]
    assert change_trials(engine, "ours", 4) == 2
    assert [run_one(engine, one) for _ in range(3)] == [2, 3, NoTrial.DONE]
    assert change_trials(engine, "ours", 6) == 4
    assert run_one(engine, one) == 4
    assert change_trials(engine, "ours", 3) == 6, "less than what is used"
    assert run_one(engine, one) is NoTrial.DONE
    assert study_row(engine, "ours")["state"] == "finished"


def test_the_number_outlasts_a_restart_of_a_worker_until_a_launch_with_another(engine: Engine) -> None:
    worker(engine, 2)
    change_trials(engine, "ours", 3)
    again = worker(engine, 2, "two")
    assert read_standings(engine)[1].trials == 3
    assert [run_one(engine, again) for _ in range(4)] == [0, 1, 2, NoTrial.DONE]
    other = worker(engine, 5, "three")
    assert read_standings(engine)[1].trials == 5
    assert [run_one(engine, other) for _ in range(3)] == [3, 4, NoTrial.DONE]


@pytest.mark.parametrize("trials", [0, -1, 2**31, True, "7"])
def test_what_is_no_number_of_trials_is_refused(engine: Engine, trials: Any) -> None:
    worker(engine, 2)
    with pytest.raises(UsageError, match="the number of trials must be an integer from 1 to 2147483647: got "):
        change_trials(engine, "ours", trials)
    assert read_standings(engine)[1].trials == 2


def test_a_study_that_was_never_launched_has_no_number_to_change(engine: Engine) -> None:
    with pytest.raises(UsageError, match="study 'ours' was never launched, so its number of trials is that of its"):
        change_trials(engine, "ours", 3)
    with pytest.raises(UnknownStudy):
        change_trials(engine, "other", 3)


def test_a_study_is_stopped_and_resumed(engine: Engine) -> None:
    one = worker(engine, 4)
    assert isinstance(claim(engine, one), Lease)
    assert [stop(engine, "ours"), stop(engine, "ours")] == [True, False]
    assert claim(engine, one) is NoTrial.STOPPED
    assert [resume(engine, "ours").was_stopped, resume(engine, "ours").was_stopped] == [True, False]
    assert isinstance(claim(engine, one), Lease)
    end_study(engine, 1, {"rule": "target", "why": "trial 0 reached it", "trial": 0})
    resumed = resume(engine, "ours")
    assert (resumed.was_stopped, resumed.end) == (False, End("target", "trial 0 reached it", 0))
    assert claim(engine, one) is NoTrial.STOPPED
