"""What a process prints goes to the log of the trial that prints it, and still to where it went before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuner.output import log_file, pump
from tuner.output.captured import _is_same

_HEAD = """
import ctypes, json, os, subprocess, sys, threading, time
from pathlib import Path
from tuner.output.captured import CapturedOutput
stored = {}
def store(name):
    def work(lines): stored[name] = list(lines)
    return work
def of(name, output):
    return output.of_trial(Path(name, "log.txt"), store(name), store(name))
"""


class Printed:
    """A script that has run: what it printed, and what it stored."""

    def __init__(self, folder: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.folder, self.out, self.err, self.status = folder, done.stdout, done.stderr, done.returncode
        stored = folder / "stored.json"
        self.stored: dict[str, list[str]] = json.loads(stored.read_text()) if stored.exists() else {}

    def log(self, name: str) -> list[str]:
        return (self.folder / name / "log.txt").read_text().splitlines()


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run a script with captured output."""

    def work(body: str, **options: Any) -> Printed:
        end = "\nPath('stored.json').write_text(json.dumps(stored))\n"
        command = [sys.executable, "-c", _HEAD + body + end]
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        done = subprocess.run(command, cwd=tmp_path, text=True, errors="replace", timeout=60, **given)
        return Printed(tmp_path, done)

    return work


def test_prints_children_and_native_code_are_of_the_trial_that_runs(run: Any) -> None:
    found = run(
        """
print("before")
output = CapturedOutput(by_thread=False)
for name in ("0", "1"):
    with of(name, output):
        print("print", name)
        print("error", name, file=sys.stderr)
        subprocess.run(["sh", "-c", "echo child; echo child error >&2"])
        os.write(1, b"direct\\n")
        ctypes.CDLL(None).puts(b"native")
    print("between")
output.close()
print("after")
"""
    )
    assert found.status == 0, found.err
    for name in ("0", "1"):
        assert sorted(found.log(name)) == sorted(
            [f"print {name}", f"error {name}", "child", "child error", "direct", "native"]
        )
        assert sorted(found.stored[name]) == sorted(found.log(name))
    assert found.out.splitlines()[:2] == ["before", "print 0"]
    assert found.out.splitlines()[-2:] == ["between", "after"]
    assert sorted(found.err.splitlines()) == ["child error", "child error", "error 0", "error 1"]
    assert "\0" not in found.out + found.err


def test_streams_that_go_to_one_place_keep_their_order(run: Any) -> None:
    found = run(
        """
output = CapturedOutput(by_thread=False)
with of("0", output):
    for number in range(50):
        print(number, flush=True, file=(sys.stdout, sys.stderr)[number % 2])
output.close()
""",
        stderr=subprocess.STDOUT,
    )
    assert found.out.split() == found.log("0") == [str(number) for number in range(50)]


def test_lines_of_threads_are_of_their_trials(run: Any) -> None:
    found = run(
        """
output = CapturedOutput(by_thread=True)
turn, all_turn = threading.Barrier(2), threading.Barrier(3)
def train(name):
    with of(name, output):
        all_turn.wait()
        all_turn.wait()
        for number in range(20):
            turn.wait()
            print("out", name, number, end="")
            turn.wait()
            print()
            sys.stderr.write(f"err {name} {number}\\n")
        print("no end", end="")
threads = [threading.Thread(target=train, args=(name,)) for name in ("0", "1")]
for one in threads: one.start()
all_turn.wait()
print("of no trial")  # while both train, and neither has begun a line
all_turn.wait()
for one in threads: one.join()
print("still none")
output.close()
print("after")
"""
    )
    assert found.status == 0, found.err
    for name in ("0", "1"):
        told = [f"{kind} {name} {number}" for number in range(20) for kind in ("out", "err")]
        assert sorted(found.log(name)) == sorted([*told, "no end"])
    lines = found.out.splitlines()
    assert {"of no trial", "still none", "after"} <= set(lines)
    assert len(lines) == 2 * 21 + 3


def test_what_a_dying_process_has_printed_is_passed_on_and_logged(run: Any) -> None:
    found = run(
        """
output = CapturedOutput(by_thread=False)
with of("0", output):
    print("the last", "x" * 100_000, flush=True)
    os.kill(os.getpid(), 9)
"""
    )
    assert found.status == -signal.SIGKILL
    assert found.out == f"the last {'x' * 100_000}\n"
    assert found.log("0") == [f"the last {'x' * 100_000}"[:10_000]]


def test_a_killed_pump_stops_no_print(run: Any) -> None:
    found = run(
        """
output = CapturedOutput(by_thread=False)
with of("0", output):
    print("one", flush=True)
    os.kill(output._pump.pid, 9)
    output._pump.wait()
    for number in range(3000):
        print(number, "y" * 100)
    time.sleep(0)
with of("1", output):
    print("two")
output.close()
print("after")
"""
    )
    assert found.status == 0, found.err
    assert found.out.count("y") == 3000 * 100  # in another order, for a moment
    assert found.out.endswith("two\nafter\n")
    assert "\0" not in found.out
    assert "they get nothing more" in found.err


def test_passwords_progress_bars_and_broken_text_in_a_log(run: Any) -> None:
    found = run(
        """
output = CapturedOutput(by_thread=False)
with of("0", output):
    print("to postgresql://me:hidden@host/db")
    print("10 %\\r50 %\\r100 %")
    sys.stdout.flush()
    os.write(1, b"\\xff\\0\\0 bytes\\n")
    print("ends without a line break", end="")
output.close()
"""
    )
    assert found.log("0") == [
        "to postgresql://me:***@host/db", "100 %", "\ufffd\0\0 bytes", "ends without a line break"
    ]  # fmt: skip
    assert "hidden" in found.out, "the terminal gets what it got before"


def test_a_log_that_cannot_be_written_is_warned_of_once(run: Any, tmp_path: Path) -> None:
    (tmp_path / "0").write_text("a file, not a folder")
    found = run(
        """
output = CapturedOutput(by_thread=False)
for _ in range(2):
    with of("0", output):
        print("hello")
output.close()
"""
    )
    assert found.err.count("the trial continues") == 1
    assert found.stored["0"] == ["hello"]


def test_lines_are_stored_while_the_trial_runs(run: Any) -> None:
    found = run(
        """
import tuner.output.captured
tuner.output.captured.STORE_EVERY_S = 0.01
output = CapturedOutput(by_thread=False)
with of("0", output):
    print("early", flush=True)
    while "0" not in stored:
        time.sleep(0.001)
    print("stored", stored["0"])
output.close()
"""
    )
    assert found.log("0") == ["early", "stored ['early']"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_marks_are_found_wherever_a_read_ends(tmp_path: Path, cut: int) -> None:
    reading, writing = os.pipe()
    target = os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY)
    stream = pump._Stream(reading, target, b"\0token ", logs := pump._Logs())
    data = f"a\n\0token to {tmp_path}/log.txt\0b\nc\0token to \0d\n\0token end 7 {tmp_path}/log.txt\0".encode()
    asked: list[Any] = []
    for at in range(0, len(data), cut):
        os.write(writing, data[at : at + cut])
        asked += stream.read() or []
    os.close(writing)
    assert stream.read() is None
    for descriptor in (reading, target):
        os.close(descriptor)
    assert (tmp_path / "out").read_bytes() == b"a\nb\ncd\n"
    assert asked == [["end", "7", f"{tmp_path}/log.txt"]]
    assert logs.take(f"{tmp_path}/log.txt", is_end=True)["lines"] == ["b", "c"]


def test_a_log_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "_MAX_BYTES", 100)
    log = log_file.LogFile(tmp_path / "new" / "log.txt")
    log.add([f"line {number}" for number in range(20)])
    log.add(["last"])
    assert (tmp_path / "new" / "log.1.txt").read_text().splitlines()[-1] == "line 19"
    assert (tmp_path / "new" / "log.txt").read_text() == "last\n"


def test_two_descriptors_of_one_file_are_the_same() -> None:
    reading, writing = os.pipe()
    other = os.dup(writing)
    assert _is_same(writing, other)
    assert not _is_same(writing, 0)
    for descriptor in (reading, writing, other):
        os.close(descriptor)
