"""SQLite files in a folder that is not writable: when they are read as immutable, and what is said if they cannot be.

Root may write to every folder. The process under test therefore runs without the capability for that.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from tuner.storage import open_storage
from tuner.storage.sql.sqlite_files import may_be_immutable

OVERRIDES = "-dac_override,-dac_read_search"


@pytest.mark.parametrize(
    ("has_log", "is_folder_writable", "expected"),
    [
        (False, False, True),
        (True, False, False),  # someone may be writing
        (False, True, False),  # someone may begin to write
        (True, True, False),
    ],
)
def test_a_file_is_immutable_only_if_nobody_can_be_writing(
    has_log: bool, is_folder_writable: bool, expected: bool
) -> None:
    assert may_be_immutable(has_log=has_log, is_folder_writable=is_folder_writable) is expected


SECOND_CONNECTION = """
import sys
from tuner.storage import connect

url = sys.argv[1]
first = connect(url)
one = first.connect()
one.exec_driver_sql("SELECT count(*) FROM studies").all()  # it holds a lock on the log from now on
second = connect(url)
second.connect().exec_driver_sql("SELECT count(*) FROM studies").all()
third = first.connect()
print("ready", flush=True)
input()
one.exec_driver_sql("UPDATE studies SET study_name = 'written later'")
one.commit()
"""


@pytest.mark.slow
def test_a_second_connection_leaves_the_locks_of_the_first(file: Path) -> None:
    file.parent.chmod(0o755)
    url = f"sqlite:///{file}"
    process = subprocess.Popen(
        [sys.executable, "-c", SECOND_CONNECTION, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    log = file.with_name("study.db-wal").stat().st_ino
    # Whoever closes the last connection removes the log, which the first process still writes to.
    other = sqlite3.connect(file)
    other.execute("SELECT count(*) FROM studies").fetchall()
    other.close()
    assert file.with_name("study.db-wal").stat().st_ino == log
    process.communicate("\n", timeout=60)
    assert process.returncode == 0
    with sqlite3.connect(file) as found:
        assert found.execute("SELECT study_name FROM studies").fetchall() == [("written later",)]
        assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    found.close()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `tuner` as a user who may not write to a folder without the right to."""
    limits: list[str] = []
    if os.geteuid() == 0:
        found = shutil.which("setpriv")
        if found is None:
            pytest.skip("root can write everywhere, and there is no setpriv")
        limits = [found, f"--bounding-set={OVERRIDES}", f"--inh-caps={OVERRIDES}"]
    return subprocess.run([*limits, sys.executable, "-m", "tuner", *words], capture_output=True, text=True)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A study's file with a space and a `#` in its path, in a folder that is not writable."""
    folder = tmp_path / "read only #1"
    folder.mkdir()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(f"sqlite:///{folder / 'study.db'}")
    study = optuna.create_study(study_name="done", storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    storage.close()
    folder.chmod(0o555)
    yield folder / "study.db"
    folder.chmod(0o755)


@pytest.mark.slow
def test_a_file_in_a_read_only_folder_is_read(file: Path) -> None:
    assert [path.name for path in file.parent.iterdir()] == ["study.db"]
    done = run("trials", "done", "--format", "csv", "--storage", f"sqlite:///{file}")
    assert (done.returncode, done.stdout.count("complete"), done.stderr) == (0, 2, "")
    assert [path.name for path in file.parent.iterdir()] == ["study.db"]


@pytest.mark.slow
def test_changes_that_are_only_in_the_log_are_not_silently_left_out(file: Path) -> None:
    file.parent.chmod(0o755)
    copy = file.with_name("copy.db")
    writer = sqlite3.connect(file)
    writer.execute("CREATE TABLE more (x)")
    writer.commit()
    shutil.copy(file, copy)
    shutil.copy(file.with_name("study.db-wal"), f"{copy}-wal")  # as after a crash: a log, and nobody who writes
    writer.close()
    file.parent.chmod(0o555)
    done = run("studies", "--storage", f"sqlite:///{copy}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "its folder is not writable, and 'copy.db-wal' beside it holds changes" in done.stderr


@pytest.mark.slow
def test_a_file_that_someone_is_writing_is_read_with_their_changes(file: Path) -> None:
    file.parent.chmod(0o755)
    writer = sqlite3.connect(file)
    writer.execute("UPDATE studies SET study_name = 'renamed'")
    writer.commit()
    file.parent.chmod(0o555)
    done = run("studies", "--format", "csv", "--storage", f"sqlite:///{file}")
    writer.close()
    assert done.returncode == 0, done.stderr
    assert "renamed" in done.stdout
