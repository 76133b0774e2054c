"""Reconstructions: their error, their pictures, and the linear ones beside principal components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from rounding import rounding
from sklearn.decomposition import PCA

from tuner.methods import Autoencoder, pairs
from tuner.methods.autoencoder import squared_error
from tuner.training import ArrayDataset, OptimizerSpec, Splits, WarmupCosine

SHOWN = np.random.default_rng(0).uniform(size=(3, 2, 4))


class Linear(Autoencoder):
    loop = "scan"

    def init_model(self, hparams: Any) -> Any:
        return nn.Sequential([nn.Dense(2), nn.Dense(8)])

    def init_optimizer(self, hparams: Any, total_steps: int) -> Any:
        return OptimizerSpec("adam", hparams["learning_rate"], schedule=WarmupCosine())


def correlated(count: int) -> Splits:
    rng = np.random.default_rng(1)
    turned, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    components = rng.normal(size=(count, 8)) * np.array([2.0, 1.0, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1])
    dataset = ArrayDataset(inputs=components @ turned + 1.0)
    return Splits(dataset, dataset)


def test_the_error_is_a_mean_over_features_for_each_example() -> None:
    inputs = jnp.array([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    made = inputs + jnp.array([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [4.0, 0.0]]])
    np.testing.assert_allclose(squared_error(made, inputs), [5 / 4, 4.0])
    with pytest.raises(ValueError, match="must have the same shape"):
        squared_error(made[:, 0], inputs)


@pytest.mark.slow
def test_the_linear_one_is_pca() -> None:
    splits = correlated(300)
    inputs = splits.train.host()["inputs"].astype(np.float64)
    found = PCA(2).fit(inputs)
    projected = found.inverse_transform(found.transform(inputs))
    residual = np.mean((projected - inputs) ** 2)
    training = Linear().train_model({"learning_rate": 0.1}, splits, epochs=600, seed=0)
    *_, last = training
    # What was learned, in float64: no plane is nearer to the data than that of the components, whatever the processor.
    made, sizes = inputs, np.abs(inputs)
    for name in ("layers_0", "layers_1"):
        kernel, bias = (np.asarray(training.state.params[name][part], np.float64) for part in ("kernel", "bias"))
        made, sizes = made @ kernel + bias, sizes @ np.abs(kernel) + np.abs(bias)
    error = np.mean((made - inputs) ** 2)
    # Over 24 seeds of data and training the excess was 7e-5 of the residual, with a standard deviation of 2.1e-4, and
    # the largest distance from the projections 0.005, with one of 0.005.
    assert residual * (1 - 1e-12) <= error < residual * 1.002
    np.testing.assert_allclose(made, projected, atol=0.03)
    # In float32 a reconstruction takes 8 and 2 products, their sums with the biases and the difference from its input,
    # and the error is a sum of 2400 squares.
    off = rounding(13) * np.mean(2 * np.abs(made - inputs) * (sizes + np.abs(inputs))) + rounding(2403) * error
    np.testing.assert_allclose(last.metrics["loss"], error, rtol=0, atol=off)


@pytest.mark.slow
def test_every_few_epochs_there_is_a_picture_of_originals_above_reconstructions(tmp_path: Path) -> None:
    trainer, hparams = Linear(shown=SHOWN, every=2), {"learning_rate": 0.03}
    training = trainer.train_model(hparams, correlated(20), epochs=5, seed=0, log=tmp_path)
    drawn = {}
    for report in training:
        drawn[report.epoch] = np.asarray(trainer.bind_model(training.state, hparams)(SHOWN.reshape(3, 8).astype("f")))
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["reconstructions-0002.png", "reconstructions-0004.png"]
    for epoch, name in zip((2, 4), names, strict=True):
        pixels = imread(tmp_path / "pictures" / name)[..., 0]
        assert pixels.shape == (5, 14)
        for at in range(3):
            column = slice(5 * at, 5 * at + 4)
            np.testing.assert_allclose(pixels[:2, column], SHOWN[at], atol=0.003)
            np.testing.assert_allclose(pixels[3:, column], drawn[epoch][at].reshape(2, 4).clip(0, 1), atol=0.003)
    np.testing.assert_array_equal(trainer.draw(training.state, hparams)[:2, :4], SHOWN[0])


@pytest.mark.slow
def test_without_images_there_are_no_pictures(tmp_path: Path) -> None:
    list(Linear(every=1).train_model({"learning_rate": 0.03}, correlated(20), epochs=1, seed=0, log=tmp_path))
    assert not (tmp_path / "pictures").exists()
    assert pairs(SHOWN, SHOWN.reshape(3, 8)).shape == (5, 14)
