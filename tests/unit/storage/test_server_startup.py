"""A database server that starts up at the same time as a launch: waited for, for a bounded time, and said once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tuner.cli import run
from tuner.errors import StorageLost
from tuner.launch import LaunchOptions, launch
from tuner.storage import connect_when_up
from tuner.storage.sql import server_startup
from tuner.study.file import Found, Settings


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(server_startup, "time", clock)
    monkeypatch.setattr(server_startup, "_POLL_S", 5.0)
    return clock


class Refusing:
    """Says what a Postgres server says while it cannot be used, with a SQLSTATE; PostgreSQL protocol 3.0, 55.2.1."""

    def __init__(self, code: str, message: str) -> None:
        fields = {"S": "FATAL", "V": "FATAL", "C": code, "M": message}
        body = b"".join(key.encode() + value.encode() + b"\0" for key, value in fields.items()) + b"\0"
        self.answer = b"E" + (len(body) + 4).to_bytes(4, "big") + body
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.asked = self.listener.getsockname()[1], 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client:
                while (packet := client.recv(65536)) and packet[4:8] != b"\x00\x03\x00\x00":
                    client.sendall(b"N")  # neither TLS nor GSSAPI
                self.asked += 1
                client.sendall(self.answer)


@pytest.fixture(params=["starting up", "not yet accepting connections"])
def refusing(request: pytest.FixtureRequest) -> Iterator[Refusing]:
    server = Refusing("57P03", f"the database system is {request.param}")
    yield server
    server.listener.close()


def url(port: int) -> str:
    return f"postgresql://me:s3cret@127.0.0.1:{port}/d"


def test_a_server_that_starts_is_waited_for_and_that_is_said_once(
    clock: Clock, refusing: Refusing, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StorageLost, match="the database system is"):
        connect_when_up(url(refusing.port))

    assert refusing.asked == 13, "at once and every five seconds of a minute"
    assert clock.now_s == 60.0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("; waiting up to 60 s for it to start")
    assert "s3cret" not in line


def test_where_nobody_listens_a_server_is_waited_for_ten_seconds(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(StorageLost, match="Connection refused"):
        connect_when_up(url(port))

    assert clock.now_s == 10.0
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_socket_that_is_not_there_yet_is_waited_for(
    clock: Clock, tmp_path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StorageLost, match="No such file or directory"):
        connect_when_up(f"postgresql:///d?host={tmp_path}")

    assert clock.now_s == 10.0
    assert "waiting up to 10 s" in capfd.readouterr().err


def test_a_server_that_refuses_for_another_reason_is_not_waited_for(clock: Clock) -> None:
    server = Refusing("28P01", 'password authentication failed for user "me"')
    with pytest.raises(StorageLost, match="password authentication failed"):
        connect_when_up(url(server.port))
    server.listener.close()

    assert clock.now_s == 0.0


@pytest.mark.slow
def test_a_server_that_has_started_meanwhile_is_used(
    clock: Clock, refusing: Refusing, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected, urls = server_startup.connected_engine, iter([url(refusing.port), url(refusing.port), postgres_url])
    monkeypatch.setattr(server_startup, "connected_engine", lambda _: connected(next(urls)))

    connect_when_up("postgresql://given/d").dispose()

    assert clock.now_s == 10.0


def test_a_file_that_is_missing_is_not_waited_for(clock: Clock, sqlite_url: str) -> None:
    with pytest.raises(StorageLost, match="the storage does not exist"):
        connect_when_up(sqlite_url)
    assert clock.now_s == 0.0


def test_a_launch_waits_for_a_server_that_starts(
    clock: Clock, refusing: Refusing, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.py").touch()
    with pytest.raises(StorageLost, match="the database system is"):
        launch(str(tmp_path / "study.py"), LaunchOptions(storage=url(refusing.port), workers=1))

    assert clock.now_s == 60.0
    opening, waiting = capfd.readouterr().err.splitlines()
    assert "study.py with 1 worker" in opening
    assert waiting.endswith("; waiting up to 60 s for it to start")


def test_a_worker_without_a_launcher_waits_for_a_server_that_starts(
    clock: Clock, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.study.file.load_target", lambda file, settings: Found(cast("Any", None)))
    with pytest.raises(StorageLost, match="the database system is"):
        run._work("study.py", url(refusing.port), None, Settings(), run.Stop(), lambda event: None)

    assert clock.now_s == 60.0
