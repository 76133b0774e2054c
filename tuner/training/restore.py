"""A trained model back from its checkpoint, in a process that has nothing but the study file."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from tuner.errors import CheckpointError
from tuner.source import import_file
from tuner.space import Space, from_params, to_params
from tuner.training.checkpoints import from_plain, read
from tuner.training.hparams import register
from tuner.training.mesh import Layout
from tuner.training.programs import Source, programs
from tuner.training.state import TrainState
from tuner.training.trainer import TrainerModule


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds.

    Attributes:
        trainer: The trainer.
        hparams: The hyperparameters.
        state: The state: of the best epoch what predictions need, of the latest everything.
        record: What was saved beside the arrays: study, trial, reports, versions.
    """

    trainer: TrainerModule
    hparams: Any
    state: TrainState
    record: dict[str, Any]

    def __call__(self, *inputs: Any) -> Any:
        """Return the model's outputs in evaluation mode, as `bind_model` does."""
        return self.trainer.bind_model(self.state, self.hparams)(*inputs)


def describe(trainer: TrainerModule, hparams: Any, first: Source) -> dict[str, Any]:
    """Return what `load_from_checkpoint` needs to know, as plain JSON values."""
    batch = jax.eval_shape(lambda source: source.at(jax.numpy.int32(0)), first)
    return {
        "trainer": _reference(type(trainer)),
        "space": _reference(type(hparams)),
        "batch": {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in batch.items()},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return what results depend on, beside the code."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def describe_hparams(hparams: Any) -> Any:
    """Return hyperparameters as plain JSON values: a space as its parameters, anything else as text."""
    return to_params(hparams) if isinstance(hparams, Space) else repr(hparams)


def _reference(kind: type) -> dict[str, str]:
    try:
        file = str(Path(inspect.getfile(kind)).resolve())
    except (OSError, TypeError):  # typed into an interpreter
        file = ""
    return {"file": file, "module": kind.__module__, "name": kind.__qualname__}


def load_from_checkpoint(path: str | Path, *, trainer: TrainerModule | None = None, hparams: Any = None) -> Loaded:
    """Return a trained model from a checkpoint's folder alone.

    The study's file, or that of the trainer's class, must still be where it was.

    Args:
        path: A checkpoint, or a trial's folder: its best checkpoint, else the latest.
        trainer: The trainer, if its file is elsewhere, or if it needs arguments and belongs to no study.
        hparams: The hyperparameters, if they are no `Space`.

    Raises:
        CheckpointError: the checkpoint is torn, foreign or missing, or its study cannot be found.
        StudyFileError: the study's file does not import.
    """
    plain, record = read(path)
    trainer = trainer or _find_trainer(path, record)
    if hparams is None:
        hparams = _find_hparams(path, record)
    register(hparams)
    batch: Any = {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (shape, dtype) in record["batch"].items()}
    placed, seed = jax.device_put(hparams), jax.ShapeDtypeStruct((), "uint32")
    init = programs(trainer, placed, Layout()).init
    steps = -(-record["examples"] // record["batch_size"])
    shapes = init.eval_shape(Source(batch), placed, seed, total_steps=record["epochs"] * steps).state
    if record["kind"] == "best":
        state = from_plain(plain, shapes.for_evaluation())
    else:
        state = from_plain(plain["carry"]["state"], shapes)
    return Loaded(trainer, hparams, state, record)


def _find_trainer(path: str | Path, record: dict[str, Any]) -> TrainerModule:
    """Return the trainer of the recorded study, else an instance of the recorded class."""
    study = record.get("study")
    if study is not None:
        for value in vars(import_file(Path(record["file"]))).values():
            if getattr(value, "name", None) == study and isinstance(getattr(value, "trainer", None), TrainerModule):
                return value.trainer
        raise CheckpointError(f"{record['file']} must hold the study {study!r} of {path}: it does not; give trainer=")
    kind = _find(path, record["trainer"], "trainer=")
    try:
        return kind()
    except TypeError as error:
        raise CheckpointError(f"the trainer of {path} must be made by hand, {error}: give trainer=") from None


def _find_hparams(path: str | Path, record: dict[str, Any]) -> Any:
    kind = _find(path, record["space"], "hparams=")
    if not (isinstance(kind, type) and issubclass(kind, Space)):
        raise CheckpointError(f"the hyperparameters of {path} are no Space: give hparams=")
    return from_params(kind, record["hparams"])


def _find(path: str | Path, reference: dict[str, str], option: str) -> Any:
    """Return a recorded class, from its module if that is imported or can be, else from its file."""
    found: Any = sys.modules.get(reference["module"])
    if found is None or os.path.realpath(getattr(found, "__file__", None) or "") != reference["file"]:
        if not Path(reference["file"]).is_file():
            raise CheckpointError(
                f"the file of {reference['name']} in {path} must exist: {reference['file']!r} does not; give {option}"
            )
        found = import_file(Path(reference["file"]))
    for part in reference["name"].split("."):
        found = getattr(found, part, None)
    if found is None:
        raise CheckpointError(
            f"{reference['file']} must define {reference['name']} of {path}: it does not; give {option}"
        )
    return found
