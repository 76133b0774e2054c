"""Conditions on rows, for listing trials: `learning_rate<1e-3`, `activation=relu`, `-value`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from tuner.errors import UsageError, nearest
from tuner.results.json_rows import JsonRow
from tuner.trial import Outcome

_Row = TypeVar("_Row", bound=Mapping[str, object])

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


def filtered(
    rows: Iterable[_Row], conditions: Iterable[str], columns_of: Callable[[_Row], JsonRow] = lambda row: row
) -> list[_Row]:
    """Return the rows for which all conditions hold.

    Args:
        rows: Rows with columns and, under `hparams`, hyperparameters.
        conditions: Each is NAME, one of < <= > >= = !=, and a value. NAME is a column or a hyperparameter; write
            `hparams.NAME` for a hyperparameter with the name of a column. A row without a value does not match.
        columns_of: Returns the columns of a row.

    Raises:
        UsageError: a condition is invalid, or no row has such a column or hyperparameter.
    """
    kept = [(row, columns_of(row)) for row in rows]
    seen = [columns for _, columns in kept]
    for text in conditions:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise UsageError(f"`where` must have the form NAME<VALUE, with < <= > >= = or !=: got {text!r}")
        name, sign, word = match.groups()
        if not word or word[0] in "<>=!":
            raise UsageError(f"`where` must have the form NAME<VALUE, with < <= > >= = or !=: got {text!r}")
        _check_known(seen, name, "`where`")
        outcomes = [outcome.value for outcome in Outcome]
        if name == "outcome" and word.lower() not in outcomes:
            raise UsageError(f"an outcome must be one of {', '.join(outcomes)}: got {word!r}{nearest(word, outcomes)}")
        if "<" in sign or ">" in sign:
            _check_number(seen, name, word)
        kept = [pair for pair in kept if _holds(_look_up(pair[1], name), _OPERATORS[sign], sign, word)]
    return [row for row, _ in kept]


def in_order(
    rows: Iterable[_Row], key: str | None, columns_of: Callable[[_Row], JsonRow] = lambda row: row
) -> list[_Row]:
    """Return the rows sorted by a column or hyperparameter, `-NAME` for the largest first; those without it last.

    Args:
        rows: Rows with columns and, under `hparams`, hyperparameters.
        key: What to sort by; None leaves them as they are.
        columns_of: Returns a row as the key is to see it.

    Raises:
        UsageError: no row has it.
    """
    if key is None:
        return list(rows)
    name, is_reversed = key.removeprefix("-"), key.startswith("-")
    seen = [(row, columns_of(row)) for row in rows]
    _check_known([columns for _, columns in seen], name, "`sort`")
    found = [(row, _look_up(columns, name)) for row, columns in seen]
    present = sorted(
        (pair for pair in found if _is_there(pair[1])), key=lambda pair: _rank(pair[1]), reverse=is_reversed
    )
    return [row for row, _ in (*present, *(pair for pair in found if not _is_there(pair[1])))]


def picked(rows: Sequence[JsonRow], names: Sequence[str]) -> list[JsonRow]:
    """Return some columns or hyperparameters of rows, in this order; None where a row does not have one.

    Args:
        rows: Rows with columns and, under `hparams`, hyperparameters.
        names: Their names.

    Raises:
        UsageError: no row has such a column or hyperparameter.
    """
    for name in names:
        _check_known(rows, name, "`columns`")
    return [{name: _look_up(row, name) for name in names} for row in rows]


def _hparams_in(row: JsonRow) -> Mapping[str, object]:
    return cast("Mapping[str, object]", row.get("hparams", {}))


def _check_known(rows: Sequence[JsonRow], name: str, option: str) -> None:
    columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column != "hparams"]
    hparams = list(dict.fromkeys(hparam for row in rows for hparam in _hparams_in(row)))
    if rows and name not in columns and name.removeprefix("hparams.") not in hparams:
        known = list(dict.fromkeys([*columns, *hparams]))
        raise UsageError(f"{option} must name one of {', '.join(known)}: got {name!r}{nearest(name, known)}")


def _check_number(rows: Sequence[JsonRow], name: str, word: str) -> None:
    """Raise UsageError for < or > with a value that is not a number."""
    values = [value for row in rows if (value := _look_up(row, name)) is not None]
    if _number(word) is None or (values and all(_number(value) is None for value in values)):
        raise UsageError(f"< and > compare numbers only: got {name!r} and {word!r}; use = or != for other values")


def _look_up(row: JsonRow, name: str) -> object:
    if name in row and name != "hparams":
        return row[name]
    return _hparams_in(row).get(name.removeprefix("hparams."))


def _is_there(value: object) -> bool:
    return value is not None and value != "nan"


def _number(value: object) -> float | None:
    """Convert a value to a number; rows have NaN and the infinities as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _rank(value: object) -> tuple[int, float, str]:
    number = _number(value)
    return (1, 0.0, str(value)) if number is None or math.isnan(number) else (0, number, "")


def _holds(value: object, compare: Callable[[Any, Any], bool], sign: str, word: str) -> bool:
    if value is None:
        return (sign == "!=" and word.lower() != "none") or (sign in ("=", "==") and word.lower() == "none")
    mine, given = _number(value), _number(word)
    if mine is not None and given is not None:
        return compare(mine, given)
    if sign in ("=", "==", "!="):
        return compare(str(value).lower(), word.lower())
    return False  # "relu" is not comparable with 3
