"""`tuner init` writes a study that loads under the file's name, and never overwrites a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.cli.init import Kind, init
from tuner.errors import TunerError, UsageError
from tuner.study import load_study
from tuner.study.file import Settings, load_target


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.OPTUNA])
def test_the_study_has_the_name_of_its_file(kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my first-study.py"
    init(file, kind)
    study = load_study(str(file))
    assert study.name == "my first-study"
    assert study.kind == {Kind.FUNCTION: "function", Kind.COMMAND: "command"}.get(kind, "trainer")
    assert f"run it with `tuner launch '{file}'`" in capsys.readouterr().err
    assert f"tuner launch '{file}'" in file.read_text()


def test_an_optuna_script_is_launched_with_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "svm.py"
    init(file, Kind.OPTUNA)
    found = load_target(f"{file}:objective", Settings(name="svm", trials=20, directions=["maximize"]))
    assert found.function == "objective"
    command = f"tuner launch {file}:objective --name svm --direction maximize --trials 20"
    assert f"`{command}`" in capsys.readouterr().err
    assert "tuner" not in file.read_text().replace(command, "").rpartition('"""')[2]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("there.py", r"there\.py exists already: pass `force` to overwrite it"),
        ("study.txt", r"must end in \.py: got '.*study\.txt'"),
        ("away/study.py", r"cannot write .*study\.py: there is no folder .*away"),
        ('a"b.py', r"must not contain quotes"),
        ("a\nb.py", r"must not contain quotes, backslashes or control characters"),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "there.py").write_text("kept")
    with pytest.raises(UsageError, match=found):
        init(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there.py"]
    assert (tmp_path / "there.py").read_text() == "kept"


def test_a_file_is_overwritten_if_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "there.py"
    file.write_text("old")
    init(file, Kind.COMMAND, force=True)
    assert load_study(str(file)).name == "there"


def test_a_folder_without_rights_is_refused() -> None:
    with pytest.raises(TunerError, match=r"cannot write /proc/study\.py: "):  # also as root
        init(Path("/proc/study.py"))
