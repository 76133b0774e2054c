"""The supervisor of a command: the command does not outlive it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tuner


def test_a_command_dies_with_its_supervisor(tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    supervisor = Path(tuner.__file__).parent / "worker" / "supervisor.py"
    noted = tmp_path / "process"
    command = ["/bin/sh", "-c", f"echo $$ > {noted}.new; mv {noted}.new {noted}; exec sleep 600"]
    words = [sys.executable, "-I", "-S", str(supervisor), "30", *command]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        wait_until(noted.exists)
        process.kill()
    stat = Path(f"/proc/{noted.read_text().strip()}/stat")
    # One that has ended, and that no one has waited for, is still listed.
    wait_until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z")
