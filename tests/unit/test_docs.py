"""What the documents say, held against the code."""

import re
import tomllib
from pathlib import Path

import pytest

import tuner

ROOT = Path(__file__).parent.parent.parent


def test_the_public_names_are_importable_and_few() -> None:
    assert tuner.__all__ == sorted(tuner.__all__)
    assert len(tuner.__all__) < 20
    for name in tuner.__all__:
        assert getattr(tuner, name) is not None
    public = {name for name in vars(tuner) if not name.startswith("_")}
    modules = {path.stem for path in (ROOT / "tuner").iterdir()}
    assert public - modules == set(tuner.__all__) - modules


def test_the_architecture_page_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "tuner").iterdir():
        if path.name.startswith("__") or path.name == "py.typed":
            continue
        name = f"tuner/{path.name}/" if path.is_dir() else f"tuner/{path.name}"
        assert f"`{name}`" in page, f"docs/architecture.md must have a row for {name}"
    for name in set(re.findall(r"`((?:[\w]+/)*\w+\.py)[`:]", page)):
        found = [ROOT / name, ROOT / "tuner" / name]
        assert any(path.exists() for path in found), f"docs/architecture.md names {name}, which is not there"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links {target}, which is not there"


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert "pip install -c constraints.txt -e . && tuner launch studies/digits_mlp.py" in lines
    assert "pip install -c constraints.txt -e '.[test]' && python -m pytest" in lines


def test_every_requirement_is_pinned_without_an_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (ROOT / "constraints.txt").read_text()
    assert "://" not in re.sub(r"(?m)^#.*$", "", pins)
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["test"], *extras["dev"], *extras["mlflow"]]:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert name == "tuner" or re.search(rf"(?mi)^{name}==", pins), f"constraints.txt must pin {name}"


def test_the_systems_page_links_what_exists() -> None:
    text = (ROOT / "docs" / "systems.md").read_text()
    for name in re.findall(r"`((?:tuner|tests|studies|benchmarks|docs)/[\w./]+)`", text):
        assert (ROOT / name).exists(), f"docs/systems.md names {name}, which is not there"


def test_changelog_has_an_unreleased_section() -> None:
    assert "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_page_on_the_trainer_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/training.md", "exec"), names)
    said = capsys.readouterr().out
    for told in re.findall(r"print\(error\)  # (.*)", page):
        assert told in said
