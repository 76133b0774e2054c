"""The packages and modules that a bundle names, against the installed distributions."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tuner.results.bundle_packages import imported_names, local_files, requirements
from tuner.results.bundle_programs import PREDICT, RUN, RUN_STATE

STUDY = """
import json
import sklearn.datasets as data, optax
from orbax import checkpoint
from my_model import Net
import mine.layers
from . import sibling
import tuner
import tensorflow_that_nobody_has

def later():
    from flax.linen import Dense
    import jax.numpy as jnp
"""
RECORDED = {"python": "3.11.9", "device": "cpu", "xla_flags": "", "jax": "0.10.2+local.7", "orbax_checkpoint": "0.12.1"}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "torch"  # the name of a package that the study does not import
    (folder / "mine").mkdir(parents=True)
    (folder / "study_of_digits.py").write_text(STUDY)
    (folder / "my_model.py").write_text("import helpers_of_model\nimport numpy\nimport study_of_digits\n")
    (folder / "helpers_of_model.py").write_text("import scipy.stats\n")
    (folder / "unused.py").write_text("import pandas\n")
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "layers.py").write_text("import matplotlib\n")
    (folder / "mine" / "broken.py").write_text("def (")
    return folder / "study_of_digits.py"


def test_every_import_is_found() -> None:
    assert imported_names(STUDY) == [
        "json", "sklearn.datasets", "optax", "orbax.checkpoint", "my_model.Net", "mine.layers", "tuner",
        "tensorflow_that_nobody_has", "flax.linen.Dense", "jax.numpy",
    ]  # fmt: skip


@pytest.mark.parametrize("program", [PREDICT, RUN, RUN_STATE])
def test_the_programs_of_a_bundle_are_python(program: str) -> None:
    compile(program, "program.py", "exec")
    assert "{{" not in program
    assert not any(len(line) > 120 for line in program.splitlines())


def test_modules_of_the_studys_folder_are_found_with_those_that_they_import(study: Path) -> None:
    found = [str(path.relative_to(study.parent)) for path in local_files(study)]
    assert found == ["helpers_of_model.py", "mine/__init__.py", "mine/broken.py", "mine/layers.py", "my_model.py"]


@pytest.mark.slow
def test_requirements_are_the_distributions_that_provide_what_is_imported(study: Path) -> None:
    lines = requirements(RECORDED, [study, *local_files(study)]).splitlines()
    (unknown,) = [line for line in lines if line.startswith("#")]
    assert "tensorflow_that_nobody_has" in unknown
    parsed = [Requirement(line) for line in lines if line != unknown]
    versions: dict[str, str] = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in parsed}
    assert len(versions) == len(parsed), "each package once"
    assert (versions.pop("jax"), versions.pop("orbax-checkpoint")) == ("0.10.2", "0.12.1"), "as recorded"
    # Names that differ from those of their modules, and nothing of other parts of the namespace `orbax`.
    assert versions.keys() == {"scikit-learn", "optax", "flax", "numpy", "scipy", "matplotlib"}
    for name, version in versions.items():
        assert importlib.metadata.version(name) == version
