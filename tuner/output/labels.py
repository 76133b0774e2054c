"""Labels the objectives of a row for tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast


def labelled(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row with a column `values.NAME` for each of several objectives instead of `values` and `objectives`.

    Example:
        >>> labelled({"number": 0, "values": [0.9, 12.0], "objectives": ["accuracy", "size"]})
        {'number': 0, 'values.accuracy': 0.9, 'values.size': 12.0}
    """
    if "objectives" not in row:
        return dict(row)
    names = cast("Sequence[str]", row["objectives"])
    values = cast("Sequence[object] | None", row["values"]) or [None] * len(names)
    flat: dict[str, object] = {}
    for name, value in row.items():
        if name == "values":
            flat |= {f"values.{objective}": one for objective, one in zip(names, values, strict=True)}
        elif name != "objectives":
            flat[name] = value
    return flat
