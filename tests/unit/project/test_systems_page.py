"""docs/systems.md: a row for every system that is promised, whose code, tests and examples are there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
PROMISED = (
    "S0-ADV", "S0-AUG", "S0-CLIP", "S0-CURRIC", "S0-DARTS", "S0-DISTILL", "S0-EMA", "S0-FGSM", "S0-L2", "S0-LS",
    "S0-MAML", "S0-METRICS", "S0-NOTES", "S0-NTXENT", "S0-REPRO", "S0-SIMCLR", "S0-STATE", "S0-STEP",
    "S1-BF16", "S1-BNN", "S1-CACHE", "S1-CKPT", "S1-CUDA", "S1-DATALOAD", "S1-DEPS", "S1-DEVICE", "S1-FP16",
    "S1-HIGHER", "S1-HPO", "S1-INTEROP", "S1-JIT", "S1-NUM", "S1-OPT", "S1-PROFILE", "S1-REG", "S1-REMAT",
    "S1-RESNET18", "S1-RESNET34", "S1-RESNET50", "S1-SCAN", "S1-SCI-IMG", "S1-SCI-TEXT", "S1-SHARD", "S1-STATS",
    "S1-STEP", "S1-TRACK", "S1-TRANSFORMER", "S1-TSTATE", "S1-VMAP",
    "S2-ARGS", "S2-BENCH", "S2-BETTER", "S2-BIND", "S2-COLAB", "S2-EPOCH", "S2-EVAL", "S2-EX", "S2-FNS",
    "S2-FROMCKPT", "S2-HOOKS", "S2-INIT", "S2-JIT", "S2-LOAD", "S2-LOADERS", "S2-LOG", "S2-OPT", "S2-OPTUNA",
    "S2-PRUNE", "S2-RUNINIT", "S2-SAVE", "S2-SAVEMETRICS", "S2-STORAGE", "S2-TAB", "S2-TASKS", "S2-TB", "S2-TRACKER",
    "S2-TRAIN", "S2-TSTATE", "S2-VELO", "S2-VIZ", "S2-WANDB", "S2-WD",
    "S3-AUX", "S3-CLIP", "S3-COMPLEX", "S3-DEBUG", "S3-EMA", "S3-GAN", "S3-GRADMOD", "S3-JITDOC", "S3-L2", "S3-LS",
    "S3-METRICS", "S3-MULTIOPT", "S3-PURE", "S3-STATE", "S3-STEP",
)  # fmt: skip


class Row(NamedTuple):
    """A row of the page's tables."""

    ids: list[str]
    cells: dict[str, str]

    def quoted(self, heading: str) -> list[str]:
        """Return what stands in backticks under the heading that begins so."""
        found = [text for name, text in self.cells.items() if name.startswith(heading)]
        return re.findall(r"`([^`]+)`", " ".join(found))


def rows_of(page: str) -> list[Row]:
    """Return the rows, in all tables, whose first cell is of ids."""
    rows, headings = [], []
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        ids = re.findall(r"S\d-[A-Z0-9-]*[A-Z0-9]", cells[0]) if cells else []
        if ids:
            rows.append(Row(ids, dict(zip(headings, cells, strict=True))))
        elif cells and not set(line) <= set("|- :"):
            headings = cells
    return rows


def missing(words: list[str]) -> list[str]:
    """Return what is not there of the paths, tests (`FILE::name`, or `test_name` in any of the files) among words."""
    paths = [path[0] for word in words if (path := re.match(r"[\w.-]+(/[\w.-]+)+/?(?=:|$)|\w+\.(py|md)$", word))]
    gone = [path for path in paths if not (ROOT / path).exists()]
    text = "\n".join((ROOT / path).read_text() for path in paths if (ROOT / path).is_file())
    named = [word.rpartition("::")[2] for word in words if re.fullmatch(r"(.*::)?test_\w+", word)]
    return gone + [name for name in named if f"def {name}(" not in text]


ROWS = rows_of((ROOT / "docs" / "systems.md").read_text())


def test_every_promise_has_a_row_and_one_alone() -> None:
    counts = Counter(name for row in ROWS for name in row.ids)
    assert sorted(PROMISED) == list(PROMISED)
    assert not set(PROMISED) - set(counts), "promised, and in no row"
    assert not set(counts) - set(PROMISED), "in a row, and not promised"
    assert not [name for name, count in counts.items() if count > 1], "in several rows"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.ids[:1]))
def test_what_a_row_names_is_there(row: Row) -> None:
    for heading in ("code", "test"):
        assert row.quoted(heading), f"{row.ids} must name its {heading}"
    for heading in ("code", "test", "study", "example"):
        assert not missing(row.quoted(heading)), f"{heading} of {row.ids}"
    assert any(word.startswith("tests/") for word in row.quoted("test")), f"{row.ids} must name a file of tests"


def test_every_picture_of_the_pages_is_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = [(page, link) for page in pages for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())]
    assert len(shown) > 12
    for page, link in shown:
        assert (page.parent / link).is_file(), f"{page.relative_to(ROOT)} shows {link}, which is not there"


def test_every_study_has_its_figure_in_the_table() -> None:
    page = (ROOT / "docs" / "systems.md").read_text()
    for path in sorted((ROOT / "studies").glob("*.py")):
        figure = re.search(r"Best validation \w+: ([\d.]+) \(", path.read_text())
        rows = [line for line in page.splitlines() if f"](../studies/{path.name})" in line]
        assert figure is not None
        assert len(rows) == 1, f"docs/systems.md must have one row of results of {path.name}"
        best = rows[0].split(" | ")[2]
        assert figure[1] in best.split(", "), f"{path.name} says {figure[1]}, its row {best}"


def test_the_page_is_read_as_it_is_meant() -> None:
    page = """
| ids | system | code | test (oracle) |
| --- | --- | --- | --- |
| S0-A, S1-SCI-IMG | it | `tuner/study/space.py` | `tests/unit/project/test_systems_page.py` (`test_none`) |

| id | code |
| --- | --- |
| S2-B | `tuner/gone.py` |
"""
    first, second = rows_of(page)
    assert first.ids == ["S0-A", "S1-SCI-IMG"]
    assert first.quoted("code") == ["tuner/study/space.py"]
    assert missing(first.quoted("test")) == ["test_none"]
    assert missing(["tests/unit/project/test_systems_page.py::test_what_a_row_names_is_there"]) == []
    assert missing(second.quoted("code")) == ["tuner/gone.py"]
