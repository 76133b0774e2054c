"""Checkpoints beside what fails: a full disk, a kill at any moment, other writers."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_state import assert_same, restored, small_state, write_best

from tuner.training.saved import files
from tuner.training.saved.checkpoints import Checkpoints, read


def wait_for(condition: Any) -> None:
    end_s = time.monotonic() + 300.0
    while not condition():
        assert time.monotonic() < end_s
        threading.Event().wait(0.01)


# TensorStore's callbacks may come after Orbax has closed its event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("by", "why"), [("us", "OSError: .*No space left on device"), ("orbax", "EXHAUSTED")])
def test_a_full_disk_stops_nothing(
    by: str,
    why: str,
    small_disk: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by == "orbax":
        monkeypatch.setattr(files, "_check_space", lambda *_: None)
    folder = small_disk / "trial"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, small_state(1), {})
        checkpoints.wait()
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(2**20))
        checkpoints.save(2, small_state(2), {})
        checkpoints.wait()
        assert write_best(checkpoints, 2, {}) is None
        told = capfd.readouterr().err.splitlines()
        assert [line.partition(": ")[2].partition(":")[0] for line in told] == [
            f"cannot write a checkpoint to {folder}/{name}" for name in ("latest", "best")
        ]
        assert [line.endswith("; training continues") for line in told] == [True, False]
        assert re.search(why, told[0])
        assert restored(checkpoints)[0] == 1
        ballast.unlink()
        checkpoints.save(4, small_state(4), {})
        assert restored(checkpoints)[0] == 4
        assert sorted(os.listdir(folder)) == ["best", "latest"] or os.listdir(folder) == ["latest"]
        assert not caplog.records


_WRITER = """
import os, signal, sys
import orbax.checkpoint
import numpy as np
from tuner.training.saved.checkpoints import Checkpoints

def state(n):
    return {"w": np.arange(24, dtype=np.float32).reshape(4, 6) + np.float32(n), "n": np.asarray(n)}

def write(folder, step, best):
    with Checkpoints(folder) as checkpoints:
        while True:
            step += 1
            if best:
                checkpoints.offer_best(step, state(step), {"n": step})
                assert checkpoints.write_best()
            else:
                checkpoints.save(step, state(step), {"n": step})
                checkpoints.wait()
            print(step, flush=True)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the killed leave no zombies
for line in sys.stdin:
    folder, step, best = line.split()
    if (pid := os.fork()) == 0:
        write(folder, int(step), int(best))
    print("pid", pid, flush=True)
"""


VANISHING = """
import pathlib, shutil, sys, threading
import numpy as np
from tuner.training.saved import files

root, ended, failures = pathlib.Path(sys.argv[1]), threading.Event(), 0


def remove():
    while not ended.wait(0.002):
        shutil.rmtree(root, ignore_errors=True)


remover = threading.Thread(target=remove)
remover.start()
try:
    for step in range(150):
        try:
            files.add(root / "latest", files.Content(step, {f"{i}": np.ones(500) * i for i in range(30)}, {}), 1)
        except (OSError, ValueError):
            failures += 1
finally:
    ended.set()
    remover.join()
print(failures)
"""


@pytest.mark.slow
def test_a_folder_that_vanishes_under_a_save_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", VANISHING, str(tmp_path / "series")]

    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)

    assert int(done.stdout) > 50, "the folder did vanish"
    assert done.stderr == ""


@pytest.fixture
def zygote() -> Iterator[subprocess.Popen[str]]:
    """A process that has everything imported and forks a writer for each line it is given."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _start_writer(zygote: subprocess.Popen[str], *words: Any) -> int:
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    print(*words, file=zygote.stdin, flush=True)
    while not (line := zygote.stdout.readline()).startswith("pid"):
        assert line, "the writer has ended"
    return int(line.split()[1])


def _kill_after(zygote: subprocess.Popen[str], pid: int, delay_s: float) -> int:
    """Kill a writer some time after its first save; return the last step it is known to have saved."""
    assert zygote.stdout is not None
    step = int(zygote.stdout.readline())
    threading.Event().wait(delay_s)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    return step


@pytest.mark.slow
@pytest.mark.parametrize("best", [0, 1])
def test_a_kill_at_any_moment_leaves_a_good_checkpoint(
    best: int, zygote: subprocess.Popen[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chance, step = random.Random(7), 0
    for _ in range(15):
        saved_step = _kill_after(zygote, _start_writer(zygote, tmp_path, step, best), chance.uniform(0, 0.2))
        assert saved_step > step
        plain, record = read(tmp_path) if best else restored(Checkpoints(tmp_path))[1:]
        step = record["n"]
        assert step >= saved_step
        assert_same(plain, small_state(step))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.delete_latest()
    assert os.listdir(tmp_path) == ["best"] if best else not tmp_path.exists()
    assert capfd.readouterr().err == ""


# Of files that vanish under it Orbax complains after it has raised.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_writers_and_a_reader_do_not_disturb_each_other(zygote: subprocess.Popen[str], tmp_path: Path) -> None:
    pids = [_start_writer(zygote, tmp_path, 0, best) for best in (0, 0, 1, 1)]
    wait_for(lambda: (tmp_path / "best").exists() and (tmp_path / "latest").exists())
    for _ in range(100):
        for path in (tmp_path, tmp_path / "latest"):
            plain, record = read(path)
            assert_same(plain, small_state(record["n"]))
    for pid in pids:
        os.kill(pid, 0)  # each is still alive
        os.kill(pid, signal.SIGKILL)
