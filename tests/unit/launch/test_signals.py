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


@pytest.mark.slow
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

    assert process.wait(300) == 130


@pytest.mark.slow
def test_what_a_forked_child_is_sent_is_no_signal_to_its_parent() -> None:
    process = started("fork")
    output, errors = process.communicate(timeout=300)

    assert process.returncode == 0, errors
    assert output.splitlines()[-1] == "undone True -1"
    assert output.count("stop") <= 1, "the child's own"


STUBBORN = """
import sys, time
from tuner.cli import run
run._GRACE_S = 0.2
stop = run._stop_on_signals(has_launcher=False)
stop.is_heeded = sys.argv[1] == "heeded"
end_s, is_told = time.monotonic() + 100, False
while time.monotonic() < end_s and not (stop.is_heeded and stop.requested):
    try:
        if not is_told:
            is_told = True
            print("ready", flush=True)
        time.sleep(0.01)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("requested", stop.requested, flush=True)
"""


def test_a_worker_whose_study_ignores_the_interrupt_ends_all_the_same() -> None:
    """As a multiprocessing pool does whose processes die again and again while the study's data wait for them."""
    process = subprocess.Popen([sys.executable, "-c", STUBBORN, "starting"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)

    output, _ = process.communicate(timeout=300)

    assert output == "interrupted\n"
    assert process.returncode == 130


@pytest.mark.slow
def test_a_worker_that_heeds_the_signal_is_not_interrupted() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN, "heeded"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)

    output, _ = process.communicate(timeout=300)

    assert output == "requested True\n"
    assert process.returncode == 0


# A worker beside the end of its launcher, which has the other end of its standard input.
LAUNCHED = """
import sys, time
from tuner.cli import run
from tuner.trial import Stop
is_done, is_stuck = sys.argv[1] == "done", sys.argv[1] == "stuck"
run._GRACE_S = 0.2 if is_stuck else 1000
stop = Stop()
run._stop_with_launcher(stop)
print("ready", flush=True)
end_s = time.monotonic() + 100
while not is_done and time.monotonic() < end_s and (is_stuck or not stop.requested):
    time.sleep(0.01)
print("requested", stop.requested, flush=True)
"""


def launched(way: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", LAUNCHED, way], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("way", "said", "status"), [("heeds", "requested True\n", 0), ("stuck", "", 130)])
def test_a_worker_ends_with_its_launcher_also_if_its_main_thread_does_not_return(
    way: str, said: str, status: int
) -> None:
    process = launched(way)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)  # while the launcher lives

    output, _ = process.communicate(timeout=60)  # this closes its standard input

    assert output == said
    assert process.returncode == status


def test_a_worker_that_is_done_does_not_wait_for_the_end_of_its_launcher() -> None:
    process = launched("done")
    try:
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


# A worker that speaks once more after it was asked to end, when nobody reads it any more.
RELAY = """
import os, sys
from types import SimpleNamespace
from tuner.launch import relay
from tuner.launch.process import Message
from tuner.output.log import use_json
from tuner.trial.events import TrialReleased

class Worker:
    def __init__(self, index, name, command, env, inbox):
        self.name, self.inbox, self.asked, self.process = name, inbox, 0, SimpleNamespace(returncode=130)
        self.is_told = False

    def stop(self):
        self.asked += 1
        print("stop", flush=True)

    def has_ended(self):
        if not self.is_told:
            self.is_told = True
            print("ready", flush=True)
        if not self.asked:
            return False
        sys.stdin.readline()
        self.inbox.put(Message(0, self.name, TrialReleased(0)))
        return True

relay.WorkerProcess = Worker
use_json()
print("ended", relay.relay(), flush=True)
"""


def test_a_reader_that_goes_away_after_a_signal_is_no_second_signal_to_a_relayed_worker() -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", RELAY], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stop\n"
    process.stderr.close()
    process.stdin.close()  # the worker goes on

    assert process.stdout.read() == "ended 130\n", "it is asked to end once"
    assert process.wait(300) == 0
    process.stdout.close()
