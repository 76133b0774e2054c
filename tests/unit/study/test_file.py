"""What a target names: a study, a training function or an Optuna objective of a file, told apart by type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuner import OptunaObjective
from tuner.errors import StudyFileError, UsageError
from tuner.study.file import Settings, load_target

FILE = """
import optuna
from tuner import Space, Study, uniform

class HParams(Space):
    x: float = uniform(0.0, 1.0)

def objective(trial):
    return trial.suggest_float("x", 0.0, 1.0)

def train(hparams: HParams, trial):
    return hparams.x

def without_type(hparams, trial):
    return hparams.x

def of_three(a, b, c):
    pass

study = Study(name="own", space=HParams, train=train, objective="loss", direction="minimize", trials=5)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(FILE)
    return path


def test_a_function_of_one_argument_is_an_objective(path: Path) -> None:
    found = load_target(f"{path}:objective", Settings(name="mnist", trials=7, directions=["maximize"]))
    study = found.study
    assert found.function == "objective"
    assert (study.name, study.trials, study.objectives, study.all_directions) == ("mnist", 7, ("value",), ("maximize",))
    assert isinstance(study.train, OptunaObjective)
    assert study.space is None


def test_an_objective_is_minimized_by_default_and_may_have_several_values(path: Path) -> None:
    one = load_target(f"{path}:objective", Settings(name="mnist", trials=7)).study
    assert one.all_directions == ("minimize",)
    two = load_target(f"{path}:objective", Settings(name="a", trials=7, directions=["minimize", "maximize"])).study
    assert two.objectives == ("value_0", "value_1")
    named = Settings(name="a", trials=7, directions=["minimize", "maximize"], objectives=["loss", "size"])
    assert load_target(f"{path}:objective", named).study.objectives == ("loss", "size")


def test_a_function_of_two_arguments_is_a_training_function(path: Path) -> None:
    settings = Settings(name="mnist", trials=7, directions=["minimize"], objectives=["loss"], fixed={"x": "0.5"})
    study = load_target(f"{path}:train", settings).study
    assert study.kind == "function"
    assert (study.space.__name__, study.objective, study.fixed) == ("HParams", "loss", {"x": 0.5})


def test_a_study_takes_the_settings_that_it_has(path: Path) -> None:
    settings = Settings(trials=9, more={"sampler": "random", "pruner": None, "seed": 3})
    found = load_target(str(path), settings)
    assert found.function is None
    study = found.study
    assert (study.name, study.trials, study.sampler, study.seed) == ("own", 9, "random", 3)


@pytest.mark.parametrize(
    ("target", "settings", "reason"),
    [
        ("objective", {"trials": 3}, "objective is a function, which needs a name for its study: pass `name`"),
        ("objective", {"name": "a"}, "objective is a function, which needs a number of trials: pass `trials`"),
        ("train", {"name": "a", "trials": 3}, "train is a training function, which needs a direction"),
        ("of_three", {"name": "a", "trials": 3}, r"of_three must be an Optuna objective.*: got \(a, b, c\)"),
        (
            "without_type",
            {"name": "a", "trials": 3, "directions": ["minimize"]},
            "the first argument of without_type needs the space as its type, as in `hparams: HParams`",
        ),
        ("study", {"directions": ["minimize"]}, "`direction` is for a function: study 'own' sets it in its file"),
        ("study", {"name": "other"}, "`name` is for a function: study 'own' sets it in its file"),
        ("study", {"name": ""}, "`name` is for a function: study 'own' sets it in its file"),
        ("study", {"objectives": ["loss"]}, "`objective` is for a function: study 'own' sets it in its file"),
        ("objective", {"name": "a", "trials": 3, "directions": ["up"]}, "a direction must be 'maximize' or 'minimize'"),
        ("objective", {"name": "a", "trials": 3, "fixed": {"x": "1"}}, "cannot fix hyperparameters"),
        ("missing", {"name": "a", "trials": 3}, "no study or function 'missing' in .*: its studies are study$"),
        ("objectiv", {"name": "a", "trials": 3}, "no study or function 'objectiv' in .*; did you mean 'objective'"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(
    path: Path, target: str, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=f"^{reason}"):
        load_target(f"{path}:{target}", Settings(**settings))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("optuna.create_study().optimize(objective, n_trials=1)", "calls study.optimize when it is imported"),
        (
            "import tuner; tuner.optimize(objective, name='a', trials=1)",
            "calls tuner.optimize when a worker imports it",
        ),
    ],
)
def test_a_script_that_runs_its_study_when_it_is_imported_is_refused(path: Path, call: str, reason: str) -> None:
    path.write_text(f"{FILE}\n{call}\n")
    with pytest.raises(StudyFileError, match=f"{reason}.*: put the call below `if __name__ == '__main__':`"):
        load_target(f"{path}:objective", Settings(name="a", trials=3))


def test_a_script_with_a_guard_is_fine_and_optuna_is_left_as_it_was(path: Path) -> None:
    import optuna

    before = optuna.Study.optimize
    path.write_text(f"{FILE}\nif __name__ == '__main__':\n    optuna.create_study().optimize(objective)\n")
    assert load_target(f"{path}:objective", Settings(name="a", trials=3)).function == "objective"
    assert optuna.Study.optimize is before
