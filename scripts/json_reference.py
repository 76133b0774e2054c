"""Write the field tables in docs/json.md from the row classes; with --check, fail if the page is out of date.

Each table follows a comment `<!-- fields: MODULE.CLASS ... -->`. The description of a field is the docstring below it
in its class. A field without a docstring shares the description of the next field that has one.
"""

import ast
import importlib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).parent.parent / "docs" / "json.md"
TABLE = re.compile(r"<!-- fields: (?P<names>[\w. ]+) -->\n+(?:\|.*\n)*")


def described(row: type, prefix: str = "") -> Iterator[tuple[list[str], str]]:
    """Yield the fields of a row class and of nested rows: the names that share a description, and the description."""
    names: list[str] = []
    hints = typing.get_type_hints(row)
    for one, after in pairs_of(row):
        name = prefix + one
        names.append(name)
        if after is None:
            continue
        yield names, after
        names = []
        inner = inner_row(hints[one])
        if inner is not None and is_told(inner):
            yield from described(inner, f"{name}[]." if "list[" in str(hints[one]) else f"{name}.")
    if names:
        sys.exit(f"{row.__module__}.{row.__name__} says nothing of {', '.join(names)}: put a docstring below them")


def pairs_of(row: type) -> Iterator[tuple[str, str | None]]:
    """Yield each field that the class itself defines, and its description, or None."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(row))).body
    assert isinstance(definition, ast.ClassDef)
    for part, after in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            yield part.target.id, " ".join(str(after.value.value).split()).rstrip(".") if is_text else None


def inner_row(hint: object) -> type | None:
    """Return the row class that a type contains, for example in a list; None if there is none."""
    if isinstance(hint, type) and typing.is_typeddict(hint):
        return hint
    return next((found for part in typing.get_args(hint) if (found := inner_row(part)) is not None), None)


def is_told(row: type) -> bool:
    """Return whether the table lists the fields of a nested row separately."""
    return row.__module__ == "tuner.results.json_rows"


def table(names: str) -> str:
    """Return the table for the fields of the given row classes."""
    lines = ["| field | what it is |", "| --- | --- |"]
    for name in names.split():
        module, _, row = name.rpartition(".")
        for fields, text in described(getattr(importlib.import_module(module), row)):
            lines.append(f"| {', '.join(f'`{field}`' for field in fields)} | {text} |")
    return f"<!-- fields: {names} -->\n\n" + "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return the page with updated tables."""
    return TABLE.sub(lambda found: table(found["names"]), text)


if __name__ == "__main__":
    before = TARGET.read_text()
    after = page(before)
    if "--check" not in sys.argv:
        TARGET.write_text(after)
    elif before != after:
        sys.exit("docs/json.md is out of date: run python scripts/json_reference.py")
