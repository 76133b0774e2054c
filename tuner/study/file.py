"""Loads a study from its file, given as `FILE` or `FILE:NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuner.errors import StudyFileError
from tuner.study.source import import_file
from tuner.study.spec import StudySpec


def split_path(target: str) -> tuple[Path, str | None]:
    """Split `FILE` or `FILE:NAME` without checking the file."""
    path = Path(target)
    if path.exists() or ":" not in target:
        return path, None
    file, _, name = target.rpartition(":")
    return Path(file), name


def split_target(target: str) -> tuple[Path, str | None]:
    """Split `FILE` or `FILE:NAME` and check that the file exists and is valid Python.

    Raises:
        StudyFileError: the file does not exist, or has a syntax error; the message has the file and the line.
    """
    path, name = split_path(target)
    if not path.is_file():
        raise StudyFileError(f"study file not found: {str(path)!r}")
    try:
        compile(path.read_bytes(), str(path), "exec")
    except SyntaxError as error:
        raise StudyFileError(f"the study file is not valid Python: {path}:{error.lineno or 1}: {error.msg}") from None
    except ValueError as error:
        raise StudyFileError(f"the study file is not valid Python: {path}: {error}") from None
    return path, name


def load_study(target: str) -> StudySpec:
    """Import a Python file and return the study in it.

    Args:
        target: `FILE`, or `FILE:NAME` with the name of the variable or the study if the file has several studies.

    Raises:
        StudyFileError: the file does not exist, has a syntax or import error (the message has its line), or has
            no study or several.
    """
    return study_in(*split_target(target))


def study_in(path: Path, name: str | None) -> StudySpec:
    """Import a Python file and return the study in it; the arguments are those that `split_target` returns.

    Raises:
        StudyFileError: as for `load_study`.
    """
    module = import_file(path)
    found = {
        key: value for key, value in vars(module).items() if isinstance(value, StudySpec) and not key.startswith("_")
    }
    unique = {id(study): key for key, study in reversed(found.items())}
    if name is not None:
        if name in found:
            return found[name]
        for study in found.values():
            if name == study.name:
                return study
        raise StudyFileError(f"no study {name!r} in {path}: the file has {_names(found)}")
    if not unique:
        raise StudyFileError(f"no study in {path}: assign `Study(...)` to a name in the file")
    if len(unique) > 1:
        raise StudyFileError(
            f"{path} has several studies: choose one with {path}:NAME, where NAME is one of {_names(found)}"
        )
    return next(iter(found.values()))


def _names(found: Mapping[str, StudySpec]) -> str:
    return ", ".join(found) or "none"
