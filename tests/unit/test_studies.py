"""Every study of the collection loads, has a true docstring, and trains for an epoch."""

import math
import re
from pathlib import Path
from typing import Any

import jax
import pytest

from tuner.domains import is_space
from tuner.space import Space, examples
from tuner.study import load_study
from tuner.training import Splits
from tuner.training.checks import check_trainer

STUDIES = sorted((Path(__file__).parent.parent.parent / "studies").glob("*.py"))


QUICK = ("digits_cnn", "digits_mlp", "maml_sinusoid")


def cases() -> list[Any]:
    return [pytest.param(path, marks=[] if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in STUDIES]


@pytest.mark.parametrize("path", cases())
def test_a_study_trains(path: Path) -> None:
    study = load_study(str(path))
    text = path.read_text()
    assert f"tuner launch studies/{path.name}\n" in text
    assert re.search(r"Time: .*\d s\. Best validation \w+: \d\.\d+ \(\d{4}-\d\d-\d\d\)\.", text)
    assert study.name == path.stem
    splits = study.data(study.seed)
    small = Splits(splits.train.take(range(80)), splits.validation.take(range(40)))
    assert is_space(study.space)
    # A user's shell is not as strict about types as our own tests are.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for hparams in examples(study.space):
            assert isinstance(hparams, Space)
            check_trainer(study.trainer, hparams, small, study.objectives, 2)
            report = next(iter(study.trainer.train_model(hparams, small, epochs=2, seed=0)))
            assert all(math.isfinite(report.metrics[name]) for name in study.objectives)
