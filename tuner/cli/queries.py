"""`tuner studies`, `trials`, `best` and `show`: reading, without JAX and without Optuna."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.options import DebugOption, Format, FormatOption, StorageOption, StudyArgument
from tuner.errors import UsageError
from tuner.storage import connect, storage_url

if TYPE_CHECKING:
    from sqlalchemy import Engine

Row = dict[str, Any]

_RESULT_COLUMNS = ("number", "outcome", "value", "values", "seconds", "study", "best", "complete", "trials")


@contextmanager
def _engine(storage: str | None) -> Iterator[Engine]:
    engine = connect(storage_url(storage))
    try:
        yield engine
    finally:
        engine.dispose()


def studies(storage: StorageOption = None, format: FormatOption = Format.TABLE, debug: DebugOption = False) -> None:
    """List the studies of a storage."""
    from tuner.results import study_rows

    with _engine(storage) as engine:
        emit(study_rows(engine), format)


def trials(
    study: StudyArgument,
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """List the trials of a study."""
    from tuner.results import trial_rows

    with _engine(storage) as engine:
        emit(trial_rows(engine, study), format)


def best(
    study: StudyArgument,
    count: Annotated[
        int | None,
        typer.Option("-n", metavar="K", help="How many trials; by default one, or the whole Pareto front."),
    ] = None,
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """List the best trials of a study.

    Complete ones only; of a study with several objectives, those of its Pareto front.
    """
    if count is not None and count < 1:
        raise UsageError(f"-n must be at least 1: got {count}")
    with _engine(storage) as engine:
        emit(_best(engine, study, count), format)


def _best(engine: Engine, study: str, count: int | None) -> list[Row]:
    from tuner.results import best_rows

    rows = best_rows(engine, study, count or 1)
    # With several objectives one trial of the front is as arbitrary as any other.
    return best_rows(engine, study, None) if count is None and rows and "values" in rows[0] else rows


def show(
    study: StudyArgument,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="The trial's number.")],
    storage: StorageOption = None,
    format: FormatOption = Format.TABLE,
    debug: DebugOption = False,
) -> None:
    """Show one trial.

    Its hyperparameters, reports by epoch, timings, and error.
    """
    from tuner.results import show_row

    with _engine(storage) as engine:
        row = show_row(engine, study, number)
    if format is Format.TABLE:
        _print_fields(row)
    elif format is Format.JSON:
        print(json.dumps(row, indent=2))
    else:
        emit([row], format)


def print_best(study: str, storage: str | None) -> None:
    """Print the best trial of a study that has just ended."""
    with _engine(storage) as engine:
        rows = _best(engine, study, None)
    if not rows:
        print(f"no trial of {study!r} is complete")
    elif "values" in rows[0]:
        print(f"Pareto front of {study!r}:")
        emit(rows, Format.TABLE)
    else:
        print(f"best trial of {study!r}:")
        _print_fields(rows[0])


def emit(rows: Sequence[Row], format: Format) -> None:
    """Print rows to stdout."""
    if format is Format.JSON:
        print(json.dumps(list(rows), indent=2))
    elif format is Format.CSV:
        print(to_csv(rows), end="")
    else:
        _print_table([_flat(row) for row in rows])


def to_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV with a header; hyperparameters become columns `hparams.NAME`, lists become JSON."""
    flat = [_flat(row, "hparams.") for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()})
    return text.getvalue()


def _flat(row: Row, prefix: str = "") -> Row:
    """Return a row with its hyperparameters as columns of their own."""
    flat: Row = {}
    for key, value in row.items():
        if key == "hparams":
            flat.update({f"{prefix}{name}": hparam for name, hparam in value.items()})
        else:
            flat[key] = value
    return flat


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        print("none")
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    # A column in which nothing is ever seen (no trial diverged, say) only takes room.
    columns = [column for column in columns if any(row.get(column) not in (None, 0) for row in rows)]
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # in a pipe or a file nothing is cut off
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        cells = [row.get(column) for row in rows]
        is_number = any(isinstance(cell, int | float) for cell in cells)
        # On a narrow terminal the hyperparameters are shortened, not the result.
        width = max(len(column), *(len(_text(cell)) for cell in cells)) if column in _RESULT_COLUMNS else None
        table.add_column(Text(column), justify="right" if is_number else "left", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*(Text(_text(row.get(column))) for column in columns))  # a bracket is no markup
    console.print(table)


def _print_attempts(attempts: list[Row]) -> None:
    """Print who ran a trial, if it was more than one run; with the errors of those before the last."""
    if len(attempts) < 2:
        return
    print("attempts")
    for at, attempt in enumerate(attempts, start=1):
        print(f"  {at:<18} {attempt['ending'] or 'running'}, {attempt['worker']}, {_text(attempt['seconds'])} s")
        if attempt["error"] and at < len(attempts):
            print(textwrap.indent(attempt["error"].rstrip(), " " * 21))


def _print_fields(row: Row) -> None:
    for key, value in row.items():
        if key == "hparams":
            print("hparams")
            for name, hparam in value.items():
                print(f"  {name:<{max(18, *map(len, value))}} {_text(hparam)}")
        elif key == "reports" and value:
            print("reports")
            for report in value:
                print(f"  epoch {report['epoch']:<12} {_text(report['value'])}")
        elif key == "attempts":
            _print_attempts(value)
        elif value is not None:
            print(f"{key:<20} {_text(value)}")
