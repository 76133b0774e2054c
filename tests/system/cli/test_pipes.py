"""Commands whose standard streams are closed, or whose reader has gone, end without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TUNER = [sys.executable, "-m", "tuner"]


def closed_pipe() -> int:
    """Return the writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_output_that_nobody_reads_is_no_error() -> None:
    pipe = closed_pipe()
    done = subprocess.run([*TUNER, "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(pipe)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["studies"], ["launch", "none.py"]])
def test_an_error_that_nobody_reads_keeps_its_status(tmp_path: Path, words: list[str]) -> None:
    env = {**os.environ, "TUNER_STORAGE": f"sqlite:///{tmp_path / 'none.db'}"}
    pipe = closed_pipe()
    done = subprocess.run(
        [*TUNER, *words], stdout=subprocess.PIPE, stderr=pipe, text=True, timeout=300, cwd=tmp_path, env=env
    )
    os.close(pipe)
    assert done.stdout == ""
    assert done.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_get_no_output_and_no_files(tmp_path: Path, closed: str) -> None:
    command = f'exec "$0" -c "$1" {closed}'
    code = (
        "import os, sys; sys.argv = ['tuner', 'studies', '--storage', 'sqlite:///none.db']\n"
        "from tuner.cli import main\n"
        "try: main()\n"
        "except SystemExit as error: status = error.code\n"
        "open('status', 'w').write(str(status))\n"
        "open('streams', 'w').write(repr([os.fstat(number).st_rdev for number in (0, 1, 2)]))"
    )
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, code], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "status").read_text() == "2"
    nowhere = os.stat(os.devnull).st_rdev
    devices = eval((tmp_path / "streams").read_text())
    assert devices[2] == nowhere
    assert devices.count(nowhere) >= closed.count("&-")
