"""Notifications of a launch: each event is sent at least once, with one id, whatever receivers and launches do."""

from __future__ import annotations

import time
from typing import Any

import pytest
from notice_server import HANG, NoticeServer

from tuner import open_storage
from tuner.errors import StorageLost, StudyFailed, StudyStopped
from tuner.launch.notices import LaunchNotices
from tuner.launch.progress import Snapshot
from tuner.notify.events import Ending, State
from tuner.notify.notifier import Notifier, Pace
from tuner.notify.receivers import parse_receiver
from tuner.storage import notices, parse_url

pytestmark = pytest.mark.with_tables

QUICK = Pace(timeout_s=5.0, first_pause_s=0.02, longest_pause_s=0.05, poll_s=0.05, end_s=30.0)
FINISHED = Ending("finished", "budget", State(10, 10, 0.5, 3), "host:1", 2)


@pytest.fixture
def url(storage_url: str) -> str:
    """A storage with the study `s`."""
    import optuna

    storage = open_storage(storage_url)
    optuna.create_study(study_name="s", direction="maximize", storage=storage)
    storage.close()
    return storage_url


def notifier(url: str, server: NoticeServer | str, pace: Pace = QUICK) -> Notifier:
    made = Notifier([parse_receiver(server if isinstance(server, str) else server.url)], parse_url(url), pace)
    made.start("s")
    return made


def end(made: Notifier, ending: Ending | None = FINISHED) -> list[str]:
    """End a launch; return what was said."""
    made.end(ending, lambda: False)
    return [note.text for note in made.take_notes()]


def kinds(server: NoticeServer) -> list[str]:
    return [body["event"] for body in server.got]


def test_events_of_a_launch_are_sent_in_order(url: str) -> None:
    with NoticeServer() as server:
        launch = notifier(url, server)
        launch.see(State(1, 10, 0.1, 0))
        launch.see(State(1, 10, 0.1, 0))
        assert end(launch) == []
    # 0.1 may have been skipped for the newest state; then 0.5 is the first result.
    assert kinds(server) in (["budget_nearly_used", "finished"], ["new_best", "budget_nearly_used", "finished"])


def test_a_new_best_is_sent(url: str, wait_until: Any) -> None:
    with NoticeServer() as server:
        launch = notifier(url, server)
        launch.see(State(1, 10, 0.1, 0))
        wait_until(lambda: _reference(url) is not None)
        launch.see(State(4, 10, 0.5, 3))
        wait_until(lambda: server.got)
        launch.see(State(5, 10, 0.5, 3))
        assert end(launch, None) == []
    assert kinds(server) == ["new_best"]
    assert server.got[0]["previous_value"] == 0.1


def _reference(url: str) -> Any:
    from tuner.storage import connected

    with connected(parse_url(url)) as engine:
        return notices.last_of(engine, 1, (notices.REFERENCE,))


def test_a_receiver_that_refuses_gets_the_event_later_with_the_same_id(url: str) -> None:
    with NoticeServer([500, 503]) as server:
        said = end(notifier(url, server), _ending(used=5))
    assert kinds(server) == ["finished"] * 3
    assert len(set(server.ids())) == 1
    assert len(said) == 1
    assert "status 500" in said[0]
    assert server.ids()[0] in said[0]
    assert "secret" not in said[0]


def test_a_receiver_that_hangs_is_tried_again(url: str) -> None:
    pace = Pace(timeout_s=2.0, first_pause_s=0.02, poll_s=0.05, end_s=30.0)
    with NoticeServer([HANG]) as server:
        said = end(notifier(url, server, pace), _ending(used=5))
    assert kinds(server) == ["finished"] * 2
    assert len(set(server.ids())) == 1
    assert "timed out" in said[0]


def test_an_event_is_given_up_after_a_time_with_one_line(url: str) -> None:
    pace = Pace(timeout_s=5.0, first_pause_s=0.02, poll_s=0.05, give_up_s=0.03, end_s=30.0)
    with NoticeServer([500] * 50) as server:
        said = end(notifier(url, server, pace), _ending(used=5))
        assert end(notifier(url, server, pace), None) == []  # it is not tried again
    assert len(server.got) >= 2
    assert len(set(server.ids())) == 1
    [given_up] = [line for line in said if "given up" in line]
    assert f"event {server.ids()[0]} was given up after {len(server.got)} tries: http://127.0.0.1/***" in given_up
    assert len(said) == 2


def test_an_event_that_is_not_delivered_at_the_end_is_sent_by_the_next_launch(url: str) -> None:
    from tuner.storage import connected
    from tuner.storage.sql.tables import deliveries

    said: list[str] = []

    def has_said() -> bool:
        said.extend(note.text for note in launch.take_notes())
        return bool(said)  # the first try is stored, and the next one is not yet due

    with NoticeServer([500]) as server:
        launch = notifier(url, server, Pace(first_pause_s=600.0, longest_pause_s=600.0))
        launch.end(_ending(used=5), has_said)
        told = [note.text for note in launch.take_notes()]
        assert [line for line in told if f"event {server.ids()[0]} is not delivered" in line]
        with connected(parse_url(url)) as engine, engine.begin() as connection:
            connection.execute(deliveries.update().values(next_at_s=0.0))  # 600 seconds later
        assert end(notifier(url, server), None) == []
        assert len(server.got) == 2
    assert len(set(server.ids())) == 1


def test_a_launch_that_died_between_its_try_and_the_answer_loses_nothing(url: str) -> None:
    from tuner.storage import connected

    with NoticeServer() as server, connected(parse_url(url)) as engine:
        receiver = parse_receiver(server.url)
        notice = notices.Notice("some-id", "finished", {"id": "some-id", "event": "finished", "study": "s", "text": ""})
        notices.post(engine, 1, [notice], [receiver.key])
        [due] = notices.take_due(engine, 1, receiver.key, claim_s=0.0)  # and then it was killed
        assert due.tries == 1
        assert end(notifier(url, server), None) == []
    assert server.ids() == ["some-id"]


def test_a_try_is_claimed_so_that_no_other_launch_makes_it(url: str) -> None:
    from tuner.storage import connected

    with connected(parse_url(url)) as engine:
        notices.post(engine, 1, [notices.Notice("some-id", "finished", {})], ["receiver"])
        assert len(notices.take_due(engine, 1, "receiver", claim_s=60.0)) == 1
        assert notices.take_due(engine, 1, "receiver", claim_s=60.0) == []
        assert list(notices.unsent(engine, 1, "receiver")) == ["some-id"]


def test_several_launches_send_each_event_once(url: str) -> None:
    with NoticeServer() as server:
        launches = [notifier(url, server) for _ in range(4)]
        for launch in launches:
            launch.see(State(9, 10, 0.5, 3))
        for launch in launches:
            launch.end(FINISHED, lambda: False)
    assert sorted(kinds(server)) == ["budget_nearly_used", "finished"]


def test_each_receiver_gets_each_event_and_one_that_hangs_delays_no_other(url: str) -> None:
    with NoticeServer([HANG] * 10) as slow, NoticeServer() as quick:
        receivers = [parse_receiver(slow.url), parse_receiver(quick.url)]
        launch = Notifier(receivers, parse_url(url), Pace(timeout_s=60.0))
        launch.start("s")
        launch.end(_ending(used=5), lambda: bool(slow.got and quick.got))
        said = [note.text for note in launch.take_notes()]
    assert kinds(quick) == ["finished"]
    assert [line for line in said if "is not delivered" in line]


def test_a_new_receiver_gets_no_old_events(url: str) -> None:
    with NoticeServer() as old, NoticeServer() as new:
        end(notifier(url, old))
        end(notifier(url, new))
        assert kinds(new) == []
        end(notifier(url, new), Ending("workers_gone", "why", State(10, 10, 0.5, 3), "host:2", 2))
    assert kinds(new) == ["workers_gone"]
    assert kinds(old) == ["budget_nearly_used", "finished"]


def test_what_is_stored_has_no_secret(url: str) -> None:
    import sqlalchemy as sa

    from tuner.storage import connected

    with NoticeServer() as server, connected(parse_url(url)) as engine:
        end(notifier(url, server))
        with engine.connect() as connection:
            tables = ("tuner_notices", "tuner_deliveries")
            rows = [row for name in tables for row in connection.execute(sa.text(f"SELECT * FROM {name}"))]
    assert len(rows) == 8  # four notices, the first result and the sign of the receiver among them
    assert "very-secret" not in str(rows)


def test_the_end_is_sent_even_if_the_database_is_gone(monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> None:
    monkeypatch.setattr("tuner.notify.notifier._LOST_S", 0.0)
    with NoticeServer([200, 500]) as server:
        gone = Ending("workers_gone", "the database cannot be reached", State(1, 10, None, None), "host:1", 2)
        url = f"{sqlite_url}-not-there"
        assert end(notifier(url, server), gone) == []
        [said] = end(notifier(url, server), gone)
    assert kinds(server) == ["workers_gone"] * 2
    assert "was given up" in said
    assert server.ids()[0] in said


def test_a_signal_ends_the_wait(url: str) -> None:
    with NoticeServer([HANG] * 10) as server:
        launch = notifier(url, server, Pace(timeout_s=60.0, end_s=60.0))
        began_s = time.monotonic()
        launch.end(FINISHED, lambda: bool(server.got))
        assert time.monotonic() - began_s < 30.0


def test_without_receivers_nothing_runs(url: str) -> None:
    launch = Notifier([], parse_url(url))
    launch.start("s")
    launch.see(State(9, 10, 0.5, 3))
    assert end(launch) == []
    assert _reference(url) is None


@pytest.mark.parametrize(
    ("error", "is_gone", "flags", "ending"),
    [
        (None, False, {}, ("finished", "budget")),
        (None, False, {"is_out_of_hours": True}, ("finished", "hours")),
        (None, False, {"is_finished": True}, ("finished", "search_ended")),
        (None, False, {"ended": "study has ended"}, ("finished", "ended_early")),
        (StudyStopped("by a user"), False, {}, ("finished", "stopped")),
        (StudyFailed("three in a row"), False, {}, ("failing", "three in a row")),
        (StudyFailed("every worker died"), True, {}, ("workers_gone", "every worker died")),
        (StorageLost("no database"), True, {}, ("workers_gone", "no database")),
    ],
)
def test_how_a_launch_ends(error: Any, is_gone: bool, flags: Any, ending: tuple[str, str]) -> None:
    launch = LaunchNotices.of([], parse_url("sqlite:///tuner.db"), 2)
    found = launch._ending(Snapshot(study="s", trials=10, **flags), error, is_gone)
    assert (found.kind, found.reason) == ending


def _ending(used: int) -> Ending:
    return Ending("finished", "hours", State(used, 10, None, None), "host:1", 2)
