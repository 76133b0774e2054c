"""Encodes numbers that JSON and SQL do not support: NaN and the infinities."""

from __future__ import annotations

import math

from tuner.output.numbers import plain

_KINDS = {"NAN": math.nan, "INF_POS": math.inf, "INF_NEG": -math.inf}


def stored_number(value: float) -> tuple[float | None, str]:
    """Return a float as Optuna stores it: finite floats as numbers, others as a type."""
    value = float(value)  # psycopg2 does not support NumPy numbers
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"


def loaded_number(value: float | None, kind: str) -> float:
    """Return the float for a stored number and type."""
    return _KINDS.get(kind, math.nan if value is None else value)


def encode_metric(value: float) -> float | str:
    """Return a metric as JSON supports it: NaN and infinities as text."""
    return plain(float(value))


def decode_metric(value: float | str) -> float:
    """Return the metric from the result of `encode_metric`."""
    return float(value)
