"""Which versions are supported: pyproject.toml, constraints.txt, CI and the documents say the same."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tuner.admin.doctor import _NEEDED_DRIVERS, _OLDEST_DRIVERS

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = [named.rpartition(" ")[2] for named in PROJECT["classifiers"] if "Python :: 3." in named]
NOT_TESTED = "3.14"


def pins(python: str) -> dict[str, Version]:
    """Return the version of each package in constraints.txt on Linux with this Python; each is pinned once."""
    place = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is not None and not pin.marker.evaluate(place):
            continue
        (only,) = pin.specifier
        assert only.operator == "=="
        assert canonicalize_name(pin.name) not in found, f"constraints.txt pins {pin.name} twice for Python {python}"
        found[canonicalize_name(pin.name)] = Version(only.version)
    return found


def requirements(*extras: str) -> Iterator[Requirement]:
    for text in [*PROJECT["dependencies"], *(one for extra in extras for one in EXTRAS[extra])]:
        if not text.startswith(PROJECT["name"]):
            yield Requirement(text)


@pytest.mark.parametrize("python", PYTHONS)
def test_each_python_has_one_pin_of_each_requirement_within_its_limits(python: str) -> None:
    pinned = pins(python)
    for needed in requirements("test", "docs", "dev", "mlflow"):
        version = pinned.get(canonicalize_name(needed.name))
        assert version is not None, f"constraints.txt must pin {needed.name} for Python {python}"
        assert version in needed.specifier, f"{needed.name}: {version} is not within {needed.specifier}"
    assert pinned["jax"] == pinned["jaxlib"]


def test_the_pins_reach_the_newest_versions_that_are_supported() -> None:
    assert [pins(python)["jax"].release[:2] for python in PYTHONS] == [(0, 10), (0, 12), (0, 12), (0, 12)]
    assert {pins(python)["sqlalchemy"].release[:2] for python in PYTHONS} == {(2, 1)}


def test_python_versions_are_the_same_everywhere() -> None:
    assert PYTHONS == ["3.11", "3.12", "3.13", NOT_TESTED]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == [one for one in PYTHONS if one != NOT_TESTED]
    row = f"| Python | {', '.join(PYTHONS)} | each of them but {NOT_TESTED} |"
    assert row in (ROOT / "docs" / "versioning.md").read_text()


def test_jax_versions_are_those_of_the_documents() -> None:
    (jax,) = (one for one in requirements() if one.name == "jax")
    assert str(jax.specifier) == "<0.13,>=0.9"
    assert (
        "| JAX | 0.9, 0.10, and 0.11, 0.12 on Python 3.12 or newer |" in (ROOT / "docs" / "versioning.md").read_text()
    )


def test_the_extras_of_cuda_and_the_drivers_that_they_need() -> None:
    assert {name: EXTRAS[name] for name in EXTRAS if "cuda" in name} == {
        "cuda": [f"{PROJECT['name']}[cuda13]"], "cuda12": ["jax[cuda12]"], "cuda13": ["jax[cuda13]"],
    }  # fmt: skip
    assert _OLDEST_DRIVERS == {"cuda13": 580, "cuda12": 525}
    places = ["README.md", "CHANGELOG.md", "Dockerfile", "docs/versioning.md", "docs/guide/first-study.md"]
    for text in [_NEEDED_DRIVERS, *((ROOT / place).read_text() for place in places)]:
        assert all(re.search(rf"\b{driver}\b", text) for driver in _OLDEST_DRIVERS.values())


@pytest.mark.slow
def test_no_text_of_the_program_has_a_postgres_url_that_other_tools_take_for_psycopg_3() -> None:
    for path in (ROOT / "tuner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "postgresql://" not in node.value, f"{path}:{node.lineno} must say postgresql+psycopg2://"


def test_commands_of_the_documents_name_psycopg2_but_for_postgres_own_programs() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docker-compose.yml"]
    lines = [line for page in pages for line in page.read_text().splitlines()]
    assert any("postgresql+psycopg2://" in line for line in lines)
    for line in lines:
        if re.search(r"\bpostgresql://[\w.]*[@.]", line):
            assert re.match(r"(psql|pg_dump|pg_restore) ", line), f"must say postgresql+psycopg2://: {line}"
            assert "+psycopg2" not in line
        elif re.match(r"(psql|pg_dump|pg_restore) ", line):
            assert "TUNER_STORAGE" not in line, f"{line}: psql and its like do not take what tuner is given"
