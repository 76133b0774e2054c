"""The study of uncertainty trains each of its methods; `tests/unit/studies/test_all_studies.py` sees only the first."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tuner.study.source import import_file
from tuner.training import Splits
from tuner.training.restore import Loaded

STUDIES = Path(__file__).parents[3] / "studies"


def trained(module: Any, hparams: Any) -> tuple[Any, Any, Splits]:
    splits = module.data(0)
    small = Splits(splits.train, splits.validation.take(range(40)))
    training = module.study.trainer.train_model(hparams, small, epochs=2, seed=0)
    *_, last = training
    return Loaded(module.study.trainer, hparams, training.best.state, {}), last, small


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["ensemble", *(pytest.param(name, marks=pytest.mark.long) for name in ("laplace", "langevin", "map"))]
)
def test_every_method_of_the_study_of_uncertainty_trains(method: str) -> None:
    module: Any = import_file(STUDIES / "digits_uncertainty.py")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        hparams = dataclasses.replace(module.study.baseline, method=method)
        loaded, last, splits = trained(module, hparams)
        assert all(math.isfinite(last.metrics[name]) for name in ("nll", "brier", "ece"))
        rows = splits.validation.host()
        logs = loaded(rows["inputs"])
    # Whatever the method, predictions are log-probabilities, by which the validation has judged them.
    np.testing.assert_allclose(np.exp(logs).sum(1), np.ones(40), rtol=1e-5)
    np.testing.assert_allclose(-logs[np.arange(40), rows["labels"]].mean(), last.metrics["nll"], rtol=1e-5)
