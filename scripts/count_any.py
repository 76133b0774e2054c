"""Count the parameters in the package with `Any` in their annotation; fail if their share is too large.

`Any` disables type checking. For a value of any type, use `object`, which is checked.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tuner"
LIMIT = 0.05


def annotations(source: str) -> Iterator[ast.expr]:
    """Yield the annotations of all function parameters in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            several = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            yield from (one.annotation for one in several if one is not None and one.annotation is not None)


def has_any(annotation: ast.expr) -> bool:
    """Return whether an annotation is `Any` or contains it."""
    names = (part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in ast.walk(annotation))
    return "Any" in names


def main() -> None:
    """Print the count; if it is too high, exit with an error that lists the modules with the most."""
    found = {path: [*map(has_any, annotations(path.read_text()))] for path in sorted(PACKAGE.rglob("*.py"))}
    count, whole = sum(map(sum, found.values())), sum(map(len, found.values()))
    print(f"{count} of {whole} annotated parameters mention Any: {count / whole:.1%} (at most {LIMIT:.0%})")
    if count > LIMIT * whole:
        most = sorted(found, key=lambda path: -sum(found[path]))[:10]
        listed = "\n".join(f"{sum(found[path]):4} {path.relative_to(PACKAGE.parent)}" for path in most)
        sys.exit(f"annotate parameters with their types, or with `object` for any value; most are in\n{listed}")


if __name__ == "__main__":
    main()
