"""A study's Python file: importing it, calling its functions, and the state of its Git repository."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypedDict, TypeVar

from tuner.errors import PACKAGE, StudyError, StudyFileError, TunerError
from tuner.study.modules import module_name

_TYPED = ("<stdin>", "<python-input-", "<ipython-input-")
"""What code from a Python shell has in place of a file."""
_Made = TypeVar("_Made")


def import_file(path: Path) -> ModuleType:
    """Run a file as a module of its own, its folder importable as for `python FILE`.

    Processes that its code starts can import the module by its name.

    Raises:
        StudyFileError: the file is no Python, or an error in it; the message has file and line.
    """
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StudyFileError(f"a study file must be a Python file, FILE.py: got {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.absolute().parent))
    try:
        spec.loader.exec_module(module)
    except TunerError as error:
        raise type(error)(f"{_where(path, error)}{error}") from error
    except (Exception, SystemExit) as error:
        raise StudyFileError(
            f"the study file cannot be imported: {_where(path, error)}{type(error).__name__}: {error}"
        ) from error
    return module


def _where(path: Path, error: BaseException) -> str:
    """Return `file:line: ` of the last line of the file itself that led to an error."""
    own = os.path.realpath(path)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.realpath(frame.filename) == own]
    return f"{path}:{frames[-1].lineno}: " if frames else f"{path}: "


def call_study_code(failure: str, function: Callable[..., _Made], *arguments: object) -> _Made:
    """Call a function from a study's file.

    Args:
        failure: What failed, for a person; the message of an error begins with it.
        function: The function.
        arguments: Its arguments.

    Raises:
        StudyError: the function raised an error; the message has the file, the line, and the error's first line.
        TunerError: the function raised this.
    """
    try:
        return function(*arguments)
    except TunerError:
        raise
    except Exception as error:
        last = (frames_of_author(error) or traceback.extract_tb(error.__traceback__))[-1]
        reason = str(error).strip().partition("\n")[0]
        raise StudyError(f"{failure}: {last.filename}:{last.lineno}: {type(error).__name__}: {reason}") from error


def frames_of_author(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an error that are in the author's own files, outermost first.

    Those of this package, of installed packages, of the standard library and of code that these generate are left out.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return [one for one in frames if _is_of_author(one.filename)]


def _is_of_author(filename: str) -> bool:
    if filename.startswith("<"):  # generated code, but for what was typed into a Python shell
        return filename.startswith(_TYPED)
    return not filename.startswith((PACKAGE, sysconfig.get_path("stdlib"))) and "site-packages" not in filename


def code_digest(path: Path) -> str | None:
    """Return what tells a file's code from other code, whatever its comments and layout; None if it is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


class GitState(TypedDict):
    """The commit of a repository, and whether anything that it tracks differs."""

    commit: str
    is_changed: bool


def git_state(path: Path) -> GitState | None:
    """Return the commit of the repository that a file lies in, and whether anything in it differs; None without."""
    command = ["git", "-C", str(path.absolute().parent)]
    try:
        commit, status = (
            subprocess.run([*command, *words], capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "is_changed": bool(status.strip())}
