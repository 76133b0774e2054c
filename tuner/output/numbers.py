"""Numbers as text: NaN and the infinities, which JSON lacks, and durations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast


def plain(value: object) -> Any:
    """Return a value in a form that JSON supports: NaN and the infinities as `nan`, `inf` and `-inf`."""
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def plain_json(value: object) -> Any:
    """Return a value with every number in it converted by `plain`, mappings as dicts and tuples as lists."""
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(key): plain_json(part) for key, part in items}
    if isinstance(value, list | tuple):
        return [plain_json(part) for part in cast("list[object]", value)]
    return plain(value)


def duration(seconds: float) -> str:
    """Return a readable duration: `0 s`, `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    seconds = max(seconds, 0.0)
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def with_error(value: object, stderr: object) -> str:
    """Return a value as text, with the standard error of a mean if there is one: `0.98886 ± 0.0021`."""
    return as_text(value) if stderr is None else f"{as_text(value)} ± {float(str(stderr)):.2g}"


def as_text(value: object) -> str:
    """Return a value as text for a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(as_text(item) for item in value)
    return str(value)
