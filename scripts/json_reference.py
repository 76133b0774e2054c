"""Write the tables of fields in docs/json.md from the classes of the rows; with --check, fail if they are out of date.

Each table is below a comment `<!-- fields: MODULE.CLASS ... -->`. A field's text is the string below it in its
class; a field without one shares the text of the next that has one.
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
    """Yield the fields of a class of rows, and of rows inside them: the names that share a text, and the text."""
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
    """Yield each field that a class itself has, and its text if it has one."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(row))).body
    assert isinstance(definition, ast.ClassDef)
    for part, after in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            yield part.target.id, " ".join(str(after.value.value).split()).rstrip(".") if is_text else None


def inner_row(hint: object) -> type | None:
    """Return the class of rows that a type has inside it, in a list say; None without one."""
    if isinstance(hint, type) and typing.is_typeddict(hint):
        return hint
    return next((found for part in typing.get_args(hint) if (found := inner_row(part)) is not None), None)


def is_told(row: type) -> bool:
    """Return whether the fields of a row inside another have rows of their own in the table."""
    return row.__module__ == "tuner.results.json_rows"


def table(names: str) -> str:
    """Return the table of the fields of some classes of rows."""
    lines = ["| field | what it is |", "| --- | --- |"]
    for name in names.split():
        module, _, row = name.rpartition(".")
        for fields, text in described(getattr(importlib.import_module(module), row)):
            lines.append(f"| {', '.join(f'`{field}`' for field in fields)} | {text} |")
    return f"<!-- fields: {names} -->\n\n" + "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return the page with new tables."""
    return TABLE.sub(lambda found: table(found["names"]), text)


if __name__ == "__main__":
    before = TARGET.read_text()
    after = page(before)
    if "--check" not in sys.argv:
        TARGET.write_text(after)
    elif before != after:
        sys.exit("docs/json.md is out of date: run python scripts/json_reference.py")
