"""`tuner watch`: follow a running study from any machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.arguments import DebugOption, StorageOption, StudyArgument
from tuner.cli.printing import shown
from tuner.errors import StorageLost, UsageError
from tuner.output.labels import labelled
from tuner.output.log import clean
from tuner.output.numbers import with_error
from tuner.output.sanitize import one_line, printable
from tuner.storage import connected, storage_url

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from tuner.results.json_rows import JsonRow, StudyJson, WatchedJson

_LAST = 5


def watch(
    study: StudyArgument,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="Seconds between updates.")] = 2.0,
    storage: StorageOption = None,
    debug: DebugOption = False,
) -> None:
    """Watch a running study, on any machine.

    On a terminal, shows a live table of counts, the best trial, the workers and the latest finished trials; elsewhere,
    prints one line per change. Exits when the study is finished, or on Ctrl-C.
    For example: tuner watch digits_mlp --storage postgresql+psycopg2://tuner@db/tuner
    """
    from rich.console import Console
    from rich.live import Live

    from tuner.results.rows import progress, progress_line

    if not every > 0:
        raise UsageError(f"--every must be above 0: got {every}")
    console = Console()
    said = ""
    with (
        connected(storage_url(storage)) as engine,
        Live(console=console, auto_refresh=False, transient=False) as live,
    ):
        while True:
            try:
                state = progress(engine, study, _LAST)
            except StorageLost as error:  # perhaps unreachable for a moment
                live.console.print(f"tuner: {clean(str(error))}", markup=False, highlight=False, soft_wrap=True)
                time.sleep(every)
                continue
            if console.is_terminal:
                live.update(draw(state), refresh=True)
            elif (line := progress_line(state["study"])) != said:
                said = line
                print(printable(line), flush=True)
            if state["study"]["state"] == "finished" and not state["workers"]:
                return
            time.sleep(every)


def draw(state: WatchedJson) -> Group:
    """Return the progress of a study as tables."""
    from rich.console import Group
    from rich.text import Text

    from tuner.results.rows import shown_counts

    row = state["study"]
    summary = {"state": row["state"], **shown_counts(row), **_best(row)}
    parts: list[Any] = [Text(one_line(f"study {row['study']}"), style="bold"), _table([summary])]
    if row["reason"]:
        parts += [Text(""), Text(one_line(row["reason"]))]
    if state["workers"]:
        parts += [Text(""), _table(state["workers"])]
    if state["ended"]:
        parts += [Text(""), _table([labelled(row) for row in state["ended"]])]
    return Group(*parts)


def _best(row: StudyJson) -> dict[str, str]:
    return {f"best {row['objective'] or ''}".rstrip(): with_error(row["best"], row.get("best_stderr"))}


def _table(rows: Sequence[JsonRow]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        table.add_column(Text(one_line(column)), no_wrap=True)
    for row in rows:
        table.add_row(*(Text(shown(row[column])) for column in rows[0]))
    return table
