"""`tuner launch --notify` with the real command line: receivers that are down, and launchers that are killed."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from command_line import Tuner
from notice_server import NoticeServer

from tuner.storage import connected, notices, parse_url

pytestmark = pytest.mark.slow


def events(server: NoticeServer) -> list[str]:
    return [body["event"] for body in server.got]


def test_a_study_is_trained_and_its_end_delivered_although_the_receiver_is_down_at_first(
    tuner_on_sqlite: Tuner, tiny_function: Path
) -> None:
    with NoticeServer([500, 500, 503]) as server:
        done = tuner_on_sqlite.run("launch", "tiny.py", "--workers", "2", TUNER_NOTIFY=server.url)
    assert done.returncode == 0, done.stderr
    assert "6/6 trials, 6 complete" in done.stderr
    assert set(events(server)) >= {"budget_nearly_used", "finished"}
    assert len(set(server.ids())) == len(server.got) - 3, "each repeat has the id of its event"
    assert done.stderr.count("cannot notify http://127.0.0.1/***: status 500") == 1
    assert "very-secret" not in done.stdout + done.stderr


@pytest.mark.long
def test_a_failing_study_and_workers_that_are_gone_are_told(tuner_on_sqlite: Tuner, tiny_function: Path) -> None:
    with NoticeServer() as server:
        receivers = tuner_on_sqlite.folder / "receivers"
        receivers.write_text(f"{server.url}\n")
        options = ("launch", "tiny.py", "--workers", "1", "--notify", f"@{receivers}")
        assert tuner_on_sqlite.run(*options, TINY_MODE="bug").returncode == 3
        crash = "import tuner.worker.loop\n\n\ndef crash(self):\n    raise RuntimeError('crashed')\n\n\n"
        tiny_function.write_text(f"{tiny_function.read_text()}{crash}tuner.worker.loop.Worker._work = crash\n")
        assert tuner_on_sqlite.run(*options).returncode == 3
    failing, gone = server.got
    assert failing["event"] == "failing"
    assert failing["text"].endswith("RuntimeError: planted bug")
    assert gone["event"] == "workers_gone"
    assert "every worker died 4 times in a row" in gone["text"]
    assert gone["text"].endswith("RuntimeError: crashed")


def test_an_event_outlives_its_launcher(tuner_on_postgres: Tuner, tiny_function: Path, wait_until: Any) -> None:
    with socket.socket() as taken:  # its port refuses connections until the second launch
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        url = f"http://127.0.0.1:{port}/hooks/very-secret-path"
        hold = tuner_on_postgres.folder / "hold"
        hold.touch()
        env = {"TUNER_NOTIFY": url, "TINY_TRIALS": "1", "TINY_EPOCHS": "1", "TINY_HOLD_FILE": str(hold)}
        first = tuner_on_postgres.start("launch", "tiny.py", "--workers", "1", **env)
        wait_until(lambda: [row for row in tuner_on_postgres.rows("studies") if row.get("running")])
        environment = Path(f"/proc/{_child(first.pid)}/environ").read_text()
        assert "TUNER_STORAGE" in environment
        assert "very-secret" not in environment
        hold.unlink()
        wait_until(lambda: b"cannot notify" in os.read(first.stdout.fileno(), 65536))  # type: ignore[union-attr]
        first.send_signal(signal.SIGKILL)
        first.wait()
    with NoticeServer(port=port) as server:
        done = tuner_on_postgres.run("launch", "tiny.py", "--workers", "1", **env)
        assert done.returncode == 0, done.stderr
    assert sorted(events(server)) == ["budget_nearly_used", "finished"]


def is_subscribed(tuner: Tuner) -> bool:
    """Return whether somebody wants the events of the first study."""
    with connected(parse_url(tuner.env["TUNER_STORAGE"])) as engine:
        return bool(notices.subscribed(engine, 1))


def test_a_dashboard_tells_of_launches_that_tell_nobody(
    tuner_on_postgres: Tuner, tiny_function: Path, wait_until: Any
) -> None:
    tuner = tuner_on_postgres
    assert tuner.run("launch", "tiny.py", "--workers", "1", "--trials", "1", TINY_EPOCHS="1").returncode == 0
    with NoticeServer([500, 503]) as server:
        receivers = tuner.folder / "receivers"
        receivers.write_text(f"{server.url}\n")
        dashboard = tuner.start("dashboard", "--port", "0", "--notify", f"@{receivers}")
        assert dashboard.stdout is not None
        assert dashboard.stdout.readline() == "tuner: notifications of all studies go to http://127.0.0.1/***\n"
        wait_until(lambda: "press Ctrl-C" in dashboard.stdout.readline())
        wait_until(lambda: is_subscribed(tuner))
        more = tuner.run("launch", "tiny.py", "--workers", "1", "--trials", "6", TINY_EPOCHS="1")
        assert more.returncode == 0, more.stderr
        wait_until(lambda: "finished" in events(server))
        dashboard.send_signal(signal.SIGTERM)
        rest, _ = dashboard.communicate(timeout=60)
    assert dashboard.returncode == 0
    assert "very-secret" not in rest
    last = server.got[-1]
    assert (last["event"], last["used"], last["trials"]) == ("finished", 6, 6)
    refused = tuner.run_here("dashboard", "--port", "0", "--notify-study", "tiny")
    assert refused.stderr == (
        "tuner: --notify-study has no effect without receivers: pass --notify, or set $TUNER_NOTIFY\n"
    )


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_several_launches_send_each_event_once(tuner_on_postgres: Tuner, tiny_function: Path) -> None:
    with NoticeServer() as server:
        command = ("launch", "tiny.py", "--workers", "1", "--trials", "12")
        launches = [tuner_on_postgres.start(*command, TUNER_NOTIFY=server.url) for _ in range(2)]
        for launch in launches:
            assert launch.wait(300) == 0, launch.stdout and launch.stdout.read()
    ends = [one for one in events(server) if one != "new_best"]
    assert sorted(ends) == ["budget_nearly_used", "finished"]
    assert len(set(server.ids())) == len(server.ids())
