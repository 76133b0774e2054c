"""What the documents say, held against the code."""

import ast
import datetime as dt
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tuner
from tuner import errors, launch, methods, models, search, study, training, trial
from tuner.training import nnx_layers

ROOT = Path(__file__).parents[3]


def test_the_public_names_are_importable_and_few() -> None:
    assert tuner.__all__ == sorted(tuner.__all__)
    assert len(tuner.__all__) < 20
    for name in tuner.__all__:
        assert getattr(tuner, name) is not None
    public = {name for name in vars(tuner) if not name.startswith("_")}
    modules = {path.stem for path in (ROOT / "tuner").iterdir()}
    assert public - modules == set(tuner.__all__) - modules


def test_the_architecture_page_names_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "tuner").iterdir():
        if path.name.startswith("__") or path.name == "py.typed":
            continue
        names = [f"`{path.name}/`"] if path.is_dir() else [f"`{path.name}`", f"`tuner/{path.name}`"]
        assert any(name in page for name in names), f"docs/architecture.md must have a row for {path.name}"
    for name in set(re.findall(r"`((?:[\w]+/)*\w+\.py)[`:]", page)):
        found = [ROOT / name, *(ROOT / "tuner").rglob(name)]
        assert any(path.exists() for path in found), f"docs/architecture.md names {name}, which is not there"


def public_parts() -> Iterator[tuple[str, list[str]]]:
    """Yield what the pages of docs/reference/ describe: a module, class or function, and the members chosen of it."""
    for path in sorted((ROOT / "docs" / "reference").glob("*.md")):
        part = r"(?m)^::: ([\w.]+)(?:\n    options: {members: \[([\w, ]+)\])?"
        for name, chosen in re.findall(part, path.read_text()):
            yield name, chosen.split(", ") if chosen else []


def public_names() -> dict[str, object]:
    """What the reference describes, by the name it has there."""
    found: dict[str, object] = {}
    for name, chosen in public_parts():
        item = pkgutil.resolve_name(name)
        if inspect.ismodule(item):
            found |= {f"{name}.{member}": getattr(item, member) for member in chosen or item.__all__}
        else:
            found[name] = item
    return found


def test_the_reference_has_every_public_module_and_name() -> None:
    public = [tuner, training, nnx_layers, models, methods, search, study, trial, launch, errors]
    assert {name for name, _ in public_parts()} >= {module.__name__ for module in public}
    shown = [name for name, item in public_names().items() if not inspect.ismodule(item)]
    assert len(shown) > 100
    for name in shown:
        module, _, member = name.rpartition(".")
        # Static analysis takes such a name for the submodule; then the page must name the function in it as well.
        is_hidden = (ROOT / module.replace(".", "/") / f"{member}.py").exists()
        assert not is_hidden or f"{name}.{member}" in shown, f"docs/reference must have `::: {name}.{member}`"


def test_what_is_public_has_a_docstring_of_its_own() -> None:
    for name, item in public_names().items():
        if inspect.isclass(item) or inspect.isfunction(item):
            made_by_dataclasses = f"{item.__name__}("
            has_text = bool(item.__doc__) and not item.__doc__.startswith(made_by_dataclasses)
            assert has_text, f"{name} is in docs/reference and must have a docstring"


def test_the_errors_are_public_and_in_the_tree() -> None:
    raised = {name for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, Exception)}
    tree = re.findall(r"(?m)^[│├└─ ]*(\w+) {3,}", (errors.__doc__ or "").partition("```text\n")[2])
    assert set(errors.__all__) == raised == set(tree)


@pytest.mark.parametrize(
    "page", ["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)]+))?\)", (ROOT / page).read_text()):
        if "://" in target:
            continue
        linked = (ROOT / page).parent / target if target else ROOT / page
        assert linked.exists(), f"{page} links {target}, which is not there"
        if linked.parent.name == "reference" and heading in public_names():
            continue  # mkdocstrings makes it
        if heading:
            headings = re.findall(r"(?m)^#+ (.*)$", linked.read_text())
            anchors = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings]
            assert heading in anchors, f"{page} links #{heading} of {target}, which has {', '.join(anchors)}"


DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem[:4])
def test_a_decision_has_the_format_of_all(path: Path) -> None:
    text = path.read_text()
    head = re.match(r"# (\d+)\. (.+)\n\n- Status: (accepted|superseded by \d+)\n- Date: (\S+)\n\n## Problem\n\n", text)
    assert head, "it must begin with `# NN. Title`, `- Status: accepted`, `- Date: YYYY-MM-DD` and `## Problem`"
    assert int(head[1]) == int(path.name[:4])
    assert dt.date.fromisoformat(head[4]) <= dt.datetime.now(dt.UTC).date() + dt.timedelta(days=1)
    order = ["Problem", "Choice", "Why", "Consequences", "Refused", "Cost"]
    sections = re.findall(r"(?m)^## (.*)$", text)
    assert sections == [name for name in order if name in sections]
    assert sections[1] == "Choice"
    assert {"Consequences", "Refused", "Cost"} & set(sections)
    assert not re.search(r"(?m)^\*\*", text), "a paragraph that begins in bold is a section: give it a heading"
    index = (path.parent / "README.md").read_text()
    assert f"- {head[1]}: [{head[2]}]({path.name})\n" in index, "docs/decisions/README.md must list it"


def texts_of_the_program() -> Iterator[str]:
    """Every text in the program, with `...` for what is filled in."""
    for path in (ROOT / "tuner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.slow
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
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/training.md", "exec"), names)
        # The first block compiles both forms of a training and measures them; the others need only one.
        names["Sine"].loop = "scan"
    said = capsys.readouterr().out
    for told in re.findall(r"print\(error\)  # (.*)", page):
        assert told in said
