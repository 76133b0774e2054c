"""Loads a study from its file, given as `FILE` or `FILE:NAME`."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuner.errors import StudyError, StudyFileError, nearest
from tuner.study.objective import OptunaObjective, takes
from tuner.study.source import import_file
from tuner.study.space import is_space
from tuner.study.spec import Direction, StudySpec


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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a launch for what its file defines: a study, or a function, which needs a name and a direction.

    Attributes:
        name: The name of a function's study.
        objectives: The metrics of a function; `value` (for several `value_0`, `value_1`, ...) by default.
        directions: `maximize` or `minimize` for each objective of a function.
        trials: The budget.
        epochs: How long a function trains.
        fixed: Hyperparameters that are not searched: name -> text.
        more: Other attributes of `StudySpec`; None keeps a study's own.
    """

    name: str | None = None
    objectives: Sequence[str] = ()
    directions: Sequence[Direction] = ()
    trials: int | None = None
    epochs: int | None = None
    fixed: Mapping[str, str] = field(default_factory=dict[str, str])
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Found:
    """A study, and the name of the function in its file if the file has no `Study`."""

    study: StudySpec
    function: str | None = None


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
    return _find(path, vars(import_file(path)), name)


def load_target(target: str, settings: Settings) -> Found:
    """Import a Python file and return the study in it, or a study of the function that the target names.

    Args:
        target: `FILE` or `FILE:NAME`. A function is an Optuna objective if it takes one argument, and a training
            function if it takes two.
        settings: Settings that override those of a study, or complete a function.

    Raises:
        StudyFileError: as for `load_study`, or the file calls `optuna.Study.optimize` when it is imported.
        StudyError: a setting is wrong or missing, or a study got one that only functions need.
    """
    path, name = split_target(target)
    with _refuses_optimize(path):
        module = import_file(path)
    function = vars(module).get(name) if name is not None else None
    if callable(function) and not isinstance(function, StudySpec):
        return Found(study_of(function, settings), name)
    study = _find(path, vars(module), name)
    functions = (("name", settings.name), ("objective", settings.objectives), ("direction", settings.directions))
    for setting, given in functions:
        if given or given == "":
            raise StudyError(f"`{setting}` is for a function: study {study.name!r} sets it in its file")
    changes = {**settings.more, "trials": settings.trials}
    return Found(study.changed(fixed=settings.fixed, **changes))


def function_study(path: Path, function: str, settings: Settings) -> StudySpec:
    """Import a Python file and return the study of a function in it.

    Raises:
        StudyFileError: the file cannot be imported, or has no such function.
    """
    found = vars(import_file(path)).get(function)
    if not callable(found):
        raise StudyFileError(f"no function {function!r} in {path}")
    return study_of(found, settings)


def study_of(function: Callable[..., Any], settings: Settings) -> StudySpec:
    """Return the study of an Optuna objective or a training function.

    Raises:
        StudyError: a setting is wrong or missing.
    """
    name = getattr(function, "__name__", "the function")
    if settings.name is None:
        raise StudyError(f"{name} is a function, which needs a name for its study: pass `name`")
    if settings.trials is None:
        raise StudyError(f"{name} is a function, which needs a number of trials: pass `trials`")
    is_objective = takes(function, 1)
    if not (is_objective or takes(function, 2)):
        raise StudyError(
            f"{name} must be an Optuna objective, which takes a trial, or a training function, which takes hparams "
            f"and a trial: got {inspect.signature(function)}"
        )
    directions = list(settings.directions) or (["minimize"] if is_objective else [])
    if not directions:
        raise StudyError(f"{name} is a training function, which needs a direction: pass `direction`")
    several = [f"value_{at}" for at in range(len(directions))] if len(directions) > 1 else ["value"]
    objectives = list(settings.objectives) or several
    training: dict[str, Any] = (
        {"train": OptunaObjective(function)} if is_objective else {"train": function, "space": _space_of(function)}
    )
    study = StudySpec(
        name=settings.name,
        objective=objectives[0] if len(objectives) == 1 else objectives,
        **({"direction": directions[0]} if len(directions) == 1 else {"directions": directions}),  # pyright: ignore[reportArgumentType]
        trials=settings.trials,
        epochs=settings.epochs,
        **training,
    )
    return study.changed(fixed=settings.fixed, **settings.more)


def _space_of(function: Callable[..., Any]) -> Any:
    """Return the space that a training function's first argument is annotated with."""
    first = next(iter(inspect.signature(function).parameters))
    try:
        space = typing.get_type_hints(function).get(first)
    except NameError:
        space = None
    if not is_space(space):
        raise StudyError(
            f"the first argument of {function.__name__} needs the space as its type, as in `{first}: HParams`: got "
            f"{space!r}; or assign a Study to a name in the file"
        )
    return space


@contextlib.contextmanager
def _refuses_optimize(path: Path) -> Generator[None]:
    """Make `optuna.Study.optimize` raise an error in the body: a worker must not run a second search."""
    import optuna

    def optimize(*args: object, **options: object) -> None:
        raise StudyFileError(
            f"{path} calls study.optimize when it is imported: put the call below `if __name__ == '__main__':`"
        )

    before = optuna.Study.optimize
    optuna.Study.optimize = optimize
    try:
        yield
    finally:
        optuna.Study.optimize = before


def _find(path: Path, variables: Mapping[str, object], name: str | None) -> StudySpec:
    found = {key: value for key, value in variables.items() if isinstance(value, StudySpec) and not key.startswith("_")}
    unique = {id(study): key for key, study in reversed(found.items())}
    if name is not None:
        if name in found:
            return found[name]
        for study in found.values():
            if name == study.name:
                return study
        functions = [key for key, value in variables.items() if inspect.isfunction(value)]
        raise StudyFileError(
            f"no study or function {name!r} in {path}: its studies are {_names(found)}"
            f"{nearest(name, [*found, *functions])}"
        )
    if not unique:
        raise StudyFileError(
            f"no study in {path}: assign `Study(...)` to a name in the file, or pass {path}:FUNCTION with the name of "
            "a training function or an Optuna objective"
        )
    if len(unique) > 1:
        raise StudyFileError(
            f"{path} has several studies: choose one with {path}:NAME, where NAME is one of {_names(found)}"
        )
    return next(iter(found.values()))


def _names(found: Mapping[str, StudySpec]) -> str:
    return ", ".join(found) or "none"
