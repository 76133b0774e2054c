"""Names that are deprecated still work, and warn, until the version that docs/versioning.md says."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

import tuner.study
from tuner.tracking import mlflow_models

ROOT = Path(__file__).parents[2]


def test_the_old_module_of_spaces_warns_and_has_the_same_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tuner.space", raising=False)
    with pytest.warns(DeprecationWarning, match=r"tuner\.space is now tuner\.study; .* removed in 0\.4"):
        old = importlib.import_module("tuner.space")
    for name in old.__all__:
        assert getattr(old, name) is getattr(tuner.study, name)


def test_mlflow_loads_models_of_version_0_1_by_the_old_module() -> None:
    assert importlib.import_module("tuner.registry")._load_pyfunc is mlflow_models._load_pyfunc


def test_nothing_outlives_the_version_that_removes_it() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    page = (ROOT / "docs" / "versioning.md").read_text()
    rows = re.findall(r"(?m)^\| `(tuner\.\w+)`.*\| (\d+)\.(\d+) \|$", page)
    assert {name for name, *_ in rows} == {"tuner.space", "tuner.registry"}
    for name, *removed in rows:
        assert tuple(map(int, version.split(".")[:2])) < tuple(map(int, removed)), f"{name} must go with {version}"
