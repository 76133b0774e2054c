"""`tuner export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.arguments import DebugOption, StorageOption, StudyArgument
from tuner.errors import UsageError
from tuner.output.log import say
from tuner.storage import connected, storage_url


def export(
    study: StudyArgument,
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="Output file: FILE.csv, FILE.json, FILE.parquet or FILE.zip (a bundle)."),
    ],
    trial: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="The trial to bundle (.zip).  [default: the best trial]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Export a study's trials to a file, or one trained model to a self-contained bundle.

    A bundle contains the checkpoint, the hyperparameters, the study's file and package versions. Its run.py evaluates
    the model. Without a trainer, the bundle contains the state that the trial saved, and its files.
    For example: tuner export digits_mlp trials.parquet, or tuner export digits_mlp best.zip --trial 16
    """
    from tuner.results.export import export_bundle, export_trials

    is_bundle = path.suffix.lower() == ".zip"
    if trial is not None and not is_bundle:
        raise UsageError(f"--trial works only with a bundle (.zip): got {str(path)!r}")
    with connected(storage_url(storage)) as engine:
        if is_bundle:
            what = f"trial {export_bundle(engine, study, path, trial, force=force)}"
        else:
            what = f"{export_trials(engine, study, path, force=force)} trials"
    say(f"{what} of {study!r} written to {path}")
