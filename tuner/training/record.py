"""What a training is, as plain JSON values: for checkpoints, for the log of a run, for whoever trains it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tuner.errors import StudyError
from tuner.jsonfile import read_json, to_json, write_json
from tuner.space import Space, to_params
from tuner.training.data import ArrayDataset
from tuner.training.feed import Dataset

if TYPE_CHECKING:
    from tuner.training.loop import Training


def identity(training: Training) -> dict[str, Any]:
    """Return what must be equal for a checkpoint or a log to be one of this training."""
    return {
        "seed": training.seed,
        "epochs": training.epochs,
        "batch_size": training.feed.batch_size,
        "examples": len(training.splits.train),
        "hparams": describe_hparams(training.host_hparams),
    }


def record(training: Training) -> dict[str, Any]:
    """Return what there is to know about a training beside its arrays."""
    best = training.best
    batch = jax.eval_shape(lambda source: source.at(jax.numpy.int32(0)), training.feed.first())
    return {
        **training.about,
        "trainer": _reference(type(training.trainer)),
        "space": _reference(type(training.host_hparams)),
        "batch": {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in batch.items()},
        "versions": versions(),
        **identity(training),
        "objective": training.objective,
        "direction": training.direction,
        "mode": training.mode,
        "best": None if best is None else {"epoch": best.epoch, "metrics": dict(best.metrics)},
        "reports": [asdict(report) for report in training.reports],
    }


class RunLog:
    """The file of a single run, `run.json`: hyperparameters, seed, versions, data, and every report.

    Written anew, atomically, after each report; `load_run` reads it.

    Args:
        folder: A folder of the run's own; made if it is missing.
        training: The training.

    Raises:
        StudyError: the folder has the log of another run.
    """

    def __init__(self, folder: str | Path, training: Training) -> None:
        self._path = Path(folder) / "run.json"
        if self._path.exists():
            theirs = read_json(self._path)
            for name, mine in to_json(identity(training)).items():
                if theirs.get(name) != mine:
                    raise StudyError(
                        f"the folder of a run must be its own: {self._path} has {name}={theirs.get(name)!r}, this one "
                        f"has {name}={mine!r}; take another folder"
                    )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(training.splits, name) for name in ("train", "validation", "test")}
        self._data = {name: digest(part) for name, part in parts.items() if part is not None}

    def write(self, training: Training) -> None:
        """Write what is known so far."""
        write_json(self._path, {**record(training), "data": self._data})


@lru_cache(maxsize=8)
def digest(dataset: Dataset) -> str | None:
    """Return what tells a dataset from another with the same shapes; None for a stream, which is not read for it."""
    if not isinstance(dataset, ArrayDataset):
        return None
    hashed = hashlib.blake2b(digest_size=16)
    for name, array in sorted(dataset.host().items()):
        hashed.update(f"{name} {array.dtype} {array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


def versions() -> dict[str, str]:
    """Return what results depend on, beside the code."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "device": jax.devices()[0].device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def describe_hparams(hparams: Any) -> Any:
    """Return hyperparameters as plain JSON values: of a space or a dict the values, anything else as text."""
    if isinstance(hparams, Space):
        return to_params(hparams)
    return dict(hparams) if is_plain(hparams) else repr(hparams)


def is_plain(hparams: Any) -> bool:
    """Return whether hyperparameters are a dict that comes back from JSON as it was."""
    return type(hparams) is dict and all(
        isinstance(name, str) and (value is None or type(value) in (bool, int, float, str))
        for name, value in hparams.items()
    )


def _reference(kind: type) -> Mapping[str, str]:
    try:
        file = str(Path(inspect.getfile(kind)).resolve())
    except (OSError, TypeError):  # typed into an interpreter, or built in
        file = ""
    return {"file": file, "module": kind.__module__, "name": kind.__qualname__}
