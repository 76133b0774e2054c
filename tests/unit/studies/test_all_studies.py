"""Every study of the collection loads, has a true docstring, trains for an epoch, and draws its picture."""

import math
import re
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


def cases() -> list[Any]:
    return [pytest.param(path, marks=[] if path.stem in PLAIN else pytest.mark.slow, id=path.stem) for path in STUDIES]


@pytest.mark.parametrize("path", cases())
@pytest.mark.slow
def test_a_study_trains(path: Path, tmp_path: Path) -> None:
    module: Any = import_file(path)
    study = module.study
    text = path.read_text()
    assert f"tuner launch studies/{path.name}\n" in text
    assert re.search(r"Time: .*\d s\. Best validation \w+: \d\.\d+ \(\d{4}-\d\d-\d\d\)\.", text)
    assert study.name == path.stem
    assert is_space(study.space)
    assert (study.baseline is None) == (study.name in PLAIN)
    data, loaded, small = StudyData(study.data, study.seed), None, None
    # A user's shell is not as strict about types as our own tests are.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for hparams in examples(study.space):
            assert isinstance(hparams, Space)
            splits = data.for_hparams(hparams)
            # A posterior is told how many examples it is of.
            few = splits.train if len(splits.train) < 300 else splits.train.take(range(80))
            small = Splits(few, splits.validation.take(range(40)))
            check_trainer(study.trainer, hparams, small, study.objectives, 2)
            training = study.trainer.train_model(hparams, small, epochs=2, seed=0)
            report = next(training)
            assert all(math.isfinite(report.metrics[name]) for name in study.objectives)
            loaded = Loaded(study.trainer, hparams, training.state.for_evaluation(), {})
        if study.picture is not None:
            study.picture(loaded, small).savefig(tmp_path / "out.png")
            assert (tmp_path / "out.png").stat().st_size > 1000
            assert f"tuner plot {study.name} picture" in text
            assert (path.parents[1] / "docs" / "images" / "studies" / f"{path.stem}.png").exists()
