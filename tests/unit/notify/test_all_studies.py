"""Notifications of all studies of a storage: the events of a launch, with the same ids, however many send them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from notice_server import HANG, NoticeServer

from tuner import open_storage
from tuner.errors import StorageDenied
from tuner.launch.notices import LaunchNotices
from tuner.launch.progress import Snapshot
from tuner.notify import all_studies
from tuner.notify.all_studies import StudiesNotifier
from tuner.notify.events import Ending, State
from tuner.notify.looks import finished_by
from tuner.notify.notifier import Note, Notifier, Pace
from tuner.notify.receivers import parse_receiver
from tuner.storage import connected, notices, parse_url
from tuner.storage.read.launches import Activity, read_activity
from tuner.storage.read.queries import Standing
from tuner.storage.sql.tables import workers
from tuner.storage.worker import leases, studies
from tuner.storage.worker.claims import Claimant, claim
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import Budget, join, leave, register, store_budget
from tuner.trial import Outcome

pytestmark = pytest.mark.with_tables

QUICK = Pace(timeout_s=5.0, first_pause_s=0.02, longest_pause_s=0.05, poll_s=0.05, end_s=30.0)


class OneStudy:
    """A study whose trials end as told, as a worker would end them."""

    def __init__(self, url: str, name: str = "s", trials: int = 4) -> None:
        self.url, self.name, self.trials = url, name, trials
        storage = open_storage(url)
        with connected(parse_url(url)) as engine:
            record = {"objective": ["loss"], "train": "function"}
            self.study_id = register(storage, engine, name, ["minimize"], record).study_id
            store_budget(engine, self.study_id, Budget(trials, None, None))
        storage.close()

    def join(self, worker: str = "one") -> None:
        with connected(parse_url(self.url)) as engine:
            claimant = Claimant(self.study_id, worker, trials=self.trials, lease_s=300.0)
            join(engine, claimant, {"host": "here", "pid": 1, "devices": "cpu"})

    def leave(self, worker: str = "one") -> None:
        with connected(parse_url(self.url)) as engine:
            leave(engine, worker)

    def run(self, *values: float | str, worker: str = "one") -> None:
        """End a trial with each value, or as failed with an error of this kind."""
        with connected(parse_url(self.url)) as engine:
            claimant = Claimant(self.study_id, worker, trials=self.trials, lease_s=300.0)
            for value in values:
                lease = claim(engine, claimant)
                assert isinstance(lease, Lease)
                if isinstance(value, str):
                    record = {"error": f"Traceback\n{value}: planted", "error_kind": value}
                    leases.tell(engine, lease, Outcome.FAILED, None, record)
                else:
                    leases.tell(engine, lease, Outcome.COMPLETE, [value], {})

    def stop(self) -> None:
        with connected(parse_url(self.url)) as engine:
            studies.stop(engine, self.study_id)

    def change(self, **columns: float) -> None:
        """Change the times of its workers."""
        with connected(parse_url(self.url)) as engine, engine.begin() as connection:
            connection.execute(workers.update().values(**columns))


@contextlib.contextmanager
def sending(url: str, server: NoticeServer | str, **options: Any) -> Iterator[list[Note]]:
    """Notify of all studies while the body runs; yields what is said."""
    said: list[Note] = []
    receiver = parse_receiver(server if isinstance(server, str) else server.url)
    notifier = StudiesNotifier([receiver], parse_url(url), said.append, pace=QUICK, every_s=0.05, **options)
    notifier.start()
    end_s = time.monotonic() + 60.0
    while notifier._is_first and time.monotonic() < end_s:  # what ends before the first look is old
        time.sleep(0.01)
    try:
        yield said
    finally:
        notifier.close()
        notifier._thread.join(30.0)


def test_a_named_study_that_does_not_exist_yet_is_told_and_waited_for(storage_url: str, wait_until: Any) -> None:
    OneStudy(storage_url)
    with NoticeServer([]) as server, sending(storage_url, server, only=["s", "typo"]) as said:
        wait_until(lambda: said)
        assert [note.text for note in said] == ["no study 'typo' yet: its events are sent when there is one"]


def test_an_error_of_any_kind_ends_the_notifications_with_one_line(
    storage_url: str, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    OneStudy(storage_url)
    monkeypatch.setattr(all_studies, "read_activity", lambda engine: [][0])
    said: list[Note] = []
    notifier = StudiesNotifier([parse_receiver("http://127.0.0.1:1/x")], parse_url(storage_url), said.append)
    notifier.start()
    wait_until(lambda: not notifier._thread.is_alive())
    assert [note.text for note in said] == ["no notifications are sent any more: IndexError: list index out of range"]
    notifier.close()


def kinds(server: NoticeServer, study: str = "s") -> list[str]:
    return [body["event"] for body in server.got if body["study"] == study]


def seen(url: str) -> Callable[[], bool]:
    """Return a function that says whether someone is subscribed to the first study."""

    def is_seen() -> bool:
        with connected(parse_url(url)) as engine:
            return bool(notices.subscribed(engine, 1))

    return is_seen


def test_the_events_of_a_study_that_runs_are_sent(storage_url: str, wait_until: Any) -> None:
    study = OneStudy(storage_url)
    study.join()
    with NoticeServer() as server, sending(storage_url, server) as said:
        wait_until(seen(storage_url))
        study.run(0.5)
        wait_until(lambda: _reference(storage_url))
        study.run(0.25)
        wait_until(lambda: kinds(server) == ["new_best"])
        study.run(0.3, 0.3)
        study.leave()
        wait_until(lambda: kinds(server) == ["new_best", "budget_nearly_used", "finished"])
    assert (server.got[-1]["reason"], server.got[-1]["value"], server.got[-1]["trial"]) == ("budget", 0.25, 1)
    assert said == []


def _reference(url: str) -> bool:
    with connected(parse_url(url)) as engine:
        return notices.last_of(engine, 1, (notices.REFERENCE,)) is not None


@pytest.mark.slow
def test_a_launcher_and_two_dashboards_send_each_event_once_with_one_id(storage_url: str, wait_until: Any) -> None:
    study = OneStudy(storage_url)
    study.join()
    with NoticeServer() as server, sending(storage_url, server), sending(storage_url, server):
        launcher = LaunchNotices(Notifier([parse_receiver(server.url)], parse_url(storage_url), QUICK), "host:1", 1)
        launcher.start("s")
        wait_until(seen(storage_url))
        study.run(0.5, 0.4, 0.4, 0.4)
        study.leave()
        snapshot = Snapshot(study="s", trials=4, counts={Outcome.COMPLETE: 4}, best_value=0.4, best_trial=1)
        snapshot.began_s = 0.0
        launcher.end(_Silent(), snapshot, threading.Event(), None, is_gone=False)  # type: ignore[arg-type]
        wait_until(lambda: "finished" in kinds(server))
        with connected(parse_url(storage_url)) as engine:
            key = parse_receiver(server.url).key
            wait_until(lambda: not notices.unsent(engine, 1, key))
    assert [kind for kind in kinds(server) if kind != "new_best"] == ["budget_nearly_used", "finished"]
    assert len(set(server.ids())) == len(server.ids())


class _Silent:
    def note(self, *_: object, **__: object) -> None: ...


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "event", "reason"),
    [
        (lambda study: study.stop(), "finished", "stopped"),
        (lambda study: study.run("ValueError", "ValueError", "ValueError"), "failing", None),
        (lambda study: study.change(seen_at_s=1.0), "workers_gone", None),
    ],
)
def test_how_launches_end_is_found_in_the_database_with_the_id_that_a_launcher_gives_it(
    storage_url: str, wait_until: Any, act: Callable[[OneStudy], None], event: str, reason: str | None
) -> None:
    study = OneStudy(storage_url)
    study.join()
    study.run(0.5)
    with NoticeServer() as server, sending(storage_url, server):
        wait_until(seen(storage_url))
        act(study)
        if event == "failing":
            study.leave()
        wait_until(lambda: server.got)
    (told,) = server.got
    assert (told["event"], told.get("reason")) == (event, reason)
    assert event != "failing" or told["text"].endswith("\nValueError: planted")
    # A launcher that sees the same end.
    why = Ending(event, reason or "another text", State(1, 4, 0.5, 0), "host:1", 1)
    with NoticeServer() as other:
        launcher = Notifier([parse_receiver(other.url)], parse_url(storage_url), QUICK)
        launcher.start("s")
        launcher.end(why, lambda: False)
    assert other.got == [], "a new receiver does not get what was stored before"
    with connected(parse_url(storage_url)) as engine, engine.connect() as connection:
        query = notices.notices.select().where(notices.notices.c.kind == event)
        assert len(list(connection.execute(query))) == 1


@pytest.mark.slow
def test_a_study_that_ended_before_is_old_for_a_new_receiver_and_sent_to_one_that_waited(
    storage_url: str, wait_until: Any
) -> None:
    study = OneStudy(storage_url)
    study.join()
    with NoticeServer() as server, NoticeServer() as new:
        with sending(storage_url, server):
            wait_until(seen(storage_url))
        study.run(0.5, 0.5, 0.5, 0.5)  # while nobody looks
        study.leave()
        with sending(storage_url, server):
            wait_until(lambda: "finished" in kinds(server))
        for _ in range(2):
            with sending(storage_url, new):
                late = OneStudy(storage_url, f"late{len(kinds(new, 'late0'))}", trials=1)
                late.run(0.1)
                wait_until(lambda name=late.name: "finished" in kinds(new, name))
        assert kinds(new) == []
        assert kinds(server) == ["budget_nearly_used", "finished"]


def test_only_the_studies_that_are_named(storage_url: str, wait_until: Any) -> None:
    both = [OneStudy(storage_url, name, trials=1) for name in ("s", "t")]
    for study in both:
        study.join(study.name)
    with NoticeServer([]) as server, sending(storage_url, server, only=["t"]):
        for study in both:
            study.run(0.5, worker=study.name)
        wait_until(lambda: "finished" in kinds(server, "t"))
    assert kinds(server) == []


def test_receivers_that_refuse_answer_500_or_hang_get_each_event_in_the_end(storage_url: str, wait_until: Any) -> None:
    study = OneStudy(storage_url, trials=1)
    study.join()
    pace = Pace(timeout_s=0.3, claim_s=2.0, first_pause_s=0.02, longest_pause_s=0.05, poll_s=0.05, end_s=30.0)
    with NoticeServer([500, HANG, 503]) as server:
        said: list[Note] = []
        notifier = StudiesNotifier(
            [parse_receiver(server.url)], parse_url(storage_url), said.append, pace=pace, every_s=0.05
        )
        notifier.start()
        wait_until(seen(storage_url))
        study.run(0.5)
        wait_until(lambda: len(server.got) >= 5)
        notifier.close()
    assert len(set(server.ids())) == 2
    assert not any("very-secret" in note.text for note in said)


def test_what_cannot_be_sent_for_long_is_given_up_with_one_line(storage_url: str, wait_until: Any) -> None:
    study = OneStudy(storage_url, trials=1)
    study.join()
    pace = Pace(timeout_s=1.0, first_pause_s=0.02, longest_pause_s=0.05, poll_s=0.05, give_up_s=0.2)
    said: list[Note] = []
    receiver = parse_receiver("http://127.0.0.1:1/very-secret")
    notifier = StudiesNotifier([receiver], parse_url(storage_url), said.append, pace=pace, every_s=0.05)
    notifier.start()
    wait_until(seen(storage_url))
    study.run(0.5)
    wait_until(lambda: len([note for note in said if "given up" in note.text]) == 2)
    notifier.close()
    assert not any("very-secret" in note.text for note in said)


def test_a_role_that_may_not_write_is_one_line(
    storage_url: str, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    OneStudy(storage_url).join()

    def refuse(*_: object) -> None:
        raise StorageDenied("the database user is not allowed to write")

    monkeypatch.setattr(notices, "subscribe", refuse)
    said: list[Note] = []
    receivers = [parse_receiver("http://127.0.0.1:1/very-secret")]
    notifier = StudiesNotifier(receivers, parse_url(storage_url), said.append, every_s=0.05)
    notifier.start()
    wait_until(lambda: not notifier._thread.is_alive())
    assert [note.text for note in said] == [
        "no notifications are sent any more: the database user is not allowed to write"
    ]


def test_a_study_of_plain_optuna_is_left_alone(storage_url: str, wait_until: Any) -> None:
    storage: Any = open_storage(storage_url)
    optuna.create_study(study_name="theirs", storage=storage).optimize(lambda trial: 1.0, n_trials=1)
    storage.close()
    study = OneStudy(storage_url, trials=1)
    study.join()
    with NoticeServer() as server, sending(storage_url, server):
        study.run(0.5)
        wait_until(lambda: "finished" in kinds(server))
    assert kinds(server, "theirs") == []


@pytest.mark.parametrize(
    ("standing", "used", "reason"),
    [
        (Standing(trials=4), 3, None),
        (Standing(trials=4), 4, "budget"),
        (Standing(trials=4, workers=1), 4, None),
        (Standing(trials=4, is_stopped=True), 4, "stopped"),
        (Standing(trials=4, is_stopped=True, end="target"), 4, "ended_early"),
        (Standing(trials=4, is_stopped=True, workers=1), 2, None),
        (Standing(trials=4, search_ended=True), 4, "budget"),
        (Standing(trials=4, search_ended=True), 2, "search_ended"),
        (Standing(trials=4, search_ended=True, wall_s=0.0), 2, "search_ended"),
        (Standing(trials=4, search_ended=True, workers=1), 2, None),
        (Standing(trials=4, wall_s=0.0), 2, "hours"),
        (Standing(trials=4, wall_s=0.0), 4, "budget"),
        (Standing(), 4, None),
    ],
)
def test_why_nothing_is_left_to_do(standing: Standing, used: int, reason: str | None) -> None:
    assert finished_by(standing, State(used, standing.trials or 0, None, None)) == reason


def test_the_activity_of_workers(storage_url: str) -> None:
    study = OneStudy(storage_url)
    with connected(parse_url(storage_url)) as engine:
        assert read_activity(engine) == {}
        study.join("one")
        study.join("two")
        study.run(0.5)
        found = read_activity(engine)[1]
        assert (found.attempts, found.joined, found.alive, found.has_lost) == (1, 2, 2, False)
        study.leave("one")
        assert read_activity(engine)[1].alive == 1
        study.change(seen_at_s=1.0)
        assert read_activity(engine)[1].has_lost is False, "the one that left was seen last"
        study.change(ended_at_s=None, seen_at_s=1.0)  # type: ignore[arg-type]
        found = read_activity(engine)[1]
        assert found == Activity(1, 2, 0, found.since_s, has_lost=True)
