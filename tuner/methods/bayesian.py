"""Posteriors of classifiers' weights: their mode, ensembles of modes, and samples by Langevin dynamics.

All have the prior N(0, 1/precision) on every weight, with the hyperparameter `prior_precision`, and a softmax
likelihood; the loss is -log p(weights | data) / N. They predict the mixture over weights w_k,
p(y | x) = 1/K sum_k softmax(f(x; w_k))_y, as log-probabilities. `laplace.py` has the Gaussian around the mode.

The optional hyperparameter `temperature` T sets the posterior p^(1/T), for samples and the Gaussian. 1 is Bayes' rule;
networks often predict better with lower temperatures (Wenzel et al., 2020).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tuner.errors import StudyError
from tuner.methods.calibration import check_forecast_labels, forecast_metrics
from tuner.methods.classification import field, needed
from tuner.training import GradientNoise, OptimizerSpec, PyTree, TrainerModule, TrainState
from tuner.training.data.arrays import Batch
from tuner.training.data.batches import Order
from tuner.training.data.feed import Dataset
from tuner.training.definition import H
from tuner.training.metrics import Metrics


def prior_penalty(params: PyTree, precision: Any, examples: int) -> jax.Array:
    """Return precision / (2 N) |params|^2: the negative log-density of the prior, for a loss that is a mean over N."""
    return precision / (2 * examples) * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def mixture(logits: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """Return the logarithm of the mean probabilities over weights.

    Args:
        logits: The logits of each set of weights, Float[Array, "weights batch classes"].
        counted: The sets to use; all if None. Bool[Array, "weights"].

    Returns:
        Float[Array, "batch classes"].
    """
    logs = jax.nn.log_softmax(logits)
    if counted is None:
        counted = jnp.ones(len(logits), bool)
    # Minus infinity, whose exponential is 0, for sets that do not count.
    kept = jnp.where(counted[:, None, None], logs, -jnp.inf)
    return jax.nn.logsumexp(kept, axis=0) - jnp.log(jnp.sum(counted).astype(logs.dtype))


class Posterior(TrainerModule[H]):
    """A trainer whose loss and penalty are -log p(weights | data) / N.

    Args:
        examples: The number N of training examples, which weights the prior against the likelihood.
    """

    def __init__(self, examples: int) -> None:
        self.examples = examples

    def penalty(self, params: PyTree, hparams: H) -> jax.Array:
        return prior_penalty(params, needed(hparams, "prior_precision"), self.examples)

    def order(self, hparams: H, key: jax.Array, step: jax.Array, rows: jax.Array, *, batch_size: int) -> Order:
        if len(rows) != self.examples:
            raise StudyError(
                f"examples must equal the number of training examples: {type(self).__name__} has {self.examples}, the "
                f"data {len(rows)}"
            )
        return super().order(hparams, key, step, rows, batch_size=batch_size)


class MapClassifier(Posterior[H]):
    """The mode of the posterior (maximum a posteriori): one set of weights, trained with an L2 penalty.

    The model's outputs are logits, Float[Array, "batch classes"], or a tuple that starts with them.
    """

    def loss(self, outputs: PyTree, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        """Return the cross-entropy and `forecast_metrics`."""
        metrics = forecast_metrics(logits_of(outputs), batch)
        return metrics["nll"], metrics

    def check_data(self, dataset: Dataset, hparams: H, part: str) -> None:
        check_forecast_labels(self, dataset, hparams, part)

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
        """Return the model's outputs in training mode, and log-probabilities in evaluation mode."""
        outputs, after = super().apply_inputs(params, collections, inputs, hparams, train=train, key=key)
        return (outputs if train else jax.nn.log_softmax(logits_of(outputs))), after


def logits_of(outputs: PyTree) -> jax.Array:
    """Return the logits: a model's outputs, or the first element of a tuple."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


class EnsembleClassifier(MapClassifier[H]):
    """An ensemble of modes from several initial weights, trained in one program (Lakshminarayanan et al., 2017).

    Each member has its own key for initial weights, dropout and augmentation; all use the same batches. Training
    metrics are means over members, validation metrics are those of the mixture.

    Args:
        examples: See `MapClassifier`.
        members: The number of members.
    """

    def __init__(self, examples: int, members: int = 5) -> None:
        super().__init__(examples)
        if members < 1:
            raise StudyError(f"members must be at least 1: got {members}")
        self.members = members

    def init_state(self, hparams: H, batch: Batch, key: jax.Array, total_steps: int) -> TrainState:
        init = super().init_state
        members = jax.vmap(lambda key: init(hparams, batch, key, total_steps))(self._keys(key))
        return dataclasses.replace(members, step=jnp.zeros((), jnp.int32), key=key)

    def train_step(self, state: TrainState, batch: Batch, hparams: H, key: jax.Array) -> tuple[TrainState, Metrics]:
        one_step = super().train_step

        def member(own: TrainState, own_key: jax.Array, step_key: jax.Array) -> tuple[TrainState, Metrics]:
            return one_step(dataclasses.replace(own, step=state.step, key=own_key), batch, hparams, step_key)

        assert state.key is not None
        assert state.step is not None
        bare = dataclasses.replace(state, step=None, key=None)
        after, metrics = jax.vmap(member)(bare, self._keys(state.key), self._keys(key))
        after = dataclasses.replace(after, step=state.step + 1, key=state.key)
        return after, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), metrics)

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
        """Return the outputs of one member in training mode, and the mixture of all in evaluation mode."""
        apply = super().apply_inputs
        if train:
            return apply(params, collections, inputs, hparams, train=True, key=key)

        def member(params: PyTree, collections: PyTree) -> jax.Array:
            return apply(params, collections, inputs, hparams, train=False, key=key)[0]

        return mixture(jax.vmap(member)(params, collections)), collections

    def _keys(self, key: jax.Array) -> jax.Array:
        return jax.random.split(key, self.members)


class LangevinClassifier(MapClassifier[H]):
    """Samples of the posterior by stochastic gradient Langevin dynamics (Welling & Teh, 2011, equation 4).

    w += eps/2 (grad log p(w) + N/n sum_i grad log p(y_i | x_i, w)) + N(0, eps). With the mean loss L this is SGD on it
    at the learning rate r = eps N / 2, with noise of variance 4 / (eps N^2) = 2 / (r N) added to the gradient, so that
    `learning_rate` has its usual meaning. It is constant: the chain keeps moving, and its distribution has an error of
    O(eps). After the burn-in, the weights become a sample at regular intervals; before, the latest weights are the only
    sample.

    Args:
        examples: See `MapClassifier`.
        samples: The number of samples to keep.
        burn_in: The share of the training without samples; in [0, 1).
    """

    def __init__(self, examples: int, samples: int = 16, burn_in: float = 0.5) -> None:
        super().__init__(examples)
        if samples < 1 or not 0 <= burn_in < 1:
            raise StudyError(f"samples must be at least 1 and burn_in in [0, 1): got {samples=}, {burn_in=}")
        self.samples, self.burn_in = samples, burn_in

    def ema_decay(self, hparams: H) -> None:
        """Return None: an average of the chain's weights is not a sample."""

    def init_optimizer(self, hparams: H, total_steps: int) -> OptimizerSpec:
        rate, temperature = needed(hparams, "learning_rate"), field(hparams, "temperature", 1.0)
        variance = temperature * 2.0 / (rate * self.examples)
        return OptimizerSpec("sgd", rate, noise=GradientNoise(eta=variance, gamma=0.0))

    def init_state(self, hparams: H, batch: Batch, key: jax.Array, total_steps: int) -> TrainState:
        state = super().init_state(hparams, batch, key, total_steps)
        samples = jax.tree.map(lambda leaf: jnp.stack([leaf] * self.samples), state.params)
        collections = {"model": state.collections, "samples": samples, "taken": jnp.zeros((), jnp.int32)}
        return dataclasses.replace(state, collections=collections)

    def train_step(self, state: TrainState, batch: Batch, hparams: H, key: jax.Array) -> tuple[TrainState, Metrics]:
        after, metrics = super().train_step(state, batch, hparams, key)
        assert after.step is not None
        samples, taken = after.collections["samples"], after.collections["taken"]
        burnt = int(self.burn_in * state.total_steps)
        every = max(1, (state.total_steps - burnt) // self.samples)
        is_sample = (after.step > burnt) & ((after.step - burnt) % every == 0) & (taken < self.samples)
        # Until there is a sample, the first slot has the latest weights.
        is_written = is_sample | (taken == 0)
        samples = jax.tree.map(
            lambda kept, new: jnp.where(is_written, kept.at[jnp.minimum(taken, self.samples - 1)].set(new), kept),
            samples,
            after.params,
        )
        collections = {**after.collections, "samples": samples, "taken": taken + is_sample.astype(jnp.int32)}
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
        """Return the outputs of the latest weights in training mode, and the samples' mixture in evaluation mode."""
        apply = super().apply_inputs
        if train:
            outputs, model = apply(params, collections["model"], inputs, hparams, train=True, key=key)
            return outputs, {**collections, "model": model}

        def sample(params: PyTree) -> jax.Array:
            return apply(params, collections["model"], inputs, hparams, train=False, key=key)[0]

        counted = jnp.arange(self.samples) < jnp.maximum(collections["taken"], 1)
        return mixture(jax.vmap(sample)(collections["samples"]), counted), collections
