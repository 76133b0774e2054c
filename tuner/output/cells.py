"""Cells of CSV files that a spreadsheet program does not run as formulas."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Characters that start a formula in Excel, LibreOffice or Google Sheets, with wide forms that some accept.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_ESCAPED = re.compile(r"'+[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf|infinity|nan)", re.IGNORECASE)


def safe_cell(value: object) -> Any:
    """Return a value as a CSV cell; text that a spreadsheet would run as a formula gets an apostrophe in front.

    That is text that begins with `=`, `+`, `-`, `@`, a tab or a line break, and is not a number. Text that begins with
    apostrophes before one of these gets one more, so that `plain_cell` restores every text. All other values are
    returned unchanged.

    Example:
        >>> [safe_cell(value) for value in ("=1+1", "-0.5", -0.5, "it's", None)]
        ["'=1+1", '-0.5', -0.5, "it's", None]
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def plain_cell(text: str) -> str:
    """Return the original text of a cell from `safe_cell`."""
    return text[1:] if _ESCAPED.match(text) else text


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as the text of a CSV file, every cell safe for a spreadsheet.

    Lines end with a line feed, as other commands expect. A cell with any kind of line break is quoted, so that readers
    restore it.
    """
    lines = []
    for row in rows:
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow([safe_cell(value) for value in row])
        lines.append(line.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)
