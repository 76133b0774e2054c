"""The scripts of the containers: which exit statuses of a worker lead to a restart, and the passwords of .env."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCKER = Path(__file__).parents[3] / "docker"
FAKE = """#!{python}
import os, signal, sys
from pathlib import Path

folder = Path({folder!r})
with (folder / "runs").open("a") as file:
    print(*sys.argv[1:], file=file)
statuses = (folder / "statuses").read_text().split()
status = int(statuses[len((folder / "runs").read_text().splitlines()) - 1])
if status < 0:
    os.kill(os.getpid(), -status)
if status == 130:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
if status in (130, 143):
    (folder / "ready").touch()
    signal.pause()  # 143: it has no handler
sys.exit(status)
"""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a `tuner` which exits with these statuses, one after another."""

    def write(*statuses: int) -> Path:
        (tmp_path / "statuses").write_text(" ".join(map(str, statuses)))
        path = tmp_path / "tuner"
        path.write_text(FAKE.format(python=sys.executable, folder=str(tmp_path)))
        path.chmod(0o755)
        return path

    return write


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([0], 0),
        ([2], 2),
        ([3], 3),
        ([75, 75, 75, 75, 75, 0], 0),
        ([1, 0], 0),
        ([1, 3], 3),
        ([1, 1, 1, 0], 0),
        ([1, 1, 1, 1], 1),
        ([-9, 0], 0),
        ([1, 1, 1, -11], 128 + 11),
        ([1, 1, 75, 1, 1, 1, 2], 2),
    ],
)
def test_a_worker_starts_again_where_that_helps(
    tmp_path: Path, fake: Callable[..., Path], statuses: list[int], expected: int
) -> None:
    command = [str(fake(*statuses))]

    assert load("run_worker").Runner(command, database_pause_s=0, crash_pause_s=0).run() == expected
    assert runs(tmp_path) == len(statuses), "it ran until the last status"


@pytest.mark.slow
def test_a_crash_after_a_long_run_is_the_first_of_a_row(
    tmp_path: Path, fake: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, command = load("run_worker"), [str(fake(*[1] * 9, 0))]
    monkeypatch.setattr(module, "LONG_RUN_S", 0.0)

    assert module.Runner(command, crash_pause_s=0).run() == 0
    assert runs(tmp_path) == 10


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Return a function that starts the script as the container does; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(DOCKER / "run_worker.py"), "worker", "/studies/a.py"],
            env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_ends_the_worker(
    tmp_path: Path,
    fake: Callable[..., Path],
    start: Callable[[], subprocess.Popen[str]],
    wait_until: Callable[..., Any],
    number: signal.Signals,
) -> None:
    fake(130, 0)
    process = start()
    wait_until((tmp_path / "ready").exists)

    process.send_signal(number)

    process.communicate(timeout=100)
    assert process.returncode == 130
    assert (tmp_path / "runs").read_text() == "worker /studies/a.py\n", "it has the arguments, and is not started again"


def test_a_signal_ends_the_pause_before_a_restart(
    tmp_path: Path, fake: Callable[..., Path], start: Callable[[], subprocess.Popen[str]]
) -> None:
    fake(75, 0)
    process = start()
    assert process.stderr is not None

    assert process.stderr.readline() == "tuner exited with status 75; it starts again in 60 s\n"
    process.terminate()

    process.communicate(timeout=50)
    assert process.returncode == 130
    assert runs(tmp_path) == 1


def test_new_passwords_differ_and_are_for_the_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    script = tmp_path / "docker" / "new_env.py"
    script.write_text((DOCKER / "new_env.py").read_text())
    example = (DOCKER.parent / ".env.example").read_text()
    (tmp_path / ".env.example").write_text(example)

    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    written = (tmp_path / ".env").read_text()
    again = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    lines = zip(example.splitlines(), written.splitlines(), strict=True)
    passwords = {new.removeprefix(old) for old, new in lines if old.endswith("_PASSWORD=")}
    assert len(passwords) == 4
    assert all(len(password) == 32 and password.replace("-", "").replace("_", "").isalnum() for password in passwords)
    others = [(old, new) for old, new in zip(example.splitlines(), written.splitlines(), strict=True) if old != new]
    assert len(others) == 4, "nothing else is changed"
    assert again.returncode == 1
    assert again.stderr.endswith("exists already: edit it, or move it to another place first\n")
    assert (tmp_path / ".env").read_text() == written


def test_a_worker_that_a_signal_kills_is_not_started_again(
    tmp_path: Path,
    fake: Callable[..., Path],
    start: Callable[[], subprocess.Popen[str]],
    wait_until: Callable[..., Any],
) -> None:
    fake(143, 0)
    process = start()
    wait_until((tmp_path / "ready").exists)

    process.terminate()

    assert process.communicate(timeout=100)[1] == "", "it does not announce a restart"
    assert process.returncode == 128 + signal.SIGTERM
    assert runs(tmp_path) == 1
