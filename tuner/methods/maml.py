"""Model-agnostic meta-learning: initial weights that adapt in a few steps (Finn et al., 2017, arXiv:1703.03400)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tuner.errors import StudyError
from tuner.methods.classification import field, needed
from tuner.training import Mean, PyTree, TrainerModule
from tuner.training.data.arrays import Batch
from tuner.training.definition import H
from tuner.training.metrics import Metrics
from tuner.training.state import Stream, TrainState

TaskLoss = Callable[[Any, Any, int], tuple[jax.Array, Any]]
"""(params, carried, step) -> the loss of a task's support examples, Float[Array, ""], and the next `carried`."""


def adapt(
    loss: TaskLoss, params: PyTree, carried: PyTree, rate: float | jax.Array, steps: int, *, first_order: bool = False
) -> tuple[Any, Any]:
    """Return the parameters after gradient descent, theta - rate * grad loss(theta) in each step, and `carried`.

    Differentiating through it is the paper's equation 1. First order treats the inner gradients as constants (section
    5.2), without second derivatives or Jacobians of the steps.

    Args:
        loss: The loss of a task.
        params: The initial parameters.
        carried: Variables of the model other than parameters, such as batch statistics.
        rate: The learning rate of the inner steps; may be traced.
        steps: The number of steps; static, because each is part of the program.
        first_order: Whether to use first order; static.
    """
    for step in range(steps):
        grads, carried = jax.grad(loss, has_aux=True)(params, carried, step)
        if first_order:
            grads = jax.lax.stop_gradient(grads)
        params = jax.tree.map(lambda param, grad: param - jnp.asarray(rate, param.dtype) * grad, params, grads)
    return params, carried


class MetaLearner(TrainerModule[H]):
    """Trains initial parameters for `adapt`; subclasses define `init_model`, and `task_loss` for other losses.

    An example is a task: arrays `support_x`, `support_y` to adapt to, and `query_x`, `query_y` to evaluate on, each
    [tasks, points, ...]. Optimizer, smoothed weights, penalty and precision work as in any trainer.

    Hyperparameters: `inner_rate` (traced), `inner_steps` (static; 0 trains one model for all tasks, only on their query
    points), and optionally `first_order` (static).

    Models may draw random numbers and have batch statistics. A task always adapts in training mode, also in validation:
    dropout is on, and batch statistics are those of its points. Query points run in training mode during training, and
    otherwise in evaluation mode with the task's adapted statistics. The common statistics become the mean of the tasks'
    final ones.

    Args:
        judged_after: Numbers of inner steps after which validation evaluates, increasing. Metrics are called
            `loss_0_steps` and so on; those after the last number have no suffix, so that trials that train with
            different numbers of steps are comparable.
    """

    def __init__(self, judged_after: tuple[int, ...] = (0, 1, 5)) -> None:
        if not judged_after or list(judged_after) != sorted({*judged_after}) or judged_after[0] < 0:
            raise StudyError(f"judged_after must be increasing numbers of steps, at least 0: got {judged_after!r}")
        self.judged_after = tuple(judged_after)

    def task_loss(self, outputs: jax.Array, targets: jax.Array, hparams: H) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss of a task on some of its points, and other metrics, each Float[Array, ""].

        Args:
            outputs: The model's outputs for the points.
            targets: The points' `support_y` or `query_y`.
            hparams: The hyperparameters.
        """
        if outputs.shape != targets.shape:
            raise StudyError(f"outputs and targets must have the same shape: got {outputs.shape} and {targets.shape}")
        return jnp.mean((outputs - targets) ** 2), {}

    def inputs(self, batch: Batch) -> Any:
        """Return the points of the batch's first task, whose shape initialises the model."""
        return batch["support_x"][0]

    def adapted_outputs(
        self,
        params: PyTree,
        collections: PyTree,
        batch: Batch,
        hparams: H,
        steps: int,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return the outputs for each task's query points after adapting to its support points.

        Args:
            params: The common initial parameters.
            collections: The common statistics.
            batch: The tasks.
            hparams: The hyperparameters.
            steps: The number of inner steps; static.
            train: Whether query points run in training mode.
            key: The key for dropout and other random layers; each task gets its own.

        Returns:
            Outputs [tasks, points, ...], and each task's collections with a first axis of tasks.
        """

        def one_task(task: Batch, key: jax.Array | None) -> tuple[jax.Array, Any]:
            def support_loss(params: PyTree, carried: PyTree, step: int) -> tuple[jax.Array, Any]:
                inner_key = None if key is None else jax.random.fold_in(key, step + 1)
                outputs, carried = self.apply_inputs(
                    params, carried, (task["support_x"],), hparams, train=True, key=inner_key
                )
                return self.task_loss(outputs, task["support_y"], hparams)[0], carried

            first_order = bool(field(hparams, "first_order", False))
            rate = needed(hparams, "inner_rate")
            adapted, carried = adapt(support_loss, params, collections, rate, steps, first_order=first_order)
            return self.apply_inputs(adapted, carried, (task["query_x"],), hparams, train=train, key=key)

        arrays = {name: batch[name] for name in ("support_x", "support_y", "query_x")}
        keys = None if key is None else jax.random.split(key, batch["weight"].shape[0])
        return jax.vmap(one_task, in_axes=(0, None if key is None else 0))(arrays, keys)

    def apply_model(
        self,
        params: PyTree,
        collections: PyTree,
        batch: Batch,
        hparams: H,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Return the outputs after adapting, instead of the model's outputs, so that the usual training step works.

        In evaluation mode the collections are returned unchanged; otherwise they are the mean over the tasks.
        """
        steps = needed(hparams, "inner_steps") if train else self.judged_after[-1]
        outputs, each = self.adapted_outputs(params, collections, batch, hparams, steps, train=train, key=key)
        return outputs, jax.tree.map(partial(_mean_over_tasks, batch["weight"]), each) if train else collections

    def loss(self, outputs: PyTree, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        return jax.vmap(lambda found, targets: self.task_loss(found, targets, hparams))(outputs, batch["query_y"])

    def eval_step(self, state: TrainState, batch: Batch, hparams: H) -> Metrics:
        weights, key, metrics = state.for_evaluation(), None, {}
        if state.key is not None and state.step is not None:
            key = Stream.EVAL.key(state.key, state.step)
        for steps in self.judged_after:
            outputs, _ = self.adapted_outputs(weights.params, weights.collections, batch, hparams, steps, key=key)
            losses, more = self.loss(outputs, batch, hparams)
            suffix = "" if steps == self.judged_after[-1] else "_1_step" if steps == 1 else f"_{steps}_steps"
            for name, values in {"loss": losses, **more}.items():
                metrics[f"{name}{suffix}"] = Mean.of(values, batch["weight"])
        return metrics


def _mean_over_tasks(weight: jax.Array, each: jax.Array) -> jax.Array:
    """Return the mean of Num[Array, "tasks ..."] over tasks, without padding; integers are those of the first task."""
    if not jnp.issubdtype(each.dtype, jnp.floating):
        return each[0]
    shares = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    return jnp.tensordot(shares.astype(each.dtype), each, axes=1)
