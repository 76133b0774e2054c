"""Conditions of `--where` and `--sort`, against Python's own comparisons."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.errors import UsageError
from tuner.results.filters import filtered, in_order

ROWS: list[dict[str, Any]] = [
    {"number": 0, "value": 0.5, "outcome": "complete", "hparams": {"rate": 1e-3, "kind": "relu", "deep": True}},
    {"number": 1, "value": None, "outcome": "failed", "hparams": {"rate": 1e-4, "kind": "GELU", "deep": False}},
    {"number": 2, "value": "nan", "outcome": "pruned", "hparams": {"rate": 0.1, "value": 7}},
    {"number": 3, "value": "inf", "outcome": "complete", "hparams": {"rate": 5e-4, "kind": None, "value": 3}},
]


@pytest.mark.parametrize(
    ("conditions", "numbers"),
    [
        ([], [0, 1, 2, 3]),
        (["rate<1e-3"], [1, 3]),
        (["rate <= 1e-3 "], [0, 1, 3]),
        (["rate>0.0001", "rate<0.1"], [0, 3]),
        (["hparams.rate=0.1"], [2]),
        (["kind=relu"], [0]),
        (["kind==gelu"], [1]),
        (["kind!=relu"], [1, 2, 3]),
        (["kind=none"], [2, 3]),
        (["kind!=none"], [0, 1]),
        (["deep=true"], [0]),
        (["deep!=true"], [1, 2, 3]),
        (["value<1"], [0]),
        (["value>1"], [3]),
        (["value=inf"], [3]),
        (["value=none"], [1]),
        (["value=nan"], []),
        (["hparams.value>3"], [2]),
        (["hparams.value>=3"], [2, 3]),
        (["outcome=complete", "number>0"], [3]),
        (["outcome!=complete"], [1, 2]),
    ],
)
def test_rows_for_which_all_conditions_hold_are_kept(conditions: list[str], numbers: list[int]) -> None:
    assert [row["number"] for row in filtered(ROWS, conditions)] == numbers


@pytest.mark.parametrize(
    ("key", "numbers"),
    [
        (None, [0, 1, 2, 3]),
        ("rate", [1, 3, 0, 2]),
        ("-rate", [2, 0, 3, 1]),
        ("value", [0, 3, 1, 2]),
        ("-value", [3, 0, 1, 2]),
        ("kind", [1, 0, 2, 3]),
        ("hparams.value", [3, 2, 0, 1]),
        ("-number", [3, 2, 1, 0]),
    ],
)
def test_rows_are_sorted_and_those_without_a_value_come_last(key: str | None, numbers: list[int]) -> None:
    assert [row["number"] for row in in_order(ROWS, key)] == numbers


@given(st.lists(st.floats(allow_nan=False)), st.floats(allow_nan=False))
def test_numbers_compare_as_python_does(values: list[float], limit: float) -> None:
    rows = [{"value": value if math.isfinite(value) else str(value), "hparams": {}} for value in values]
    for sign, expected in (
        ("<", [value < limit for value in values]),
        (">=", [value >= limit for value in values]),
        ("=", [value == limit for value in values]),
        ("!=", [value != limit for value in values]),
    ):
        assert filtered(rows, [f"value{sign}{limit!r}"]) == [
            row for row, is_kept in zip(rows, expected, strict=True) if is_kept
        ]
    assert [float(row["value"]) for row in in_order(rows, "value")] == sorted(values)
    assert [float(row["value"]) for row in in_order(rows, "-value")] == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate", r"`where` must have the form NAME<VALUE, with < <= > >= = or !=: got 'rate'"),
        ("<3", r"`where` must have the form NAME<VALUE"),
        ("", r"`where` must have the form NAME<VALUE"),
        ("rate=<3", r"`where` must have the form NAME<VALUE"),
        ("rate<", r"`where` must have the form NAME<VALUE"),
        ("rate<fast", r"< and > compare numbers only: got 'rate' and 'fast'"),
        ("kind<3", r"< and > compare numbers only: got 'kind' and '3'"),
        ("outcome=completee", r"an outcome must be one of complete, .*: got 'completee'; did you mean 'complete'"),
        ("rat<3", r"`where` must name one of number, value, outcome, rate, kind, deep: got 'rat'; did you mean 'rate'"),
        ("hparams<3", r"`where` must name one of"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        filtered(ROWS, [text])


def test_an_unknown_key_to_sort_by_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`sort` must name one of .*: got 'rates'; did you mean 'rate'"):
        in_order(ROWS, "-rates")
    assert in_order([], "rates") == []
    assert filtered([], ["rates<3"]) == []
