"""Notifications of a launch on an engine: those of a launch on this machine, with the same ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from notice_server import NoticeServer
from sqlalchemy import Engine as Database

from tuner import open_storage
from tuner.errors import StudyFailed, StudyStopped, TunerError
from tuner.launch.engines import job_notices
from tuner.launch.engines.engine import Job, Part
from tuner.launch.engines.job_notices import JobNotices, WorkersEnded, subscribe
from tuner.launch.study_launch import Interrupted
from tuner.notify.notifier import Notifier, Pace
from tuner.notify.receivers import parse_receiver
from tuner.storage import connected, notices, parse_url
from tuner.storage.read.queries import find_study
from tuner.storage.worker import leases, studies
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import Budget, register, store_budget
from tuner.trial import Outcome

pytestmark = pytest.mark.with_tables

QUICK = Pace(timeout_s=5.0, first_pause_s=0.02, longest_pause_s=0.05, poll_s=0.05, end_s=30.0)


@pytest.fixture
def database(storage_url: str) -> Iterator[Database]:
    """A storage with the study `s` of two trials."""
    storage = open_storage(storage_url)
    with connected(parse_url(storage_url)) as engine:
        study_id = register(storage, engine, "s", ["minimize"], {"objective": ["loss"], "train": "function"}).study_id
        store_budget(engine, study_id, Budget(2, None, None))
        yield engine
    storage.close()


def run(database: Database, *values: float) -> None:
    claimant = Claimant(find_study(database, "s").study_id, "one", trials=2, lease_s=300.0)
    for value in values:
        lease = claim(database, claimant)
        assert isinstance(lease, Lease)
        leases.tell(database, lease, Outcome.COMPLETE, [value], {})


def job() -> Job:
    return Job(
        key="k",
        engine="slurm",
        study="s",
        command=("worker",),
        folder=Path("/f"),
        logs=Path("/l"),
        devices_per_worker=0,
        options={},
        launched_at_s=0.0,
        parts=(Part("7", 2),),
    )


def notified(url: str, database: Database, server: NoticeServer) -> JobNotices:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_notices, "Notifier", partial(Notifier, pace=QUICK))
        return JobNotices([parse_receiver(server.url)], parse_url(url), database, job())


def stop(database: Database) -> None:
    studies.stop(database, find_study(database, "s").study_id)


@pytest.mark.parametrize(
    ("act", "error", "event", "reason"),
    [
        (lambda database: run(database, 0.5, 0.5), None, "finished", "budget"),
        (lambda database: run(database, 0.5), None, "finished", "search_ended"),
        (stop, StudyStopped("it is stopped"), "finished", "stopped"),
        (lambda database: None, StudyFailed("the same error\nValueError: planted"), "failing", None),
        (lambda database: None, WorkersEnded("all workers have ended"), "workers_gone", None),
    ],
)
def test_the_end_of_a_job_is_an_event_with_the_id_that_a_launch_here_gives_it(
    storage_url: str,
    database: Database,
    act: Callable[[Database], None],
    error: TunerError | None,
    event: str,
    reason: str | None,
) -> None:
    with NoticeServer([500]) as server:
        told = notified(storage_url, database, server)
        raised: TunerError | None = None
        try:
            with told.until_end():
                told.look()
                act(database)
                if error is not None:
                    raise error
        except TunerError as found:
            raised = found
        assert raised is error, "the error goes on"
        ends = [body for body in server.got if body["event"] != "budget_nearly_used"]
        assert {(body["event"], body.get("reason")) for body in ends} == {(event, reason)}
        before = set(server.ids())
        again = Notifier([parse_receiver(server.url)], parse_url(storage_url), QUICK)
        again.start("s")
        again.end(told._ending(error), lambda: False)
        assert set(server.ids()) == before


def test_a_signal_is_no_event(storage_url: str, database: Database) -> None:
    with NoticeServer() as server:
        told = notified(storage_url, database, server)
        with pytest.raises(Interrupted), told.until_end():
            raise Interrupted("stopped")
    assert server.got == []


def test_without_receivers_nothing_is_asked(storage_url: str, database: Database) -> None:
    told = JobNotices([], parse_url(storage_url), database, job())
    with told.until_end():
        told.look()
    assert told._last is None


def test_a_job_that_nobody_waits_for_notes_who_wants_its_events(
    storage_url: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver, study = parse_receiver("https://example.org/very-secret"), find_study(database, "s")
    subscribe([], database, study)
    assert capsys.readouterr().err == ""
    subscribe([receiver], database, study)
    said: Any = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "keep `tuner dashboard` running with the same receivers, as `notify` or in $TUNER_NOTIFY" in said
    assert "secret" not in said
    assert notices.subscribed(database, study.study_id) == {receiver.key}
