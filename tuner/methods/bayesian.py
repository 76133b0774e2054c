"""Posteriors of classifiers' weights: their mode, ensembles of modes, and samples by Langevin dynamics.

All have the prior N(0, 1/precision) on every weight, with the hyperparameter `prior_precision`, and the likelihood of
softmax; the loss is -log p(weights | data) / N. What they predict is the mixture over weights w_k,
p(y | x) = 1/K sum_k softmax(f(x; w_k))_y, as log-probabilities. `laplace.py` has the Gaussian around the mode.

A hyperparameter `temperature`, where a space has it, is that of a posterior p^(1/T), for samples and the Gaussian: 1 is
Bayes' rule; networks often predict better below (Wenzel et al., 2020).
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
from tuner.training.metrics import Metrics


def prior_penalty(params: PyTree, precision: Any, examples: int) -> jax.Array:
    """Return precision / (2 N) |params|^2: minus the log-density of the prior, for a loss that is a mean over N."""
    return precision / (2 * examples) * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def mixture(logits: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """Return the logarithm of the mean over weights of the probabilities.

    Args:
        logits: Of each set of weights, Float[Array, "weights batch classes"].
        counted: Which sets count; all if None. Bool[Array, "weights"].

    Returns:
        Float[Array, "batch classes"].
    """
    logs = jax.nn.log_softmax(logits)
    if counted is None:
        counted = jnp.ones(len(logits), bool)
    # Of those that do not count, whatever they are: minus infinity, whose exponential is 0.
    kept = jnp.where(counted[:, None, None], logs, -jnp.inf)
    return jax.nn.logsumexp(kept, axis=0) - jnp.log(jnp.sum(counted).astype(logs.dtype))


class Posterior(TrainerModule):
    """A trainer whose loss and penalty are -log p(weights | data) / N.

    Args:
        examples: The number N of training examples, by which prior and likelihood are weighed.
    """

    def __init__(self, examples: int) -> None:
        self.examples = examples

    def penalty(self, params: PyTree, hparams: Any) -> jax.Array:
        return prior_penalty(params, needed(hparams, "prior_precision"), self.examples)

    def order(self, hparams: Any, key: jax.Array, step: jax.Array, rows: jax.Array, *, batch_size: int) -> Order:
        if len(rows) != self.examples:
            raise StudyError(
                f"examples must equal the number of training examples: {type(self).__name__} has {self.examples}, the "
                f"data {len(rows)}"
            )
        return super().order(hparams, key, step, rows, batch_size=batch_size)


class MapClassifier(Posterior):
    """The mode of the posterior: one set of weights, the usual training with an L2 penalty (maximum a posteriori).

    The model's outputs are logits, Float[Array, "batch classes"], or a tuple that begins with them.
    """

    def loss(self, outputs: Any, batch: Batch, hparams: Any) -> tuple[jax.Array, dict[str, Any]]:
        """Return the cross-entropy, and all of `forecast_metrics`."""
        metrics = forecast_metrics(logits_of(outputs), batch)
        return metrics["nll"], metrics

    def check_data(self, dataset: Any, hparams: Any, part: str) -> None:
        check_forecast_labels(self, dataset, hparams, part)

    def apply_inputs(
        self,
        params: PyTree,
        collections: PyTree,
        inputs: tuple[Any, ...],
        hparams: Any,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Return the model's outputs in training mode, and in evaluation mode the log-probabilities."""
        outputs, after = super().apply_inputs(params, collections, inputs, hparams, train=train, key=key)
        return (outputs if train else jax.nn.log_softmax(logits_of(outputs))), after


def logits_of(outputs: Any) -> jax.Array:
    """Return a model's outputs without what a tuple has behind them."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


class EnsembleClassifier(MapClassifier):
    """Modes found from several first weights, trained in one program (Lakshminarayanan et al., 2017).

    Each member has a key of its own, for its first weights, dropout and augmentation; the batches are common to all.
    The metrics of training are means over members, those of validation are the mixture's.

    Args:
        examples: As for `MapClassifier`.
        members: How many there are.
    """

    def __init__(self, examples: int, members: int = 5) -> None:
        super().__init__(examples)
        if members < 1:
            raise StudyError(f"members must be at least 1: got {members}")
        self.members = members

    def init_state(self, hparams: Any, batch: Batch, key: jax.Array, total_steps: int) -> TrainState:
        init = super().init_state
        members = jax.vmap(lambda key: init(hparams, batch, key, total_steps))(self._keys(key))
        return dataclasses.replace(members, step=jnp.zeros((), jnp.int32), key=key)

    def train_step(self, state: TrainState, batch: Batch, hparams: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
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
        inputs: tuple[Any, ...],
        hparams: Any,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Return the outputs of one member in training mode, and in evaluation mode the mixture of all."""
        apply = super().apply_inputs
        if train:
            return apply(params, collections, inputs, hparams, train=True, key=key)

        def member(params: PyTree, collections: PyTree) -> jax.Array:
            return apply(params, collections, inputs, hparams, train=False, key=key)[0]

        return mixture(jax.vmap(member)(params, collections)), collections

    def _keys(self, key: jax.Array) -> jax.Array:
        return jax.random.split(key, self.members)


class LangevinClassifier(MapClassifier):
    """Samples of the posterior by stochastic gradient Langevin dynamics (Welling & Teh, 2011, equation 4).

    w += eps/2 (grad log p(w) + N/n sum_i grad log p(y_i | x_i, w)) + N(0, eps). With the mean loss L this is SGD on it
    at the learning rate r = eps N / 2 whose gradient has noise of variance 4 / (eps N^2) = 2 / (r N) added: so
    `learning_rate` means what it does elsewhere. It stays constant: then the chain's distribution is off by O(eps), and
    never stops moving. After the burn-in every so many steps the weights are a sample; before, there is one sample,
    the latest weights.

    Args:
        examples: As for `MapClassifier`.
        samples: How many are kept.
        burn_in: Share of the training that gives no samples; in [0, 1).
    """

    def __init__(self, examples: int, samples: int = 16, burn_in: float = 0.5) -> None:
        super().__init__(examples)
        if samples < 1 or not 0 <= burn_in < 1:
            raise StudyError(f"samples must be at least 1 and burn_in in [0, 1): got {samples=}, {burn_in=}")
        self.samples, self.burn_in = samples, burn_in

    def ema_decay(self, hparams: Any) -> None:
        """Return None: an average of the chain's weights is no sample."""

    def init_optimizer(self, hparams: Any, total_steps: int) -> OptimizerSpec:
        rate, temperature = needed(hparams, "learning_rate"), field(hparams, "temperature", 1.0)
        variance = temperature * 2.0 / (rate * self.examples)
        return OptimizerSpec("sgd", rate, noise=GradientNoise(eta=variance, gamma=0.0))

    def init_state(self, hparams: Any, batch: Batch, key: jax.Array, total_steps: int) -> TrainState:
        state = super().init_state(hparams, batch, key, total_steps)
        samples = jax.tree.map(lambda leaf: jnp.stack([leaf] * self.samples), state.params)
        collections = {"model": state.collections, "samples": samples, "taken": jnp.zeros((), jnp.int32)}
        return dataclasses.replace(state, collections=collections)

    def train_step(self, state: TrainState, batch: Batch, hparams: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        after, metrics = super().train_step(state, batch, hparams, key)
        assert after.step is not None
        samples, taken = after.collections["samples"], after.collections["taken"]
        burnt = int(self.burn_in * state.total_steps)
        every = max(1, (state.total_steps - burnt) // self.samples)
        is_sample = (after.step > burnt) & ((after.step - burnt) % every == 0) & (taken < self.samples)
        # Until there is a sample the first place has the latest weights.
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
        inputs: tuple[Any, ...],
        hparams: Any,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Return the outputs of the latest weights in training mode, and in evaluation mode the samples' mixture."""
        apply = super().apply_inputs
        if train:
            outputs, model = apply(params, collections["model"], inputs, hparams, train=True, key=key)
            return outputs, {**collections, "model": model}

        def sample(params: PyTree) -> jax.Array:
            return apply(params, collections["model"], inputs, hparams, train=False, key=key)[0]

        counted = jnp.arange(self.samples) < jnp.maximum(collections["taken"], 1)
        return mixture(jax.vmap(sample)(collections["samples"]), counted), collections
