"""Workers that train several trials at once, killed and stopped in the middle."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from after_faults import check_study_after_faults, endings_of, holders, results, table

from tuner.storage.sql.tables import leases

EPOCHS, TRIALS, LANES = 3, 6, 3
ENV = {"TINY_EPOCHS": str(EPOCHS), "TINY_TRIALS": str(TRIALS), "TINY_LOOP": "step", "TINY_SAVE_S": "0"}
COHORT = ("--workers", "1", "--cohort", str(LANES))


@pytest.mark.long
@pytest.mark.slow
def test_a_cohort_that_is_killed_five_times_loses_nothing(tuner_on_sqlite: Any, tiny_study: Path) -> None:
    """The oracle is the same study without a kill: what was trained with as many lanes agrees bit for bit."""
    tuner, url = tuner_on_sqlite, tuner_on_sqlite.env["TUNER_STORAGE"]
    (killed := tuner.folder / "killed").mkdir()
    # Judged reports are stored at once, and it is killed after each; the last may be stored with the end.
    env = {**ENV, "TINY_EPOCHS": "6", "TINY_JUDGED": "1"}
    done = tuner.run("launch", "tiny.py", *COHORT, TINY_KILL_FOLDER=str(killed), **env)

    assert done.returncode == 0, done.stderr
    kills = done.stderr.count("worker 0 died (killed by SIGKILL)")
    assert kills in (5, 6)
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", TRIALS, epochs=6)
    endings = endings_of(url)
    # Each kill frees all trials of the cohort, and each of them continues under its number.
    assert all(endings[number] == [*["died"] * kills, "complete"] for number in range(LANES)), endings
    assert all(endings[number] == ["complete"] for number in range(LANES, TRIALS)), endings

    quiet = f"sqlite:///{tuner.folder / 'quiet.db'}"
    done = tuner.run("launch", "tiny.py", *COHORT, TUNER_STORAGE=quiet, TUNER_ARTIFACTS="quiet", **env)
    assert done.returncode == 0, done.stderr
    assert results(url) == results(quiet)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "before_ends 1",
        pytest.param("after_ends 1", marks=pytest.mark.long),
        *(pytest.param(f"{when}_suggested 1", marks=pytest.mark.long) for when in ("before", "after")),
        *(pytest.param(f"{when}_rungs 1", marks=pytest.mark.long) for when in ("before", "after")),
    ],
)
def test_a_cohort_that_is_killed_at_a_transaction_of_several_trials_loses_nothing(
    place: str, tuner_on_postgres: Any, tiny_study: Path
) -> None:
    tuner, url = tuner_on_postgres, tuner_on_postgres.env["TUNER_STORAGE"]
    plant = "import tiny_faults\nfrom pathlib import Path\nstudy = tiny_faults.plant(study, Path(__file__).parent)\n"
    tiny_study.write_text(f"{tiny_study.read_text()}\n{plant}")
    pruner = ("--pruner", "asha") if "rungs" in place else ()
    done = tuner.run("launch", "tiny.py", *COHORT, *pruner, TINY_FAULT=f"SIGKILL {place}", **ENV)

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("worker 0 died (killed by SIGKILL)") == 1
    left_behind = LANES if place == "after_ends 1" else 0  # checkpoints of trials that had ended
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", TRIALS, epochs=EPOCHS, left_behind=left_behind)
    ends = endings_of(url)
    stored = [number for number in range(LANES) if ends[number] == ["complete"]]
    # On a busy machine the end of a trial may come too early or too late for the transaction, which has two at least.
    least, most = {"before_ends 1": (0, LANES - 2), "after_ends 1": (2, LANES)}.get(place, (0, 0))
    assert least <= len(stored) <= most, ends
    interrupted = [ends[number] for number in range(LANES) if number not in stored]
    assert all(found in (["died", "complete"], ["died", "pruned"]) for found in interrupted), ends
    assert all(len(ends[number]) == 1 for number in range(LANES, TRIALS)), ends


@pytest.mark.slow
def test_a_cohort_with_a_trial_that_hangs_or_that_is_stopped_gives_back_all_trials_and_they_go_on(
    tuner_on_postgres: Any, tiny_study: Path, wait_until: Callable[..., None]
) -> None:
    """A trial that hangs costs the others of its cohort nothing; one worker is stopped, and another finishes all."""
    tuner, url = tuner_on_postgres, tuner_on_postgres.env["TUNER_STORAGE"]
    hold = tuner.folder / "hold"
    hold.touch()
    worker = ("worker", "tiny.py", "--cohort", str(LANES))
    hung = tuner.run(*worker, "--stall-minutes", "0.05", TINY_HOLD_FILE=str(hold), **ENV)

    assert hung.returncode == 1, hung.stderr
    assert "made no progress for 3 s" in hung.stderr
    assert sorted(endings_of(url).items()) == [(0, ["died"]), (1, ["preempted"]), (2, ["preempted"])]
    assert [deaths for (deaths,) in table(url, leases.c.deaths, by=(leases.c.trial_id,))] == [1, 0, 0]

    stopped = tuner.start(*worker, TINY_HOLD_FILE=str(hold), **ENV)
    wait_until(lambda: len(holders(url)) == LANES)
    stopped.send_signal(signal.SIGTERM)
    hold.unlink()
    output, _ = stopped.communicate(timeout=300)

    assert stopped.returncode == 130, output
    assert table(url, leases.c.worker) == [(None,)] * LANES
    before = {0: ["died", "preempted"], 1: ["preempted"] * 2, 2: ["preempted"] * 2}
    assert endings_of(url) == before
    done = tuner.run(*worker, **ENV)
    assert done.returncode == 0, done.stderr
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", TRIALS, epochs=EPOCHS)
    assert endings_of(url) == {number: [*before.get(number, ()), "complete"] for number in range(TRIALS)}
