"""The picture that a study draws of a trained model: `Study(picture=...)`, in its file."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from tuner.errors import UsageError
from tuner.export import best_number, checkpoint_of, file_of, in_place
from tuner.plots import check_suffix, need_matplotlib, written
from tuner.rehearsal import in_words
from tuner.results import show_row
from tuner.storage.queries import find_study
from tuner.study import Study, load_study


def draw_picture(
    engine: Engine, name: str, path: Path, number: int | None = None, *, file: str | None = None, force: bool = False
) -> int:
    """Let a study draw the model of one of its trials; return the trial's number.

    The study's file is imported as it is now: a picture can be written, or changed, after the training.

    Args:
        engine: The storage's engine.
        name: The study.
        path: `.png` or `.svg`.
        number: The trial; the best if None.
        file: `FILE` or `FILE:NAME` of the study; the one that the trial ran with if None.
        force: Whether a file that is there may be replaced.

    Raises:
        UnknownStudy: there is no such study or trial.
        UsageError: the study draws no picture, the trial has no checkpoint, a file is not here, or its name is wrong.
        StudyError: the study's file does not import, or its function fails.
        CheckpointError: the checkpoint is torn, or of another trainer.
    """
    check_suffix("picture", path)
    need_matplotlib()
    row = find_study(engine, name)
    trial = show_row(engine, name, best_number(engine, name) if number is None else number)
    checkpoint = checkpoint_of(trial)
    study = load_study(file or f"{file_of(trial)}:{name}")
    if study.picture is None:
        raise UsageError(f"a study must say how its models are drawn, Study(picture=...): {name!r} does not")
    with in_place(path, force) as scratch:
        scratch.write_bytes(_drawn(study, trial["hparams"], checkpoint, row.record["seed"], path.suffix))
    return int(trial["number"])


def _drawn(study: Study, params: dict[str, object], checkpoint: Path, seed: int, suffix: str) -> bytes:
    from matplotlib.figure import Figure

    from tuner.training import load_from_checkpoint

    loaded = load_from_checkpoint(checkpoint, trainer=study.trainer, hparams=study.hparams_of(params))
    splits = in_words("data(seed) must return the data", study.data, seed)
    assert study.picture is not None
    figure = in_words("picture(loaded, splits) must return a figure", study.picture, loaded, splits)
    if not isinstance(figure, Figure):
        raise UsageError(f"picture(loaded, splits) must return a matplotlib Figure: got {figure!r}")
    return written(figure, suffix.lower().removeprefix("."))
