"""The sampler `hub`: a module of OptunaHub at a commit, or a folder in the same form.

A module is code from elsewhere that workers run. It is fetched once and stored with the study, so that all workers run
the same code, also on machines without a network.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import inspect
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tuner.errors import StudyError, how_to_install, nearest

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_MOST_BYTES = 500_000
_SKIPPED = ("__pycache__", "images", "tests")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_loaded: dict[tuple[str, str], ModuleType] = {}  # by name and digest: a class must not exist twice in a process
_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends, because modules import late


@dataclass(frozen=True)
class Source:
    """Where a module is: a package of OptunaHub at a commit, or a folder."""

    package: str | None
    ref: str | None
    path: str | None

    def __str__(self) -> str:
        return f"{self.package} at {self.ref}" if self.path is None else self.path


@dataclass(frozen=True)
class Module:
    """The files of a module.

    Attributes:
        name: The package, or the name of the folder.
        files: Their contents, by path in the folder.
        digest: The SHA-256 of both, in hexadecimal digits.
    """

    name: str
    files: Mapping[str, bytes]
    digest: str

    def record(self) -> dict[str, Any]:
        """Return the module as plain JSON."""
        files = {path: base64.b64encode(content).decode() for path, content in self.files.items()}
        return {"name": self.name, "digest": self.digest, "files": files}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Module:
        """Return a module from its record.

        Raises:
            StudyError: the files are not those of the digest.
        """
        files = {path: base64.b64decode(text) for path, text in record["files"].items()}
        if _digest(files) != record["digest"]:
            raise StudyError(f"the stored copy of the sampler module {record['name']!r} is damaged: start a new study")
        return cls(record["name"], files, record["digest"])


def split_source(options: dict[str, object]) -> Source:
    """Take the place of a module from the options of the sampler `hub`.

    Raises:
        StudyError: it is neither a package at a commit nor a folder.
    """
    package, ref, path = (options.pop(name, None) for name in ("package", "ref", "path"))
    if isinstance(path, str) and package is None and ref is None:
        return Source(None, None, path)
    if not (isinstance(package, str) and isinstance(ref, str) and path is None):
        raise StudyError(
            "the sampler 'hub' needs a package of OptunaHub at a commit, or a folder: {'name': 'hub', 'package': "
            f"'samplers/...', 'ref': '<commit>'}} or {{'name': 'hub', 'path': '...'}}: got package={package!r}, "
            f"ref={ref!r}, path={path!r}"
        )
    if not _COMMIT.fullmatch(ref):
        raise StudyError(
            f"the sampler 'hub' needs a commit of 40 hexadecimal digits, because other names can move: got ref={ref!r}"
        )
    return Source(package, ref, None)


def fetch(source: Source) -> Module:
    """Read the files of a module; a package comes from the network.

    Raises:
        StudyError: it cannot be fetched, has no `__init__.py`, or is too large.
    """
    folder = Path(source.path) if source.path is not None else _download(source)
    if not (folder / "__init__.py").is_file():
        raise StudyError(f"a sampler module must be a folder with an __init__.py: got {str(folder)!r}")
    files: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part in _SKIPPED or part.startswith(".") for part in parts):
            files["/".join(parts)] = path.read_bytes()
    size = sum(map(len, files.values()))
    if size > _MOST_BYTES:
        raise StudyError(f"a sampler module may have {_MOST_BYTES:,} bytes: {str(folder)!r} has {size:,}")
    return Module(source.package or folder.resolve().name, files, _digest(files))


def _download(source: Source) -> Path:
    try:
        import optunahub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise StudyError(
            f"the sampler 'hub' needs optunahub to fetch {source}, which is not installed: {how_to_install('hub')}"
        ) from None
    try:
        return Path(str(optunahub.load_module(source.package, ref=source.ref).__file__)).parent
    except Exception as error:  # of Git, of the network, or of the module, which is also imported
        raise StudyError(
            f"cannot fetch {source} from OptunaHub: {type(error).__name__}: {error}; launch on a machine with a "
            "network, or pass a folder: {'name': 'hub', 'path': '...'}"
        ) from None


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for path, content in sorted(files.items()):
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def load_class(module: Module, name: str | None) -> type[BaseSampler]:
    """Import a module and return its sampler.

    Args:
        module: The module.
        name: The name of the class; None if the module has only one.

    Raises:
        StudyError: the module cannot be imported, or has no such class.
    """
    from optuna.samplers import BaseSampler

    loaded = _import(module)
    public = getattr(loaded, "__all__", None) or [one for one in vars(loaded) if not one.startswith("_")]
    found = {
        one: value
        for one in public
        if inspect.isclass(value := getattr(loaded, one, None))
        and issubclass(value, BaseSampler)
        and not value.__module__.startswith("optuna.")
    }
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name not in found:
        known = f"it has {', '.join(found) or 'none'}"
        raise StudyError(
            f"the sampler module {module.name!r} needs a sampler with the name given as 'class': got {name!r}, {known}"
            f"{nearest(name or '', found)}"
        )
    return found[name]


def _import(module: Module) -> ModuleType:
    key = module.name, module.digest
    if key in _loaded:
        return _loaded[key]
    name = f"optunahub_registry.package.{module.name.replace('/', '.')}"
    for parent in ("optunahub_registry", "optunahub_registry.package"):
        sys.modules.setdefault(parent, ModuleType(parent))
    for other in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
        del sys.modules[other]  # of the same name, with another digest
    folder = tempfile.TemporaryDirectory(prefix="tuner-hub-")
    for path, content in module.files.items():
        place = Path(folder.name, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    spec = importlib.util.spec_from_file_location(
        name, Path(folder.name, "__init__.py"), submodule_search_locations=[folder.name]
    )
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[name]
        folder.cleanup()
        raise StudyError(
            f"the sampler module {module.name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    _loaded[key] = loaded
    _folders.append(folder)
    return loaded
