"""Processes that a study's code starts find the study's functions, however they start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STUDY = """
import beside

SCALE = 3


def times(x):
    return beside.ONE * SCALE * x


class Times:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x
"""

# `-c`, because the main module must be of no help: that of a worker is none that could be imported again either.
RUN = """
import concurrent.futures, multiprocessing, pathlib, sys
from tuner.study.source import import_file

_, start, path = sys.argv
module = import_file(pathlib.Path(path))
if start == "joblib":
    import joblib

    mapped = lambda f, xs: joblib.Parallel(n_jobs=2)(joblib.delayed(f)(x) for x in xs)
elif start.startswith("executor"):
    context = multiprocessing.get_context(start.split()[1])
    mapped = concurrent.futures.ProcessPoolExecutor(2, mp_context=context).map
else:
    mapped = multiprocessing.get_context(start).Pool(2).map_async
    wait = mapped
    mapped = lambda f, xs: wait(f, xs).get(120)
print(list(mapped(module.times, range(4))), list(mapped(module.Times(5), range(4))))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("spawn", "study.py"),
        ("spawn", "my-study 2.b.py"),
        ("spawn", "package/study.py"),
        ("forkserver", "study.py"),
        ("fork", "study.py"),
        ("executor spawn", "study.py"),
        ("executor forkserver", "my-study.py"),
        ("joblib", "my-study.py"),
    ],
)
def test_a_process_of_a_study_finds_its_functions(tmp_path: Path, start: str, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text(STUDY)
    (path.parent / "beside.py").write_text("ONE = 1\n")

    done = subprocess.run(
        [sys.executable, "-c", RUN, start, str(path)], cwd="/", capture_output=True, text=True, timeout=300
    )

    assert (done.returncode, done.stdout) == (0, "[0, 3, 6, 9] [0, 5, 10, 15]\n"), done.stderr


def test_files_of_one_name_are_different_modules(tmp_path: Path) -> None:
    from tuner.study.source import import_file

    paths = [tmp_path / folder / "same.py" for folder in ("one", "other")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(f"FOLDER = {path.parent.name!r}\n")
    modules = [import_file(path) for path in paths]
    assert [module.FOLDER for module in modules] == ["one", "other"]
    for module in modules:
        __import__(module.__name__)
        assert sys.modules.pop(module.__name__) is module
        __import__(module.__name__)
        assert sys.modules[module.__name__].FOLDER == module.FOLDER, "as another process does it"


def test_a_process_that_inherits_no_more_than_the_environment_finds_the_file_and_what_lies_beside_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "study.py"
    path.write_text(STUDY)
    (tmp_path / "beside.py").write_text("ONE = 1\n")
    code = f"""
import pathlib, subprocess, sys
from tuner.study.source import import_file
name = import_file(pathlib.Path({str(path)!r})).__name__
code = f"import importlib; print(importlib.import_module({{name!r}}).times(2))"
sys.exit(subprocess.run([sys.executable, "-c", code]).returncode)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=300)

    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr
