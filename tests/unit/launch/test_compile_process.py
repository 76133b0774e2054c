"""When a launch compiles programs ahead, with which command, and what it shows of it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tuner.launch import compile_process
from tuner.launch.compile_process import MOST, CompileProcess
from tuner.launch.devices import DeviceGroup
from tuner.launch.process import Message
from tuner.trial.events import ProgramsCompiled, WorkerIdle

ONE_OF_TWO = [DeviceGroup("cpu", (0, 1), (0, 1))]
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The commands and environments of processes, which are not started."""
    found: list[Any] = []

    class Process:
        def __init__(self, index: int, name: str, command: Any, env: Any, inbox: Any) -> None:
            found.append((command, env))
            self.process = self
            self.pid = os.getpid()

    monkeypatch.setattr(compile_process, "WorkerProcess", Process)
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: None)
    return found


@pytest.mark.parametrize(
    ("groups", "combinations", "is_started"),
    [
        (ONE_OF_TWO, 2, True),
        (ONE_OF_TWO, MOST, True),
        (ONE_OF_TWO, MOST + 1, False),
        (ONE_OF_TWO, 1, False),
        (ONE_OF_TWO, 0, False),
        ([DeviceGroup("cpu", (0,), (0,)), DeviceGroup("cpu", (1,), (1,))], 9, False),  # no core is free
        ([DeviceGroup("cpu", (0, 1), (0, 1)), DeviceGroup("cpu", (2, 3), (2, 3))], 9, True),
        ([DeviceGroup("gpu", (0,), (0, 1, 2, 3))], 9, False),
    ],
)
def test_it_starts_where_a_core_is_free_and_combinations_are_few(
    started: list[Any], groups: list[DeviceGroup], combinations: int, is_started: bool
) -> None:
    compiling = CompileProcess(["tuner", "worker", "study.py"], groups)
    compiling.start(combinations, {})
    compiling.start(combinations, {})
    assert len(started) == is_started
    for command, env in started:
        assert command == ["tuner", "worker", "study.py", "--compile-only"]
        cores = sorted({core for group in groups for core in group.cores})
        assert env["TUNER_CPUS"] == ",".join(map(str, cores))
        assert (env["TUNER_DEVICES"], env["JAX_PLATFORMS"]) == ("cpu 0", "cpu")


def test_it_has_only_time_that_no_other_process_wants_and_ends_with_the_launch() -> None:
    compiling = CompileProcess(SLEEP, ONE_OF_TWO)
    compiling.start(2, os.environ)
    assert compiling._process is not None
    process = compiling._process.process
    if os.sched_getscheduler(process.pid) != os.SCHED_IDLE:
        with pytest.raises(PermissionError):  # the container does not allow it
            os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
    compiling.end()
    assert process.poll() in (-signal.SIGTERM, -signal.SIGKILL)
    compiling.end()


def test_it_starts_only_with_as_much_memory_as_a_worker_uses(started: list[Any], tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tpython\nVmRSS:\t   5000 kB\n")
    for available, is_enough in ((4999, False), (5001, True)):
        (tmp_path / "meminfo").write_text(f"MemTotal: 9000 kB\nMemAvailable:    {available} kB\n")
        assert compile_process._has_memory_for(7, tmp_path) == is_enough
    assert compile_process._has_memory_for(8, tmp_path)
    CompileProcess(SLEEP, ONE_OF_TWO).start(2, {}, like=os.getpid())
    assert len(started) == 1


def test_what_it_has_compiled_is_shown_and_its_failure_is_not() -> None:
    shown: list[Any] = []

    class Shown:
        def say(self, said: Any, **_: Any) -> None:
            shown.append(said)

    compiling: Any = CompileProcess([sys.executable, "-c", "print('broken'); raise SystemExit(1)"], ONE_OF_TWO)
    compiling.start(2, os.environ)
    compiled = ProgramsCompiled(combinations=9, programs=40, fetched=3, took_s=12.0)
    for said in (WorkerIdle(), compiled):
        compiling._inbox.put(Message(0, "compile", said))
    deadline_s = time.monotonic() + 60
    process = compiling._process
    while not process.has_ended() and time.monotonic() < deadline_s:
        compiling.watch(Shown())
    compiling.watch(Shown())
    assert shown == [compiled]
    compiling.end()
