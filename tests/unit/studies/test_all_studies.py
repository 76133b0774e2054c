"""Every study of the collection loads, has a true docstring, trains for an epoch, and draws its picture."""

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import jax
import pytest

from tuner.study import StudyData
from tuner.study.source import import_file
from tuner.study.space import Space, examples, is_space
from tuner.training import Splits
from tuner.training.loop.checks import check_trainer
from tuner.training.restore import Loaded

STUDIES = sorted((Path(__file__).parents[3] / "studies").glob("*.py"))

PLAIN = ("digits_cnn", "digits_mlp")  # they show how a study is written, and are compared with nothing

# Their methods have tests of their own in tests/unit/methods, which train them.
TRAINED_ELSEWHERE = (
    "digits_adversarial",
    "digits_curriculum",
    "digits_darts",
    "digits_distillation",
    "digits_noise",
    "digits_simclr",
    "digits_uncertainty",
    "gan_gaussian",
    "maml_sinusoid",
    "mnist1d_smoothing",
)


def cases(later: tuple[str, ...] = ()) -> list[Any]:
    return [pytest.param(path, marks=[pytest.mark.long] * (path.stem in later), id=path.stem) for path in STUDIES]


@cache
def loaded_study(path: Path) -> tuple[Any, list[tuple[Space, Splits[Any]]]]:
    """Return a study, and hyperparameters with few examples for each of its programs."""
    study = import_file(path).study
    data, found = StudyData(study.data, study.seed), []
    for hparams in examples(study.space):
        splits = data.for_hparams(hparams)
        # A posterior is told how many examples it is of.
        few = splits.train if len(splits.train) < 300 else splits.train.take(range(80))
        found.append((hparams, Splits(few, splits.validation.take(range(40)))))
    return study, found


@pytest.fixture
def as_users_do() -> Any:
    """A user's shell is not as strict about types as our own tests are."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("path", cases())
@pytest.mark.slow
@pytest.mark.usefixtures("as_users_do")
def test_a_study_is_what_it_says_and_fits_its_trainer(path: Path) -> None:
    study, programs = loaded_study(path)
    text = path.read_text()
    assert f"tuner launch studies/{path.name}\n" in text
    assert re.search(r"Time: .*\d s\. Best validation \w+: \d\.\d+ \(\d{4}-\d\d-\d\d\)\.", text)
    assert study.name == path.stem
    assert is_space(study.space)
    assert (study.baseline is None) == (study.name in PLAIN)
    for hparams, small in programs:
        assert isinstance(hparams, Space)
        check_trainer(study.trainer, hparams, small, study.objectives, 2)
    if study.picture is not None:
        assert f"tuner plot {study.name} picture" in text
        assert (path.parents[1] / "docs" / "images" / "studies" / f"{path.stem}.png").exists()


@pytest.mark.parametrize("path", cases(later=TRAINED_ELSEWHERE))
@pytest.mark.slow
@pytest.mark.usefixtures("as_users_do")
def test_a_study_trains(path: Path, tmp_path: Path) -> None:
    study, programs = loaded_study(path)
    for hparams, small in programs:
        training = study.trainer.train_model(hparams, small, epochs=2, seed=0)
        report = next(training)
        assert all(math.isfinite(report.metrics[name]) for name in study.objectives)
        if study.picture is not None and hparams is programs[-1][0]:
            loaded = Loaded(study.trainer, hparams, training.state.for_evaluation(), {})
            study.picture(loaded, small).savefig(tmp_path / "out.png")
            assert (tmp_path / "out.png").stat().st_size > 1000
