"""`tuner export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.arguments import DebugOption, PreferOption, StorageOption, StudyArgument, check_choice
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
    prefer: PreferOption = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A copy of the study's file, for the bundle.  [default: the file that the trial ran with]",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Export a study's trials to a file, or one trained model to a self-contained bundle.

    A bundle contains the checkpoint, the hyperparameters, the study's file and package versions. Its predict.py
    predicts from a file of inputs, and its run.py evaluates the model. Without a trainer, the bundle contains the state
    that the trial saved, and its files.
    For example: tuner export digits_mlp trials.parquet, or tuner export digits_mlp best.zip --trial 16
    """
    from tuner.results.bundle import export_bundle
    from tuner.results.export import export_trials

    is_bundle = path.suffix.lower() == ".zip"
    for option, value in (("--trial", trial), ("--prefer", prefer), ("--file", file)):
        if value is not None and not is_bundle:
            raise UsageError(f"{option} works only with a bundle (.zip): got {str(path)!r}")
    check_choice(trial, prefer)
    with connected(storage_url(storage)) as engine:
        if is_bundle:
            number = export_bundle(engine, study, path, trial, prefer=prefer, file=file, force=force)
            what = f"trial {number}"
        else:
            what = f"{export_trials(engine, study, path, force=force)} trials"
    say(f"{what} of {study!r} written to {path}")
