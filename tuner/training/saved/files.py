"""Reads and writes a checkpoint on disk, and folders of numbered checkpoints.

A checkpoint is a folder: `arrays/`, written by Orbax as nested dicts of arrays, and `record.json`, which holds the
caller's record and a digest of every file. It is written completely and then renamed into place, under a
new number: so it is either complete or absent, and never replaces another. It contains no classes or pickles.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import threading
import traceback
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from tuner.errors import CheckpointError
from tuner.output.jsonfile import from_json, sync
from tuner.training.saved.plain import flatten, insert

FORMAT = 1
_RECORD = "record.json"
_ARRAYS = "arrays"
_SCRATCH = ".tmp-"
_ABANDONED_S = 3600.0
"""Seconds after which an unfinished checkpoint is assumed to belong to a dead process."""
_SLACK_BYTES = 2**18  # the files other than the arrays
_STALLED_S = 300.0
"""Seconds without a new byte after which a write is given up: Orbax may wait forever for an answer of TensorStore."""
_LEAST_BYTES_PER_S = 10e6  # an array may be compressed as a whole before its first byte is written
_LOOK_S = 5.0

_stalled: list[threading.Thread] = []

T = TypeVar("T")


@dataclass(frozen=True)
class Content:
    """The content of a checkpoint.

    Attributes:
        step: Optimizer updates so far.
        plain: Nested dicts of NumPy arrays.
        record: The record saved with the arrays; while writing, in the form of `to_json`.
    """

    step: int
    plain: dict[str, Any]
    record: Any


# A folder of numbered checkpoints.


def newest_first(series: Path) -> list[Path]:
    """Return the checkpoints of a series, newest first."""
    try:
        names = os.listdir(series)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [series / name for name in sorted(filter(str.isdecimal, names), key=int, reverse=True)]


def newest_good(series: Path, use: Callable[[Path], T], refuse: Callable[[Path, CheckpointError], None]) -> T | None:
    """Return the result of `use` for the newest checkpoint that it accepts; None if there is none.

    Args:
        series: The folder. Other processes may add and remove checkpoints at the same time.
        use: Called with a checkpoint; raises CheckpointError to refuse it.
        refuse: Called with each refused checkpoint and the error.
    """
    refused: set[Path] = set()
    while candidates := [path for path in newest_first(series) if path not in refused]:
        try:
            return use(candidates[0])
        except CheckpointError as error:
            refused.add(candidates[0])
            if candidates[0].exists():
                refuse(candidates[0], error)
    return None


def add(series: Path, content: Content, keep: int) -> None:
    """Write a checkpoint as the newest of a series, and remove all but the newest `keep`."""
    scratch = series.parent / f"{_SCRATCH}{uuid.uuid4().hex}"
    try:
        scratch.mkdir(parents=True)
        clear_scratch(series.parent, _ABANDONED_S)
        _write(scratch, content)
        series.mkdir(exist_ok=True)
        newest = max((int(path.name) for path in newest_first(series)), default=0)
        for number in itertools.count(newest + 1):
            try:
                scratch.rename(series / str(number))
                break
            except OSError as error:  # another process has used the number
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
        sync(series)
        for path in newest_first(series)[keep:]:
            with contextlib.suppress(FileNotFoundError):
                path.rename(scratch)  # moved away atomically
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def clear_scratch(folder: Path, older_than_s: float) -> None:
    """Remove unfinished checkpoints of killed processes."""
    try:
        found = list(folder.glob(f"{_SCRATCH}*"))
    except FileNotFoundError:  # another process may remove it at any moment
        return
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            if older_than_s <= 0 or _disk_time_s(folder) - path.stat().st_mtime >= older_than_s:
                shutil.rmtree(path, ignore_errors=True)


def _disk_time_s(folder: Path) -> float:
    """Return the time of the disk's clock, which may differ on a file server; -inf on a full disk."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return -math.inf


# One checkpoint.


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a checkpoint, possibly a damaged one."""
    return (folder / _RECORD).exists() or (folder / _ARRAYS).exists()


def load(folder: Path) -> Content:
    """Read a checkpoint.

    Raises:
        CheckpointError: It is damaged, or not one of tuner's.
    """
    head = _read_head(folder)
    for name, digest in head["files"].items():
        try:
            found = _digest_file(folder / name)
        except OSError as error:
            raise CheckpointError(f"the checkpoint is incomplete: {folder} has no {name}") from error
        if found != digest:
            raise CheckpointError(f"the checkpoint is damaged: {name} in {folder} has changed since it was written")
    try:
        with _orbax_handler() as handler:
            plain = _from_disk(handler.restore(folder / _ARRAYS)["tree"])
    # Orbax and TensorStore raise various errors for damaged files.
    except Exception as error:
        raise CheckpointError(f"Orbax cannot read the checkpoint {folder}: {one_line(error)}") from error
    for path, shape, dtype in head["without_elements"]:
        insert(plain, tuple(path), np.zeros(shape, jax.numpy.dtype(dtype)))
    return Content(head["step"], plain, from_json(head["record"]))


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a checkpoint without reading its arrays.

    Raises:
        CheckpointError: The record is damaged, or not one of tuner's.
    """
    return from_json(_read_head(folder)["record"])


def _read_head(folder: Path) -> dict[str, Any]:
    """Return the content of `record.json` after checking its digest."""
    try:
        head = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {_RECORD} of the checkpoint {folder}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(
            f"the checkpoint is damaged: {folder / _RECORD} is not valid JSON ({one_line(error)})"
        ) from error
    if not isinstance(head, dict) or "format" not in head:
        raise CheckpointError(f"{folder} is not a checkpoint of tuner")
    if head["format"] != FORMAT:
        raise CheckpointError(
            f"this version of tuner reads checkpoints of format {FORMAT}: {folder} has format {head['format']!r}; "
            "use the version of tuner that wrote it"
        )
    if head.pop("digest", None) != _digest_head(head):
        raise CheckpointError(f"the checkpoint is damaged: {_RECORD} in {folder} has changed since it was written")
    return head


def _write(folder: Path, content: Content) -> None:
    """Write a complete checkpoint into an empty folder and flush it to disk."""
    arrays_bytes = sum(array.nbytes for array in jax.tree.leaves(content.plain))
    _check_space(folder, arrays_bytes)
    item, without_elements = _for_disk(content.plain)
    arrays = folder / _ARRAYS
    arrays.mkdir()
    # Orbax refuses a tree without arrays; the step makes sure that there is one.
    tree = {"step": np.asarray(content.step), "tree": item}
    _unless_it_stalls(arrays, lambda: _write_arrays(arrays, tree), max(_STALLED_S, arrays_bytes / _LEAST_BYTES_PER_S))
    head = {
        "format": FORMAT,
        "step": content.step,
        "files": {
            path.relative_to(folder).as_posix(): _digest_file(path)
            for path in sorted(arrays.rglob("*"))
            if path.is_file()
        },
        "without_elements": without_elements,
        "record": content.record,
    }
    text = json.dumps({**head, "digest": _digest_head(head)}, allow_nan=False)
    (folder / _RECORD).write_text(text, encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _write_arrays(folder: Path, tree: dict[str, Any]) -> None:
    with _orbax_handler() as handler:
        from orbax.checkpoint.args import PyTreeSave

        handler.save(folder, args=PyTreeSave(tree))
        handler.finalize(folder)


def _unless_it_stalls(folder: Path, write: Callable[[], None], limit_s: float) -> None:
    """Write files below a folder in a thread; give up if no byte is added for `limit_s` seconds.

    Raises:
        TimeoutError: No byte was added for so long. The thread continues to wait; see `has_stalled`.
        Exception: What `write` raises.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            write()
        except BaseException as error:
            errors.append(error)

    # The threads that Orbax starts in a daemon thread are daemons as well.
    thread = threading.Thread(target=run, name="checkpoint", daemon=True)
    thread.start()
    written, waited_s = -1, 0.0  # not the clock's: a process may be stopped for hours, and then goes on
    thread.join(_LOOK_S)
    while thread.is_alive():
        before, written = written, _size(folder)
        waited_s = waited_s + _LOOK_S if written == before else 0.0
        if waited_s >= limit_s:
            _stalled.append(thread)
            raise TimeoutError(f"nothing was written for {waited_s:.0f} s")
        thread.join(_LOOK_S)
    if errors:
        raise errors[0]


def _size(folder: Path) -> int:
    """Return the bytes of the files below a folder; other threads may remove any of them."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(os.path.join(parent, name)).st_size
    return size


def has_stalled() -> bool:
    """Return whether a write that was given up still waits: Python would wait for it at the end of the process."""
    return any(thread.is_alive() for thread in _stalled)


def _check_space(folder: Path, arrays_bytes: int) -> None:
    """Check the free space before Orbax does: its failed writes would print tracebacks to stderr."""
    needed_bytes, free_bytes = arrays_bytes + _SLACK_BYTES, shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise OSError(errno.ENOSPC, f"No space left on device: {needed_bytes} bytes needed, {free_bytes} free")


def _for_disk(plain: Mapping[str, object]) -> tuple[dict[str, Any], list[Any]]:
    """Return the dict for Orbax, and the arrays without elements, which it does not accept."""
    item: dict[str, Any] = {}
    without_elements = []
    for path, array in flatten(plain):
        if isinstance(array, np.ndarray) and array.size == 0:
            without_elements.append([path, array.shape, array.dtype.name])
        else:
            insert(item, tuple(_escape(name) for name in path), array)
    return item, without_elements


def _escape(name: str) -> str:
    """Escape the separator with which Orbax joins names, so that {"a": {"b": x}} and {"a.b": y} differ."""
    return name.replace("%", "%25").replace(".", "%2E").replace("/", "%2F")


def _from_disk(item: Mapping[str, object]) -> dict[str, Any]:
    return {
        urllib.parse.unquote(name): _from_disk(part) if isinstance(part, Mapping) else np.asarray(part)
        for name, part in item.items()
    }


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_head(head: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _orbax_handler() -> Iterator[Any]:
    """Yield Orbax's handler of arrays. Orbax is imported late, because that takes a while, and its log is disabled."""
    import orbax.checkpoint

    logging.getLogger("absl").addFilter(_is_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_is_no_late_write)
    if not isinstance(sys.unraisablehook, _LateWrites):
        sys.unraisablehook = _LateWrites(sys.unraisablehook)
    # Of processes that train together, only one reads and writes; Orbax must not wait for the others.
    me = jax.process_index()
    alone = orbax.checkpoint.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    with contextlib.closing(orbax.checkpoint.PyTreeCheckpointHandler(multiprocessing_options=alone)) as handler:
        yield handler


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname


def _is_no_late_write(record: logging.LogRecord) -> bool:
    """Return False for asyncio's messages about other writes of Orbax that fail after Orbax has raised the error."""
    said = record.getMessage()
    error = record.exc_info[1] if record.exc_info else None  # a task's own description is shortened
    return not ("exception was never retrieved" in said and "/ocdbt" in f"{said} {error}")


@dataclass(frozen=True)
class _LateWrites:
    """A handler of uncaught errors that ignores those of TensorStore's threads after a failed save.

    Orbax has raised the first failure and closed its event loop; the other writes end later and find it closed.
    """

    then: Callable[[Any], Any]

    def __call__(self, unraisable: sys.UnraisableHookArgs) -> None:
        frames = [frame.f_code for frame, _ in traceback.walk_tb(unraisable.exc_traceback)]
        by_no_python = frames[:1] == [asyncio.BaseEventLoop.call_soon_threadsafe.__code__]
        if not (by_no_python and str(unraisable.exc_value) == "Event loop is closed"):
            self.then(unraisable)


def one_line(error: BaseException) -> str:
    """Return an error's type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}".rstrip(": ")
