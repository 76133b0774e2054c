"""Prints rows to stdout as a table that fits the terminal, as JSON, or as CSV."""

from __future__ import annotations

import itertools
import json
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from tuner.cli.arguments import Format
from tuner.output.cells import csv_text
from tuner.output.labels import labelled
from tuner.output.log import say
from tuner.output.numbers import as_text, with_error
from tuner.output.sanitize import one_line, printable
from tuner.trial import Outcome

if TYPE_CHECKING:
    from tuner.results.json_rows import AttemptJson, ConfirmedJson, CopyJson, GpuJson, JsonRow, Number, ReportJson
    from tuner.storage.read.lineage import RanWith

_RESULT_COLUMNS = {
    *("number", "outcome", "value", "values", "is_feasible", "mean", "low", "high", "better_by", "seconds"),
    *("stderr", "stderrs", "trained_seeds", "best_stderr"),
    *("study", "state", "best", "median", "complete", "trials", "device_hours", "hours_saved"),
    *("check", "status", "metric", "recorded", "difference", "hparam", "ped_anova", "fanova"),
}
_WORDS = {"found", "advice", "objective", "direction", "reason", "owner", "labels"}
_FOLDED = 24
_CONFIRMED = ("mean", "low", "high", "seeds", "is_tied", "margin", "tied_with")
_BASELINE = ("number", "value", "better_by", "low", "high", "seeds")
_EPOCHS = ("value_epoch", "kept_epoch")
_STDERRS = {"value": "stderr", "values": "stderrs"}
_COUNTS = {*Outcome, "workers"}
_BARS = "▁▂▃▄▅▆▇█"


def emit(rows: Sequence[JsonRow], format: Format) -> None:
    """Print rows to stdout."""
    if format is Format.JSON:
        print(json.dumps(list(rows), indent=2))
    elif format is Format.CSV:
        text = to_csv(rows)
        print(printable(text) if sys.stdout.isatty() else text, end="")
    else:
        _print_table([_flat(row) for row in rows])


def to_csv(rows: Sequence[JsonRow]) -> str:
    """Return rows as CSV with a header; hyperparameters become columns `hparams.NAME`, nested values become JSON."""
    flat = [_flat(row, "hparams.") for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    return csv_text([columns, *([_cell(row.get(column)) for column in columns] for row in flat)])


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _flat(row: JsonRow, prefix: str = "") -> dict[str, object]:
    """Return a row with its hyperparameters, and in CSV its user attributes, as separate columns."""
    flat: dict[str, object] = {}
    for key, value in labelled(row).items():
        nested = cast("JsonRow", value or {})
        if key == "hparams":
            taken = {*row, *_CONFIRMED, "better_by"}
            flat.update({f"{prefix or 'hparams.' * (name in taken)}{name}": hparam for name, hparam in nested.items()})
        elif key == "user_attrs":
            flat.update({f"user_attrs.{name}": one for name, one in nested.items() if prefix})
        elif key == "confirmed":
            hidden = () if prefix else ("tied_with", "margin")
            flat.update({name: nested.get(name) for name in _CONFIRMED if name not in hidden})
        elif key == "baseline" and prefix:
            flat.update({f"baseline.{name}": nested.get(name) for name in _BASELINE})
        elif key == "baseline":
            flat["better_by"] = nested.get("better_by")
        elif key in _EPOCHS and not prefix:
            continue  # `tuner best` says it in a line
        else:
            flat[key] = value
    return flat


def shown(value: object) -> str:
    """Return a value as one line of text for a table, without control characters."""
    return one_line(as_text(value))


def _print_table(rows: Sequence[JsonRow]) -> None:
    """Print rows as a table; on a terminal, hide hyperparameters that do not fit and name them on stderr."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        print("none")
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    columns = [column for column in columns if any(_is_told(column, row.get(column)) for row in rows)]
    widths = {column: max(len(one_line(column)), *(len(shown(row.get(column))) for row in rows)) for column in columns}
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # in a pipe or a file, nothing is truncated
    fitting = _fitting(widths, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in fitting:
        is_number = any(isinstance(row.get(column), int | float) for row in rows)
        # Words may wrap, but not numbers.
        table.add_column(
            Text(one_line(column)), justify="right" if is_number else "left", overflow="fold",
            min_width=widths[column] if is_number or column in _RESULT_COLUMNS else None,
        )  # fmt: skip
    for row in rows:
        table.add_row(*(Text(shown(row.get(column))) for column in fitting))  # brackets are not markup
    console.print(table)
    left_out = [column for column in columns if column not in fitting]
    if left_out:
        say(f"hidden columns: {', '.join(left_out)}")


def _is_told(column: str, value: object) -> bool:
    """Return whether a value makes its column worth showing. A count of 0 diverged trials or no label does not."""
    return value is not None and not (isinstance(value, list) and not value) and not (column in _COUNTS and value == 0)


def _fitting(widths: Mapping[str, int], room: int) -> list[str]:
    """Return the columns that fit; drops hyperparameters from the end."""
    kept = list(widths)
    for column in reversed(list(widths)):
        if sum(min(widths[one], _FOLDED) if one in _WORDS else widths[one] for one in kept) + 2 * len(kept) - 2 <= room:
            break
        if column not in _RESULT_COLUMNS | _WORDS and not column.startswith("values."):
            kept.remove(column)
    return kept


def _print_copies(copies: Sequence[CopyJson] | None) -> None:
    """Print the copies of other trials, with the hyperparameters with which the trial continued."""
    for copy in copies or ():
        settings = ", ".join(f"{one_line(name)}={shown(value)}" for name, value in copy["hparams"].items())
        after = f"epoch {copy['epoch']}"
        print(f"{after:<20} copies trial {copy['trial']}, then {settings}")


def _print_attempts(attempts: Sequence[AttemptJson]) -> None:
    """Print the attempts of a trial, if there are several, with the errors of all but the last."""
    if len(attempts) < 2:
        return
    print("attempts")
    for at, attempt in enumerate(attempts, start=1):
        ending, worker = attempt["ending"] or "running", one_line(attempt["worker"])
        print(f"  {at:<18} {ending}, {worker}, {as_text(attempt['seconds'])} s")
        if attempt["error"] and at < len(attempts):
            print(textwrap.indent(printable(attempt["error"]).rstrip(), " " * 21))


def _print_curves(reports: Sequence[ReportJson]) -> None:
    """Print each metric's curve over the epochs in one line, and its last value."""
    curves: dict[str, list[float]] = {}
    for report in reports:
        alone: dict[str, Number | None] = {"value": report["value"]}
        for name, value in (report["metrics"] or alone).items():
            curves.setdefault(name, []).append(math.nan if value is None else float(value))
    if curves:
        print(f"curves               epochs {reports[0]['epoch']} to {reports[-1]['epoch']}")
    for name, values in curves.items():
        print(f"  {one_line(name):<{max(18, *map(len, curves))}} {sparkline(values)}  {as_text(values[-1])}")


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return a curve as bars; more than `width` values are averaged in equal parts, `!` means no finite value."""
    count = min(width, len(values))
    edges = [len(values) * at // count for at in range(count + 1)]
    parts = [[one for one in values[start:stop] if math.isfinite(one)] for start, stop in itertools.pairwise(edges)]
    means = [math.fsum(one / len(part) for one in part) if part else None for part in parts]
    known = [mean for mean in means if mean is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    top = len(_BARS) - 1
    return "".join(
        "!" if mean is None else _BARS[round(top * ((mean / 2 - low / 2) / (high / 2 - low / 2))) if high > low else 0]
        for mean in means
    )


def _print_confirmed(confirmed: ConfirmedJson | None) -> None:
    if confirmed is not None:
        low, high = as_text(confirmed["low"]), as_text(confirmed["high"])
        print(f"{'with other seeds':<20} {as_text(confirmed['mean'])} [{low}, {high}], {confirmed['seeds']} seeds")


def _print_mean(key: str, row: JsonRow) -> None:
    """Print the value of a trial with several seeds, or its values, with their standard errors."""
    values, stderrs = row[key], row[_STDERRS[key]]
    pairs = zip(values, stderrs, strict=True) if isinstance(values, list) and isinstance(stderrs, list) else None
    text = ", ".join(with_error(*pair) for pair in pairs or [(values, stderrs)])
    print(f"{key:<20} {text}, mean and standard error of {row['trained_seeds']} seeds")


def _print_gpu(row: GpuJson) -> None:
    from tuner.results.gpus import gpu_texts

    for name, text in gpu_texts(row).items():
        print(f"{name:<20} {text}")


def _print_ran_with(about: RanWith) -> None:
    """Print the host, devices, file and versions of the last attempt."""
    for key in ("host", "devices", "file"):
        if about.get(key):
            print(f"{key:<20} {shown(about.get(key))}")
    git = about.get("git")
    if git:
        print(f"{'git':<20} {git['commit'][:12]}{' with changes' if git['is_changed'] else ''}")
    versions = about.get("versions")
    if versions:
        print(f"{'versions':<20} {', '.join(f'{name} {version}' for name, version in versions.items())}")


def print_fields(row: JsonRow) -> None:
    """Print one row, one field per line, without the fields that are None."""
    for key, value in labelled(row).items():
        if key == "hparams" or (key in ("constraints", "user_attrs") and value):
            print(key)
            nested = cast("JsonRow", value)
            for name, hparam in nested.items():
                print(f"  {one_line(name):<{max(18, *map(len, nested))}} {shown(hparam)}")
        elif key == "confirmed":
            _print_confirmed(cast("ConfirmedJson | None", value))
        elif key == "reports":
            _print_curves(cast("list[ReportJson]", value))
        elif key == "copies":
            _print_copies(cast("list[CopyJson] | None", value))
        elif key == "attempts":
            _print_attempts(cast("list[AttemptJson]", value))
        elif key == "gpu" and value:
            _print_gpu(cast("GpuJson", value))
        elif key == "ran_with" and value:
            _print_ran_with(cast("RanWith", value))
        elif key in _STDERRS and row.get(_STDERRS[key]) is not None:
            _print_mean(key, row)
        elif key == "trained_seeds" and (row.get("stderr") or row.get("stderrs")) is not None:
            continue  # it is said with the value
        elif value is not None and key not in ("ran_with", "user_attrs", *_EPOCHS, *_STDERRS.values()):
            print(f"{key:<20} {printable(as_text(value))}")
