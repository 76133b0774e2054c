"""The exit statuses of `launch` and `worker`, which engines such as Slurm act on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.storage import connect
from tuner.storage.sql.tables import leases

COMMANDS = {"worker": ("worker", "tiny.py"), "launch": ("launch", "tiny.py", "--workers", "1")}
BOTH = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
Wait = Callable[..., Any]

pytestmark = pytest.mark.slow


@pytest.fixture
def tuner(tuner_on_sqlite: Any, tiny_function: Path) -> Any:
    tuner_on_sqlite.env["TINY_TRIALS"] = "2"
    return tuner_on_sqlite


def is_at_work(tuner: Any) -> bool:
    """Return whether a worker holds a trial."""
    try:
        engine = connect(tuner.env["TUNER_STORAGE"])
    except Exception:
        return False  # there is no file yet
    try:
        with engine.connect() as connection:
            return connection.execute(leases.select().where(leases.c.worker.is_not(None))).first() is not None
    except Exception:
        return False  # there are no tables yet
    finally:
        engine.dispose()


@BOTH
def test_a_budget_that_is_used_up_is_0_also_the_second_time_and_then_a_study_that_was_stopped(
    tuner: Any, command: tuple[str, ...]
) -> None:
    for _ in range(2):
        done = tuner.run(*command)
        assert done.returncode == 0, done.stderr
        assert "is stopped" not in done.stderr
    assert [row["outcome"] for row in tuner.rows("trials", "tiny")] == ["complete"] * 2
    assert tuner.run_here("stop", "tiny").returncode == 0

    done = tuner.run(*command, "--trials", "5")

    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].startswith("tuner: study 'tiny' is stopped: run `tuner resume tiny`")
    assert len(tuner.rows("trials", "tiny")) == 2


@BOTH
def test_a_wrong_file_is_2_and_75_while_others_run_it_as_is_a_changed_space(
    tuner: Any, tiny_function: Path, tmp_path: Path, wait_until: Wait, command: tuple[str, ...]
) -> None:
    whole = tiny_function.read_text()
    wrong = [f"{whole}\n{text}\n" for text in ("def broken(:", "study = study.no_such_name")]
    for text in wrong:
        tiny_function.write_text(text)
        alone = tuner.run(*command)
        assert alone.returncode == 2, alone.stderr
        assert "Traceback" not in alone.stderr
    tiny_function.write_text(whole)
    hold = tmp_path / "hold"
    hold.touch()
    busy = tuner.start("worker", "tiny.py", TINY_HOLD_FILE=str(hold))
    wait_until(lambda: is_at_work(tuner))

    for text in wrong:
        tiny_function.write_text(text)
        done = tuner.run(*command)
        assert done.returncode == 75, done.stderr
        assert done.stderr.splitlines()[-1].endswith(
            "; other workers are running a study of this file: correct the file, then run this command again"
        )
        assert "Traceback" not in done.stderr
    tiny_function.write_text(whole.replace("uniform(0.0, 1.0)", "uniform(0.0, 2.0)"))
    done = tuner.run(*command)
    assert done.returncode == 75, done.stderr
    assert "study 'tiny' has changed since its first launch" in done.stderr

    tiny_function.write_text(whole)
    hold.unlink()
    output, _ = busy.communicate(timeout=300)
    assert busy.returncode == 0, output
    assert "Traceback" not in output


@BOTH
def test_a_wrong_option_is_2(tuner: Any, command: tuple[str, ...]) -> None:
    done = tuner.run(*command, "--set", "width=3")
    assert done.returncode == 2
    assert "width" in done.stderr


@BOTH
def test_a_study_that_fails_is_3(tuner: Any, command: tuple[str, ...]) -> None:
    done = tuner.run(*command, TINY_MODE="bug")
    assert done.returncode == 3
    assert "the same error ended 3 trials in a row" in done.stderr


@BOTH
def test_a_database_that_cannot_be_reached_is_75(tuner: Any, command: tuple[str, ...]) -> None:
    done = tuner.run(*command, TUNER_STORAGE="postgresql://u:p@127.0.0.1:1/d")
    assert done.returncode == 75
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tuner: cannot reach the storage postgresql://u:***@127.0.0.1:1/d")
    assert last.endswith("check the storage URL")


@BOTH
def test_a_signal_is_130_and_the_trial_is_given_back(tuner: Any, wait_until: Wait, command: tuple[str, ...]) -> None:
    process = tuner.start(*command, TINY_EPOCHS="100000", TINY_PAUSE_S="0.05")
    wait_until(lambda: is_at_work(tuner))
    process.send_signal(signal.SIGTERM)

    output, _ = process.communicate(timeout=300)

    assert process.returncode == 130, output
    assert [row["outcome"] for row in tuner.rows("trials", "tiny")] == ["preempted"]
    assert not is_at_work(tuner)


def test_a_crash_of_a_worker_is_1_and_of_all_workers_of_a_launch_3(tuner: Any, tiny_function: Path) -> None:
    crash = "import tuner.worker.loop\n\n\ndef crash(self):\n    raise RuntimeError('planted')\n\n\n"
    planted = f"{crash}tuner.worker.loop.Worker._work = crash\n"
    tiny_function.write_text(tiny_function.read_text() + planted)

    worker = tuner.run(*COMMANDS["worker"])
    launch = tuner.run(*COMMANDS["launch"])

    assert worker.returncode == 1
    assert worker.stderr.splitlines()[-1] == "RuntimeError: planted"
    assert launch.returncode == 3
    assert "every worker died 4 times in a row, the last with exit status 1" in launch.stderr
