"""Workers that are killed while the seeds of their trials are at different positions."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from after_faults import check_study_after_faults, endings_of, results

EPOCHS, TRIALS = 5, 3
STUDY = """
import dataclasses, os, signal
from pathlib import Path
import tiny

CALLS, KILLS = (int(os.environ.get(name, "0")) for name in ("CALLS", "KILLS"))
KILLED = Path(os.environ.get("KILLED", "."))
calls = 0

class Deadly(tiny.Trainer):
    loop = "step"

    def on_training_epoch_end(self, state, hparams, epoch, metrics):
        "Kill the process at its n-th epoch of a seed, the first few times."
        global calls
        calls += 1
        if calls == CALLS and len(list(KILLED.iterdir())) < KILLS:
            (KILLED / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)

study = dataclasses.replace(
    tiny.study, trainer=Deadly(), seeds=SEEDS, pruner={"name": "asha", "min_resource": 1, "reduction_factor": 2}
)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "cohort", "calls", "kills"),
    [
        ((1, 2, 3), 1, 6, 1),
        pytest.param((1, 2, 3), 1, 6, 3, marks=pytest.mark.long),
        *(pytest.param(3, *case, 3, marks=pytest.mark.long) for case in [(1, 5), (2, 10)]),
    ],
)
def test_seeds_that_were_at_different_positions_come_to_what_they_come_to_undisturbed(
    seeds: Any, cohort: int, calls: int, kills: int, tuner_on_sqlite: Any, tiny_study: Path
) -> None:
    """The oracle is the same study without a kill, bit for bit."""
    tuner, url = tuner_on_sqlite, tuner_on_sqlite.env["TUNER_STORAGE"]
    (tuner.folder / "seeded.py").write_text(STUDY.replace("SEEDS", repr(seeds)))
    (killed := tuner.folder / "killed").mkdir()
    env = {"TINY_EPOCHS": str(EPOCHS), "TINY_TRIALS": str(TRIALS), "TINY_SAVE_S": "0"}
    words = ("seeded.py", "--cohort", str(cohort))
    told = {"CALLS": str(calls), "KILLS": str(kills), "KILLED": str(killed)}
    done = tuner.run("launch", *words, "--workers", "1", **told, **env)

    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"worker 0 died (killed by {signal.SIGKILL.name})") == kills
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", TRIALS, epochs=EPOCHS)
    died = sum(endings.count("died") for endings in endings_of(url).values())
    assert kills <= died <= kills * cohort  # the last trial is alone in its cohort

    quiet = f"sqlite:///{tuner.folder / 'quiet.db'}"
    done = tuner.run("worker", *words, TUNER_STORAGE=quiet, TUNER_ARTIFACTS="quiet", **env)
    assert done.returncode == 0, done.stderr
    assert results(url) == results(quiet)
