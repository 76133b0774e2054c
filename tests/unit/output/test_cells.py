"""Cells of CSV files: no formula is left, numbers stay numbers, and every text reads back equal."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuner.output.cells import plain_cell, safe_cell

STARTS = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1+1", "'+1+1"),
        ("-1+1", "'-1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1+1", "'\t=1+1"),
        ("\r=1+1", "'\r=1+1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("-", "'-"),
        ("'=1+1", "''=1+1"),
        ("'-1", "''-1"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("-inf", "-inf"),
        ("-.5", "-.5"),
        ("-1_0", "'-1_0"),
        ("it's", "it's"),
        ("'quoted'", "'quoted'"),
        ("a=1", "a=1"),
        ("", ""),
    ],
)
def test_cells_by_hand(value: str, cell: str) -> None:
    assert safe_cell(value) == cell
    assert plain_cell(cell) == value


@pytest.mark.parametrize("value", [-0.5, -1, None, True, ["=1"], float("-inf")])
def test_what_is_no_text_stays_as_it_is(value: object) -> None:
    assert safe_cell(value) is value


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(STARTS + "'0.5")), min_size=1))
@example(["'" * 3 + "-1", "-1", "'-1", "\r", "\n=", "\0"])
def test_files_read_back_equal_and_have_no_formulas(texts: list[str]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([[safe_cell(text), "end"] for text in texts])
    file.seek(0)

    cells = [row[0] for row in csv.reader(file)]

    assert [plain_cell(cell) for cell in cells] == texts
    for cell in cells:
        if cell[:1] and cell[0] in STARTS:
            float(cell)  # a number; everything else raises
