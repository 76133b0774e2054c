"""The picture that a study draws of a checkpoint, after two epochs; and methods that a space's examples leave out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tuner.source import import_file
from tuner.space import examples
from tuner.training import Splits
from tuner.training.restore import Loaded

STUDIES = Path(__file__).parents[2] / "studies"
DRAWN = [STUDIES / f"{name}.py" for name in ("digits_autoencoder", "digits_uncertainty", "moons_flow")]


def trained(module: Any, hparams: Any) -> tuple[Any, Any, Splits]:
    splits = module.data(0)
    small = Splits(splits.train.take(range(80)), splits.validation.take(range(40)))
    training = module.study.trainer.train_model(hparams, small, epochs=2, seed=0)
    *_, last = training
    return Loaded(module.study.trainer, hparams, training.best.state, {}), last, small


@pytest.mark.slow
@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)
def test_a_study_draws_its_picture(path: Path, tmp_path: Path) -> None:
    module: Any = import_file(path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        loaded, _, splits = trained(module, next(iter(examples(module.study.space))))
        module.picture(loaded, splits).savefig(tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert f"python studies/{path.name} " in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["map", "laplace", "ensemble", "langevin"])
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
