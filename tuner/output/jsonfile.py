"""JSON files that can contain NaN and infinities and are replaced atomically. Does not import JAX."""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LOOKS_NOT_FINITE = re.compile(r"\\*(NaN|-?Infinity)")


def write_json(path: str | Path, value: object) -> None:
    """Write a value as valid JSON, atomically: a reader sees the old file or the new one.

    Args:
        path: The file; its folder must exist.
        value: As in `to_json`.

    Raises:
        TypeError: JSON does not support the value.
    """
    path, text = Path(path), json.dumps(to_json(value), allow_nan=False)
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        scratch.write_text(text, encoding="utf-8")
        sync(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    sync(path.parent)


def read_json(path: str | Path) -> Any:
    """Read a file written by `write_json`.

    Args:
        path: The file.

    Returns:
        The value; tuples become lists.
    """
    return from_json(json.loads(Path(path).read_text(encoding="utf-8")))


def to_json(value: Any) -> Any:
    """Convert a value so that `json.dumps` writes it without loss.

    Args:
        value: Mappings with string keys, lists, tuples, texts, numbers, arrays of one number. NaN and the infinities
            become the strings "NaN", "Infinity" and "-Infinity"; strings that look like these get a backslash.

    Raises:
        TypeError: A key is not a string.
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value).replace("inf", "Infinity").replace("nan", "NaN")
    if isinstance(value, str):
        return "\\" + value if _LOOKS_NOT_FINITE.fullmatch(value) else value
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"keys of JSON must be strings: got {wrong[0]!r}")
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if getattr(value, "ndim", None) == 0:
        return to_json(value.item())
    return value


def from_json(value: object) -> Any:
    """Convert the result of `to_json` back; tuples become lists."""
    if isinstance(value, str):
        is_escaped = value.startswith("\\") and _LOOKS_NOT_FINITE.fullmatch(value)
        return value[1:] if is_escaped else _NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: from_json(part) for key, part in value.items()}
    return [from_json(part) for part in value] if isinstance(value, list) else value


def sync(path: Path) -> None:
    """Flush a file's content, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
