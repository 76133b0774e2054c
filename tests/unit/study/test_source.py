"""Calling functions from a study's file, and the state of the file's repository."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tuner.errors import StudyError, TunerError
from tuner.study.source import call_study_code, frames_of_author, git_state, import_file

GIT = ["git", "-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]


def git(folder: Path, *words: str) -> str:
    done = subprocess.run([*GIT, "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what the tests' own repository or user set, a hook of Git's say."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A committed file in a folder of a repository, with another file beside the folder."""
    (tmp_path / "studies").mkdir()
    path = tmp_path / "studies" / "study.py"
    path.write_text("x = 1\n")
    (tmp_path / "model.py").write_text("y = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return path


def test_a_clean_repository_has_a_commit_and_no_change(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"commit": git(study.parent, "rev-parse", "HEAD"), "is_changed": False}

    assert git_state(study) == expected
    assert len(expected["commit"]) == 40
    monkeypatch.chdir(study.parent)
    assert git_state(Path("study.py")) == expected
    monkeypatch.chdir("/")
    assert git_state(study) == expected, "wherever the process runs"


@pytest.mark.parametrize("name", ["studies/study.py", "model.py"])
@pytest.mark.parametrize("is_staged", [True, False])
def test_any_changed_file_counts(study: Path, name: str, is_staged: bool) -> None:
    before, path = git_state(study), study.parent.parent / name
    path.write_text("z = 2\n")
    if is_staged:
        git(study.parent, "add", str(path))

    assert before is not None
    assert git_state(study) == {"commit": before["commit"], "is_changed": True}
    git(study.parent, "commit", "--quiet", "--all", "--message", "second")
    after = git_state(study)
    assert after is not None
    assert after == {"commit": git(study.parent, "rev-parse", "HEAD"), "is_changed": False}
    assert after["commit"] != before["commit"]


def test_a_deleted_file_counts(study: Path) -> None:
    (study.parent.parent / "model.py").unlink()

    state = git_state(study)
    assert state is not None
    assert state["is_changed"] is True


def test_files_that_git_does_not_know_do_not_count(study: Path) -> None:
    (study.parent / "tuner.db").touch()

    state = git_state(study)
    assert state is not None
    assert state["is_changed"] is False


def test_without_a_repository_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    assert git_state(tmp_path / "study.py") is None


def test_a_repository_without_a_commit_says_nothing(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")

    assert git_state(tmp_path / "study.py") is None


def test_without_git_nothing_is_known(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert git_state(study) is None


def test_a_folder_that_is_gone_is_no_repository(tmp_path: Path) -> None:
    assert git_state(tmp_path / "none" / "study.py") is None


# --- Calling functions of the file


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("return json.loads('{')", "JSONDecodeError: Expecting property name"),  # raised in the standard library
        ("return sqlalchemy.create_engine('x')", "ArgumentError: Could not parse"),  # in a package
        ("return sanitize.hide_password(3)", "TypeError: expected string"),  # below tuner's own code
    ],
    ids=["own", "standard library", "package", "tuner"],
)
def test_an_error_is_shown_with_the_line_of_the_authors_own_file(tmp_path: Path, line: str, error: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        f"import json\nimport sqlalchemy\nfrom tuner.output import sanitize\n\n\ndef data(seed):\n    {line}\n"
    )
    with pytest.raises(StudyError) as caught:
        call_study_code("data(seed) failed", import_file(path).data, 0)
    assert str(caught.value).startswith(f"data(seed) failed: {path}:7: {error}")


@pytest.mark.parametrize(
    ("filename", "is_of_author"),
    [
        ("<string>", False),
        ("<frozen importlib._bootstrap>", False),
        ("<attrs generated methods mine.Options>", False),
        ("<sqlalchemy generated warned() wrapper>", False),
        ("<stdin>", True),
        ("<python-input-3>", True),
        ("<ipython-input-3-0123456789ab>", True),
    ],
)
def test_code_that_a_package_generates_is_not_the_authors(filename: str, is_of_author: bool) -> None:
    names: dict[str, Any] = {}
    exec(compile("def divide(): return 1 / 0", filename, "exec"), names)
    with pytest.raises(ZeroDivisionError) as caught:
        names["divide"]()
    found = [frame.filename for frame in frames_of_author(caught.value)]
    assert found == [__file__, *([filename] if is_of_author else [])]


def test_what_a_function_returns_or_raises_as_an_error_of_ours_comes_through() -> None:
    def refuse() -> None:
        raise TunerError("as it is")

    assert call_study_code("f failed", max, 1, 2) == 2
    with pytest.raises(TunerError, match="as it is"):
        call_study_code("f failed", refuse)
