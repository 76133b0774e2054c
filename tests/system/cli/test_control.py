"""Studies that end before their trials are done, and go on: `tuner stop` and `resume`, wall and device hours."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.study import StudyDirection

from tuner.storage import connect, open_storage
from tuner.storage.sql.tables import attempts, leases, workers

STOPPED = "tuner: study 'tiny' is stopped: run `tuner resume tiny`, then launch it again"
SHAPE = {"TINY_TRIALS": "4", "TINY_EPOCHS": "12"}
SLOW = {**SHAPE, "TINY_PAUSE_S": "1.0"}
LAUNCH = ("launch", "tiny.py", "--workers", "2")


def message(text: str) -> list[str]:
    """Return a command's lines on stderr, without the opening one and those of progress."""
    skipped = r" with \d workers? on |^tuner: \d+/\d+ trials"
    return [line for line in text.splitlines() if not re.search(skipped, line)]


def rows(tuner: Any, *columns: sa.Column[Any]) -> list[tuple[Any, ...]]:
    engine = connect(tuner.env["TUNER_STORAGE"])
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(sa.select(*columns))]
    engine.dispose()
    return found


def train(tuner: Any, wait_until: Callable[..., Any], *words: str, **env: str) -> subprocess.Popen[str]:
    """Launch a slow study and return once both workers have made a report."""
    process = tuner.start(*LAUNCH, *words, **{**SLOW, **env})

    def both_train() -> bool:
        assert process.poll() is None
        running = [row["number"] for row in tuner.rows("trials", "tiny") if row["outcome"] == "running"]
        return len(running) == 2 and all(tuner.rows("show", "tiny", str(number))["reports"] for number in running)

    wait_until(lambda: tuner.run_here("studies").returncode == 0 and tuner.rows("studies"))
    wait_until(both_train)
    return process


def make_study(tuner: Any, name: str) -> None:
    """Create a study that has no trials."""
    storage = open_storage(tuner.env["TUNER_STORAGE"])
    storage.create_new_study([StudyDirection.MINIMIZE], name)
    storage.close()


@pytest.mark.slow
def test_a_stopped_study_ends_soon_and_resumed_it_ends_as_if_nothing_had_been(
    tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    tuner = tuner_on_sqlite
    launched = train(tuner, wait_until, TINY_PAUSE_S="3.5")  # a slow machine must not be done with them before

    stopped = tuner.run("stop", "tiny")
    assert (stopped.returncode, stopped.stderr) == (0, "tuner: study 'tiny' is stopped\n")
    output, _ = launched.communicate(timeout=300)
    assert launched.returncode == 0
    assert message(output) == [STOPPED]
    trials = tuner.rows("trials", "tiny")
    assert [row["outcome"] for row in trials if row["outcome"] != "complete"] == ["preempted"] * 2
    assert {row[0] for row in rows(tuner, attempts.c.ending)} <= {"complete", "preempted"}, "no attempt is left open"
    assert all(row == (None, 0.0) for row in rows(tuner, leases.c.worker, leases.c.expires_at_s))
    assert None not in [row[0] for row in rows(tuner, workers.c.ended_at_s)], "all workers have ended"

    elsewhere = f"sqlite:///{tiny_function.parent / 'undisturbed.db'}"
    undisturbed = tuner.start("worker", "tiny.py", **SHAPE, TUNER_STORAGE=elsewhere)
    again = tuner.run_here("stop", "tiny")
    assert (again.returncode, again.stderr) == (0, "tuner: study 'tiny' was already stopped\n")
    refused = tuner.run(*LAUNCH, **SLOW)
    assert refused.returncode == 0
    assert message(refused.stderr) == [STOPPED]
    assert tuner.rows("trials", "tiny") == trials, "it changed nothing"

    resumed = tuner.run("resume", "tiny")
    assert (resumed.returncode, resumed.stderr) == (0, "tuner: study 'tiny' can be launched again\n")
    assert tuner.run_here("resume", "tiny").stderr == "tuner: study 'tiny' was not stopped\n"
    finished = tuner.run(*LAUNCH, **SHAPE)
    assert finished.returncode == 0, finished.stderr
    ended = tuner.rows("trials", "tiny")
    assert [row["outcome"] for row in ended] == ["complete"] * 4
    assert len(rows(tuner, attempts.c.trial_id)) == 6, "two trials were taken up again"
    shown = tuner.rows("show", "tiny", "3")
    assert shown["worker"] in [row[0] for row in rows(tuner, workers.c.worker)]
    assert shown["compile_s"] >= 0.0
    assert shown["train_s"] > 0.0
    assert shown["error"] is None

    output, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, output
    tuner.env["TUNER_STORAGE"] = elsewhere
    expected = tuner.rows("trials", "tiny")
    for key in ("number", "outcome", "value", "hparams"):
        assert [row[key] for row in ended] == [row[key] for row in expected]


@pytest.mark.without_tables
@pytest.mark.slow
@pytest.mark.parametrize("command", ["stop", "resume"])
def test_an_unknown_study_is_one_line_with_the_nearest(tuner_on_sqlite: Any, tiny_function: Path, command: str) -> None:
    tuner = tuner_on_sqlite
    nowhere = tuner.run_here(command, "tiny")
    assert nowhere.returncode == 2
    assert len(nowhere.stderr.splitlines()) == 1
    assert "the storage does not exist" in nowhere.stderr
    assert sorted(path.name for path in tiny_function.parent.iterdir()) == ["tiny.py"]
    make_study(tuner, "digits")

    done = tuner.run(command, "digit")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "tuner: no study 'digit' in this storage: it has digits; did you mean 'digits'?"
    ]
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "words", "hours"),
    [("wall", ("--workers", "2"), 0.001), pytest.param("device", ("--workers", "1"), 0.001, marks=pytest.mark.long)],
)
def test_hours_end_a_launch_and_more_of_them_finish_the_study(
    tuner_on_sqlite: Any, tiny_function: Path, flag: str, words: tuple[str, ...], hours: float
) -> None:
    """Trials take a second almost: two workers cannot run 20 of them in four seconds."""
    tuner = tuner_on_sqlite
    env = {"TINY_PAUSE_S": "0.3", "TINY_TRIALS": "20", "TINY_LEASE_S": "3"}

    done = tuner.run("launch", "tiny.py", *words, f"--{flag}-hours", str(hours), **env)
    assert done.returncode == 0, done.stderr
    outcomes = [row["outcome"] for row in tuner.rows("trials", "tiny")]
    complete = outcomes.count("complete")
    assert complete < 20
    assert set(outcomes) <= {"complete", "preempted"}
    (line,) = message(done.stderr)
    assert line == (
        f"tuner: the study's hours are used up with {complete} of 20 trials finished; launch with more hours to "
        "finish the rest"
    )
    intervals = rows(tuner, attempts.c.started_at_s, attempts.c.ended_at_s, attempts.c.devices)
    last, first = max(end for _, end, _ in intervals), min(start for start, _, _ in intervals)
    spent_s = last - first if flag == "wall" else sum((end - start) * devices for start, end, devices in intervals)
    assert spent_s > 3600 * hours * 0.9

    same = tuner.run("launch", "tiny.py", "--workers", "1", f"--{flag}-hours", str(hours), **env)
    assert same.returncode == 0
    assert message(same.stderr) == [line]
    assert [row["outcome"] for row in tuner.rows("trials", "tiny")] == outcomes

    more_hours = ("--workers", "1", f"--{flag}-hours", "1")
    more = tuner.run("launch", "tiny.py", *more_hours, **{**env, "TINY_PAUSE_S": "0"})
    assert more.returncode == 0, more.stderr
    assert message(more.stderr) == []
    assert [row["outcome"] for row in tuner.rows("trials", "tiny")] == ["complete"] * 20


@pytest.mark.without_tables
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "value", "shown"),
    [
        ("--device-hours", "nan", "nan"),
        pytest.param("--wall-hours", "-1", "-1.0", marks=pytest.mark.long),
        *(pytest.param("--wall-hours", value, value, marks=pytest.mark.long) for value in ("0.0", "nan")),
        *(pytest.param("--device-hours", value, value, marks=pytest.mark.long) for value in ("0.0", "-0.5")),
    ],
)
def test_hours_that_cannot_be_are_one_line(
    tuner_on_sqlite: Any, tiny_function: Path, tmp_path: Path, flag: str, value: str, shown: str
) -> None:
    done = tuner_on_sqlite.run("launch", "tiny.py", "--workers", "2", flag, value)

    assert done.returncode == 2
    assert message(done.stderr) == [f"tuner: {flag} must be a number of hours above 0: got {shown}"]
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["tiny.py"], "nothing is written"


@pytest.mark.slow
def test_a_worker_in_the_foreground_is_stopped_too(
    tuner_on_postgres: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    tuner = tuner_on_postgres
    process = tuner.start("worker", "tiny.py", TINY_LEASE_S="3", **SLOW)
    wait_until(lambda: tuner.run_here("studies").returncode == 0 and tuner.rows("studies"))
    wait_until(lambda: [row["outcome"] for row in tuner.rows("trials", "tiny")] == ["running"])

    assert tuner.run_here("stop", "tiny").returncode == 0
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert output.splitlines()[-1] == STOPPED
    assert [row["outcome"] for row in tuner.rows("trials", "tiny")] == ["preempted"]
    assert None not in [row[0] for row in rows(tuner, workers.c.ended_at_s)]


@pytest.mark.slow
def test_a_study_that_fails_shows_its_traceback_once_though_trials_are_tried_again(
    tuner_on_sqlite: Any, tiny_function: Path
) -> None:
    done = tuner_on_sqlite.run(*LAUNCH, TINY_MODE="bug")

    assert done.returncode == 3
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.count("Traceback (most recent call last)") == 1
    endings = [row[0] for row in rows(tuner_on_sqlite, attempts.c.ending)]
    assert endings.count("failed") >= 2 * 3, "each is tried twice"
    failed = next(row["number"] for row in tuner_on_sqlite.rows("trials", "tiny") if row["outcome"] == "failed")
    assert "RuntimeError: planted bug" in tuner_on_sqlite.rows("show", "tiny", str(failed))["error"]


@pytest.mark.slow
@pytest.mark.without_tables
def test_names_of_studies_are_completed(tuner_on_sqlite: Any) -> None:
    tuner = tuner_on_sqlite

    def complete(words: str) -> list[str]:
        script = "import sys; sys.argv = ['tuner']; from tuner.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tuner.folder, capture_output=True, text=True, timeout=300,
            env={**tuner.env, "_TUNER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "2"},
        )  # fmt: skip
        return done.stdout.split()

    assert complete("tuner best ") == [], "there is no storage yet"
    make_study(tuner, "tiny")
    assert complete("tuner best ti") == ["tiny"]
    assert complete("tuner compare ti") == ["tiny"]
    assert complete("tuner best x") == []


@pytest.mark.slow
def test_a_study_is_watched_until_it_is_finished(
    tuner_on_sqlite: Any, tiny_function: Path, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    tuner, hold = tuner_on_sqlite, tmp_path / "hold"
    hold.touch()
    worker = tuner.start("worker", "tiny.py", TINY_PAUSE_S="0.1", TINY_HOLD_FILE=str(hold))
    wait_until(lambda: tuner.run_here("studies", "--format", "csv").stdout.count("tiny") == 1)
    watched = tuner.start("watch", "tiny", "--every", "0.1")
    first = watched.stdout.readline()
    hold.unlink()  # it watches by now
    rest, _ = watched.communicate(timeout=300)
    assert watched.returncode == 0
    lines = [line for line in (first + rest).splitlines() if line]
    assert lines[-1].startswith("tiny: finished, 6 complete, best ")
    assert len(lines) == len(set(lines)) >= 2, "a line for each change"
    assert any("tiny: running, " in line for line in lines)
    worker.communicate(timeout=300)

    wrong = tuner.run_here("watch", "tiny", "--every", "0")
    assert (wrong.returncode, wrong.stderr) == (2, "tuner: --every must be above 0: got 0.0\n")
    on_terminal = subprocess.run(
        ["script", "-qec", f"{sys.executable} -m tuner watch tiny", "/dev/null"],
        cwd=tuner.folder, env=tuner.env, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert on_terminal.returncode == 0
    assert "study tiny" in on_terminal.stdout
    assert on_terminal.stdout.count("complete") >= 6, "the latest ends are listed"
