"""Workers that start together compile a program once, whatever happens to the one that compiles it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import users_environment

from tuner.training.loop.program_cache import kind_of_machine

TESTS = Path(__file__).parents[2]
PROGRAMS = 2  # of a process


class Workers:
    """Processes that compile the same programs; JAX is imported once, by the process that forks them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(TESTS / "compile_worker.py")],
            env={**users_environment(), "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(self, count: int, how: str = "compile") -> None:
        """Start processes, which compile from `go` on."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.folder} {how}\n" * count)
        self.process.stdin.flush()

    def wait_for(self, name: str, count: int) -> list[tuple[int, str]]:
        """Read the next lines, which must be of this name; return the processes, and what they say."""
        assert self.process.stdout is not None
        found: list[tuple[int, str]] = []
        while len(found) < count:
            line = self.process.stdout.readline()
            assert line, "the process that forks has ended"
            pid, said, text = line.split(" ", 2)
            assert said == name, line
            found.append((int(pid), text))
        return found

    def go(self) -> None:
        (self.folder / "go").touch()

    def results(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(text) for _, text in self.wait_for("done", count)]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path)
    yield made
    with contextlib.suppress(ProcessLookupError):
        os.killpg(made.process.pid, signal.SIGKILL)
    made.process.communicate()


@pytest.mark.slow
def test_eight_workers_that_start_together_compile_a_program_once(workers: Workers) -> None:
    workers.start(8)
    workers.wait_for("ready", 8)
    workers.go()
    results = workers.results(8)
    assert sum(result["compiled"] for result in results) == sum(result["misses"] for result in results) == PROGRAMS
    assert sum(result["fetched"] for result in results) == sum(result["hits"] for result in results) == 7 * PROGRAMS
    assert {tuple(result["values"]) for result in results} == {tuple(results[0]["values"])}


@pytest.mark.slow
def test_others_take_over_from_a_worker_that_is_killed_while_it_compiles(workers: Workers) -> None:
    """Its child has all of its open files, and lives on. Without a release the others would wait for minutes."""
    workers.start(1, "hang")
    workers.wait_for("ready", 1)
    workers.go()
    ((pid, _),) = workers.wait_for("compiling", 1)
    workers.start(2)
    workers.wait_for("ready", 2)
    os.kill(pid, signal.SIGKILL)
    results = workers.results(2)
    assert sum(result["compiled"] for result in results) == PROGRAMS
    assert all(result["seconds"] < 250 for result in results)


@pytest.mark.long
def test_a_torn_file_is_compiled_again_without_a_warning(workers: Workers) -> None:
    workers.go()
    workers.start(1)
    workers.wait_for("ready", 1)
    (first,) = workers.results(1)
    folder = workers.folder / f"compiled-{os.geteuid()}" / kind_of_machine()
    (torn,) = folder.glob("jit_large*")
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    for compiled in (1, 0):
        workers.start(1)
        workers.wait_for("ready", 1)
        (result,) = workers.results(1)  # warnings are errors there
        assert (result["compiled"], result["fetched"]) == (compiled, PROGRAMS - compiled)
        assert result["values"] == first["values"]
