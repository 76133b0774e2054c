"""`tuner plot`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.arguments import DebugOption, StorageOption, StudyArgument
from tuner.errors import UsageError
from tuner.output.log import say
from tuner.storage import connect, storage_url


def plot(
    study: StudyArgument,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="history, intermediate, importances, parallel, contour, slice, edf, pareto, timeline, rungs, savings; "
            "picture, which a study draws of a model (Study(picture=...)); or report: a page with all of a study.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="FILE.png or FILE.svg, of a report FILE.html; STUDY-KIND.png by default."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    trial: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="The trial whose model is drawn (picture); the best by default."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The study's file (picture); that the trial ran with by default."),
    ] = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Draw a study, for a paper or as one page for the browser that needs nothing else.

    For example: tuner plot digits_mlp history --out history.svg, or tuner plot digits_mlp report --out report.html, or
    tuner plot digits_simclr picture --trial 7
    """
    path = out or Path(f"{study.replace('/', '_')}-{kind}.{'html' if kind == 'report' else 'png'}")
    what = kind
    if kind == "picture":
        number, has_changed = _draw_picture(storage_url(storage), study, path, trial, file, force)
        what = f"picture of trial {number}"
        if has_changed:
            say(f"the code of {study!r} has changed since trial {number} ran")
    else:
        from tuner.results.plots import plot as draw_plot

        for option, value in (("--trial", trial), ("--file", file)):
            if value is not None:
                raise UsageError(f"{option} is for a picture, which is drawn of a trial's model: got {kind!r}")
        draw_plot(storage_url(storage), study, kind, path, force=force)
    say(f"{what} of {study!r} written to {path}")


def _draw_picture(
    url: str, study: str, path: Path, trial: int | None, file: str | None, force: bool
) -> tuple[int, bool]:
    from tuner.launch.devices import settle
    from tuner.results.model_picture import draw_picture

    settle(os.environ)
    engine = connect(url)
    try:
        return draw_picture(engine, study, path, trial, file=file, force=force)
    finally:
        engine.dispose()
