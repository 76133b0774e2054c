"""Every private name of JAX that is used is there in the installed version, is used by JAX, and in one file only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src import compilation_cache

from tuner.training.loop import jax_private as private

TUNER = Path(private.__file__).parents[2]


class Cache:
    """A cache in memory."""

    def __init__(self) -> None:
        self._path = Path("nowhere")
        self.programs: dict[str, bytes] = {}
        self.asked: list[str] = []

    def get(self, key: str) -> bytes | None:
        self.asked.append(key)
        return self.programs.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.programs[key] = value


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    """A cache that JAX uses for one folder."""
    monkeypatch.setattr(compilation_cache, "get_file_cache", compilation_cache.get_file_cache)  # put back afterwards
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore
    made = Cache()
    assert private.provide_cache(lambda path: made if path == str(tmp_path / "ours") else None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    use(tmp_path / "ours")
    yield made
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    use(before[0])


def use(folder: Path | str) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()


def run() -> float:
    jax.clear_caches()
    return float(jax.jit(lambda x: 2.5 * x + 1.25)(np.float32(2.0)))


@pytest.mark.slow
def test_jax_asks_the_cache_it_was_given_and_stores_in_it(ours: Cache) -> None:
    assert run() == 6.25
    assert ours.asked == list(ours.programs) != []
    assert run() == 6.25
    assert ours.asked == 2 * list(ours.programs)


@pytest.mark.slow
def test_other_folders_have_jaxs_own_cache(ours: Cache, tmp_path: Path) -> None:
    use(tmp_path / "theirs")
    run()
    assert ours.asked == []
    assert any((tmp_path / "theirs").iterdir())


def test_a_version_of_jax_without_the_name_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(compilation_cache, "get_file_cache")
    assert not private.provide_cache(lambda path: None)


def test_no_other_file_imports_private_parts_of_jax() -> None:
    used = set()
    for path in TUNER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if any(name.startswith(("jax._", "jaxlib._")) for name in names):
                used.add(path.name)
    assert used == {"jax_private.py"}
