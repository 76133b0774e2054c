"""Phrases to avoid are found in texts, in strings and over line breaks, and not in names or comments."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_words", ROOT / "scripts" / "check_words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_phrases_of_a_page_are_found_by_line(check: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("All is well.\nFirst mend it, then the\nsame command\nruns. Three is a recommended number.\n")

    assert check.findings(page) == {
        "page.md:2: mend -> fix",
        "page.md:2: the same command runs -> run the same command again to ...",
    }


def test_only_the_strings_of_a_program_are_read(check: ModuleType, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""A docstring: nought."""\n\nnought = f"{1}: to mend {2}"  # mend\n')

    assert check.findings(module) == {"module.py:1: nought -> zero", "module.py:3: mend -> fix"}
