"""Laplace's approximation on the last layer: a Gaussian around the mode (Daxberger et al., 2021).

The covariance of the last layer's weights is the inverse of H + precision I, where H is the generalised Gauss-Newton
matrix of -log p(y | x): the sum over examples of Lambda_i (x) phi_i phi_i^T, phi_i the last layer's inputs (and a 1
for the bias), Lambda_i the Hessian of the example's loss with respect to its outputs. For linear regression with
Gaussian noise this is the posterior, exactly.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tuner.errors import StudyError
from tuner.methods.bayesian import Posterior, logits_of, mixture
from tuner.methods.calibration import check_forecast_labels, forecast_metrics
from tuner.methods.classification import field, needed
from tuner.training import PyTree, TrainState
from tuner.training.data.arrays import Batch, steps_per_epoch
from tuner.training.data.feed import Dataset
from tuner.training.definition import H
from tuner.training.metrics import Metrics


def with_bias(features: jax.Array) -> jax.Array:
    """Append a 1 to each example's features: Float[Array, "batch features+1"]."""
    return jnp.concatenate([features, jnp.ones((len(features), 1), features.dtype)], axis=-1)


def gauss_newton(hessians: jax.Array, features: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the sum over a batch of Lambda (x) phi phi^T.

    Args:
        hessians: The Hessian of each example's loss in its outputs: Float[Array, "batch outputs outputs"].
        features: Float[Array, "batch features"].
        weights: Zero for padding. Float[Array, "batch"].

    Returns:
        Float[Array, "outputs*features outputs*features"], where the index of features varies fastest.
    """
    size = hessians.shape[-1] * features.shape[-1]
    return jnp.einsum("n,nij,na,nb->iajb", weights, hessians, features, features).reshape(size, size)


def softmax_hessian(logits: jax.Array) -> jax.Array:
    """Return diag(p) - p p^T for p = softmax(logits): Float[Array, "batch classes classes"]."""
    p = jax.nn.softmax(logits)
    return p[:, :, None] * jnp.eye(p.shape[-1], dtype=p.dtype)[None] - p[:, :, None] * p[:, None, :]


def covariance(curvature: jax.Array, precision: float | jax.Array) -> jax.Array:
    """Return the inverse of curvature + precision I with the Cholesky decomposition, in the curvature's shape."""
    identity = jnp.eye(len(curvature), dtype=curvature.dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(curvature + precision * identity), identity)


def weight_samples(curvature: jax.Array, precision: float | jax.Array, key: jax.Array, count: int) -> jax.Array:
    """Return samples of N(0, (curvature + precision I)^-1), each with its negative: Float[Array, "count weights"].

    With L the Cholesky factor of the precision, L^-T z has that covariance for standard normal z. `count` is even.
    """
    identity = jnp.eye(len(curvature), dtype=curvature.dtype)
    factor = jnp.linalg.cholesky(curvature + precision * identity)
    normals = jax.random.normal(key, (len(curvature), count // 2), curvature.dtype)
    drawn = jax.scipy.linalg.solve_triangular(factor, normals, lower=True, trans="T").T
    return jnp.concatenate([drawn, -drawn])


class Laplace(Posterior[H]):
    """A posterior of the last layer around the trained weights; subclasses define the likelihood.

    The model returns its outputs and the inputs of the last layer, Float[Array, "batch features"]; the last layer must
    be affine in these. The training finds the mode. In addition, each step adds the curvature of its batch, starting
    from zero in each epoch. After an epoch it covers all examples, approximately at the final weights if the learning
    rate is small by then. There are no smoothed weights, because an average of curvatures has no meaning.
    """

    def ema_decay(self, hparams: H) -> None:
        """Return None: the curvature belongs to the weights themselves."""

    def hessian(self, outputs: jax.Array, hparams: H) -> jax.Array:
        """Return the Hessian of -log p(y | outputs) in the outputs: Float[Array, "batch outputs outputs"]."""
        raise StudyError(f"{type(self).__name__} must define hessian(outputs, hparams)")

    def predict(self, outputs: jax.Array, features: jax.Array, curvature: jax.Array, hparams: H) -> jax.Array:
        """Return the prediction under the posterior.

        Args:
            outputs: The outputs at the mode, Float[Array, "batch outputs"].
            features: The features with the 1, Float[Array, "batch features"].
            curvature: The curvature, from `gauss_newton`.
            hparams: The hyperparameters.
        """
        raise StudyError(f"{type(self).__name__} must define predict(outputs, features, curvature, hparams)")

    def init_state(self, hparams: H, batch: Batch, key: jax.Array, total_steps: int) -> TrainState:
        state = super().init_state(hparams, batch, key, total_steps)
        state = dataclasses.replace(state, collections={"model": state.collections})
        shape = jax.eval_shape(lambda: self._curvature(state, batch, hparams))
        collections = {**state.collections, "curvature": jnp.zeros(shape.shape, shape.dtype)}
        return dataclasses.replace(state, collections=collections)

    def train_step(self, state: TrainState, batch: Batch, hparams: H, key: jax.Array) -> tuple[TrainState, Metrics]:
        after, metrics = super().train_step(state, batch, hparams, key)
        assert state.step is not None
        is_first = state.step % steps_per_epoch(self.examples, len(batch["weight"])) == 0
        so_far = jnp.where(is_first, 0.0, after.collections["curvature"])
        collections = {**after.collections, "curvature": so_far + self._curvature(after, batch, hparams)}
        return dataclasses.replace(after, collections=collections), metrics

    def apply_inputs(
        self,
        params: PyTree,
        collections: PyTree,
        inputs: tuple[PyTree, ...],
        hparams: H,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Return outputs and features in training mode, and the result of `predict` in evaluation mode."""
        made, model = super().apply_inputs(params, collections["model"], inputs, hparams, train=train, key=key)
        if train:
            return made, {**collections, "model": model}
        outputs, features = self._checked(made)
        return self.predict(outputs, with_bias(features), collections["curvature"], hparams), collections

    def _curvature(self, state: TrainState, batch: Batch, hparams: H) -> jax.Array:
        """Return the curvature of a batch at a state's weights."""
        made, _ = super().apply_inputs(
            state.params, state.collections["model"], self._arguments(batch, hparams), hparams, train=False
        )
        outputs, features = self._checked(made)
        return gauss_newton(self.hessian(outputs, hparams), with_bias(features), batch["weight"])

    def _checked(self, made: PyTree) -> tuple[jax.Array, jax.Array]:
        if isinstance(made, tuple) and len(made) == 2 and made[0].ndim == made[1].ndim == 2:
            return made
        raise StudyError(
            "the model must return its outputs (batch, outputs) and the last layer's inputs (batch, features) for "
            f"{type(self).__name__}: got {jax.tree.map(jnp.shape, made)}"
        )


class LaplaceClassifier(Laplace[H]):
    """A softmax classifier; predictions are the mixture over weights sampled from the posterior, with fixed samples.

    Args:
        examples: The number N of training examples.
        draws: The number of samples; even.
    """

    def __init__(self, examples: int, draws: int = 64) -> None:
        super().__init__(examples)
        if draws < 2 or draws % 2:
            raise StudyError(f"draws must be an even number of at least 2: got {draws}")
        self.draws = draws

    def loss(self, outputs: PyTree, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        """Return the cross-entropy and `forecast_metrics`."""
        metrics = forecast_metrics(logits_of(outputs), batch)
        return metrics["nll"], metrics

    def check_data(self, dataset: Dataset, hparams: H, part: str) -> None:
        check_forecast_labels(self, dataset, hparams, part)

    def hessian(self, outputs: jax.Array, hparams: H) -> jax.Array:
        return softmax_hessian(outputs)

    def predict(self, outputs: jax.Array, features: jax.Array, curvature: jax.Array, hparams: H) -> jax.Array:
        """Return log-probabilities, Float[Array, "batch classes"]."""
        drawn = weight_samples(curvature, needed(hparams, "prior_precision"), jax.random.key(0), self.draws)
        drawn = jnp.sqrt(field(hparams, "temperature", 1.0)) * drawn.reshape(
            self.draws, outputs.shape[-1], features.shape[-1]
        )
        return mixture(outputs[None] + jnp.einsum("nf,kcf->knc", features, drawn))


class LaplaceRegressor(Laplace[H]):
    """Regression of `labels` with one output and Gaussian noise; its variance is the hyperparameter `noise_variance`.

    In evaluation mode the outputs are the mean and the variance of the prediction, Float[Array, "batch 2"].
    """

    def loss(self, outputs: PyTree, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        """Return -log p(label), and `squared_error` of the mean."""
        if isinstance(outputs, tuple):
            mean, variance = outputs[0][:, 0], jnp.full(len(outputs[0]), needed(hparams, "noise_variance"))
        else:
            mean, variance = outputs[:, 0], outputs[:, 1]
        squared = (batch["labels"] - mean) ** 2
        return 0.5 * (squared / variance + jnp.log(2 * jnp.pi * variance)), {"squared_error": squared}

    def hessian(self, outputs: jax.Array, hparams: H) -> jax.Array:
        return jnp.full((len(outputs), 1, 1), 1.0 / needed(hparams, "noise_variance"))

    def predict(self, outputs: jax.Array, features: jax.Array, curvature: jax.Array, hparams: H) -> jax.Array:
        """Return mean and variance, Float[Array, "batch 2"]; the variance is phi^T covariance phi plus the noise."""
        spread = jnp.einsum(
            "na,ab,nb->n", features, covariance(curvature, needed(hparams, "prior_precision")), features
        )
        variance = field(hparams, "temperature", 1.0) * spread + needed(hparams, "noise_variance")
        return jnp.stack([outputs[:, 0], variance], axis=-1)
