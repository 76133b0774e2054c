"""The states that a training function saves: numbered folders, each written completely and then renamed into place.

Imports JAX only for a state that is saved or restored while JAX is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from tuner.errors import CheckpointError
from tuner.output.jsonfile import from_json, sync, to_json
from tuner.output.log import tell
from tuner.storage.artifacts import RECORD
from tuner.trial import Report
from tuner.worker.trainables.trainable import NoCheckpoints

_SCRATCH = ".tmp-"
_KEPT = 2
_ARRAYS, _FILES, _CHECKPOINT = "arrays.npz", "files", "checkpoint"
_DIFFERS = "the saved state does not fit `like`:"


@dataclass(frozen=True)
class Saved:
    """A saved state: its folder, its epoch, and the reports up to then."""

    folder: Path
    epoch: int
    reports: tuple[Report, ...]


@dataclass
class _Content:
    """What a new state consists of: arrays, or files to copy, and the record."""

    epoch: int
    record: dict[str, Any]
    arrays: Mapping[str, Any] | None = None
    path: Path | None = None
    jax_tree: Any = None


class TrialSaves:
    """The saved states of a trial in its folder: the newest two to resume from, and the best one at the end.

    Args:
        folder: The trial's folder.
        about: Information about the trial that is saved with each state.
        direction: `maximize` or `minimize` to keep the state of the best epoch as well; None keeps the newest ones.
        objective: The metric that decides which epoch is the best.
    """

    def __init__(
        self, folder: Path, about: Mapping[str, Any], *, direction: str | None = None, objective: str = ""
    ) -> None:
        self.folder = folder.absolute()
        self._latest, self._best = self.folder / "latest", self.folder / "best"
        self._about, self._direction, self._objective = dict(about), direction, objective
        self._writer: threading.Thread | None = None
        self._reports: dict[int, Report] = {}
        self.newest = self._find_newest()
        self.is_resumed = False
        """Whether the training has taken the newest state."""

    @property
    def epoch(self) -> int:
        """The epoch of the newest state; 0 if there is none."""
        return 0 if self.newest is None else self.newest.epoch

    def add_reports(self, several: Sequence[Report]) -> None:
        """Add reports, which are saved with the next state."""
        self._reports |= {report.epoch: report for report in several}

    # --- Saving

    def save(self, state: object, epoch: int) -> None:
        """See `tuner.Trial.save`. A failure to write prints a warning, and the training continues."""
        self.close()
        reports = [dataclasses.asdict(report) for number, report in self._reports.items() if number <= epoch]
        content = _content(state, epoch, {**self._about, "epoch": epoch, "reports": reports})
        if content.path is not None:  # the training may change the files as soon as this returns
            self._write(content)
            return
        self._writer = threading.Thread(target=self._write, args=(content,), name="save")
        self._writer.start()

    def _write(self, content: _Content) -> None:
        scratch = self.folder / f"{_SCRATCH}{uuid.uuid4().hex}"
        try:
            scratch.mkdir(parents=True)
            _write_content(scratch, content)
            self._latest.mkdir(exist_ok=True)
            newest = max((int(path.name) for path in self._numbered()), default=0)
            target = self._latest / str(newest + 1)
            scratch.rename(target)
            sync(self._latest)
            self.newest = _read(target)
            self._remove_old()
        except Exception as error:  # TensorStore does not raise an OSError for a full disk
            first = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            tell(
                f"cannot save the trial's state in {self.folder}: {first}; training continues", "checkpoint", "warning"
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _remove_old(self) -> None:
        best = self._best_saved()
        for path in self._numbered()[_KEPT:]:
            if best is None or path != best.folder:
                shutil.rmtree(path, ignore_errors=True)

    def _numbered(self) -> list[Path]:
        """Return the folders of states, newest first."""
        try:
            names = [path.name for path in self._latest.iterdir() if path.name.isdecimal()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [self._latest / name for name in sorted(names, key=int, reverse=True)]

    def _find_newest(self) -> Saved | None:
        for path in self._numbered():
            with contextlib.suppress(CheckpointError):
                return _read(path)
            tell(f"cannot read the saved state {path}; trying the one before it", "checkpoint", "warning")
        return None

    # --- Restoring

    def restore(self, like: object) -> Any:
        """See `tuner.Trial.restore`."""
        self.close()
        if self.newest is None:
            return None
        self.is_resumed = True
        return _state(self.newest.folder, like)

    # --- At the end

    def _best_saved(self) -> Saved | None:
        """Return the state to keep for a trial among the best: that of its best epoch, else the newest."""
        if self._direction is None:
            return self.newest
        sign = 1.0 if self._direction == "maximize" else -1.0
        found: list[tuple[float, int, Saved]] = []
        for path in self._numbered():
            with contextlib.suppress(CheckpointError):
                saved = _read(path)
                value = self._value(saved.epoch)
                if not math.isnan(value):
                    found.append((sign * value, saved.epoch, saved))
        return max(found, key=lambda one: one[:2])[2] if found else self.newest

    def _value(self, epoch: int) -> float:
        report = self._reports.get(epoch)
        return math.nan if report is None else report.metrics.get(self._objective, math.nan)

    def write_best(self) -> Path | None:
        """Keep the state of the best epoch as the trial's best; return its folder.

        If no state was saved, return the folder of the trial's own files, or None if it has none.
        """
        self.close()
        best = self._best_saved()
        if best is None:
            return NoCheckpoints(self.folder).write_best()
        try:
            shutil.rmtree(self._best, ignore_errors=True)
            best.folder.rename(self._best)
        except OSError as error:
            tell(f"cannot keep the state in {best.folder}: {error.strerror or error}", "checkpoint", "warning")
            return None
        return self._best

    def write_last(self, folder: Path) -> bool:
        """Copy the newest state and that of the best epoch; see `Saved.write_last`."""
        self.close()
        best = self._best_saved()
        if self.newest is None or best is None:
            return False
        try:
            for path in {self.newest.folder, best.folder}:
                shutil.copytree(path, folder / self._latest.name / path.name, dirs_exist_ok=True)
        except OSError as error:
            tell(f"cannot keep the last state in {folder}: {error.strerror or error}", "checkpoint", "warning")
            return False
        return True

    def delete_latest(self) -> None:
        """Remove the states to resume from, and the folder if it is empty."""
        self.close()
        for path in self.folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self._latest, ignore_errors=True)
        with contextlib.suppress(OSError):  # it contains the best, or the trial's own files
            self.folder.rmdir()

    def close(self) -> None:
        """Wait until all states are written or have failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_state(folder: Path, like: object) -> Any:
    """See `tuner.load_state`."""
    folder = folder.absolute()  # Orbax does not accept relative paths
    if not (folder / RECORD).is_file():
        raise CheckpointError(f"no saved state in {folder}: pass the folder that `tuner show` prints as `checkpoint`")
    return _state(folder, like)


# --- One state


def _content(state: object, epoch: int, record: dict[str, Any]) -> _Content:
    """Return a copy of a state, independent of anything that may change."""
    if isinstance(state, str):
        raise CheckpointError(f"the state is the text {state!r}: pass a pathlib.Path to save a file or a folder")
    if isinstance(state, Path):
        if not state.exists():
            raise CheckpointError(f"cannot save the trial's state: no file or folder {str(state)!r}")
        return _Content(epoch, to_json({**record, "kind": "files", "name": state.name}), path=state)
    arrays: dict[str, Any] = {}
    try:
        tree = _encoded(state, arrays, "state")
    except _NeedsJax:
        from tuner.training.foreign import to_host

        return _Content(epoch, to_json({**record, "kind": "jax"}), jax_tree=to_host(state))
    return _Content(epoch, to_json({**record, "kind": "arrays", "tree": tree}), arrays=arrays)


class _NeedsJax(Exception):
    """A state has leaves that only JAX knows."""


def _encoded(value: Any, arrays: dict[str, Any], where: str) -> Any:
    """Return a tree as JSON; its arrays are copied to `arrays` and replaced by their numbers.

    Raises:
        _NeedsJax: it has a JAX array, or another node that may be one of JAX's.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if type(value) is dict:
        given = cast("Mapping[object, object]", value)
        if not all(isinstance(key, str) for key in given):
            raise CheckpointError(f"the keys of a saved state must be texts: got {list(given)!r} in {where}")
        return {"dict": {str(key): _encoded(part, arrays, f"{where}[{key!r}]") for key, part in given.items()}}
    if type(value) in (list, tuple):
        parts = cast("Sequence[object]", value)
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encoded(part, arrays, f"{where}[{at}]") for at, part in enumerate(parts)]}
    leaf: object = value
    leaf_type = type(leaf).__name__
    if issubclass(type(leaf), list | tuple | dict) and "jax" not in sys.modules:  # a namedtuple, for example
        raise CheckpointError(
            f"a saved state without JAX must consist of dicts, lists and tuples: {where} is {leaf_type}"
        )
    if "jax" in sys.modules and not isinstance(leaf, np.ndarray | np.generic):
        raise _NeedsJax
    array: Any = np.array(value)
    if array.dtype.kind == "V" and "jax" in sys.modules:  # bfloat16, for example: NumPy's files do not have it
        raise _NeedsJax
    if array.dtype.kind in "OUSMmV":
        raise CheckpointError(
            f"a saved state must consist of arrays, numbers and texts: {where} is {leaf_type}; write other "
            "objects to a file and save its path"
        )
    name = str(len(arrays))
    arrays[name] = array
    return {"array": name}


def _decoded(tree: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    ((kind, part),) = tree.items()
    match kind:
        case "dict":
            return {key: _decoded(one, arrays) for key, one in part.items()}
        case "list":
            return [_decoded(one, arrays) for one in part]
        case "tuple":
            return tuple(_decoded(one, arrays) for one in part)
        case "array":
            return arrays[part]
        case _:
            return part


def _write_content(folder: Path, content: _Content) -> None:
    if content.path is not None:
        target = folder / _FILES / content.path.name
        target.parent.mkdir()
        if content.path.is_dir():
            shutil.copytree(content.path, target)
        else:
            shutil.copy2(content.path, target)
    elif content.jax_tree is not None:
        from tuner.training.foreign import write_tree

        write_tree(folder / _CHECKPOINT, content.epoch, content.jax_tree)
    else:
        with (folder / _ARRAYS).open("wb") as file:
            np.savez(file, allow_pickle=False, **dict(content.arrays or {}))
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    head = {"state": 1, "step": content.epoch, "files": sizes, "record": content.record}
    (folder / RECORD).write_text(json.dumps(head, allow_nan=False), encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _read(folder: Path) -> Saved:
    """Read the record of a saved state.

    Raises:
        CheckpointError: it is damaged.
    """
    head = _head(folder)
    reports = tuple(Report(**one) for one in head["reports"])
    return Saved(folder, head["epoch"], reports)


def _head(folder: Path) -> dict[str, Any]:
    try:
        head = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in head["files"]}
        if sizes != head["files"]:
            raise CheckpointError(f"the saved state is damaged: {folder} has files of other sizes than when written")
        return from_json(head["record"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the saved state is damaged: {folder} ({type(error).__name__}: {error})") from None


def _state(folder: Path, like: object) -> Any:
    record = _head(folder)
    if record["kind"] == "files":
        name = str(record["name"])
        if not name or Path(name).name != name or name == "..":
            raise CheckpointError(f"the saved state is damaged: {folder} has a file outside of it, {name!r}")
        if like is not None and not isinstance(like, Path):
            raise CheckpointError(f"{_DIFFERS} it is the file or folder {name!r}, and {_described(like)} in `like`")
        return folder / _FILES / name
    if isinstance(like, Path):
        raise CheckpointError(f"{_DIFFERS} it has arrays, and `like` is a path; pass a state like the saved one")
    if record["kind"] == "jax":
        from tuner.training.foreign import read_tree

        return read_tree(folder / _CHECKPOINT, like)
    try:
        with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
            state = _decoded(record["tree"], dict(arrays))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the saved state is damaged: {folder} ({error})") from None
    return state if like is None else _as_like(state, like, "state")


def _as_like(saved: Any, like: Any, where: str) -> Any:
    """Return a saved state; arrays that are JAX arrays in `like` become JAX arrays.

    Raises:
        CheckpointError: its structure, or a shape or dtype, differs from `like`.
    """
    kinds: Any = (type(saved), type(like))
    if kinds == (dict, dict):
        for one, other, owner in ((saved, like, "`like`"), (like, saved, "the saved state")):
            missing = [key for key in one if key not in other]
            if missing:
                raise CheckpointError(f"{_DIFFERS} {owner} has no {where}[{missing[0]!r}]")
        return {key: _as_like(part, like[key], f"{where}[{key!r}]") for key, part in saved.items()}
    if kinds in ((list, list), (tuple, tuple)) and len(saved) == len(like):
        parts = [_as_like(part, like[at], f"{where}[{at}]") for at, part in enumerate(saved)]
        return parts if kinds[0] is list else tuple(parts)
    if not _is_alike(saved, like):
        raise CheckpointError(f"{_DIFFERS} {where} is {_described(saved)}, and {_described(like)} in `like`")
    if kinds[0] is np.ndarray and "jax" in sys.modules:
        from tuner.training.foreign import placed_like

        return placed_like(saved, like)
    return saved


def _is_alike(saved: Any, like: Any) -> bool:
    """Return whether a leaf fits another one: a text any text, a number any number, an array one of its kind."""
    kinds: set[Any] = {type(saved), type(like)}
    if kinds & {list, tuple, dict, str, type(None)}:
        return len(kinds) == 1 and not kinds & {list, tuple, dict}
    if np.shape(saved) != getattr(like, "shape", ()):
        return False
    if type(saved) in (bool, int, float) or type(like) in (bool, int, float):
        return (bool in kinds) == (kinds == {bool})
    return bool(saved.dtype == getattr(like, "dtype", None))


def _described(part: Any) -> str:
    """Return what a part of a state is: the type and shape of an array, or the type and length of anything else."""
    shape, dtype = getattr(part, "shape", None), getattr(part, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype}[{','.join(map(str, shape))}]"
    kind: str = type(part).__name__
    if kind in ("list", "tuple"):
        return f"a {kind} of {len(part)}"
    return "None" if part is None else f"of type {kind}"
