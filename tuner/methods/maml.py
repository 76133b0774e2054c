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
from tuner.training.metrics import Metrics
from tuner.training.state import Stream, TrainState

TaskLoss = Callable[[Any, Any, int], tuple[jax.Array, Any]]
"""(params, carried, step) -> loss of a task's support examples, Float[Array, ""], and what goes to the next step."""


def adapt(
    loss: TaskLoss, params: PyTree, carried: PyTree, rate: Any, steps: int, *, first_order: bool = False
) -> tuple[Any, Any]:
    """Return the parameters after gradient descent, theta - rate * grad loss(theta) at each step, and what is carried.

    Differentiating through it is the paper's equation 1. First order takes the inner gradients for constants (section
    5.2): no second derivatives, and in the meta-gradient no Jacobians of the steps.

    Args:
        loss: Of one task.
        params: Where to start.
        carried: What the model carries beside parameters, such as batch statistics.
        rate: Of the inner steps; may be traced.
        steps: How many; static, because each is a part of the program.
        first_order: Static.
    """
    for step in range(steps):
        grads, carried = jax.grad(loss, has_aux=True)(params, carried, step)
        if first_order:
            grads = jax.lax.stop_gradient(grads)
        params = jax.tree.map(lambda param, grad: param - jnp.asarray(rate, param.dtype) * grad, params, grads)
    return params, carried


class MetaLearner(TrainerModule):
    """Trains the start of `adapt` for tasks; subclasses define `init_model`, and `task_loss` if it is no squared error.

    An example is a task: arrays `support_x`, `support_y` to adapt to, `query_x`, `query_y` to be judged on, each
    [tasks, points, ...]. Everything else is as in any trainer: optimizer, smoothed weights, penalty, precision.

    Hyperparameters: `inner_rate` (traced), `inner_steps` (static; 0 trains one model for all tasks at once, on their
    query points alone), and `first_order` (static) where a space has it.

    Models may draw random numbers and carry statistics. A task adapts in training mode, in validation too, because that
    is training: dropout is on, batch statistics are those of its points. Its query points are seen in training mode
    while the start is trained, and else in evaluation mode with the statistics the task has then. The start's own
    become the mean of what the tasks end with.

    Args:
        judged_after: Inner steps after which validation judges, increasing. Metrics are called `loss_0_steps` and so
            on; those after the last have no suffix, so that trials compare, however many steps they are trained with.
    """

    def __init__(self, judged_after: tuple[int, ...] = (0, 1, 5)) -> None:
        if not judged_after or list(judged_after) != sorted({*judged_after}) or judged_after[0] < 0:
            raise StudyError(f"judged_after must be increasing numbers of steps, at least 0: got {judged_after!r}")
        self.judged_after = tuple(judged_after)

    def task_loss(self, outputs: jax.Array, targets: jax.Array, hparams: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss of one task on some of its points, and further metrics, each Float[Array, ""].

        Args:
            outputs: What the model returned for the points.
            targets: Their `support_y` or `query_y`.
            hparams: The hyperparameters.
        """
        if outputs.shape != targets.shape:
            raise StudyError(f"outputs and targets must have the same shape: got {outputs.shape} and {targets.shape}")
        return jnp.mean((outputs - targets) ** 2), {}

    def inputs(self, batch: Batch) -> Any:
        """Return the points of the batch's first task, from whose shape the model is made."""
        return batch["support_x"][0]

    def adapted_outputs(
        self,
        params: PyTree,
        collections: PyTree,
        batch: Batch,
        hparams: Any,
        steps: int,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return the outputs for each task's query points after adapting to its support points.

        Args:
            params: The common start.
            collections: The common statistics.
            batch: The tasks.
            hparams: The hyperparameters.
            steps: Inner steps; static.
            train: Whether the query points are seen in training mode.
            key: For dropout and the like; each task gets its own.

        Returns:
            Outputs [tasks, points, ...], and each task's collections, with a leading axis of tasks.
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
        hparams: Any,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Return the outputs after adapting, in place of the model's own, so that the common training step fits.

        In evaluation mode the collections come back as they went in; else they are the mean over the tasks.
        """
        steps = needed(hparams, "inner_steps") if train else self.judged_after[-1]
        outputs, each = self.adapted_outputs(params, collections, batch, hparams, steps, train=train, key=key)
        return outputs, jax.tree.map(partial(_mean_over_tasks, batch["weight"]), each) if train else collections

    def loss(self, outputs: Any, batch: Batch, hparams: Any) -> tuple[jax.Array, dict[str, Any]]:
        return jax.vmap(lambda found, targets: self.task_loss(found, targets, hparams))(outputs, batch["query_y"])

    def eval_step(self, state: TrainState, batch: Batch, hparams: Any) -> Metrics:
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
    """Return the mean over the tasks of Num[Array, "tasks ..."], padding left out; of integers the first task's."""
    if not jnp.issubdtype(each.dtype, jnp.floating):
        return each[0]
    shares = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)
    return jnp.tensordot(shares.astype(each.dtype), each, axes=1)
