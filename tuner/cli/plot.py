"""`tuner plot`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.options import DebugOption, StorageOption, StudyArgument
from tuner.storage import storage_url


def plot(
    study: StudyArgument,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="history, intermediate, importances, parallel, contour, slice, edf, pareto, timeline, rungs, savings; "
            "or report: a page with all of them.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="FILE.png or FILE.svg, of a report FILE.html; STUDY-KIND.png by default."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Draw a study, for a paper or as one page for the browser that needs nothing else.

    For example: tuner plot digits_mlp history --out history.svg, or tuner plot digits_mlp report --out report.html
    """
    from tuner.plots import plot as draw_plot

    path = out or Path(f"{study.replace('/', '_')}-{kind}.{'html' if kind == 'report' else 'png'}")
    draw_plot(storage_url(storage), study, kind, path, force=force)
    print(f"tuner: {kind} of {study!r} written to {path}", file=sys.stderr)
