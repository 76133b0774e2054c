"""The script that counts packages and imports, on a small tree, and what it must find here."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[3]
spec = importlib.util.spec_from_file_location("import_graph", ROOT / "scripts" / "import_graph.py")
assert spec is not None
assert spec.loader is not None
import_graph = importlib.util.module_from_spec(spec)
spec.loader.exec_module(import_graph)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / "tuner" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_late_and_type_only_imports_count(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "__init__.py": "",
            "low.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tuner.high import b\n",
            "high/__init__.py": "",
            "high/a.py": "def f():\n    from tuner.high import b\n",
            "high/b.py": "import tuner.high.a\nfrom tuner.low import x\n",
        },
    )
    found = import_graph.modules(tmp_path)
    graph = import_graph.file_graph(found)
    rooms = import_graph.room_graph(graph)
    assert graph["tuner.high.a"] == {"tuner.high.b"}
    assert rooms == {"tuner": set(), "tuner.low": {"tuner.high"}, "tuner.high": {"tuner.low"}}
    assert import_graph.circles(graph) == [["tuner.high.a", "tuner.high.b", "tuner.low"]]
    assert import_graph.upward(rooms, [{"tuner.high"}, {"tuner.low"}]) == [("tuner.low", "tuner.high")]
    assert import_graph.loose(["tuner.low", "tuner.high"], found) == ["tuner.low"]


def test_no_files_of_the_package_import_each_other_in_a_circle() -> None:
    graph = import_graph.file_graph(import_graph.modules(ROOT))
    assert import_graph.circles(graph) == []
    assert import_graph.upward(import_graph.room_graph(graph), import_graph.layers(ROOT)) == []
