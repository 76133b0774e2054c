"""Differentiable architecture search (Liu et al., 2019, arXiv:1806.09055): the bilevel training of mixtures.

The weights w minimise the loss on training data; the mixtures' logits alpha minimise the loss on held-out data at the
weights that the training data lead to (equations 3 and 4). `genotype` makes the result discrete, and
`DiscreteClassifier` trains it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tuner.errors import StudyError
from tuner.methods.classification import Classifier, field, needed, refuse_uncalled
from tuner.methods.darts_networks import ALPHAS, KINDS, SearchNetwork
from tuner.methods.darts_ops import OPERATIONS
from tuner.training import ArrayDataset, Mean, OptimizerSpec, PyTree, TrainState, WarmupCosine, warmup_cosine
from tuner.training.data.arrays import Batch
from tuner.training.data.feed import Dataset
from tuner.training.data.labels import check_labels
from tuner.training.definition import H
from tuner.training.metrics import Metrics
from tuner.training.optim.build import as_optimizer
from tuner.training.state import Stream

Loss = Callable[[Any, Any], jax.Array]
"""(weights, alphas) -> Float[Array, ""]."""
HELD_OUT = "held_out_"


def architecture_gradient(
    train_loss: Loss, held_out_loss: Loss, weights: PyTree, alphas: PyTree, rate: jax.Array | float | None
) -> tuple[jax.Array, Any]:
    """Return the held-out loss and its gradient with respect to the architecture.

    The second-order gradient is that of L_held_out(w - rate * dL_train/dw, alpha), equations 6 to 8: the product with
    second derivatives is the difference of two gradients, at w +- epsilon dL_held_out/dw', epsilon = 0.01 /
    |dL_held_out/dw'|.

    Args:
        train_loss: The loss on training data.
        held_out_loss: The loss on held-out data.
        weights: The weights w.
        alphas: The logits alpha of the architecture.
        rate: The learning rate xi of the weights' look-ahead step; None for first order, which uses w itself.
    """
    if rate is None:
        return jax.value_and_grad(held_out_loss, argnums=1)(weights, alphas)
    ahead = _moved(weights, jax.grad(train_loss)(weights, alphas), -rate)
    loss, (slopes, direct) = jax.value_and_grad(held_out_loss, argnums=(0, 1))(ahead, alphas)
    epsilon = 0.01 / jnp.maximum(optax.tree.norm(slopes), 1e-8)
    above = jax.grad(train_loss, argnums=1)(_moved(weights, slopes, epsilon), alphas)
    below = jax.grad(train_loss, argnums=1)(_moved(weights, slopes, -epsilon), alphas)
    product = jax.tree.map(lambda one, other: (one - other) / (2 * epsilon), above, below)
    return loss, _moved(direct, product, -rate)


def _moved(tree: PyTree, direction: PyTree, by: float | jax.Array) -> Any:
    return jax.tree.map(lambda leaf, slope: leaf + by * slope, tree, direction)


def paired_halves(dataset: ArrayDataset, seed: int) -> ArrayDataset:
    """Return a dataset of pairs: one example to train the weights and one for the architecture.

    The halves are fixed, so that examples for the architecture never train the weights. An example of the result has
    the arrays of the first example, and those of the second with the prefix `held_out_`. An odd example is dropped.

    Args:
        dataset: At least two examples, all with weight 1.
        seed: The seed of the split.

    Raises:
        StudyError: there are too few examples, or they have weights.
    """
    arrays = dataset.host()
    if len(dataset) < 2 or not (arrays.pop("weight") == 1).all():
        raise StudyError(
            f"paired_halves needs at least 2 examples, and all weights 1: got {len(dataset)}, or other weights"
        )
    order, half = np.random.default_rng(seed).permutation(len(dataset)), len(dataset) // 2
    first, second = order[:half], order[half : 2 * half]
    return ArrayDataset(
        **{name: array[first] for name, array in arrays.items()},
        **{HELD_OUT + name: array[second] for name, array in arrays.items()},
    )


class ArchitectureSearch(Classifier[H]):
    """Searches an architecture while training its weights; the training data are from `paired_halves`.

    Each step updates the architecture on the held-out examples of the batch, then the weights on the others. The
    running batch statistics are those of the weights' examples.

    Hyperparameters: `learning_rate` of the weights (momentum 0.9, cosine) and optionally their `weight_decay`;
    `architecture_rate` of Adam for the logits; `search_order` (static): `second`, `first`, or `none`, which keeps the
    random initial architecture as a baseline.

    `penalty`, `augment`, `init_optimizer` and `ema_decay` are not called; defining them is an error. Unlike the paper's
    program, it has neither drop path nor an auxiliary tower, and no normalisation after pooling.

    Args:
        classes: The number of classes.
        cells: See `SearchNetwork`.
        channels: See `SearchNetwork`.
        nodes: See `SearchNetwork`.
        operations: See `SearchNetwork`.
    """

    def __init__(
        self,
        classes: int,
        cells: tuple[str, ...] = KINDS,
        channels: int = 8,
        nodes: int = 2,
        operations: tuple[str, ...] = OPERATIONS,
    ) -> None:
        super().__init__(classes)
        self.cells, self.channels, self.nodes, self.operations = tuple(cells), channels, nodes, tuple(operations)

    def init_model(self, hparams: H) -> SearchNetwork:
        return SearchNetwork(self.classes, self.cells, self.channels, self.nodes, self.operations)

    def check_data(self, dataset: Dataset, hparams: H, part: str) -> None:
        super().check_data(dataset, hparams, part)
        check_labels(dataset, self.classes, part, name=f"{HELD_OUT}labels")

    def ema_decay(self, hparams: H) -> None:
        """Return None: a smoothed architecture would be evaluated with the weights of another one."""

    def init_optimizers(self, hparams: H, total_steps: int) -> tuple[Any, Any]:
        """Return the optimizers of weights and architecture, each like the result of `init_optimizer`.

        The defaults are those of the paper: SGD with momentum 0.9 and a cosine schedule, here after a short warm-up;
        and Adam with b1 = 0.5 and decay 0.001.
        """
        weights = OptimizerSpec(
            "sgd",
            needed(hparams, "learning_rate"),
            options={"momentum": 0.9},
            schedule=WarmupCosine(),
            decay=field(hparams, "weight_decay", 0.0),
            decay_kind="l2",
            clip_norm=5.0,
        )
        alphas = OptimizerSpec(
            "adam", needed(hparams, "architecture_rate"), options={"b1": 0.5}, decay=1e-3, decay_kind="l2"
        )
        return weights, alphas

    def look_ahead(self, hparams: H, step: jax.Array, total_steps: int) -> jax.Array:
        """Return xi of `architecture_gradient` for second order: the weights' learning rate at this step."""
        return needed(hparams, "learning_rate") * warmup_cosine(total_steps)(step)

    # Derived from the methods above.

    def init_state(self, hparams: H, batch: Batch, key: jax.Array, total_steps: int) -> TrainState:
        steps = dict.fromkeys(("penalty", "augment"), "architecture_step or weights_step")
        refuse_uncalled(self, ArchitectureSearch, **steps, init_optimizer="init_optimizers", ema_decay="train_step")
        if self.precision != "float32":
            raise StudyError(f"an architecture search needs precision='float32': got {self.precision!r}")
        params, collections = self.build_model(hparams).init(Stream.INIT.key(key), (batch["inputs"],))
        weights, alphas = split(params)
        optimizers = self._optimizers(hparams, total_steps)
        opt_state = {"weights": optimizers["weights"].init(weights), "alphas": optimizers["alphas"].init(alphas)}
        return TrainState(jnp.int32(0), params, opt_state, collections, key, total_steps=total_steps)

    def train_step(self, state: TrainState, batch: Batch, hparams: H, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Return the state after a step of the architecture and a step of the weights, and the metrics of the batch.

        The metrics are those of the weights' step, and the loss `held_out_loss` of the architecture's step.
        """
        order: Literal["second", "first", "none"] = needed(hparams, "search_order")
        if order not in ("second", "first", "none"):
            raise StudyError(f"search_order must be 'second', 'first' or 'none': got {order!r}")
        metrics: Metrics = {}
        if order != "none":
            state, metrics = self.architecture_step(state, batch, hparams, jax.random.fold_in(key, 1))
        state, more = self.weights_step(state, batch, hparams, key)
        assert state.step is not None
        return dataclasses.replace(state, step=state.step + jnp.ones_like(state.step)), {**metrics, **more}

    def architecture_step(
        self, state: TrainState, batch: Batch, hparams: H, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Return the state after a step of the architecture; weights and batch statistics do not change."""
        held_out = {name.removeprefix(HELD_OUT): array for name, array in batch.items() if name.startswith(HELD_OUT)}

        def loss_on(examples: Batch) -> Loss:
            return lambda weights, alphas: self._loss({**weights, **alphas}, state, examples, hparams, key)[0]

        ahead = None
        if needed(hparams, "search_order") == "second":
            assert state.step is not None
            ahead = self.look_ahead(hparams, state.step, state.total_steps)
        losses = loss_on(batch), loss_on({**held_out, "weight": batch["weight"]})
        loss, grads = architecture_gradient(*losses, *split(state.params), ahead)
        held_out_loss = Mean(loss * jnp.sum(batch["weight"]), jnp.sum(batch["weight"]))
        after = self._descend("alphas", state, grads, hparams, held_out_loss.weight)
        return after, {"held_out_loss": held_out_loss}

    def weights_step(self, state: TrainState, batch: Batch, hparams: H, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Return the state after a step of the weights; the architecture does not change."""
        weights, alphas = split(state.params)

        def objective(weights: PyTree) -> tuple[jax.Array, tuple[Any, Metrics]]:
            return self._loss({**weights, **alphas}, state, batch, hparams, key)

        grads, (collections, metrics) = jax.grad(objective, has_aux=True)(weights)
        after = self._descend("weights", state, grads, hparams, jnp.sum(batch["weight"]), collections)
        return after, {**metrics, "grad_norm": Mean.of_steps(optax.tree.norm(grads))}

    def _optimizers(self, hparams: H, total_steps: int) -> dict[str, Any]:
        made = self.init_optimizers(hparams, total_steps)
        return {name: as_optimizer(one, total_steps) for name, one in zip(("weights", "alphas"), made, strict=True)}

    def _loss(
        self, params: PyTree, state: TrainState, batch: Batch, hparams: H, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        outputs, collections = self.apply_model(params, state.collections, batch, hparams, train=True, key=key)
        metrics = self._metrics(outputs, batch, hparams)
        return metrics["loss"].value, (collections, metrics)

    def _descend(
        self, name: str, state: TrainState, grads: PyTree, hparams: H, weight: jax.Array, collections: PyTree = None
    ) -> TrainState:
        """Return the state after a step of the weights or of the architecture."""
        weights, alphas = split(state.params)
        part = weights if name == "weights" else alphas
        optimizer = self._optimizers(hparams, state.total_steps)[name]
        before = TrainState(params=part, opt_state=state.opt_state[name], collections=state.collections)
        after = before.apply_gradients(optimizer, grads, collections, weight=weight)
        return dataclasses.replace(
            state,
            params={**state.params, **after.params},
            collections=after.collections,
            opt_state={**state.opt_state, name: after.opt_state},
        )


def split(params: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a search network's weights and its architecture."""
    alphas = {name: leaf for name, leaf in params.items() if name.startswith(ALPHAS)}
    return {name: leaf for name, leaf in params.items() if name not in alphas}, alphas


def alphas_of(params: PyTree) -> dict[str, jax.Array]:
    """Return a search network's architecture by kind of cell, for `genotype`."""
    return {name.removeprefix(ALPHAS): leaf for name, leaf in split(params)[1].items()}
