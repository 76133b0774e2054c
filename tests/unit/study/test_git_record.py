"""The Git state of study files without a repository: recorded when an image is built, read in its containers."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.errors import UsageError
from tuner.study.git_record import RECORD_VARIABLE, make_record
from tuner.study.source import git_state

GIT = ["git", "-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
SCRIPT = Path(__file__).parents[3] / "docker" / "record_git.py"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DESCRIBE = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
"""As in docs/guide/containers.md, which a test of the container files compares."""


def git(folder: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        [*GIT, "-C", str(folder), *words], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two study files and no repository; the variable names a record that does not exist yet."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv(RECORD_VARIABLE, str(tmp_path / "git.json"))
    folder = tmp_path / "studies"
    (folder / "models").mkdir(parents=True)
    (folder / "study.py").write_text("x = 1\n")
    (folder / "models" / "dense.py").write_text("y = 1\n")
    return folder


def record(folder: Path, described: str) -> subprocess.CompletedProcess[str]:
    """Make the record as the Dockerfile does."""
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder), described], capture_output=True, text=True)
    (folder.parent / "git.json").write_text(done.stdout)
    return done


@pytest.mark.parametrize(("described", "is_changed"), [(COMMIT, False), (f"{COMMIT}-dirty", True)])
def test_a_file_has_the_recorded_state(
    studies: Path, monkeypatch: pytest.MonkeyPatch, described: str, is_changed: bool
) -> None:
    assert git_state(studies / "study.py") is None, "there is no record yet"

    done = record(studies, described)

    assert done.returncode == 0, done.stderr
    expected = {"commit": COMMIT, "is_changed": is_changed}
    assert git_state(studies / "study.py") == expected
    assert git_state(studies / "models" / "dense.py") == expected
    monkeypatch.chdir(studies)
    assert git_state(Path("study.py")) == expected


@pytest.mark.parametrize("name", ["study.py", "models/dense.py"])
@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_file_that_differs_from_the_record_is_a_change(studies: Path, name: str, is_deleted: bool) -> None:
    record(studies, COMMIT)
    if is_deleted:
        (studies / name).unlink()
    else:
        (studies / name).write_text("z = 2\n")

    assert git_state(studies / "study.py") == {"commit": COMMIT, "is_changed": True}


def test_a_new_study_is_a_change_and_another_new_file_is_not(studies: Path) -> None:
    record(studies, COMMIT)
    (studies / "new.py").touch()

    assert git_state(studies / "new.py") == {"commit": COMMIT, "is_changed": True}
    assert git_state(studies / "study.py") == {"commit": COMMIT, "is_changed": False}


def test_a_file_outside_of_the_folder_has_no_state(studies: Path) -> None:
    record(studies, COMMIT)
    (studies.parent / "study.py").write_text("x = 1\n")

    assert git_state(studies.parent / "study.py") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"commit": "0"}'])
def test_a_record_that_is_none_gives_no_state(studies: Path, text: str) -> None:
    (studies.parent / "git.json").write_text(text)

    assert git_state(studies / "study.py") is None


def test_the_record_has_the_digests_of_python_files_but_not_of_hidden_folders(studies: Path) -> None:
    (studies / ".venv").mkdir()
    (studies / ".venv" / "library.py").touch()
    (studies / "data.csv").touch()
    (studies / "folder.py").mkdir()

    made = json.loads(record(studies, COMMIT).stdout)

    expected = {"study.py": hashlib.sha256(b"x = 1\n"), "models/dense.py": hashlib.sha256(b"y = 1\n")}
    assert made["digests"] == {name: digest.hexdigest() for name, digest in expected.items()}


@pytest.mark.parametrize("described", ["v1.0", COMMIT[:12], f"{COMMIT}-changed", f"{COMMIT}\n"])
def test_what_is_no_commit_is_refused_in_one_line(studies: Path, described: str) -> None:
    with pytest.raises(UsageError, match="GIT_COMMIT must be a full commit"):
        make_record(studies, described)

    done = record(studies, described)

    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: GIT_COMMIT must be a full commit in hexadecimal, or COMMIT-dirty: got {described!r}"
    )
    assert done.stderr.count("\n") == 1


def test_a_repository_comes_before_the_record(studies: Path) -> None:
    record(studies, COMMIT)
    git(studies, "init", "--quiet")
    git(studies, "add", ".")
    git(studies, "commit", "--quiet", "--message", "first")

    assert git_state(studies / "study.py") == {"commit": git(studies, "rev-parse", "HEAD"), "is_changed": False}


def test_git_describes_a_repository_in_the_form_of_a_record(studies: Path) -> None:
    git(studies, "init", "--quiet")
    git(studies, "add", ".")
    git(studies, "commit", "--quiet", "--message", "first")
    git(studies, "tag", "--annotate", "--message", "one", "v1.0")
    commit = git(studies, "rev-parse", "HEAD")

    assert git(studies / "models", *DESCRIBE) == commit
    (studies / "study.py").write_text("x = 2\n")
    assert git(studies / "models", *DESCRIBE) == f"{commit}-dirty"
    assert make_record(studies, f"{commit}-dirty").is_changed
