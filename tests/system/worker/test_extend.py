"""`tuner extend` by the real commands, with a worker that is killed in the middle of an extended trial."""

from pathlib import Path
from typing import Any

import pytest

KILLED = """
import os
import signal
from pathlib import Path

import tuner.worker.attempts.attempt

once = Path(__file__).with_name("killed")
store = tuner.worker.attempts.attempt.Attempt.report

def report(self, report, *, is_last=False):
    is_over = store(self, report, is_last=is_last)
    if self.extension is not None and report.epoch == 7 and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return is_over

tuner.worker.attempts.attempt.Attempt.report = report
study = study.changed(keep_last=2, save_every_s=0.0)
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_worker_resumes_an_extended_trial(tuner_on_sqlite: Any) -> None:
    tuner = tuner_on_sqlite
    source = Path(__file__).parents[2]
    for name in ("tiny_environment.py", "tiny_study.py"):
        (tuner.folder / name).write_text((source / name).read_text())
    file = tuner.folder / "killed_study.py"
    file.write_text((source / "tiny_study.py").read_text() + KILLED)
    options = ("--workers", "1", "--pruner", "none")
    done = tuner.run("launch", "killed_study.py", "--trials", "2", *options)
    assert done.returncode == 0, done.stderr
    done = tuner.run_here("extend", "tiny", "-n", "1", "--epochs", "12")
    assert done.returncode == 0, done.stderr
    best = tuner.rows("best", "tiny")[0]["number"]
    first, second = done.stderr.splitlines()
    assert first == f"tuner: trial 2 of 'tiny' is queued: it continues trial {best} from epoch 3 to 12"
    assert "`tuner launch FILE --trials 3` runs what is queued" in second
    done = tuner.run("launch", "killed_study.py", "--trials", "3", *options)
    assert done.returncode == 0, done.stderr
    assert (tuner.folder / "killed").exists()
    shown = tuner.rows("show", "tiny", "2")
    assert (shown["outcome"], shown["extends"], len(shown["attempts"])) == ("complete", best, 2)
    assert [report["epoch"] for report in shown["reports"]] == list(range(1, 13))
    assert "extends" in tuner.run_here("show", "tiny", "2").stdout
    done = tuner.run("reproduce", "tiny", "2")
    assert done.returncode == 0, done.stderr
    assert "identical, bit for bit" in done.stderr.splitlines()[-1]
