"""Workers with the same artifacts folder share compiled programs, and the record says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import Tuner

TESTS = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_copy_of_a_study_in_another_folder_compiles_nothing(tmp_path: Path) -> None:
    shown, artifacts = [], tmp_path / "artifacts"
    for name in ("here", "there"):
        folder = tmp_path / name / ("deeper" if name == "there" else "")
        folder.mkdir(parents=True)
        (folder / "tiny.py").write_text((TESTS / "tiny_study.py").read_text())
        tuner = Tuner(folder, f"sqlite:///{folder}/study.db")
        del tuner.env["JAX_COMPILATION_CACHE_DIR"]
        words = ("--trials", "1", "--artifacts", str(artifacts))
        done = tuner.run("worker", str(folder / "tiny.py"), *words, TINY_LOOP="step", XDG_CACHE_HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert "compiled programs" not in done.stderr
        shown.append(tuner.rows("show", "tiny", "0"))
    first, second = shown
    assert first["compilations"] > 0
    assert first["programs_fetched"] == second["compilations"] == 0
    assert second["programs_fetched"] == first["compilations"]
    assert second["value"] == first["value"]
    assert (artifacts / f"compiled-{os.geteuid()}").stat().st_mode & 0o077 == 0
