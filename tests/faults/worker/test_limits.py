"""Trials that hang or take too long: workers that are asked to end, limits of time, and limits without progress."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from after_faults import attempts_of, endings_of, processes_of, table
from command_line import Tuner

from tuner.storage.sql.tables import leases, records

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]
SHORT = "0.02"
"""A limit in minutes that all trials here pass."""


@pytest.fixture
def limited(tuner_on_sqlite: Any) -> Any:
    """The command line in a folder with `limited_study.py`."""
    shutil.copy(TESTS / "limited_study.py", tuner_on_sqlite.folder / "limited.py")
    return tuner_on_sqlite


def wait_until(is_there: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for a condition, as long as a process runs."""
    deadline_s = time.monotonic() + 120
    while not is_there():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def url_of(tuner: Any) -> str:
    return tuner.env["TUNER_STORAGE"]


def wait_for_block(tuner: Any, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: bool((tuner.folder / "blocked").exists()), process)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit status and the output of a process that must end."""
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def deaths(tuner: Any) -> list[tuple[str | None, float, int]]:
    c = leases.c
    return [tuple(row) for row in table(url_of(tuner), c.worker, c.expires_at_s, c.deaths)]


# --- SIGTERM


@pytest.mark.parametrize(
    "place", ["train in_c", *(pytest.param(place, marks=pytest.mark.long) for place in ("train", "train compiling"))]
)
def test_a_signal_ends_a_worker_whose_trial_never_checks(limited: Any, place: str) -> None:
    worker = limited.start("worker", "limited.py:hanging", HANGS=place)
    wait_for_block(limited, worker)
    worker.send_signal(signal.SIGTERM)
    status, said = ended(worker)

    assert status == 130, said
    assert said.splitlines()[-1] == "tuner: trial 0: released"
    assert not (limited.folder / "finally").exists()
    assert endings_of(url_of(limited)) == {0: ["preempted"]}
    assert deaths(limited) == [(None, 0.0, 0)]  # free for anyone, and no death
    assert limited.run("worker", "limited.py:hanging").returncode == 0
    assert endings_of(url_of(limited)) == {0: ["preempted", "complete"], 1: ["complete"]}


def test_a_signal_to_the_launch_ends_a_worker_whose_trial_never_checks(limited: Any) -> None:
    launch = limited.start("launch", "limited.py:hanging", "--workers", "1", HANGS="train in_c")
    wait_for_block(limited, launch)
    launch.send_signal(signal.SIGTERM)
    status, said = ended(launch)

    assert status == 130, said
    assert endings_of(url_of(limited)) == {0: ["preempted"]}
    assert deaths(limited) == [(None, 0.0, 0)]
    wait_until(lambda: processes_of(url_of(limited)) == [])


@pytest.mark.parametrize(
    ("place", "file", "appended"),
    [
        ("data in_c", "tiny_study.py", "study = dataclasses.replace(study, data=limited.data)"),
        ("import in_c", "tiny_function.py", ""),
    ],
    ids=["data", "import"],
)
def test_a_signal_ends_a_worker_that_loads_its_study(limited: Any, place: str, file: str, appended: str) -> None:
    text = (TESTS / file).read_text()
    (limited.folder / "tiny.py").write_text(f"{text}\nimport dataclasses\nimport limited\n{appended}\n")
    worker = limited.start("worker", "tiny.py", HANGS=place)
    wait_for_block(limited, worker)
    worker.send_signal(signal.SIGTERM)
    status, said = ended(worker)

    assert status == 130, said
    assert not (limited.folder / "finally").exists()


def test_a_function_that_is_told_to_stop_has_no_result(limited: Any) -> None:
    worker = limited.start("worker", "limited.py:asking", "--trials", "1")
    wait_until(lambda: (limited.folder / "study.db").exists() and reports(limited) > 0, worker)
    worker.send_signal(signal.SIGTERM)
    status, said = ended(worker)

    assert status == 130, said
    assert endings_of(url_of(limited)) == {0: ["preempted"]}


def reports(tuner: Any) -> int:
    with sqlite3.connect(tuner.folder / "study.db") as database:
        try:
            return database.execute("SELECT count(*) FROM tuner_reports").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


# --- The limit of time


def check_timed_out(tuner: Any, name: str, numbers: list[int]) -> None:
    """Check what all readers show of trials that have timed out."""
    rows = tuner.rows("trials", name)
    assert [row["number"] for row in rows if row["outcome"] == "timed_out"] == numbers
    assert all(row["value"] is None for row in rows if row["outcome"] == "timed_out")
    (study,) = tuner.rows("studies")
    assert (study["timed_out"], study["state"]) == (len(numbers), "finished")
    shown = tuner.rows("show", name, str(numbers[0]))
    assert shown["outcome"] == "timed_out"
    assert shown["error"] == "the trial took longer than 1.2 s"
    assert shown["attempts"][-1]["ending"] == "timed_out"
    assert not {row["number"] for row in tuner.rows("best", name, "-n", "9")} & set(numbers)
    assert [row["number"] for row in tuner.rows("trials", name, "--outcome", "timed_out")] == numbers
    # Versions before this outcome raise an error for one that they do not know.
    assert {row.outcome for row in table(url_of(tuner), records.c.outcome)} <= {"pruned", "complete"}
    plain = optuna.load_study(study_name=name, storage=url_of(tuner))
    for number in numbers:
        trial = plain.trials[number]
        assert (trial.state, trial.value) == (optuna.trial.TrialState.PRUNED, None)
        assert trial.user_attrs["outcome"] == "timed_out"


@pytest.mark.parametrize("name", ["generator", pytest.param("asking", marks=pytest.mark.long), "optuna", "command"])
def test_a_trial_that_takes_too_long_times_out(limited: Any, name: str) -> None:
    done = limited.run("worker", f"limited.py:{name}", "--trial-minutes", SHORT)

    assert done.returncode == 0, done.stderr
    assert "trial 0: timed_out" in done.stderr
    check_timed_out(limited, name, [0, 1])
    assert processes_of(url_of(limited)) == []


def test_a_training_that_takes_too_long_times_out(tuner_on_sqlite: Any, tiny_study: Path) -> None:
    tuner = tuner_on_sqlite
    env = {"TINY_LOOP": "step", "TINY_STEP_S": "0.3", "TINY_EPOCHS": "99", "TINY_TRIALS": "2", "TINY_SAVE_S": "0"}
    done = tuner.run("worker", "tiny.py", "--trial-minutes", SHORT, **env)

    assert done.returncode == 0, done.stderr
    check_timed_out(tuner, "tiny", [0, 1])
    assert list(tuner.folder.glob("tuner-artifacts/*/*/latest")) == []


def test_a_trial_that_takes_too_long_and_never_checks_ends_with_its_worker(limited: Any) -> None:
    done = limited.run("launch", "limited.py:hanging", "--workers", "1", "--trial-minutes", SHORT, HANGS="train")

    assert done.returncode == 0, done.stderr
    assert "trial 0 took longer than 1.2 s and does not end; its worker exits" in done.stderr
    assert "worker 0 died (exit status 1)" in done.stderr
    assert endings_of(url_of(limited)) == {0: ["timed_out"], 1: ["complete"]}
    check_timed_out(limited, "hanging", [0])


@pytest.fixture(scope="module")
def given_back(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study whose only trial was given back after an hour, and has a checkpoint."""
    folder = tmp_path_factory.mktemp("resumed")
    (folder / "resumed.py").write_text(RESUMED)
    first = Tuner(folder, f"sqlite:///{folder / 'study.db'}").run("worker", *LONG, FIRST="1")
    assert first.returncode == 130, first.stderr
    with sqlite3.connect(folder / "study.db") as database:
        database.execute("UPDATE tuner_attempts SET started_at_s = ended_at_s - 3600")
    return folder


LONG = ("resumed.py", "--trial-minutes", "10")


@pytest.mark.parametrize(
    ("env", "ending"),
    [({"RESTORES": "1"}, "timed_out"), ({}, "complete")],
    ids=["the rest if it goes on from a checkpoint", "all if it starts again"],
)
def test_a_trial_that_was_given_back_has_the_rest_or_all_of_its_time(
    given_back: Path, tuner_on_sqlite: Any, env: dict[str, str], ending: str
) -> None:
    shutil.copytree(given_back, tuner_on_sqlite.folder, dirs_exist_ok=True)
    assert tuner_on_sqlite.run("worker", *LONG, **env).returncode == 0
    assert endings_of(url_of(tuner_on_sqlite)) == {0: ["preempted", ending]}


RESUMED = """
import os, signal
import numpy as np
from tuner import Space, Study, uniform

class HParams(Space):
    rate: float = uniform(0.0, 1.0)

def train(hparams, trial):
    if "RESTORES" in os.environ:
        trial.restore()
    for _ in range(4):
        trial.report({"score": 1.0})
        trial.save({"weights": np.zeros(3)})
        if "FIRST" in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)

study = Study(name="resumed", space=HParams, train=train, objective="score", direction="maximize", trials=1,
              sampler="random", pruner="none")
"""


# --- The limit without progress


def test_a_trial_without_progress_ends_with_its_worker_and_fails_at_last(limited: Any) -> None:
    done = limited.run("launch", "limited.py:hanging", "--workers", "1", "--stall-minutes", SHORT, HANGS="train")

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trial 0 has made no progress for 1.2 s; it is asked to stop") == 3
    assert done.stderr.count("trial 0 made no progress for 1.2 s and does not end; its worker exits") == 3
    assert done.stderr.count("worker 0 died (exit status 1)") == 3
    # The failed trial uses no budget.
    assert endings_of(url_of(limited)) == {0: ["died", "died", "died"], 1: ["complete"], 2: ["complete"]}
    assert "3 workers in a row died without the trial getting further" in limited.rows("show", "hanging", "0")["error"]


def test_a_worker_in_the_foreground_exits_and_the_trial_is_free(limited: Any) -> None:
    done = limited.run("worker", "limited.py:hanging", "--stall-minutes", SHORT, HANGS="train")

    assert done.returncode == 1, done.stderr
    assert not (limited.folder / "finally").exists()
    assert endings_of(url_of(limited)) == {0: ["died"]}
    assert deaths(limited) == [(None, 0.0, 1)]
    assert limited.run("worker", "limited.py:hanging").returncode == 0
    assert endings_of(url_of(limited)) == {0: ["died", "complete"], 1: ["complete"]}


def test_a_command_without_output_is_ended_and_its_worker_goes_on(limited: Any) -> None:
    done = limited.run("worker", "limited.py:command", "--trials", "1", "--stall-minutes", SHORT)

    # Trials fail one after another for the same reason, which stops the study.
    assert done.returncode == 3, done.stderr
    found = attempts_of(url_of(limited))
    assert [[row.ending for row in found[number]] for number in range(3)] == [["died"] * 3] * 3
    assert done.stderr.count("it is asked to stop") == sum(map(len, found.values()))
    assert "does not end" not in done.stderr
    assert len({row.worker for rows in found.values() for row in rows}) == 1
    assert processes_of(url_of(limited)) == []


def test_study_run_does_not_end_the_users_process(limited: Any) -> None:
    script = limited.folder / "script.py"
    script.write_text(
        "import dataclasses, limited\n"
        f"dataclasses.replace(limited.hanging, stall_minutes={SHORT}).run()\n"
        "print('the script goes on')\n"
    )
    words = [sys.executable, str(script)]
    env = {**limited.env, "HANGS": "train"}
    process = subprocess.Popen(
        words, cwd=limited.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    limited.started.append(process)
    wait_for_block(limited, process)
    wait_until(lambda: endings_of(url_of(limited)) == {0: ["died"]}, process)
    (limited.folder / "go").touch()
    status, said = ended(process)

    assert status == 0, said
    assert "it is given up, but its code continues in this process" in said
    assert said.splitlines()[-1] == "the script goes on"
    assert endings_of(url_of(limited)) == {0: ["died", "complete"], 1: ["complete"]}
