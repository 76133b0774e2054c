"""What the documents say, held against the code."""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tuner
from tuner import methods, models, training

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


def public_names() -> dict[str, object]:
    """What docs/api.md must describe, by the name it has there."""
    found = {name: getattr(tuner, name) for name in tuner.__all__ if name != "errors"}
    return found | {name: getattr(module, name) for module in (training, models, methods) for name in module.__all__}


def docstrings(name: str, item: object) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of a function or a class, and of what is public in it."""
    yield name, (inspect.getdoc(item) or "") if callable(item) else ""
    for key, member in vars(item).items() if inspect.isclass(item) else ():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        is_own = inspect.isfunction(function) and function.__module__.startswith("tuner.")
        if is_own and not key.startswith("_") and function.__doc__:
            yield f"{name}.{key}", inspect.cleandoc(function.__doc__)


def test_the_api_page_has_every_public_docstring() -> None:
    page = (ROOT / "docs" / "api.md").read_text().replace("```python", "```")

    def words_of(text: str) -> str:
        return " ".join(re.findall(r"\w+", text))

    for public, item in public_names().items():
        part = page.partition(f"\n### {public}\n")[2].partition("\n### ")[0]
        assert part, f"docs/api.md must have {public}"
        for name, text in docstrings(public, item):
            text = re.sub(r"(?m)^Args:$", "Parameters:", text)
            assert words_of(text) in words_of(part), f"docs/api.md must have the docstring of {name}"


@pytest.mark.parametrize(
    "page", ["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)]+))?\)", (ROOT / page).read_text()):
        if "://" in target:
            continue
        linked = (ROOT / page).parent / target if target else ROOT / page
        assert linked.exists(), f"{page} links {target}, which is not there"
        if heading:
            headings = re.findall(r"(?m)^#+ (.*)$", linked.read_text())
            anchors = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings]
            assert heading in anchors, f"{page} links #{heading} of {target}, which has {', '.join(anchors)}"


def texts_of_the_program() -> Iterator[str]:
    """Every text in the program, with `...` for what is filled in."""
    for path in (ROOT / "tuner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_what_the_page_on_failures_says_is_seen_is_in_the_program() -> None:
    rows = re.findall(r"(?m)^\| (.+?) \| .+\|$", (ROOT / "docs" / "guide" / "failures.md").read_text())
    seen = [span for row in rows for span in re.findall(r"`([^`]+)`", row) if not span.startswith("tuner ")]
    assert len(seen) > 20
    program = list(texts_of_the_program())
    for span in seen:
        # Numbers and names are filled in; what follows a colon is an error's own text.
        pieces = re.split(r"\.\.\.|\b\d+\b|SIGKILL|ValueError", span)
        is_there = any(all(piece.strip() in text for piece in pieces) for text in program)
        assert is_there, f"docs/guide/failures.md quotes {span!r}, which the program does not say"


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
        assert name == project["name"] or re.search(rf"(?mi)^{name}==", pins), f"constraints.txt must pin {name}"


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
