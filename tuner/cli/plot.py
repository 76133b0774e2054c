"""`tuner plot`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.arguments import DebugOption, PreferOption, StorageOption, StudyArgument, check_choice
from tuner.errors import UsageError
from tuner.output.log import say
from tuner.storage import StorageURL, connected, storage_url


def plot(
    study: StudyArgument,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="history, intermediate, importances, parallel, contour, slice, edf, pareto, timeline, rungs, savings, "
            "lineage (who copied whom, with pruner pbt); picture (drawn by Study(picture=...)), report (an HTML page "
            "with all of a study).",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Output file: FILE.png or FILE.svg; FILE.html for a report.  [default: STUDY-KIND.png or .html]",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
    trial: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER", help="For a picture, the trial whose model is drawn.  [default: the best trial]"
        ),
    ] = None,
    prefer: PreferOption = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="For a picture, the study's file.  [default: the file that the trial ran with]"
        ),
    ] = None,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Plot a study as an image, or write a self-contained HTML report.

    For example: tuner plot digits_mlp history --out history.svg, or tuner plot digits_mlp report --out report.html, or
    tuner plot digits_simclr picture --trial 7
    """
    path = out or Path(f"{study.replace('/', '_')}-{kind}.{'html' if kind == 'report' else 'png'}")
    what = kind
    if kind == "picture":
        check_choice(trial, prefer)
        number, has_changed = _draw_picture(storage_url(storage), study, path, trial, prefer, file, force)
        what = f"picture of trial {number}"
        if has_changed:
            say(f"the code of {study!r} has changed since trial {number} ran")
    else:
        from tuner.results.plots import plot as draw_plot

        for option, value in (("--trial", trial), ("--prefer", prefer), ("--file", file)):
            if value is not None:
                raise UsageError(f"{option} works only with a picture: got {kind!r}")
        draw_plot(storage_url(storage), study, kind, path, force=force)
    say(f"{what} of {study!r} written to {path}")


def _draw_picture(
    url: StorageURL, study: str, path: Path, trial: int | None, prefer: str | None, file: str | None, force: bool
) -> tuple[int, bool]:
    from tuner.launch.devices import settle
    from tuner.results.model_picture import draw_picture

    settle(os.environ)
    with connected(url) as engine:
        return draw_picture(engine, study, path, trial, prefer=prefer, file=file, force=force)
