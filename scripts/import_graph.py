"""Count packages, top-level modules, dependencies and import cycles: `python scripts/import_graph.py`.

Imports inside functions and type-only imports also count. The code uses these names:

- room: a package of `tuner`, a top-level ("loose") module of `tuner`, or a folder beside `tuner` that imports it
- arrow: a dependency between two rooms, of which the first imports the second
- circle: a cycle, a set of files that import each other directly or through other files
- upward arrow: an arrow to a room in a higher layer of the contract "Imports point down" in pyproject.toml
"""

from __future__ import annotations

import argparse
import ast
import tomllib
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "scripts", "studies")
Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Return the path of every module by name."""
    found = {}
    for folder in ("tuner", *FOLDERS):
        for path in sorted((root / folder).rglob("*.py")):
            if folder == "tuner" and not (path.parent / "__init__.py").exists():
                continue  # data: files that the package never imports
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Yield the names that a file imports anywhere: `a.b` for `import a.b` and for `from a import b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_graph(found: dict[str, Path]) -> Graph:
    """Return the modules that each module imports."""
    graph: Graph = {}
    for name, path in found.items():
        targets = set()
        for full in imported(path):
            target = full if full in found else full.rpartition(".")[0]
            if target in found and target != name:
                targets.add(target)
        graph[name] = targets
    return graph


def room(module: str) -> str:
    """Return the room of a module."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "tuner" else parts[0]


def room_graph(graph: Graph) -> Graph:
    """Return the rooms that each room imports."""
    rooms: Graph = {room(module): set() for module in graph}
    for module, targets in graph.items():
        rooms[room(module)] |= {room(target) for target in targets} - {room(module)}
    return rooms


def circles(graph: Graph) -> list[list[str]]:
    """Return the sets of two or more modules that import each other, found by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(one: str) -> None:
        index[one] = low[one] = len(index)
        stack.append(one)
        for other in sorted(graph[one]):
            if other not in index:
                visit(other)
                low[one] = min(low[one], low[other])
            elif other in stack:
                low[one] = min(low[one], index[other])
        if low[one] == index[one]:
            at = stack.index(one)
            members = stack[at:]
            del stack[at:]
            if len(members) > 1:
                found.append(sorted(members))

    for one in sorted(graph):
        if one not in index:
            visit(one)
    return found


def layers(root: Path) -> list[set[str]]:
    """Return the layers of the contract, starting at the top."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    lines = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [{one.strip() for one in line.replace(":", "|").split("|")} for line in lines]


def upward(rooms: Graph, floors: list[set[str]]) -> list[tuple[str, str]]:
    """Return the arrows that point to a higher layer."""
    floor_of = {one: at for at, floor in enumerate(floors) for one in floor}
    return sorted(
        (one, other)
        for one, others in rooms.items()
        for other in others
        if one in floor_of and other in floor_of and floor_of[other] < floor_of[one]
    )


def loose(names: Iterable[str], found: dict[str, Path]) -> list[str]:
    """Return the rooms that are top-level modules of `tuner`."""
    return [name for name in sorted(names) if name.startswith("tuner.") and found[name].name != "__init__.py"]


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="the root of a checkout (default: this one)")
    parser.add_argument("--arrows", action="store_true", help="also list the arrows")
    args = parser.parse_args()
    found = modules(args.root)
    graph = file_graph(found)
    rooms = room_graph(graph)
    names = loose((one for one in rooms if one not in ("tuner", "tuner.__main__")), found)
    files, up = circles(graph), upward(rooms, layers(args.root))
    print(f"packages and loose modules: {len(rooms)}")
    print(f"of these loose modules:     {len(names)} ({', '.join(name.removeprefix('tuner.') for name in names)})")
    print(f"arrows between them:        {sum(map(len, rooms.values()))}")
    print(f"upward arrows:              {len(up)}{''.join(f'; {one} -> {other}' for one, other in up)}")
    print(f"circles of files:           {len(files)}")
    for members in files:
        print(f"  {', '.join(members)}")
    if args.arrows:
        for one, others in sorted(rooms.items()):
            print(f"{one} -> {', '.join(sorted(others))}")
    try:
        list(TopologicalSorter(rooms).static_order())
    except CycleError as error:
        print(f"rooms in a circle:          {' -> '.join(error.args[1])}")


if __name__ == "__main__":
    main()
