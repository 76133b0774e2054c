"""Filters and sorts rows, for `--where` and `--sort`: `learning_rate<1e-3`, `activation=relu`, `-value`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tuner.errors import UsageError, nearest
from tuner.trial import Outcome

Row = dict[str, Any]

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|!=|==|<|>|=)\s*(.*?)\s*", re.DOTALL)


def filtered(rows: Sequence[Row], conditions: Iterable[str]) -> list[Row]:
    """Return the rows for which all conditions hold.

    Args:
        rows: Rows with columns, and hyperparameters under `hparams`.
        conditions: Each is NAME, one of < <= > >= = !=, and a value. NAME is a column or a hyperparameter; write
            `hparams.NAME` for a hyperparameter with the name of a column. Rows without a value do not match.

    Raises:
        UsageError: a condition is invalid, or no row has the column or hyperparameter.
    """
    kept = list(rows)
    for text in conditions:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise UsageError(f"--where must have the form NAME<VALUE, with < <= > >= = or !=: got {text!r}")
        name, sign, word = match.groups()
        if not word or word[0] in "<>=!":
            raise UsageError(f"--where must have the form NAME<VALUE, with < <= > >= = or !=: got {text!r}")
        _check_known(rows, name, "--where")
        outcomes = [outcome.value for outcome in Outcome]
        if name == "outcome" and word.lower() not in outcomes:
            raise UsageError(f"an outcome must be one of {', '.join(outcomes)}: got {word!r}{nearest(word, outcomes)}")
        if "<" in sign or ">" in sign:
            _check_number(rows, name, word)
        kept = [row for row in kept if _holds(_look_up(row, name), _OPERATORS[sign], sign, word)]
    return kept


def in_order(rows: Sequence[Row], key: str | None) -> list[Row]:
    """Return the rows sorted by a column or hyperparameter, `-NAME` for the largest first; those without it last.

    Raises:
        UsageError: no row has the column or hyperparameter.
    """
    if key is None:
        return list(rows)
    name, is_reversed = key.removeprefix("-"), key.startswith("-")
    _check_known(rows, name, "--sort")
    present = [row for row in rows if _is_there(_look_up(row, name))]
    absent = [row for row in rows if not _is_there(_look_up(row, name))]
    return sorted(present, key=lambda row: _rank(_look_up(row, name)), reverse=is_reversed) + absent


def _check_known(rows: Sequence[Row], name: str, option: str) -> None:
    columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column != "hparams"]
    hparams = list(dict.fromkeys(hparam for row in rows for hparam in row.get("hparams", {})))
    if rows and name not in columns and name.removeprefix("hparams.") not in hparams:
        known = list(dict.fromkeys([*columns, *hparams]))
        raise UsageError(f"{option} must name one of {', '.join(known)}: got {name!r}{nearest(name, known)}")


def _check_number(rows: Sequence[Row], name: str, word: str) -> None:
    """Raise UsageError for < or > with a value that is not a number."""
    values = [value for row in rows if (value := _look_up(row, name)) is not None]
    if _number(word) is None or (values and all(_number(value) is None for value in values)):
        raise UsageError(f"< and > compare numbers only: got {name!r} and {word!r}; use = or != for other values")


def _look_up(row: Row, name: str) -> Any:
    if name in row and name != "hparams":
        return row[name]
    return row.get("hparams", {}).get(name.removeprefix("hparams."))


def _is_there(value: Any) -> bool:
    return value is not None and value != "nan"


def _number(value: Any) -> float | None:
    """Convert a value to a number; rows have NaN and the infinities as text."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _rank(value: Any) -> tuple[int, Any]:
    number = _number(value)
    return (1, str(value)) if number is None or math.isnan(number) else (0, number)


def _holds(value: Any, compare: Callable[[Any, Any], bool], sign: str, word: str) -> bool:
    if value is None:
        return (sign == "!=" and word.lower() != "none") or (sign in ("=", "==") and word.lower() == "none")
    mine, given = _number(value), _number(word)
    if mine is not None and given is not None:
        return compare(mine, given)
    if sign in ("=", "==", "!="):
        return compare(str(value).lower(), word.lower())
    return False  # "relu" is not comparable with 3
