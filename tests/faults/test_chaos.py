"""A short run of `tests/faults/chaos.py` with fixed seeds, which by hand runs hundreds of episodes; and its checks."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import chaos  # tests/ is on the path


@pytest.fixture(scope="module")
def server() -> Iterator[chaos.Server]:
    with chaos.postgres() as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 4, 6))])
def test_random_faults_on_sqlite_leave_what_would_be_there_without_them(seed: int) -> None:
    faults, violations = chaos.run_episode(seed, None)

    assert violations == [], faults


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [3, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 5, 7))])
def test_random_faults_on_postgres_leave_what_would_be_there_without_them(seed: int, server: chaos.Server) -> None:
    faults, violations = chaos.run_episode(seed, server)

    assert violations == [], faults


def test_the_harness_knows_the_studys_metrics() -> None:
    """By hand: learning rate 0.1, noise 0.5, epoch 2: (-1 + 2)^2 + 0.25 + 0.5."""
    import chaos_study

    assert chaos.loss_at(0.1, 0.5, 2) == chaos_study.loss_at(0.1, 0.5, 2) == 1.75


# --- Each check must fail where something is wrong


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chaos.Episode]:
    """An episode without a fault: three trials under a pruner."""
    folder = tmp_path_factory.mktemp("chaos")
    episode = chaos.Episode(random.Random(0), folder, None)
    episode.trials, episode.workers, episode.pruner, episode.pace_s, episode.save_s = 3, 1, "asha", 0.05, 60.0
    try:
        assert chaos.harm(episode, []) is None
        yield episode
    finally:
        episode.close()


@pytest.fixture
def episode(finished: chaos.Episode, tmp_path: Path) -> chaos.Episode:
    """A copy of that, to be changed."""
    copy = chaos.Episode(random.Random(0), tmp_path, None)
    copy.trials, copy.pruner, copy.is_watched = finished.trials, finished.pruner, True
    copy.output, copy.statuses = list(finished.output), list(finished.statuses)
    with (
        contextlib.closing(sqlite3.connect(finished.folder / "study.db")) as theirs,
        contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as ours,
    ):
        theirs.backup(ours)
    return copy


def change(episode: chaos.Episode, *statements: str) -> None:
    """Change an episode's database, whatever its keys and triggers forbid."""
    with contextlib.closing(sqlite3.connect(episode.folder / "study.db", isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            done = connection.execute(statement)
            assert done.rowcount != 0, f"nothing to change: {statement}"


def without_keys(table: str) -> list[str]:
    """Return the statements that give a table no key, so that it can have a row twice."""
    return [f"CREATE TABLE copy AS SELECT * FROM {table}", f"DROP TABLE {table}", f"ALTER TABLE copy RENAME TO {table}"]


REPORTS, VALUES = "tuner_reports", "trial_intermediate_values"
FIRST = "trial_id = (SELECT min(trial_id) FROM trials)"
BEST = "trial_id = (SELECT trial_id FROM trials JOIN trial_values USING (trial_id) ORDER BY value LIMIT 1)"


@pytest.mark.slow
def test_nothing_is_found_where_nothing_is_wrong(episode: chaos.Episode) -> None:
    assert chaos.check(episode) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statements", "found"),
    [
        ([f"UPDATE trials SET state = 'RUNNING' WHERE {FIRST}"], "trials are left unfinished: {'RUNNING': 1"),
        ([f"UPDATE trials SET state = 'WAITING' WHERE {FIRST}"], "trials are left unfinished: {'WAITING': 1"),
        ([f"UPDATE trials SET state = 'FAIL' WHERE {FIRST}"], "1 trials failed with 0 deaths at most"),
        ([f"DELETE FROM trials WHERE {FIRST}"], "2 trials of 3 asked for"),
        (["INSERT INTO trials (number, study_id, state) VALUES (3, 1, 'PRUNED')"], "4 trials of 3 asked for"),
        (["UPDATE trials SET number = 7 WHERE number = 2"], "numbers are not 0, 1, 2, ...: [0, 1, 7]"),
        (["UPDATE trials SET number = 1 WHERE number = 2"], "numbers are not 0, 1, 2, ...: [0, 1, 1]"),
        (
            ["INSERT INTO tuner_leases (trial_id, worker, fence, deaths, expires_at_s) VALUES (1, 'w', 1, 0, 0.0)"],
            "leases are left: [(1, 'w')]",
        ),
        ([f"UPDATE {VALUES} SET intermediate_value = 9.0 WHERE step = 1 AND {FIRST}"], "values and ours differ"),
        ([f"DELETE FROM {REPORTS} WHERE epoch = 1 AND {FIRST}"], "values and ours differ"),
        (
            [*without_keys(REPORTS), f"INSERT INTO {REPORTS} SELECT * FROM {REPORTS} WHERE epoch = 1 AND {FIRST}"],
            "epochs are doubled: [(1, 1)]",
        ),
        (
            [f"DELETE FROM {REPORTS} WHERE epoch = 1", f"DELETE FROM {VALUES} WHERE step = 1"],
            "has reports of the epochs [",
        ),
        (
            [f"DELETE FROM {REPORTS} WHERE epoch = 6 AND {BEST}", f"DELETE FROM {VALUES} WHERE step = 6 AND {BEST}"],
            "(COMPLETE) has reports of the epochs [1, 2, 3, 4, 5]",
        ),
        (
            [f"UPDATE {REPORTS} SET metrics = json_set(metrics, '$.loss', 9.0) WHERE epoch = 1 AND {FIRST}"],
            "trial id 1 has 9.0 at epoch 1, not ",
        ),
        (
            [f"UPDATE {REPORTS} SET metrics = json_set(metrics, '$.train_loss', 9.0) WHERE epoch = 1 AND {FIRST}"],
            "trial id 1 has at epoch 1 the step 7 and the metrics ",
        ),
        ([f"UPDATE {REPORTS} SET step = 8 WHERE epoch = 1 AND {FIRST}"], "trial id 1 has at epoch 1 the step 8"),
        ([f"UPDATE trial_values SET value = value + 1e-9 WHERE {BEST}"], ", which none of its epochs has"),
        ([f"DELETE FROM trial_values WHERE {BEST}"], "has the value None, which none of its epochs has"),
        (
            [
                "UPDATE trial_values SET value = (SELECT intermediate_value FROM trial_intermediate_values v "
                f"WHERE step = 5 AND v.trial_id = trial_values.trial_id) WHERE {BEST}"
            ],
            ", not that of its last epoch",
        ),
        ([f"UPDATE trial_values SET value = value + 100 WHERE {BEST}"], "Optuna's best value is "),
        (
            [*without_keys("tuner_rungs"), "INSERT INTO tuner_rungs SELECT * FROM tuner_rungs LIMIT 1"],
            "a trial counts twice in a rung",
        ),
        (["UPDATE tuner_rungs SET position = 99 WHERE position = 1"], "positions in the rungs are [2, 3"),
        (["UPDATE tuner_rungs SET value = 9.0 WHERE position = 1"], "has 9.0 in rung 0"),
        (["UPDATE tuner_attempts SET ending = 'died'"], "3 attempts count as died, with 0 processes killed or stopped"),
        ([f"UPDATE tuner_attempts SET ended_at_s = NULL WHERE {FIRST}"], "attempt 1 of trial id 1 goes on"),
        ([f"UPDATE tuner_attempts SET fence = 2 WHERE {FIRST}"], "trial id 1 has attempts [2]"),
        ([f"DELETE FROM tuner_records WHERE {FIRST}"], "trials with a record: [2, 3], with attempts: [1, 2, 3]"),
        (
            [*without_keys("tuner_records"), f"INSERT INTO tuner_records SELECT * FROM tuner_records WHERE {FIRST}"],
            "trials with a record: [1, 1, 2, 3], with attempts: [1, 2, 3]",
        ),
        (
            ["UPDATE chaos_writes SET metrics = json_set(metrics, '$.writer', 1.0) WHERE rowid = 1"],
            "process 1 wrote epoch ",
        ),
        (["UPDATE chaos_writes SET worker = NULL WHERE rowid = 1"], ", which nobody held"),
        (["DELETE FROM chaos_writes"], "no write was watched"),
        (
            ["INSERT INTO chaos_takeovers VALUES (1, 'one', 'other', 2.5)"],
            "other took trial id 1 from one, whose lease had 2.50 s left",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_database_is_found(episode: chaos.Episode, statements: list[str], found: str) -> None:
    change(episode, *statements)

    assert any(found in violation for violation in chaos.check(episode)), chaos.check(episode)


def test_a_trial_that_was_pruned_without_a_pruner_is_found(episode: chaos.Episode) -> None:
    change(episode, f"UPDATE trials SET state = 'PRUNED' WHERE {FIRST}")
    episode.pruner = "none"

    assert "trials were pruned without a pruner" in chaos.check(episode)


@pytest.mark.parametrize(
    ("printed", "status", "found"),
    [
        ("Traceback (most recent call last):\n", 0, "a traceback was printed: 'Traceback"),
        (f"postgresql://me:{chaos.PASSWORD}@localhost/d\n", 0, "a password was printed"),
        ("", 3, "launches ended with status [3]"),
    ],
)
def test_what_is_wrong_in_the_output_is_found(episode: chaos.Episode, printed: str, status: int, found: str) -> None:
    episode.output.append(printed)
    episode.statuses.append(status)

    assert [found in violation for violation in chaos.check(episode)] == [True]


def test_a_process_that_is_left_behind_is_found(episode: chaos.Episode) -> None:
    environment = {**os.environ, "TUNER_STORAGE": episode.url}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE) as left:
        assert chaos.check(episode) == ["1 processes are left behind"]
        left.communicate()
