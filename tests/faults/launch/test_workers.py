"""What dies, and what must hold afterwards: exact budget, no trial lost or doubled, no process left behind."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from after_faults import endings_of, processes_of

from tuner.storage import connect
from tuner.storage.sql.tables import attempts, leases, trial_intermediate_values

SLOW = {"TINY_PAUSE_S": "0.3"}
SLOWER = {"TINY_PAUSE_S": "2"}  # two workers need 18 s for 6 trials of 3 epochs, and do not come to their end


def children(pid: int) -> list[int]:
    """The workers of a launcher, from the kernel."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def count(url: str, table: sqlalchemy.Table) -> int:
    engine = connect(url)
    try:
        with engine.connect() as connection:
            return connection.execute(sqlalchemy.select(sqlalchemy.func.count()).select_from(table)).scalar_one()
    finally:
        engine.dispose()


def reports(url: str) -> Callable[[], int]:
    """Return how many reports the storage holds; none while it does not exist."""

    def read() -> int:
        try:
            return count(url, trial_intermediate_values)
        except Exception:
            return 0

    return read


def check_study(tuner: Any, trials: int, epochs: int = 3) -> list[dict[str, Any]]:
    """Check that the budget is exact, that nothing is doubled, and that no lease is left; return the trials."""
    rows = tuner.rows("trials", "tiny")
    url = tuner.env["TUNER_STORAGE"]
    assert [row["number"] for row in rows] == list(range(trials))
    assert {row["outcome"] for row in rows} == {"complete"}
    assert count(url, leases) == 0
    assert reports(url)() == trials * epochs
    return rows


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_trial_goes_on(
    tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    tuner = tuner_on_sqlite
    url = tuner.env["TUNER_STORAGE"]
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", **SLOW)
    wait_until(lambda: reports(url)() >= 4)
    victim = children(launcher.pid)[0]
    os.kill(victim, signal.SIGKILL)

    output, _ = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, output
    assert "died (killed by SIGKILL)" in output
    interrupted = check_study(tuner, 6)
    # The same study without a fault: the same trials, bit for bit.
    tuner.env["TUNER_STORAGE"] = f"sqlite:///{tmp_path / 'quiet.db'}"
    assert tuner.run("launch", "tiny.py", "--workers", "1").returncode == 0
    quiet = check_study(tuner, 6)
    assert [row["hparams"] for row in interrupted] == [row["hparams"] for row in quiet]
    assert [row["value"] for row in interrupted] == [row["value"] for row in quiet]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupted_launch_ends_soon_and_resumes(
    tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any], sent: signal.Signals
) -> None:
    tuner = tuner_on_sqlite
    url = tuner.env["TUNER_STORAGE"]
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", **SLOWER)
    wait_until(lambda: reports(url)() >= 2)
    workers = children(launcher.pid)
    launcher.send_signal(sent)

    output, _ = launcher.communicate(timeout=300)

    assert launcher.returncode == 130
    assert "run the same command again to finish the rest" in output.splitlines()[-1]
    assert not any(is_alive(pid) for pid in workers)
    assert tuner.run("worker", "tiny.py").returncode == 0
    check_study(tuner, 6)


@pytest.mark.without_tables
@pytest.mark.slow
@pytest.mark.parametrize("sent", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGINT])
def test_a_worker_whose_data_never_come_ends_on_the_first_signal(
    tuner_on_sqlite: Any, tiny_study: Path, tmp_path: Path, wait_until: Callable[..., Any], sent: signal.Signals
) -> None:
    folder = tmp_path / "start"
    folder.mkdir()
    worker = tuner_on_sqlite.start("worker", "tiny.py", TINY_START_FOLDER=str(folder))
    wait_until(lambda: list(folder.iterdir()))

    worker.send_signal(sent)

    output, _ = worker.communicate(timeout=300)
    assert worker.returncode == 130, output
    assert "Traceback" not in output
    assert not (tmp_path / "study.db").exists()


@pytest.mark.slow
def test_a_trial_that_cannot_resume_starts_again_and_the_study_goes_on(
    tuner_on_sqlite: Any, tiny_study: Path, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    tuner = tuner_on_sqlite
    url = tuner.env["TUNER_STORAGE"]
    few = {"TINY_TRIALS": "2", "TINY_EPOCHS": "40"}  # the first trial takes 12 s, and is interrupted early
    first = tuner.start("worker", "tiny.py", **few, TINY_PAUSE_S="0.3")
    wait_until(lambda: reports(url)() >= 3)
    first.send_signal(signal.SIGTERM)
    assert first.communicate(timeout=300)[0].splitlines()[-1] == "tuner: trial 0: released"
    assert first.returncode == 130
    assert list((tmp_path / "tuner-artifacts").glob("*/*/latest/*")), "it has a checkpoint"
    text = tiny_study.read_text()
    assert "nn.Dense(1)(x)[:, 0]" in text
    tiny_study.write_text(text.replace("nn.Dense(1)(x)[:, 0]", "nn.Dense(1)(nn.Dense(2)(x))[:, 0]"))

    done = tuner.run("worker", "tiny.py", **few)

    assert done.returncode == 0, done.stderr
    told = "tuner: trial 0 restarts from its first epoch: its checkpoint has another state, "
    assert sum(line.startswith(told) for line in done.stderr.splitlines()) == 1, done.stderr
    interrupted = check_study(tuner, 2, epochs=40)
    # The changed study without an interruption: the same curves, and nothing of the old ones.
    tuner.env["TUNER_STORAGE"] = f"sqlite:///{tmp_path / 'quiet.db'}"
    assert tuner.run("worker", "tiny.py", **few).returncode == 0
    quiet = check_study(tuner, 2, epochs=40)
    assert [row["value"] for row in interrupted] == [row["value"] for row in quiet]


@pytest.mark.long
@pytest.mark.slow
def test_a_syntax_error_stops_no_worker_that_is_at_work(
    tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    tuner = tuner_on_sqlite
    url = tuner.env["TUNER_STORAGE"]
    text = tiny_function.read_text()
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", TINY_TRIALS="16", TINY_PAUSE_S="0.5")

    def at_work() -> int:
        return count(url, leases)

    wait_until(lambda: reports(url)() and at_work() == 2)
    tiny_function.write_text(f"{text}\ndef broken(:\n")
    os.kill(children(launcher.pid)[0], signal.SIGKILL)

    output, _ = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, output
    changed = re.findall(r"the study's file has changed: worker (\d) restarts with the new version", output)
    refused = re.findall(
        r"worker (\d) cannot run the study's file as it is now; the other workers continue: "
        r"the study file is not valid Python: tiny\.py:\d+: ",
        output,
    )
    assert changed == refused
    assert len(refused) == 1
    tiny_function.write_text(text)
    check_study(tuner, 16)


@pytest.mark.slow
def test_a_launch_whose_reader_has_gone_ends_in_good_order(
    tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    tuner = tuner_on_sqlite
    launcher = tuner.start("launch", "tiny.py", "--workers", "1", TINY_PAUSE_S="0.5")
    assert launcher.stdout is not None
    assert "tiny.py with 1 worker" in launcher.stdout.readline()
    launcher.stdout.close()  # as `head -1`

    assert launcher.wait(300) == 130, "it ends as by a signal"

    assert processes_of(tuner.env["TUNER_STORAGE"]) == []
    launcher.stdout = None
    assert count(tuner.env["TUNER_STORAGE"], attempts) >= 1
    assert tuner.run("worker", "tiny.py").returncode == 0, "it gave its trial back"
    check_study(tuner, 6)


@pytest.mark.slow
def test_workers_do_not_outlive_their_launcher(
    tuner_on_sqlite: Any, tiny_function: Path, wait_until: Callable[..., Any]
) -> None:
    tuner = tuner_on_sqlite
    url = tuner.env["TUNER_STORAGE"]
    # Workers that go on by themselves are at it for two minutes.
    env = {"TINY_TRIALS": "2", "TINY_EPOCHS": "40"}
    launcher = tuner.start("launch", "tiny.py", "--workers", "2", **env, TINY_PAUSE_S="3")
    wait_until(lambda: reports(url)() >= 2)
    workers = children(launcher.pid)
    assert len(workers) == 2
    launcher.kill()

    wait_until(lambda: not any(is_alive(pid) for pid in workers))

    assert reports(url)() < 2 * 40
    assert tuner.run("worker", "tiny.py", **env).returncode == 0, "the study goes on"
    check_study(tuner, 2, epochs=40)


@pytest.mark.slow
def test_the_same_error_three_times_stops_the_study_once_mended_it_goes_on(
    tuner_on_sqlite: Any, tiny_function: Path
) -> None:
    tuner = tuner_on_sqlite
    done = tuner.run("launch", "tiny.py", "--workers", "2", TINY_MODE="bug")

    assert done.returncode == 3
    assert "the same error ended 3 trials in a row" in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert "failed and is retried: RuntimeError: planted bug\n" in done.stderr
    rows = tuner.rows("trials", "tiny")
    failed = [row["number"] for row in rows if row["outcome"] == "failed"]
    others = [row["outcome"] for row in rows if row["outcome"] != "failed"]
    # The other worker may be in a trial of its own when the third error is stored: it fails as well or is given back.
    assert (len(failed), others) in [(3, []), (3, ["preempted"]), (4, [])]
    assert "RuntimeError: planted bug" in tuner.rows("show", "tiny", str(failed[0]))["error"]
    assert tuner.rows("best", "tiny") == []

    assert tuner.run("worker", "tiny.py").returncode == 0
    outcomes = [row["outcome"] for row in tuner.rows("trials", "tiny")]
    assert outcomes.count("complete") == 6, "failed trials do not use the budget"


@pytest.mark.long
@pytest.mark.slow
def test_a_worker_that_starts_late_counts_the_failures_of_its_launch(tuner_on_sqlite: Any, tiny_function: Path) -> None:
    tuner, began_s = tuner_on_sqlite, str(time.time())
    for _ in range(2):
        done = tuner.run("worker", "tiny.py", TINY_MODE="bug", TUNER_LAUNCHED_AT=began_s)
        assert "the same error ended 3 trials in a row" in done.stderr
        assert len(tuner.rows("trials", "tiny")) == 3
    assert tuner.run("worker", "tiny.py").returncode == 0  # a launch of its own, after the bug was mended
    assert tuner.run("launch", "tiny.py", "--workers", "1", "--trials", "7").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "outcome"), [("nan", "diverged"), ("memory", "out_of_memory")])
def test_hopeless_trials_use_budget_and_are_never_best(
    tuner_on_sqlite: Any, tiny_function: Path, mode: str, outcome: str
) -> None:
    tuner = tuner_on_sqlite
    assert tuner.run("launch", "tiny.py", "--workers", "1", TINY_MODE=mode).returncode == 0

    rows = tuner.rows("trials", "tiny")

    assert len(rows) == 6
    for row in rows:
        assert row["outcome"] == (outcome if row["hparams"]["noise"] > 0.5 else "complete")
    assert {row["outcome"] for row in rows} == {"complete", outcome}, "the seed gives both"
    assert {row["outcome"] for row in tuner.rows("best", "tiny", "-n", "9")} == {"complete"}


@pytest.mark.slow
def test_a_worker_that_cannot_live_is_given_up(tuner_on_sqlite: Any, tiny_function: Path) -> None:
    tiny_function.write_text(f"{tiny_function.read_text()}\nimport os\nprint('last words', flush=True)\nos._exit(9)\n")

    done = tuner_on_sqlite.run("launch", "tiny.py", "--workers", "1")

    assert done.returncode == 3
    assert "every worker died 4 times in a row, the last with exit status 9" in done.stderr
    assert done.stderr.count("died (exit status 9)\n") == 3 * done.stderr.count("; it is not restarted\n") > 0
    assert done.stderr.splitlines()[-1] == "last words"


@pytest.mark.long
@pytest.mark.slow
def test_a_trial_that_kills_its_workers_is_failed_and_the_study_goes_on(
    tuner_on_sqlite: Any, tiny_function: Path
) -> None:
    done = tuner_on_sqlite.run("launch", "tiny.py", "--workers", "1", TINY_MODE="kill")

    assert done.returncode == 0, done.stderr
    rows = tuner_on_sqlite.rows("trials", "tiny")
    assert [row["outcome"] for row in rows] == ["complete", "failed", *["complete"] * 5]
    error = tuner_on_sqlite.rows("show", "tiny", "1")["error"]
    assert "3 workers in a row died without the trial getting further" in error


@pytest.mark.long
@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_after_each_new_epoch_finishes(
    tuner_on_sqlite: Any, tiny_function: Path
) -> None:
    tuner, url = tuner_on_sqlite, tuner_on_sqlite.env["TUNER_STORAGE"]
    (killed := tuner.folder / "killed").mkdir()
    env = {"TINY_KILL_FOLDER": str(killed), "TINY_EPOCHS": "6", "TINY_TRIALS": "1", "TINY_JUDGED": "1"}
    done = tuner.run("launch", "tiny.py", "--workers", "1", **env)

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("worker 0 died (killed by SIGKILL)") == 5
    assert sorted(path.name for path in killed.iterdir()) == ["1", "2", "3", "4", "5"]
    assert endings_of(url) == {0: [*["died"] * 5, "complete"]}
    shown = tuner.rows("show", "tiny", "0")
    assert [report["epoch"] for report in shown["reports"]] == [1, 2, 3, 4, 5, 6]  # the last with the end


@pytest.mark.slow
@pytest.mark.parametrize("saves", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_trial_whose_workers_die_at_the_same_epoch_fails_after_three(
    tuner_on_sqlite: Any, tiny_function: Path, saves: bool
) -> None:
    tuner, url = tuner_on_sqlite, tuner_on_sqlite.env["TUNER_STORAGE"]
    if not saves:  # then each attempt starts again, and reports the first epochs again
        text = tiny_function.read_text()
        assert "        trial.save(weights)\n" in text
        tiny_function.write_text(text.replace("        trial.save(weights)\n", ""))
    steps_file = str(tuner.folder / "steps")
    env = {"TINY_KILL_EPOCH": "3", "TINY_EPOCHS": "4", "TINY_TRIALS": "1", "TINY_STEPS_FILE": steps_file}
    env |= {"TINY_JUDGED": "1"}
    done = tuner.run("launch", "tiny.py", "--workers", "1", **env)

    assert done.returncode == 0, done.stderr
    assert endings_of(url) == {0: ["died"] * 3, 1: ["complete"]}
    error = tuner.rows("show", "tiny", "0")["error"]
    assert error.startswith("3 workers in a row died without the trial getting further, the last was ")
    steps = [line.split()[1:] for line in (tuner.folder / "steps").read_text().splitlines()]
    first = [int(epoch) for trial, epoch in steps if trial == "0"]
    assert first.count(3) == 3
    assert saves or first == [1, 2, 3] * 3
