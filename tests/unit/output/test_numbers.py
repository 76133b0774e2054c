"""Numbers as text: what JSON lacks, and durations; checks of numbers, and the pauses between tries."""

import json
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.errors import is_int, is_number
from tuner.output.numbers import duration, plain, plain_json
from tuner.storage.sql.backoff import Backoff


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.44, "0.4 s"),
        (9.44, "9.4 s"),
        (9.6, "10 s"),
        (-3.0, "0 s"),
        (42, "42 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (60, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (3600, "1 h 0 min"),
        (7859, "2 h 10 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.integers(0, 10**6))
def test_a_duration_loses_less_than_its_last_unit(seconds: int) -> None:
    words = duration(seconds).split()
    units = {"s": 1, "min": 60, "h": 3600}
    told = sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert 0 <= seconds - told < units[words[-1]]


def test_what_json_lacks_becomes_text_that_float_reads() -> None:
    assert [plain(value) for value in (nan, inf, -inf)] == ["nan", "inf", "-inf"]
    assert [float(plain(value)) for value in (inf, -inf, 0.1)] == [inf, -inf, 0.1]
    assert plain(np.float64("inf")) == "inf"
    kept: list[Any] = [None, True, 3, 0.1, "nan", [nan]]
    assert all(plain(value) is value for value in kept)


def test_every_number_of_a_structure_is_one_that_json_has() -> None:
    found = plain_json({"a": (nan, {"b": [inf, 1]}), 3: None, "c": "text"})
    assert found == {"a": ["nan", {"b": ["inf", 1]}], "3": None, "c": "text"}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "integer", "number"),
    [(3, True, True), (0.5, False, True), (nan, False, True), (True, False, False), ("3", False, False)],
)
def test_true_is_neither_an_integer_nor_a_number(value: object, integer: bool, number: bool) -> None:
    assert (is_int(value), is_number(value)) == (integer, number)


def test_pauses_double_to_a_limit_and_begin_again_after_a_success() -> None:
    pauses = Backoff(0.5, 8.0)
    for limit_s in (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0):
        assert limit_s / 2 <= pauses.next_s() <= limit_s
    pauses.reset()
    assert pauses.next_s() <= 0.5


def test_pauses_of_processes_that_failed_together_differ() -> None:
    assert len({Backoff(1.0, 1.0).next_s() for _ in range(20)}) > 10
