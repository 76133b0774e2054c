"""The wheel, installed alone: it has all that a study and a type checker need. Nothing is downloaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from command_line import kept_programs, users_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
PIP = (sys.executable, "-m", "pip")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
WHERE = """
import os
from pathlib import Path

import tuner.worker

Path(os.environ["WHERE"]).write_text(tuner.worker.__file__)
"""
"""What a study file does more: it notes which package the worker imported."""
TYPED = """
# pyright: strict
from typing import Any

from tuner import Space, choice, log_uniform
from tuner.methods.classification import Classifier
from tuner.training import TrainerModule
from tuner.training.data.arrays import Batch


class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 1e-1)
    width: int = choice(32, 64)


def product(hparams: HParams) -> float:
    return hparams.learning_rate * hparams.width


class Trainer(TrainerModule[HParams]):
    def batch_size(self, hparams: HParams) -> int:
        return hparams.width


class Typed(Classifier[HParams]):
    def batch_size(self, hparams: HParams) -> int:
        return hparams.width

    def check_data(self, dataset: Any, hparams: HParams, part: str) -> None:
        super().check_data(dataset, hparams, part)


class Loose(Classifier):
    def loss(self, outputs: Any, batch: Batch, hparams: Any) -> Any:
        return super().loss(outputs, batch, hparams)
"""
WRONG = "\n\nHParams(width='wide')\nTrainer().batch_size({'width': 32})\n"


class Installed(NamedTuple):
    """A fresh environment with the wheel, and with the packages of the present one."""

    folder: Path
    env: dict[str, str]

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, program: str, *words: str, folder: Path, **env: str) -> str:
        """Run a program of the environment to its end in a folder; return what it printed on stdout."""
        return run([self.folder / "bin" / program, *words], folder, {**self.env, **env})


def run(words: Sequence[str | Path], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def installing_environment() -> dict[str, str]:
    env = {key: value for key, value in users_environment().items() if not key.startswith("PYTHON")}
    return env | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **kept_programs()}


def copy_source(folder: Path) -> Path:
    """Copy what is installed, because a build leaves folders behind."""
    shutil.copytree(ROOT / "tuner", folder / "tuner", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def install(folder: Path, env: dict[str, str], *what: str | Path) -> Installed:
    """Make an environment with what is to be installed and with the packages of the present one."""
    made = Installed(folder, env)
    venv.create(made.folder, symlinks=True, with_pip=False)
    words = ["--python", made.python, "install", "--no-compile", "--no-deps", "--no-build-isolation", *what]
    # The packages' own .pth files are not read, so that an editable installation of tuner has no effect.
    others = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (packages,) = made.folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(others))
    run([*PIP, *words], folder.parent, env)
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    env = installing_environment()
    source = copy_source(folder / "source")
    run([*PIP, "wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist"], folder, env)
    (wheel,) = (folder / "dist").iterdir()
    assert wheel.name == f"tuner_jax-{VERSION}-py3-none-any.whl"
    shutil.rmtree(source)
    return install(folder / "fresh", env, wheel)


def test_a_clone_in_a_folder_called_tuner_does_not_hide_the_package_beside_it(tmp_path: Path) -> None:
    """With `pip install -e .`, as in the README. Python looks in the present folder first, and `tuner` is there."""
    source = copy_source(tmp_path / "tuner")
    installed = install(tmp_path / "fresh", installing_environment(), "--editable", source)

    found = installed.run("python", "-c", "import tuner; print(tuner.__file__)", folder=tmp_path)

    assert found == f"{source / 'tuner' / '__init__.py'}\n"


def test_a_study_runs_with_the_wheel_from_another_folder(
    installed: Installed, tiny_study: Path, tmp_path: Path
) -> None:
    tiny_study.write_text(tiny_study.read_text() + WHERE)
    shutil.copy(ROOT / "tests" / "tiny_environment.py", tmp_path)
    assert installed.run("tuner", "--version", folder=tmp_path) == f"tuner {VERSION}\n"

    where = {"WHERE": str(tmp_path / "where"), "TUNER_STORAGE": f"sqlite:///{tmp_path / 'study.db'}"}
    where |= {"TINY_EPOCHS": "1", "TINY_LOOP": "scan"}
    installed.run("tuner", "launch", "tiny.py", "--workers", "1", "--trials", "2", folder=tmp_path, **where)
    found = json.loads(installed.run("tuner", "trials", "tiny", "--format", "json", folder=tmp_path, **where))

    assert Path((tmp_path / "where").read_text()).is_relative_to(installed.folder)
    assert len(found) == 2
    assert {trial["outcome"] for trial in found} <= {"complete", "pruned"}
    assert any(trial["value"] is not None for trial in found)


def test_files_that_are_not_python_are_in_the_wheel(installed: Installed, tmp_path: Path) -> None:
    """Assets of the dashboard and the migrations of tables, which are files and not imported."""
    (package,) = installed.folder.glob("lib/python*/site-packages/tuner")
    for path in (ROOT / "tuner").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert (package / path.relative_to(ROOT / "tuner")).is_file(), f"the wheel lacks {path}"


def test_a_type_checker_reads_the_types_of_the_wheel(installed: Installed, tmp_path: Path) -> None:
    pyright = Path(sys.executable).with_name("pyright")
    if not pyright.exists():
        pytest.skip("pyright is not installed: pip install -e '.[dev]'")
    (tmp_path / "right.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text(TYPED + WRONG)
    words = [pyright, "--outputjson", "--pythonpath", installed.python, "right.py", "wrong.py"]
    # Without XDG_CACHE_HOME, where pyright itself may already be.
    env = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = [(Path(one["file"]).name, one["range"]["start"]["line"], one["rule"]) for one in found]
    last = len((TYPED + WRONG).splitlines()) - 1
    assert {line[:2] for line in lines} == {("wrong.py", last - 1), ("wrong.py", last)}, found
