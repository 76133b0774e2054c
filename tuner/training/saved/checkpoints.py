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

from tuner.errors import CheckpointError
from tuner.output.jsonfile import to_json
from tuner.output.log import tell
from tuner.study.launch_record import with_rules
from tuner.training.pytree import PyTree
from tuner.training.saved import files
from tuner.training.saved.plain import from_plain, to_plain

__all__ = ["Checkpoints", "from_plain", "is_new_model_better", "read", "to_plain"]


def is_new_model_better(new: float | None, best: float | None, direction: str) -> bool:
    """Return whether a new value beats the best so far; a tie does not.

    Args:
        new: The new value. A missing one (None) or NaN is never better.
        best: The best so far. None or NaN stands for the worst there is, so that any finite value is better.
        direction: What is better, "maximize" or "minimize".

    Returns:
        True if the model of the new value is the one to keep.

    Raises:
        ValueError: There is no such direction.
    """
    if direction not in ("maximize", "minimize"):
        raise ValueError(f"direction must be 'maximize' or 'minimize': got {direction!r}")
    sign = 1.0 if direction == "maximize" else -1.0
    if new is None:
        return False
    # A new value that is NaN is never larger.
    return sign * new > (-math.inf if best is None or math.isnan(best) else sign * best)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint in a process that has nothing else, for inference.

    Args:
        path: A checkpoint (`.../latest/3`) or a folder that holds them; of these the best is read, or the newest good
            one if there is no best.

    Returns:
        The arrays as nested dicts of NumPy arrays, and the record saved with them.

    Raises:
        CheckpointError: There is none, it is torn, or it is not ours.
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
    """The checkpoints of one trial (or one run) in a folder: the latest few for resuming, the best one for inference.

    Saving takes the time of a copy of the arrays; a thread writes them. A checkpoint that cannot be written is told
    on stderr, the same trouble of one save after another only once, and never stops the training. Several processes
    may use a folder: each checkpoint is wholly of one of them.

    Args:
        folder: Where they are; made by the first save.
        every_s: Seconds from one `save` to when the next is due; infinity is never.
        keep: How many of the latest to keep; > 0.
        writes_best: The training itself writes the best at its end; else whoever gave the checkpoints decides.
        clock: Tells the time in seconds.
        restart: Called with the reason if the newest whole checkpoint is of another training: those to resume from are
            removed, and the training starts again. If None, `restore` raises an error.

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
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1: got {keep}")
        if isinstance(every_s, bool) or not isinstance(every_s, int | float) or not every_s >= 0:
            raise ValueError(f"every_s must be a number of seconds, at least 0: got {every_s!r}")
        # Orbax takes no relative paths, and the process may change its folder.
        self.folder = Path(folder).absolute()
        self._latest, self._best = self.folder / "latest", self.folder / "best"
        self._every_s, self._keep, self.writes_best, self._clock = every_s, keep, writes_best, clock
        self._restart = restart
        self._began_s = clock()
        self._offered: tuple[int, Any, Mapping[str, Any]] | None = None
        self._writer: threading.Thread | None = None
        self._told: str | None = None
        self.restored: dict[str, Any] | None = None
        """The record of the checkpoint that a training went on from, None if there was none."""

    # To resume from.

    def is_due(self) -> bool:
        """Return whether `every_s` have passed since the last save began, or since the start."""
        return self._clock() - self._began_s >= self._every_s

    def save(self, step: int, tree: PyTree, record: Mapping[str, Any]) -> None:
        """Save a checkpoint to resume from, in the background.

        Args:
            step: Optimizer updates so far.
            tree: A pytree of arrays; copied before this returns.
            record: What to save beside the arrays: a mapping that JSON can hold, NaN and infinities included.

        Raises:
            CheckpointError: The tree has a leaf that is no array.
            TypeError: The record holds what JSON cannot.

        Concurrency: safe beside other processes; blocks while an earlier save is being written.
        """
        self._began_s = self._clock()
        self.wait()
        content = _copied(step, tree, record)
        self._writer = threading.Thread(target=self._write_latest, args=(content,))
        self._writer.start()

    def _write_latest(self, content: files.Content) -> None:
        """Write one to resume from; tell if that is not possible, unless the one before it had the same trouble."""
        trouble = _write(self._latest, content, self._keep)
        # Without what is another each time: scratch folders' names, bytes that are free.
        gist = None if trouble is None else re.sub(r"\.tmp-\w+|\d+", "", trouble)
        if trouble is not None and gist != self._told:
            tell(f"{trouble}; training continues", "checkpoint", "warning")
        self._told = gist

    def has_latest(self) -> bool:
        """Return whether there may be something to resume from."""
        return bool(files.newest_first(self._latest))

    def latest_record(self) -> dict[str, Any] | None:
        """Return the record of the newest checkpoint to resume from whose record can be read; None if there is none."""
        return files.newest_good(self._latest, files.read_record, lambda path, error: None)

    def restore(
        self, like: Any, *, shardings: Any = None, identity: Mapping[str, Any] | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Return the newest good checkpoint; each that is torn is told on stderr and passed over.

        Args:
            like: As in `from_plain`.
            shardings: As in `from_plain`, whatever devices the checkpoint was saved from.
            identity: What its record must say, for it to be one of this training.

        Returns:
            The step, the tree and the record; None if there is no good checkpoint.

        Raises:
            CheckpointError: The newest whole one is of another training: its record or its arrays are others. To pass
                over it would be to train anew, and to remove it in time. Not raised with `restart`.
        """

        def use(path: Path) -> tuple[int, Any, dict[str, Any]] | CheckpointError:
            content = files.load(path)
            for name, mine in to_json(identity or {}).items():
                theirs = with_rules(to_json(content.record)).get(name)
                if theirs != mine:
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
        """Remove what was kept for resuming, and the folder if nothing else is in it: the training is over.

        Concurrency: what another process has begun to write fails there; what it writes later stays.
        """
        self.wait()
        files.clear_scratch(self.folder, 0.0)
        shutil.rmtree(self._latest, ignore_errors=True)
        with contextlib.suppress(OSError):  # the best is in it
            self.folder.rmdir()

    # For inference.

    def offer_best(self, step: int, tree: PyTree, record: Mapping[str, Any]) -> None:
        """Keep the best so far in memory, for `write_best`.

        Args:
            step: Optimizer updates so far.
            tree: A pytree of arrays, on the host or on devices, which nobody changes or donates.
            record: As in `save`.
        """
        self._offered = (step, tree, record)

    def write_best(self) -> Path | None:
        """Write what was last offered as the best; the old one stays until the new one is complete.

        Each call that fails is told: it is asked for once, at the end of a training.

        Returns:
            Its folder, for `read`; None if nothing was offered or it could not be written.

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

    # Both.

    def wait(self) -> None:
        """Wait until all is written, or told."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    close = wait

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write(series: Path, content: files.Content, keep: int) -> str | None:
    """Write one checkpoint; return why that was not possible."""
    try:
        files.add(series, content, keep)
    # Also what TensorStore raises for a full disk, which is no OSError.
    except Exception as error:
        return f"cannot write a checkpoint to {series}: {files.one_line(error)}"
    return None


def _copied(step: int, tree: PyTree, record: Mapping[str, Any]) -> files.Content:
    """Return what is to be written, apart from anything that may change."""
    # A copy even where NumPy could look at JAX's memory: the next step may be given that memory.
    plain = jax.tree.map(np.array, jax.device_get(to_plain(tree)))
    recorded = to_json(record)
    json.dumps(recorded, allow_nan=False)
    return files.Content(int(step), plain, recorded)
