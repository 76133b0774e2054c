"""JSON files: what is not finite comes back, and a write that fails leaves the old file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tuner.output import jsonfile as module
from tuner.output.jsonfile import read_json, write_json

NAN, INF = math.nan, math.inf


def test_json_holds_what_is_not_finite(tmp_path: Path) -> None:
    value = {"a": [NAN, INF, -INF, 1.5, None, True], "NaN": {"s": ["NaN", "\\NaN", "-Infinity", "\\", "nan", "é"]}}
    write_json(tmp_path / "x.json", {**value, "t": (np.float32(2.5), jnp.asarray(NAN), np.int64(3))})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    found = read_json(tmp_path / "x.json")
    assert found["t"][0] == 2.5
    assert math.isnan(found["t"][1])
    assert found["t"][2] == 3
    assert math.isnan(found["a"].pop(0))
    assert found.pop("t")
    value["a"].pop(0)
    assert found == value


def test_a_failed_write_leaves_the_old_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, 2)
    monkeypatch.undo()
    assert read_json(path) == 1
    assert os.listdir(tmp_path) == ["x.json"]
    with path.open() as old:
        write_json(path, 3)
        assert (old.read(), read_json(path)) == ("1", 3)
