"""The study on cars: what its baseline predicts is Bayesian linear regression, by formula."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tuner.study.source import import_file
from tuner.training import Splits

pytest.importorskip("mlxtend")
STUDY: Any = import_file(Path(__file__).parents[3] / "studies" / "mpg_laplace.py")


def test_columns_are_scaled_by_the_cars_that_are_trained_on() -> None:
    splits = STUDY.data(0)
    train, validation = splits.train.host(), splits.validation.host()
    assert (len(splits.train), len(splits.validation)) == (262, 130)
    for name in ("inputs", "labels"):
        np.testing.assert_allclose(train[name].mean(0), 0.0, atol=1e-5)
        np.testing.assert_allclose(train[name].std(0), 1.0, atol=1e-5)
        assert abs(validation[name].mean(0)).max() > 1e-3, "those are not scaled by themselves"
    assert train["inputs"].shape[1] == 9
    rows = np.concatenate([train["inputs"][:, :6], validation["inputs"][:, :6]])
    assert len(np.unique(rows, axis=0)) == 392, "no car twice"


@pytest.mark.slow
def test_without_layers_it_is_bayesian_linear_regression() -> None:
    splits: Splits[Any] = STUDY.data(0)
    hparams, study = STUDY.study.baseline, STUDY.study
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        training = study.trainer.train_model(hparams, splits, epochs=study.epochs, seed=0)
        *_, last = training
        mean, variance = np.asarray(
            study.trainer.bind_model(training.state, hparams)(splits.validation.host()["inputs"])
        ).T
    train, validation = splits.train.host(), splits.validation.host()
    phi, x = (
        np.column_stack([part["inputs"].astype(float), np.ones(len(part["inputs"]))]) for part in (train, validation)
    )
    precision = phi.T @ phi / hparams.noise_variance + hparams.prior_precision * np.eye(10)
    weights = np.linalg.solve(precision, phi.T @ train["labels"] / hparams.noise_variance)
    spread = np.einsum("na,ab,nb->n", x, np.linalg.inv(precision), x) + hparams.noise_variance
    np.testing.assert_allclose(variance, spread, rtol=1e-4)
    np.testing.assert_allclose(mean, x @ weights, atol=0.05)
    error = (validation["labels"] - x @ weights) ** 2
    expected = np.mean(0.5 * (error / spread + np.log(2 * np.pi * spread)))
    assert last.metrics["loss"] == pytest.approx(expected, abs=0.02)
