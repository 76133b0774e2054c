"""Draws a study's picture of a trained model, with `Study(picture=...)` from its file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Engine

from tuner.errors import CheckpointError, SpaceError, UsageError
from tuner.results.export import best_number, checkpoint_of, in_place, study_file_of
from tuner.results.plots import check_suffix, need_matplotlib, written
from tuner.results.rows import OTHER_FILE, check_file, has_changed, show_row
from tuner.storage.read.queries import find_study, read_trial
from tuner.study import StudySpec
from tuner.study.file import split_target, study_in
from tuner.study.source import call_study_code


def draw_picture(
    engine: Engine,
    name: str,
    path: Path,
    number: int | None = None,
    *,
    prefer: str | None = None,
    file: str | None = None,
    force: bool = False,
) -> tuple[int, bool]:
    """Draw the model of a trial with its study's picture function.

    The current version of the study's file is imported, so you can write or change the function after the training.

    Args:
        engine: The storage's engine.
        name: The study.
        path: `.png` or `.svg`.
        number: The trial; the best if None.
        prefer: The trial of a Pareto front if `number` is None; see `tuner.results.export.best_number`.
        file: The study's file, or `FILE:NAME` if the study has another name there; if None, the file of the trial.
        force: Whether to overwrite an existing file.

    Returns:
        The trial's number, and whether the file's code has changed since the trial ran.

    Raises:
        UnknownStudy: there is no such study or trial.
        UsageError: the study has no picture function, the trial has no checkpoint, a file does not exist or has
            changed, or its name is wrong.
        StudyError: the study's file does not import, or its function fails.
        CheckpointError: the checkpoint is damaged.
    """
    check_suffix("picture", path)
    need_matplotlib()
    row = find_study(engine, name)
    trial = show_row(engine, name, best_number(engine, name, prefer) if number is None else number)
    checkpoint = checkpoint_of(trial)
    source, own = (study_file_of(trial), None) if file is None else split_target(file)
    study, stored = study_in(source, own or name), read_trial(engine, row, trial["number"])
    if study.picture is None:
        raise UsageError(f"study {study.name!r} has no picture function: set Study(picture=...)")
    with in_place(path, force) as scratch:
        try:
            picture = _drawn(study, trial["hparams"], checkpoint, row.record["seed"], path.suffix)
        except (CheckpointError, SpaceError):
            check_file(engine, stored, source, OTHER_FILE)
            raise
        scratch.write_bytes(picture)
    return stored.number, has_changed(engine, stored, source)


def _drawn(study: StudySpec, params: Mapping[str, object], checkpoint: Path, seed: int, suffix: str) -> bytes:
    from matplotlib.figure import Figure

    from tuner.training import load_from_checkpoint

    hparams = study.hparams_of(params)
    loaded = load_from_checkpoint(checkpoint, trainer=study.trainer, hparams=hparams)
    splits = study.data_for(hparams, seed=seed)
    assert study.picture is not None
    figure = call_study_code("picture(loaded, splits) failed", study.picture, loaded, splits)
    if not isinstance(figure, Figure):
        raise UsageError(f"picture(loaded, splits) must return a matplotlib Figure: got {type(figure).__name__}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about fonts and layouts
        failure = "cannot draw the figure that picture(loaded, splits) returned"
        return call_study_code(failure, written, figure, suffix.lower().removeprefix("."))
