"""`tuner launch` with several files, as a user runs it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def files(tiny_function: Path) -> list[str]:
    """Return the files of three studies."""
    text = tiny_function.read_text()
    assert text.count('name="tiny"') == 1
    for name in ("one", "two", "three"):
        (tiny_function.parent / f"{name}.py").write_text(text.replace('name="tiny"', f'name="{name}"'))
    return ["one.py", "two.py", "three.py"]


def ended(tuner: Any) -> dict[str, tuple[int, str]]:
    return {row["study"]: (row["complete"] + row["pruned"], row["state"]) for row in tuner.rows("studies")}


def test_studies_run_in_turn_and_one_that_fails_stops_no_other(tuner_on_sqlite: Any, files: list[str]) -> None:
    broken = Path(tuner_on_sqlite.folder, files[1])
    broken.write_text("import nothing_of_this_name\n" + broken.read_text())

    done = tuner_on_sqlite.run("launch", *files, "--workers", "1", "--trials", "2", "--label", "batch")

    assert done.returncode == 2
    assert ended(tuner_on_sqlite) == {"one": (2, "finished"), "three": (2, "finished")}
    lines = done.stderr.splitlines()
    assert lines[-1] == "tuner: 1 of 3 studies did not finish: two.py"
    assert sum("two.py:1: ModuleNotFoundError" in line for line in lines) == 1
    assert [line for line in done.stdout.splitlines() if "best trial" in line] == [
        "best trial of 'one':",
        "best trial of 'three':",
    ]
    assert [row["labels"] for row in tuner_on_sqlite.rows("studies")] == [["batch"], ["batch"]]
    assert tuner_on_sqlite.rows("studies", "--label", "other") == []


@pytest.mark.long
def test_studies_share_the_workers(tuner_on_postgres: Any, files: list[str]) -> None:
    done = tuner_on_postgres.run("launch", *files, "--workers", "2", "--trials", "4", "--share", "--log-format", "json")

    assert done.returncode == 0, done.stderr
    assert ended(tuner_on_postgres) == {name: (4, "finished") for name in ("one", "two", "three")}
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    began = [(line["study"], line["worker"]) for line in lines if line["event"] == "study"]
    assert {study for study, _ in began[:2]} == {"one", "two"}
    assert {study for study, _ in began} == {"one", "two", "three"}
    assert len({worker for _, worker in began}) == len(began)
    of_trials = [line for line in lines if line["event"] == "end"]
    assert len(of_trials) == 12
    assert all(line["worker"] in dict(map(reversed, began)) for line in of_trials)  # pyright: ignore


def test_a_signal_stops_all_studies_that_share_workers(
    tuner_on_sqlite: Any, files: list[str], wait_until: Callable[..., Any]
) -> None:
    launch = tuner_on_sqlite.start(
        "launch", *files[:2], "--workers", "2", "--trials", "500", "--share", TINY_PAUSE_S="0.2"
    )
    file = Path(tuner_on_sqlite.folder, "study.db")
    wait_until(lambda: file.exists() and [row["running"] for row in tuner_on_sqlite.rows("studies")] == [1, 1])
    launch.send_signal(signal.SIGINT)
    output, _ = launch.communicate(timeout=300)
    assert launch.returncode == 130, output
    assert "run the same command again to finish the rest" in output
    assert [row["running"] for row in tuner_on_sqlite.rows("studies")] == [0, 0]
