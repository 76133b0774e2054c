"""The version is the same everywhere; deprecated names work until the version that docs/versioning.md says."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

import tuner.study
from tuner.cli import main
from tuner.tracking import mlflow_models

ROOT = Path(__file__).parents[3]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_command_prints_the_installed_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {"tuner-jax": "4.5.6"}.__getitem__)
    monkeypatch.setattr(sys, "argv", ["tuner", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().out) == (0, "tuner 4.5.6\n")


def test_without_an_installation_there_is_no_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(sys, "argv", ["tuner", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "tuner-jax is not installed" in capsys.readouterr().err


def test_the_changelog_has_this_version_with_its_date() -> None:
    (latest, *_) = re.findall(r"(?m)^## (\d.*)$", (ROOT / "CHANGELOG.md").read_text())
    assert re.fullmatch(rf"{re.escape(VERSION)} \(\d{{4}}-\d\d-\d\d\)", latest)


def test_the_old_module_of_spaces_warns_and_has_the_same_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tuner.space", raising=False)
    with pytest.warns(DeprecationWarning, match=r"tuner\.space is now tuner\.study; .* removed in 0\.4"):
        old = importlib.import_module("tuner.space")
    for name in old.__all__:
        assert getattr(old, name) is getattr(tuner.study, name)


def test_mlflow_loads_models_of_version_0_1_by_the_old_module() -> None:
    assert importlib.import_module("tuner.registry")._load_pyfunc is mlflow_models._load_pyfunc


def test_nothing_outlives_the_version_that_removes_it() -> None:
    page = (ROOT / "docs" / "versioning.md").read_text()
    rows = re.findall(r"(?m)^\| `(tuner\.\w+)`.*\| (\d+)\.(\d+) \|$", page)
    assert {name for name, *_ in rows} == {"tuner.space", "tuner.registry"}
    for name, *removed in rows:
        assert tuple(map(int, VERSION.split(".")[:2])) < tuple(map(int, removed)), f"{name} must go with {VERSION}"
