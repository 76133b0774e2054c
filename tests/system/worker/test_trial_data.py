"""A launch of a study whose trials have data of their own, with a worker that is killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import windows_study


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_trial_resumes_with_its_own_data(
    tuner_on_sqlite: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    tuner = tuner_on_sqlite
    (tmp_path / "windows.py").write_text(Path(windows_study.__file__).read_text())
    held = tmp_path / "held"
    held.touch()
    launcher = tuner.start("launch", "windows.py", "--workers", "1", "--trials", "2", WINDOWS_HOLD_FILE=str(held))
    wait_until(lambda: held.read_text().endswith("\n"), deadline_s=250)
    pid, length = held.read_text().split()
    os.kill(int(pid), signal.SIGKILL)
    held.unlink()
    output, _ = launcher.communicate(timeout=250)
    assert launcher.returncode == 0, output
    assert "died (killed by SIGKILL)" in output
    assert "restarts from its first epoch" not in output
    killed = tuner.rows("trials", "windows")
    assert {row["outcome"] for row in killed} == {"complete"}
    first = next(row for row in killed if row["number"] == 0)
    assert first["hparams"]["length"] == int(length)
    assert len({row["hparams"]["length"] for row in killed}) > 1

    # The same study without a fault: the same trials, bit for bit.
    tuner.env["TUNER_STORAGE"] = f"sqlite:///{tmp_path / 'quiet.db'}"
    assert tuner.run("launch", "windows.py", "--workers", "1", "--trials", "2").returncode == 0
    quiet = tuner.rows("trials", "windows")
    assert [(row["hparams"], row["value"]) for row in killed] == [(row["hparams"], row["value"]) for row in quiet]
