"""Loads a trained model from its checkpoint, or a run from its log, with nothing else than the study file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tuner.errors import CheckpointError, StudyError
from tuner.object_storage import fetched
from tuner.study.launch_record import optimizer_rules_of
from tuner.study.source import import_file
from tuner.study.space import Space, from_params
from tuner.training.data.arrays import Splits, steps_per_epoch
from tuner.training.data.batches import Source
from tuner.training.hparams import register
from tuner.training.loop.programs import programs
from tuner.training.mesh import Layout
from tuner.training.pytree import PyTree
from tuner.training.saved.checkpoints import from_plain, read
from tuner.training.saved.run_record import digests, read_log, settings
from tuner.training.state import TrainState
from tuner.training.trainer import TrainerModule
from tuner.trial import Report

if TYPE_CHECKING:
    from tuner.training.loop.training import Training


_DICT = {"file": "", "module": "builtins", "name": "dict"}


@dataclass(frozen=True)
class Loaded:
    """A trained model from a checkpoint.

    Attributes:
        trainer: The trainer.
        hparams: The hyperparameters.
        state: The state: for the best epoch only what predictions need, for the latest epoch everything.
        record: The information saved with the arrays: study, trial, reports, versions.
    """

    trainer: TrainerModule
    hparams: Any
    state: TrainState
    record: dict[str, Any]

    def __call__(self, *inputs: PyTree) -> Any:
        """Return the model's outputs in evaluation mode, like `bind_model`."""
        return self.trainer.bind_model(self.state, self.hparams)(*inputs)

    def predict(self, *inputs: PyTree) -> Any:
        """Return the model's outputs in evaluation mode as NumPy arrays."""
        return jax.tree.map(np.asarray, self(*inputs))


def load_from_checkpoint(
    path: str | Path, *, trainer: TrainerModule | None = None, hparams: object = None, trust: bool = False
) -> Loaded:
    """Load a trained model from a checkpoint's folder, or from its URL in object storage.

    A checkpoint names the Python file of its study, or of its trainer's class. Importing that file runs its code. It is
    therefore imported only with `trust=True`, and never if it is inside the checkpoint. Modules that this process has
    already imported are used.

    Args:
        path: A checkpoint, or a trial's folder, for its best checkpoint or else its latest; or the URL that
            `tuner show` prints as `checkpoint`, which is copied to the user's cache folder.
        trainer: The trainer; then no file is imported for it.
        hparams: The hyperparameters, if they are not a `Space`, or if their class is not imported.
        trust: Import the file that the checkpoint names. The file must still be in the same place; put code that does
            more than define things below `if __name__ == "__main__":`. Use it only with your own checkpoints.

    Raises:
        CheckpointError: the checkpoint is damaged, missing or not one of tuner's, or its study is not found or trusted.
        StudyFileError: the study's file does not import.
        ArtifactsLost: the object storage cannot be reached.
    """
    path = fetched(path)
    plain, record = read(path)
    trainer = trainer or _find_trainer(path, record, trust)
    if hparams is None:
        hparams = _find_hparams(path, record, trust)
    register(hparams)
    batch: Any = {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (shape, dtype) in record["batch"].items()}
    placed, seed = jax.device_put(hparams), jax.ShapeDtypeStruct((), "uint32")
    init = programs(trainer, placed, Layout()).init
    steps = steps_per_epoch(record["examples"], record["batch_size"])
    fixed = {"total_steps": record["epochs"] * steps, "optimizer_rules": optimizer_rules_of(record)}
    shapes = init.eval_shape(Source(batch), placed, seed, **fixed).state
    if record["kind"] == "best":
        state = from_plain(plain, jax.eval_shape(TrainState.for_evaluation, shapes))
    else:
        state = from_plain(plain["carry"]["state"], shapes)
    return Loaded(trainer, hparams, state, record)


@dataclass(frozen=True)
class Run:
    """A run from its log.

    Attributes:
        trainer: The trainer.
        hparams: The hyperparameters.
        record: The content of the log: seed, epochs, reports, versions, digests of the data.
    """

    trainer: TrainerModule
    hparams: Any
    record: Mapping[str, Any]

    @property
    def reports(self) -> list[Report]:
        """The logged reports."""
        return [Report(**report) for report in self.record["reports"]]

    def train(self, splits: Splits, **options: Any) -> Training:
        """Repeat the run: with the same versions on the same kind of device, it is identical bit for bit.

        Args:
            splits: The same data.
            options: Further options of `Training`.

        Raises:
            StudyError: the data differ.
        """
        mine = digests(splits)
        for name in ("train", "validation", "test"):
            if mine.get(name) != self.record["data"].get(name):
                raise StudyError(
                    f"cannot repeat the run: the {name} data differ from those of the run (by digest); create the "
                    "splits as for the first run, including the test set"
                )
        said = {name: self.record[name] for name in ("epochs", "seed", "objective", "direction")}
        said["optimizer_rules"] = optimizer_rules_of(self.record)
        mode = self.record["mode"]
        fixed = {} if mode is None else {"choose": lambda program, measure: mode}
        return self.trainer.train_model(self.hparams, splits, **{**said, **fixed, **options})


def load_run(
    folder: str | Path, *, trainer: TrainerModule | None = None, hparams: object = None, trust: bool = False
) -> Run:
    """Load a run from its log; see `log` of `Training`.

    Args:
        folder: The folder of the run.
        trainer: The trainer; then no file is imported for it.
        hparams: The hyperparameters, if they are neither an imported `Space` nor a dict of plain values.
        trust: Import the Python file that the log names, which runs its code; a file inside the folder is never
            imported. Use it only with your own runs.

    Raises:
        CheckpointError: there is no log, or a file that it names is not found or trusted.
        StudyFileError: the trainer's file does not import.
    """
    path = Path(folder) / "run.json"
    record = read_log(path)
    if hparams is None:
        hparams = _find_hparams(path.parent, record, trust)
    return Run(trainer or _find_trainer(path.parent, record, trust), hparams, record)


def _find_trainer(path: str | Path, record: dict[str, Any], trust: bool) -> TrainerModule:
    """Return the trainer of the recorded study, or an instance of the recorded class."""
    study, file = record.get("study"), record.get("file")
    if study is not None:
        # A study of a notebook has no file: it is in the running program, or in a module that it has imported.
        modules: list[Any] = (
            [sys.modules["__main__"], sys.modules.get(record["class"]["module"])]
            if file is None
            else [_module(path, file, f"study {study!r}", "trainer=", trust)]
        )
        for value in [value for module in modules if module is not None for value in vars(module).values()]:
            if getattr(value, "name", None) == study and isinstance(getattr(value, "trainer", None), TrainerModule):
                return as_recorded(path, record, value.trainer)
        if file is None:
            raise CheckpointError(
                f"study {study!r} of {path} was defined in a notebook or interactively: define it again first, or pass "
                "trainer="
            )
        raise CheckpointError(f"{file} no longer defines the study {study!r} of {path}; pass trainer=")
    kind = _find(path, record["class"], "trainer=", trust)
    if not (isinstance(kind, type) and issubclass(kind, TrainerModule)):
        # A checkpoint may name anything: call only trainers.
        raise CheckpointError(f"the trainer of {path} must be a TrainerModule: {kind!r} is not; pass trainer=")
    try:
        return as_recorded(path, record, kind())
    except TypeError as error:
        raise CheckpointError(
            f"cannot create the trainer of {path} without arguments: {error}; pass trainer="
        ) from None


def as_recorded(path: str | Path, record: dict[str, Any], trainer: TrainerModule) -> TrainerModule:
    """Return a trainer if its settings equal those of a checkpoint's trainer.

    Raises:
        CheckpointError: a setting differs.
    """
    mine = settings(trainer)
    for name, value in record["settings"].items():
        if mine.get(name) != value:
            raise CheckpointError(
                f"the trainer of {path} had {name}={value!r}, but {type(trainer).__name__}() has {mine.get(name)!r}; "
                "pass trainer="
            )
    return trainer


def _find_hparams(path: str | Path, record: dict[str, Any], trust: bool) -> Any:
    if isinstance(record["hparams"], dict) and record["space"] == _DICT:
        return record["hparams"]
    kind = None if record["space"] == _DICT else _find(path, record["space"], "hparams=", trust)
    if not (isinstance(kind, type) and issubclass(kind, Space)):
        raise CheckpointError(f"the hyperparameters of {path} are neither a Space nor plain values: pass hparams=")
    return from_params(kind, record["hparams"])


def _find(path: str | Path, reference: dict[str, str], option: str, trust: bool) -> Any:
    """Return a recorded class, from its imported module or else from its file."""
    found: Any = sys.modules.get(reference["module"])
    file = getattr(found, "__file__", None) or ""
    if found is None or (file and os.path.realpath(file) != reference["file"]):
        found = _module(path, reference["file"], reference["name"], option, trust)
    for part in reference["name"].split("."):
        found = getattr(found, part, None)
    if found is None:
        raise CheckpointError(
            f"{reference['file'] or reference['module']} no longer defines {reference['name']} of {path}; pass {option}"
        )
    return found


def _module(path: str | Path, file: str, what: str, option: str, trust: bool) -> Any:
    """Return the module of a recorded file: already imported, or imported now if it is trusted."""
    real = os.path.realpath(file)
    if file and Path(real).is_relative_to(os.path.realpath(path)):
        raise CheckpointError(f"the file of {what} must not be inside {path}: got {file!r}; pass {option}")
    for module in list(sys.modules.values()):
        known = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if isinstance(known, str) and os.path.realpath(known) == real:
            return module
    if not Path(file).is_file():
        raise CheckpointError(f"the file of {what} in {path} does not exist: {file!r}; pass {option}")
    if not trust:
        raise CheckpointError(
            f"{path} needs {what} from {file!r}, and importing that file runs its code; pass {option}"
            ", or trust=True if you trust the checkpoint"
        )
    return import_file(Path(file))
