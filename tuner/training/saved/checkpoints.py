"""Checkpoints of a training: the latest few to resume from, the best one for inference."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from tuner.errors import CheckpointError, is_number
from tuner.output.jsonfile import to_json
from tuner.output.log import tell
from tuner.study.launch_record import with_rules
from tuner.training.mesh import local
from tuner.training.pytree import PyTree
from tuner.training.saved import files
from tuner.training.saved.plain import from_plain, to_plain

__all__ = ["Checkpoints", "from_plain", "is_new_model_better", "read", "to_plain"]


def is_new_model_better(new: float | None, best: float | None, direction: str) -> bool:
    """Return whether a new value is better than the best so far; an equal value is not.

    Args:
        new: The new value. A missing one (None) or NaN is never better.
        best: The best value so far. Any finite value is better than None or NaN.
        direction: "maximize" or "minimize".

    Returns:
        True if the new model should replace the best one.

    Raises:
        ValueError: The direction is invalid.
    """
    if direction not in ("maximize", "minimize"):
        raise ValueError(f"direction must be 'maximize' or 'minimize': got {direction!r}")
    sign = 1.0 if direction == "maximize" else -1.0
    if new is None:
        return False
    # A new value that is NaN is never larger.
    return sign * new > (-math.inf if best is None or math.isnan(best) else sign * best)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint for inference, in a process without the training.

    Args:
        path: A checkpoint (`.../latest/3`) or a folder of checkpoints; from a folder the best is read, or the newest
            good one if there is no best.

    Returns:
        The arrays as nested dicts of NumPy arrays, and the record saved with them.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or not one of tuner's.
    """
    folder = Path(path).absolute()
    if files.is_checkpoint(folder):
        content = files.load(folder)
        return content.plain, content.record
    for series in (folder / "best", folder / "latest", folder):
        refusals: list[CheckpointError] = []
        content = files.newest_good(series, files.load, lambda _, error, said=refusals: said.append(error))
        if content is not None:
            return content.plain, content.record
        if refusals:
            raise refusals[0]
    raise CheckpointError(f"no checkpoint in {folder}: pass a checkpoint or a folder of checkpoints")


class Checkpoints:
    """The checkpoints of a trial or a run in a folder: the latest few to resume from, the best one for inference.

    Saving takes only the time to copy the arrays; a thread writes them. If a checkpoint cannot be written, a warning is
    printed on stderr (once if the same error repeats), and the training continues. Several processes may use a folder:
    each checkpoint is written completely by one of them.

    Args:
        folder: The folder; created by the first save.
        every_s: Seconds between two checkpoints; infinity for never.
        keep: The number of latest checkpoints to keep; > 0.
        writes_best: Whether the training writes the best checkpoint at its end; otherwise the caller does.
        clock: Returns the time in seconds.
        restart: Called with the reason if the newest undamaged checkpoint is from another training: the latest
            checkpoints are then removed, and the training starts again. If None, `restore` raises an error.
        keeps_last: Whether the training offers its last state, for `write_last`.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_s: float = 60.0,
        keep: int = 2,
        writes_best: bool = True,
        clock: Callable[[], float] = time.monotonic,
        restart: Callable[[str], None] | None = None,
        keeps_last: bool = False,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1: got {keep}")
        if not is_number(every_s) or not every_s >= 0:
            raise ValueError(f"every_s must be a number of seconds, at least 0: got {every_s!r}")
        # Orbax does not accept relative paths, and the process may change its folder.
        self.folder = Path(folder).absolute()
        self._latest, self._best = self.folder / "latest", self.folder / "best"
        self._every_s, self._keep, self.writes_best, self._clock = every_s, keep, writes_best, clock
        self._restart, self.keeps_last = restart, keeps_last
        self._began_s = clock()
        self._offered: tuple[int, Any, Mapping[str, Any]] | None = None
        self._last: files.Content | None = None
        self._writer: threading.Thread | None = None
        self._told: str | None = None
        self.restored: dict[str, Any] | None = None
        """The record of the checkpoint from which the training was resumed, or None."""

    # To resume from.

    def is_due(self) -> bool:
        """Return whether `every_s` have passed since the last save began, or since the start."""
        return self._clock() - self._began_s >= self._every_s

    def save(self, step: int, tree: PyTree, record: Mapping[str, object]) -> None:
        """Save a checkpoint to resume from, in the background.

        Args:
            step: Optimizer updates so far.
            tree: A pytree of arrays; copied before this returns.
            record: Information to save with the arrays: a JSON mapping, which may contain NaN and infinities.

        Raises:
            CheckpointError: The tree has a leaf that is not an array.
            TypeError: The record has a value that JSON does not support.

        Concurrency: safe with other processes; blocks while an earlier save is being written.
        """
        self._began_s = self._clock()
        self.wait()
        content = _copied(step, tree, record)
        self._writer = threading.Thread(target=self._write_latest, args=(content,))
        self._writer.start()

    def _write_latest(self, content: files.Content) -> None:
        """Write a checkpoint to resume from; print a warning if that fails, but not for the same error again."""
        trouble = _write(self._latest, content, self._keep)
        # Without parts that differ each time: names of scratch folders, free bytes.
        gist = None if trouble is None else re.sub(r"\.tmp-\w+|\d+", "", trouble)
        if trouble is not None and gist != self._told:
            tell(f"{trouble}; training continues", "checkpoint", "warning")
        self._told = gist

    def has_latest(self) -> bool:
        """Return whether there may be a checkpoint to resume from."""
        return bool(files.newest_first(self._latest))

    def latest_record(self) -> dict[str, Any] | None:
        """Return the newest readable record of a checkpoint to resume from; None if there is none."""
        return files.newest_good(self._latest, files.read_record, lambda path, error: None)

    def restore(
        self, like: PyTree, *, shardings: PyTree = None, identity: Mapping[str, object] | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Return the newest good checkpoint; damaged ones are skipped with a warning on stderr.

        Args:
            like: As in `from_plain`.
            shardings: As in `from_plain`, for any devices that saved the checkpoint.
            identity: Values that the record must have for a checkpoint of this training. The last state of a training
                may be continued by one with more epochs.

        Returns:
            The step, the tree and the record; None if there is no good checkpoint.

        Raises:
            CheckpointError: The newest undamaged checkpoint is from another training: its record or its arrays differ.
                (Skipping it would train from the start and later remove it.) Not raised with `restart`.
        """

        def use(path: Path) -> tuple[int, Any, dict[str, Any]] | CheckpointError:
            content = files.load(path)
            for name, mine in to_json(identity or {}).items():
                theirs = with_rules(to_json(content.record)).get(name)
                if theirs != mine and not (name == "epochs" and _may_extend(content.record, mine)):
                    return CheckpointError(f"{name}={theirs!r}, this training has {name}={mine!r}")
            try:
                tree = from_plain(content.plain, like, shardings)
            except CheckpointError as error:
                return CheckpointError(f"another state, {str(error).partition(': ')[2]}")
            return content.step, tree, content.record

        def refuse(path: Path, error: CheckpointError) -> None:
            is_last = path == files.newest_first(self._latest)[-1]
            next_step = "there is no older one" if is_last else "trying the one before it"
            tell(f"cannot use the checkpoint {path}: {error}; {next_step}", "checkpoint", "warning")

        self.wait()
        found = files.newest_good(self._latest, use, refuse)
        if isinstance(found, CheckpointError) and self._restart is not None:
            self._restart(f"its checkpoint has {found}")
            self.delete_latest()
            found = None
        if isinstance(found, CheckpointError):
            raise CheckpointError(
                f"the checkpoints in {self.folder} are from another training: they have {found}; use another folder"
            )
        self.restored = None if found is None else found[2]
        return found

    def delete_latest(self) -> None:
        """Remove the checkpoints to resume from when the training is over, and the folder if it is empty.

        Concurrency: if another process is writing a checkpoint, it fails there; later ones are kept.
        """
        self.wait()
        files.clear_scratch(self.folder, 0.0)
        shutil.rmtree(self._latest, ignore_errors=True)
        with contextlib.suppress(OSError):  # it contains the best
            self.folder.rmdir()

    # For inference.

    def offer_best(self, step: int, tree: PyTree, record: Mapping[str, object]) -> None:
        """Keep the best state so far in memory, for `write_best`.

        Args:
            step: Optimizer updates so far.
            tree: A pytree of arrays, on the host or on devices, which must not be changed or donated.
            record: As in `save`.
        """
        self._offered = (step, tree, record)

    def write_best(self) -> Path | None:
        """Write the last offered state as the best checkpoint; the old one is kept until the new one is complete.

        Each failure prints a warning, because this is called once, at the end of a training.

        Returns:
            Its folder, for `read`; None if nothing was offered or writing failed.

        Raises:
            CheckpointError: As in `save`.
            TypeError: As in `save`.
        """
        if self._offered is None:
            return None
        trouble = _write(self._best, _copied(*self._offered), 1)
        if trouble is not None:
            tell(trouble, "checkpoint", "warning")
            return None
        return self._best

    # To continue with more epochs.

    def offer_last(self, step: int, tree: PyTree, record: Mapping[str, object]) -> None:
        """Keep the last state of the training in memory, for `write_last`; the arguments are those of `save`."""
        self._last = _copied(step, tree, record)

    def write_last(self, folder: Path) -> bool:
        """Write the last state below a folder, as a checkpoint to resume from; return whether it is there.

        A failure prints a warning.
        """
        if self._last is None:
            return False
        trouble = _write(folder.absolute() / "latest", self._last, 1)
        if trouble is not None:
            tell(trouble, "checkpoint", "warning")
        return trouble is None

    # All.

    def wait(self) -> None:
        """Wait until all checkpoints are written or have failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    close = wait

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _may_extend(record: Mapping[str, Any], epochs: int) -> bool:
    """Return whether a training with so many epochs may continue a checkpoint that has fewer."""
    return record.get("kind") == "last" and record["epochs"] < epochs


def _write(series: Path, content: files.Content, keep: int) -> str | None:
    """Write a checkpoint; return the reason if that fails."""
    try:
        files.add(series, content, keep)
    # TensorStore does not raise an OSError for a full disk.
    except Exception as error:
        return f"cannot write a checkpoint to {series}: {files.one_line(error)}"
    return None


def _copied(step: int, tree: PyTree, record: Mapping[str, object]) -> files.Content:
    """Return a copy of the tree, independent of anything that may change."""
    # A copy even if NumPy could use JAX's memory directly: the next step may reuse that memory.
    plain = jax.tree.map(np.array, jax.device_get(to_plain(local(tree))))
    recorded = to_json(record)
    json.dumps(recorded, allow_nan=False)
    return files.Content(int(step), plain, recorded)
