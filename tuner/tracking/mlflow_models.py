"""Registers a trial's model with MLflow, with everything that is needed to load it on another machine."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import CheckpointError, UsageError
from tuner.output.jsonfile import read_json, write_json
from tuner.results.export import best_number, check_has_model
from tuner.results.rows import no_feasible
from tuner.storage import AnyURL, StorageURL, connected, mirroring, parse_url
from tuner.storage.artifacts import local_checkpoint
from tuner.storage.read.queries import StudyRow, TrialRow, find_study, read_best, read_trial
from tuner.study.source import import_file
from tuner.tracking import check_trackers
from tuner.tracking.mirror import Ending, follow

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tuner.training import Loaded

_ABOUT, _CHECKPOINT, _FILE = "model.json", "checkpoint", "study.py"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def register(
    url: AnyURL,
    study_name: str,
    uri: str,
    *,
    number: int | None = None,
    prefer: str | None = None,
    name: str | None = None,
) -> str:
    """Send a study to MLflow, and register the model of one of its trials.

    Args:
        url: The storage's URL.
        study_name: The study.
        uri: The MLflow server.
        number: The trial's number; None for the best trial.
        prefer: The trial of a Pareto front if `number` is None; see `tuner.results.export.best_number`.
        name: The registered model; by default the study's name.

    Returns:
        The model's URI, for `mlflow.pyfunc.load_model`.

    Raises:
        UnknownStudy: there is no such study or trial.
        UsageError: the trial has no checkpoint, or the study's file does not exist.
        CheckpointError: the model cannot be loaded from the checkpoint.
        TrackerLost: MLflow does not answer.
        TrackerRefused: MLflow rejects the model or its name.
    """
    check_trackers(uri, None, None)
    url = parse_url(url)
    with connected(url) as engine:
        study = find_study(engine, study_name)
        trial = _chosen(engine, study, number, prefer)
        with tempfile.TemporaryDirectory(prefix="tuner-model-") as scratch:
            bundle = Path(scratch) / "bundle"
            record = pack(study, trial, bundle)
            load_bundle(bundle)  # a model that does not load here does not load elsewhere
            from tuner.tracking.mlflow import MlflowTracker

            tracker = MlflowTracker(uri)
            follow(url, study_name, [tracker], once=True, ending=Ending())
            run = mirroring.run_of(engine, trial.trial_id, tracker.target)
            assert run is not None, "the trial has ended, and all its data is sent"
            import mlflow.pyfunc

            model = Path(scratch) / "model"
            versions = {package: record["versions"][package] for package in (*_PACKAGES,)}
            mlflow.pyfunc.save_model(
                str(model),
                loader_module="tuner.tracking.mlflow_models",
                data_path=str(bundle),
                # Not `tuner`: the package index may have another package of that name.
                pip_requirements=[f"{package}=={version}" for package, version in versions.items()],
            )
            told = {f"tuner.{key}": value for key, value in _tags(study, trial, record, url).items()}
            return tracker.register(run, str(model), name or re.sub(r"[/:]", "_", study.name), told)


def _chosen(engine: Engine, study: StudyRow, number: int | None, prefer: str | None) -> TrialRow:
    if number is None and (len(study.directions) > 1 or prefer is not None):
        number = best_number(engine, study.name, prefer)
    if number is not None:
        return read_trial(engine, study, number)
    best = read_best(engine, study, 1)
    if not best:
        missing = f"study {study.name!r} has no complete trial yet"
        raise UsageError(no_feasible(engine, study.name) or missing)
    return best[0]


def pack(study: StudyRow, trial: TrialRow, folder: Path) -> Mapping[str, Any]:
    """Copy everything that a trial's model needs into a folder; return the record of its checkpoint.

    Raises:
        UsageError: the checkpoint or the study's file does not exist.
        CheckpointError: the checkpoint is damaged.
        ArtifactsLost: the object storage with the checkpoint cannot be reached.
    """
    from tuner.training.saved.checkpoints import read

    check_has_model(study)
    where = trial.record.checkpoint
    if where is None:
        raise UsageError(
            f"trial {trial.number} of study {study.name!r} has no checkpoint: a study keeps only those of its "
            "best `keep_best` trials"
        )
    checkpoint = local_checkpoint(where, f"trial {trial.number} of study {study.name!r}")
    _, record = read(checkpoint)
    file = Path(record.get("file") or "")
    if file.resolve().is_relative_to(checkpoint.resolve()):
        raise CheckpointError(f"the file of study {study.name!r} is inside its checkpoint: {str(file)!r}; move it")
    if not file.is_file():
        raise UsageError(
            f"the file of study {study.name!r} is not on this machine: no file {str(file)!r}; run the command where "
            "it is"
        )
    folder.mkdir()
    shutil.copytree(checkpoint, folder / _CHECKPOINT)
    shutil.copy(file, folder / _FILE)
    own = record["space"]["name"] if record["space"]["file"] == str(file.resolve()) else None
    write_json(folder / _ABOUT, {"study": study.name, "trial": trial.number, "space": own})
    return record


def _tags(study: StudyRow, trial: TrialRow, record: Mapping[str, Any], url: StorageURL) -> dict[str, str]:
    values = dict(zip(study.record.get("objective", []), trial.values or [], strict=False))
    best = record.get("best") or {}
    return {
        "study": study.name,
        "trial": str(trial.number),
        "storage": str(url),
        **{f"value.{name}": str(value) for name, value in values.items()},
        **({"epoch": str(best["epoch"])} if "epoch" in best else {}),
        **{f"hparams.{name}": str(value) for name, value in trial.hparams.items()},
        **{f"versions.{name}": str(version) for name, version in record["versions"].items()},
    }


# --- Loading


def load_bundle(folder: Path) -> Loaded:
    """Load a trained model from the result of `pack`; this imports the copy of the study's file.

    Raises:
        CheckpointError: the study in the file differs from the trained one.
        StudyFileError: the file cannot be imported, for example because a package that it needs is not installed.
    """
    from tuner.study.space import from_params
    from tuner.training import TrainerModule, load_from_checkpoint
    from tuner.training.restore import as_recorded
    from tuner.training.saved.checkpoints import read

    about, (_, record) = read_json(folder / _ABOUT), read(folder / _CHECKPOINT)
    module = import_file(folder / _FILE)
    studies = [value for value in vars(module).values() if getattr(value, "name", None) == about["study"]]
    trainers = [study.trainer for study in studies if isinstance(getattr(study, "trainer", None), TrainerModule)]
    if not trainers:
        raise CheckpointError(f"{record['file']} no longer defines study {about['study']!r}")
    space: Any = module if about["space"] else None
    for part in (about["space"] or "").split(".") if space else ():
        space = getattr(space, part, None)
    if about["space"] and space is None:
        raise CheckpointError(f"{record['file']} no longer defines {about['space']}")
    hparams = None if space is None else from_params(space, record["hparams"])
    trainer = as_recorded(folder, record, trainers[0])
    return load_from_checkpoint(folder / _CHECKPOINT, trainer=trainer, hparams=hparams)


class RegisteredModel:
    """The model that `mlflow.pyfunc.load_model` loads.

    Args:
        loaded: The trained model.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded

    def predict(self, model_input: Any, params: Mapping[str, object] | None = None) -> Any:
        """Return the model's outputs in evaluation mode, as NumPy arrays.

        Args:
            model_input: An array, a data frame, or for a model with several inputs a mapping of them in their order.
            params: Unused; MLflow passes them.
        """
        import numpy as np

        several = tuple(model_input.values()) if isinstance(model_input, Mapping) else (model_input,)
        arrays = [one.to_numpy() if hasattr(one, "to_numpy") else np.asarray(one) for one in several]
        return self.loaded.predict(*arrays)


def _load_pyfunc(path: str) -> RegisteredModel:
    """Load a registered model; MLflow calls this function by name."""
    return RegisteredModel(load_bundle(Path(path)))
