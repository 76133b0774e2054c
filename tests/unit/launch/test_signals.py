"""Signals that ask a process to end, also one that waits where Python does not look."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

# libpq waits for an answer in C, without end and through signals.
SCRIPT = """
import os, signal, socket, sys, threading
from tuner.launch.signals import end_on_signals
undo = end_on_signals((signal.SIGINT, signal.SIGTERM), lambda: os.write(1, b"stop\\n"))
if sys.argv[1] == "fork":
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    os.waitpid(child, 0)
    undo()
    print("undone", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.set_wakeup_fd(-1), flush=True)
    sys.exit(0)
import psycopg2
silent, accepted = socket.create_server(("127.0.0.1", 0)), []
def accept():
    accepted.append(silent.accept())
    print("ready", flush=True)
threading.Thread(target=accept, daemon=True).start()
psycopg2.connect(host="127.0.0.1", port=silent.getsockname()[1], connect_timeout=0)
"""


def started(way: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", SCRIPT, way], stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    process = started(request.param)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("process", ["C"], indirect=True)
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_process_whose_main_thread_waits_for_a_silent_server(
    process: subprocess.Popen[str], second: signal.Signals
) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stop\n", "the first is noticed though the main thread is not"
    assert process.poll() is None
    process.send_signal(second)

    assert process.wait(60) == 130


def test_what_a_forked_child_is_sent_is_no_signal_to_its_parent() -> None:
    process = started("fork")
    output, errors = process.communicate(timeout=60)

    assert process.returncode == 0, errors
    assert output.splitlines()[-1] == "undone True -1"
    assert output.count("stop") <= 1, "the child's own"
