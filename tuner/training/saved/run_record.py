"""Describes a training as plain JSON values, for checkpoints and for the log of a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import platform
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import jax
import numpy as np

from tuner.errors import CheckpointError, StudyError, is_int
from tuner.output.jsonfile import from_json, read_json, to_json, write_json
from tuner.output.log import tell
from tuner.study.launch_record import OPTIMIZER_RULES, optimizer_rules_of, with_rules
from tuner.study.space import Space, to_params
from tuner.training.data.arrays import ArrayDataset, Splits
from tuner.training.data.feed import Dataset, Feed
from tuner.training.definition import TrainerDefinition, settings_of
from tuner.trial import Report

if TYPE_CHECKING:
    from tuner.training.saved.checkpoints import Checkpoints


class _Best(Protocol):
    @property
    def epoch(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def hparams(self) -> Any: ...


class Recorded(Protocol):
    """The attributes of a `Training` that its record uses."""

    trainer: TrainerDefinition
    splits: Splits
    feed: Feed
    epochs: int
    seed: int
    objective: str
    first_hparams: Any
    data: dict[str, Any]
    optimizer_rules: int
    about: dict[str, Any]
    reports: list[Report]

    @property
    def direction(self) -> str: ...
    @property
    def mode(self) -> str | None: ...
    @property
    def batch(self) -> Mapping[str, Any]: ...
    @property
    def best(self) -> _Best | None: ...


def identity(training: Recorded) -> dict[str, Any]:
    """Return the values that a checkpoint or log of this training must have."""
    return {
        "seed": training.seed,
        "epochs": training.epochs,
        "batch_size": training.feed.batch_size,
        "examples": len(training.splits.train),
        "hparams": describe_hparams(training.first_hparams),
        "trainer": type(training.trainer).__qualname__,
        "settings": settings(training.trainer),
        "objective": training.objective,
        "direction": training.direction,
        "data": training.data,
        "optimizer_rules": training.optimizer_rules,
    }


def record(training: Recorded) -> dict[str, Any]:
    """Return all information about a training except its arrays."""
    best = training.best
    return {
        **training.about,
        **identity(training),
        "class": _reference(type(training.trainer)),
        "space": _reference(type(training.first_hparams)),
        "batch": {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in training.batch.items()},
        "versions": versions(),
        "mode": training.mode,
        "best": None if best is None else _described(best),
        "reports": [_as_dict(report) for report in training.reports],
    }


def _described(best: _Best) -> dict[str, Any]:
    changed = {} if best.hparams is None else {"hparams": best.hparams}
    return {"epoch": best.epoch, "metrics": dict(best.metrics), **changed}


def _as_dict(report: Report) -> dict[str, Any]:
    # A tenth of the time of `dataclasses.asdict`, which copies each number.
    return {"epoch": report.epoch, "step": report.step, "metrics": dict(report.metrics)}


class RunLog:
    """The log of a single run, `run.json`: hyperparameters, seed, versions, data, and every report.

    It is rewritten atomically after each report; `load_run` reads it.

    Args:
        folder: A folder for this run only; created if it does not exist.
        training: The training.

    Raises:
        StudyError: the folder has the log of another run.
    """

    def __init__(self, folder: str | Path, training: Recorded) -> None:
        self._path, self._told = Path(folder).absolute() / "run.json", ""
        if self._path.exists():
            theirs = read_log(self._path)
            for name, mine in to_json(identity(training)).items():
                if with_rules(theirs).get(name) != mine:
                    raise StudyError(
                        f"{self._path} is the log of another run: it has {name}={theirs.get(name)!r}, this training "
                        f"has {name}={mine!r}; use another folder"
                    )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"cannot create the folder {folder} for the log: {error}") from None

    def write(self, training: Recorded) -> None:
        """Write the log; if that fails, print a warning on stderr and continue the training."""
        try:
            write_json(self._path, record(training))
        except OSError as error:
            told = f"cannot write the log {self._path}: {error.strerror}"
            if told != self._told:
                tell(told, "run_log", "warning")
            self._told = told


def read_log(path: Path) -> dict[str, Any]:
    """Return a log.

    Raises:
        CheckpointError: the file is missing or is not a log.
    """
    try:
        found = read_json(path)
        if not isinstance(found, dict) or not {"class", "hparams", "reports", "data"} <= found.keys():
            raise ValueError("it is not the log of a run")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the log {path}: {error}") from None
    return found


def find_optimizer_rules(asked: int | None, checkpoints: Checkpoints | None, log: str | Path | None) -> int:
    """Return the optimizer rules of a training: the given ones, else those with which it started, else the newest.

    Raises:
        StudyError: this version does not have these rules.
    """
    begun = None if checkpoints is None else checkpoints.latest_record()
    path = None if log is None else Path(log).absolute() / "run.json"
    if begun is None and path is not None and path.exists():
        begun = read_log(path)
    newest = OPTIMIZER_RULES
    found = asked if asked is not None else newest if begun is None else optimizer_rules_of(begun)
    if not is_int(found) or not 1 <= found <= newest:
        raise StudyError(
            f"optimizer_rules must be a whole number from 1 to {newest}: got {found!r}; resume a training with the "
            "version of tuner that started it, or a newer one"
        )
    return found


def digests(splits: Splits) -> dict[str, str | None]:
    """Return digests that distinguish these data from others with the same shapes."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: digest(part) for name, part in parts.items() if part is not None}


_digests: WeakKeyDictionary[Dataset, str] = WeakKeyDictionary()


def digest(dataset: Dataset) -> str | None:
    """Return a digest of a dataset, computed once; None for a stream, which is not read for this."""
    if not isinstance(dataset, ArrayDataset):
        return None
    if dataset not in _digests:
        hashed = hashlib.blake2b(digest_size=16)
        for name, array in sorted(dataset.host().items()):
            hashed.update(f"{name} {array.dtype} {array.shape}".encode())
            hashed.update(np.ascontiguousarray(array).data)
        _digests[dataset] = hashed.hexdigest()
    return _digests[dataset]


def versions() -> dict[str, str]:
    """Return the versions on which results depend."""
    return {**_installed(), "device": jax.devices()[0].device_kind, "xla_flags": os.environ.get("XLA_FLAGS", "")}


@cache
def _installed() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def describe_hparams(hparams: Any) -> Any:
    """Return hyperparameters as plain JSON: the values of a space or a dict, anything else as text."""
    if isinstance(hparams, Space):
        return to_params(hparams)
    if is_plain(hparams):
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in hparams.items()}
    return repr(hparams)


def settings(trainer: TrainerDefinition) -> dict[str, Any]:
    """Return the plain attributes of a trainer as JSON."""
    return from_json(to_json(dict(settings_of(trainer))))


def is_plain(hparams: object) -> bool:
    """Return whether hyperparameters are a dict that JSON restores unchanged."""
    return type(hparams) is dict and all(
        isinstance(name, str)
        and (value is None or type(value) in (bool, int, float, str) or isinstance(value, np.number))
        for name, value in hparams.items()
    )


@lru_cache(maxsize=64)
def _reference(kind: type) -> Mapping[str, str]:
    try:
        file = str(Path(inspect.getfile(kind)).resolve())
    except (OSError, TypeError):  # defined in an interpreter, or built in
        file = ""
    return {"file": file, "module": kind.__module__, "name": kind.__qualname__}
