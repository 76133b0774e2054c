"""The examples: few lines change to tune a script, a study of another library is short, and all of them run."""

from __future__ import annotations

import ast
import difflib
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import optuna
import pytest
from command_line import kept_programs, users_environment

from tuner.study import StudySpec
from tuner.study.source import import_file
from tuner.worker import run_worker

EXAMPLES = Path(__file__).parents[3] / "examples"
PAIRS = ("linen", "nnx", "equinox", "pytorch")
STUDIES = {"equinox_spirals": "epoch", "haiku_digits": "epoch", "cartpole_a2c": "update"}
"""The studies of other libraries, and the function of each that must compile once."""
MODULES = {"equinox": "equinox", "haiku": "haiku", "pytorch": "torch"}


def imported(stem: str) -> Any:
    """Import an example, or skip the test if its library is not installed."""
    pytest.importorskip(MODULES.get(stem.partition("_")[0], "jax"))
    return import_file(EXAMPLES / f"{stem}.py")


def changed(before: str, after: str) -> tuple[int, int]:
    """Return how many lines a change removes and adds, without empty ones."""
    lines = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[2:].strip()]
    return sum(line.startswith("- ") for line in lines), sum(line.startswith("+ ") for line in lines)


def test_changed_lines_are_counted() -> None:
    assert changed("a\nb\nc\n", "a\n\nx\ny\nc\n") == (1, 2)


@pytest.mark.parametrize("name", PAIRS)
def test_ten_lines_change_to_tune_a_script(name: str) -> None:
    before, after = ((EXAMPLES / f"{name}_digits{end}.py").read_text() for end in ("", "_tuned"))
    assert max(changed(before, after)) <= 10
    assert "tuner" not in before
    assert "from tuner import" in after


def test_an_optuna_script_is_launched_as_it_is() -> None:
    text = (EXAMPLES / "optuna_digits.py").read_text()
    docstring = ast.parse(text).body[0].end_lineno or 0
    assert not any("tuner" in line for line in text.splitlines()[docstring:])


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_another_library_has_at_most_sixty_lines(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    docstring = ast.parse(text).body[0].end_lineno or 0
    assert sum(bool(line.strip()) for line in text.splitlines()[docstring:]) <= 60


def run(study: StudySpec, folder: Path) -> list[optuna.trial.FrozenTrial]:
    url = f"sqlite:///{folder}/study.db"
    # A user's shell is not as strict about types as our own tests are.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run_worker(study, url, artifacts=str(folder / "artifacts"))
    return optuna.load_study(study_name=study.name, storage=url).trials


@pytest.mark.slow
@pytest.mark.parametrize(("name", "function"), STUDIES.items())
def test_trials_of_one_width_compile_once(
    name: str, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = imported(name)
    for setting, value in {"EPOCHS": 2, "COUNT": 256, "UPDATES": 20}.items():
        if hasattr(module, setting):
            monkeypatch.setattr(module, setting, value)
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        if hasattr(module, part):
            monkeypatch.setattr(module, part, getattr(module, part)[:128])
    study = module.study.changed(trials=3, sampler="random", pruner="none", fixed={"width": "16"})
    trials = run(study, tmp_path)
    assert len({trial.params["learning_rate"] for trial in trials}) == 3
    assert len({trial.value for trial in trials}) == 3
    assert compilations(getattr(module, function)) == 1


def compilations(function: Any) -> int:
    """Return how many programs a jitted function has, also one of Equinox."""
    return getattr(function, "_cached", function)._cache_size()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen", *(pytest.param(name, marks=pytest.mark.long) for name in PAIRS[1:])])
def test_a_script_runs_and_its_tuned_version_finds_the_same_kind_of_value(name: str, tmp_path: Path) -> None:
    study = imported(f"{name}_digits_tuned").study.changed(trials=2)
    values = [trial.value for trial in run(study, tmp_path)]
    script, env = EXAMPLES / f"{name}_digits.py", users_environment()
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == study.epochs
    accuracy = float(lines[-1].rpartition(" ")[2])
    assert accuracy > 0.9
    assert all(value is not None and 0.05 < value <= 1.0 for value in values)


@pytest.mark.long
@pytest.mark.slow
def test_the_optuna_script_runs_by_itself_and_launched(tmp_path: Path) -> None:
    script = tmp_path / "optuna_digits.py"
    text = (EXAMPLES / script.name).read_text()
    for many, few in (("EPOCHS = 20", "EPOCHS = 5"), ("n_trials=40", "n_trials=4")):
        assert many in text
        text = text.replace(many, few)
    script.write_text(text)
    env = {**users_environment(), **kept_programs(), "TUNER_STORAGE": f"sqlite:///{tmp_path}/study.db"}
    alone = [sys.executable, str(script)]
    launched = [
        *(sys.executable, "-m", "tuner", "launch", f"{script}:objective", "--name", "digits"),
        *("--direction", "maximize", "--trials", "4", "--workers", "1", "--seed", "0"),
    ]
    for command in (alone, launched):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="digits", storage=env["TUNER_STORAGE"])
    assert len(study.trials) == 4
    assert study.best_value > 0.8
