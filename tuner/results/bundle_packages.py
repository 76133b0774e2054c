"""Finds what a study's file imports: modules of its own folder, and the packages that provide the others."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuner.errors import PACKAGE

PACKAGE_NAME = Path(PACKAGE).name
_NOT_PACKAGES = ("python", "device", "xla_flags")


def imported_names(source: str | bytes) -> list[str]:
    """Return what a program imports, also inside functions; `from optax import adam` imports `optax.adam`."""
    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module is not None:
            found |= dict.fromkeys(f"{node.module}.{alias.name}" for alias in node.names)
    return list(found)


def _names_in(file: Path) -> list[str]:
    try:
        return imported_names(file.read_bytes())
    except (SyntaxError, ValueError):  # a file that nothing imports
        return []


def _top(name: str) -> str:
    return name.partition(".")[0]


def local_files(file: Path) -> list[Path]:
    """Return the files of the modules that a program imports from its own folder, and those that these import.

    Of a package, all its Python files are returned.
    """
    folder, found, waiting = file.parent, dict[Path, None](), [file]
    while waiting:
        for name in _names_in(waiting.pop()):
            new = [path for path in _files_of(folder, _top(name)) if path not in found and path != file]
            found |= dict.fromkeys(new)
            waiting += new
    return sorted(found)


def _files_of(folder: Path, name: str) -> list[Path]:
    if name == PACKAGE_NAME:
        return []
    if (folder / name / "__init__.py").is_file():
        return sorted((folder / name).rglob("*.py"))
    return [path for path in [folder / f"{name}.py"] if path.is_file()]


def requirements(versions: Mapping[str, str], files: Sequence[Path]) -> str:
    """Return the lines of a requirements file, with a comment for each module whose package is not known.

    Packages that the trial has recorded have the recorded versions, all others those installed here. A local label of a
    version, such as `+cpu`, is not included, because no package index has it.

    Args:
        versions: The recorded versions: of packages by name, and of `python` and the device.
        files: The study's file, then the modules of its folder.
    """
    pinned = {name: version for name, version in versions.items() if name not in _NOT_PACKAGES}
    installed = importlib.metadata.packages_distributions()
    own = {PACKAGE_NAME, *(path.relative_to(files[0].parent).parts[0].removesuffix(".py") for path in files)}
    unknown: dict[str, None] = {}
    for name in dict.fromkeys(name for path in files for name in _names_in(path)):
        if _top(name) in own or _top(name) in sys.stdlib_module_names:
            continue
        providers = _providers(name, installed)
        unknown |= {} if providers else {_top(name): None}
        known = set(map(_normal, pinned))
        pinned |= {one: importlib.metadata.version(one) for one in providers if _normal(one) not in known}
    lines = [f"{name}=={version.partition('+')[0]}" for name, version in pinned.items()]
    lines += [f"# {name}: imported by the study, but not installed where the bundle was written" for name in unknown]
    return "".join(f"{line}\n" for line in lines)


def _providers(name: str, installed: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the distributions that provide a module; of a namespace such as `google`, those with this part of it."""
    found = list(dict.fromkeys(installed.get(_top(name), ())))
    while len(found) > 1 and name:
        path = name.replace(".", "/")
        having = [one for one in found if _has_file(one, (f"{path}/", f"{path}."))]
        if having:
            return having
        name = name.rpartition(".")[0]
    return found


def _has_file(distribution: str, starts: tuple[str, ...]) -> bool:
    return any(str(file).startswith(starts) for file in importlib.metadata.files(distribution) or ())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
