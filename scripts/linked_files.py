"""Hook for mkdocs.yml: adds a page to the site for each file of the repository that a page links to, such as a study.

Pages use the file's path in the repository as the link, so the links also work in the repository.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FOLDER = "repository"
"""The folder of these pages in the site."""
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each linked file outside docs/: Markdown files unchanged, other files as a code listing."""
    found: set[Path] = set()
    pages = list(DOCS.rglob("*.md"))
    while pages:  # a linked Markdown file may link to more files
        new = {target for page in pages for target in linked(page)} - found
        found |= new
        pages = [path for path in new if path.suffix == ".md"]
    for path in sorted(found):
        text = path.read_text()
        if path.suffix != ".md":
            text = f"# {path.relative_to(ROOT)}\n\n```{path.suffix[1:]}\n{text}```\n"
        files.append(File.generated(config, uri(path), content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change the links to and from these pages to their paths in the site."""
    here = page.file.src_uri
    origin = ROOT / here.removeprefix(f"{FOLDER}/") if here.startswith(f"{FOLDER}/") else DOCS / here

    def moved(match: re.Match[str]) -> str:
        target = resolved(origin, match[1])
        is_moved = target.is_file() and not (origin.is_relative_to(DOCS) and target.is_relative_to(DOCS))
        return os.path.relpath(uri(target), os.path.dirname(here)) if is_moved else match[1]

    return LINK.sub(moved, markdown) if origin.suffix == ".md" else markdown


def linked(page: Path) -> Iterator[Path]:
    """Yield the files of the repository outside docs/ that a page links to."""
    targets = (resolved(page, link) for link in LINK.findall(page.read_text()))
    yield from (path for path in targets if path.is_file() and path.is_relative_to(ROOT) and DOCS not in path.parents)


def resolved(page: Path, link: str) -> Path:
    """Return the file that a link of a page points to."""
    return Path(os.path.normpath(page.parent / link))


def uri(path: Path) -> str:
    """Return the path of a file's page in docs/; for files in docs/, their own path."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    suffix = "" if path.suffix == ".md" else ".md"
    return f"{FOLDER}/{path.relative_to(ROOT).as_posix()}{suffix}"
