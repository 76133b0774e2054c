"""The methods that define a trainer: pure functions of hyperparameters, to be overridden."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, Generic, Literal

import jax
import jax.numpy as jnp
import optax
from flax.training.dynamic_scale import DynamicScale
from typing_extensions import TypeVar

from tuner.errors import StudyError
from tuner.study.signatures import takes_hparams
from tuner.training.data.arrays import Batch
from tuner.training.data.batches import Order, epoch_order
from tuner.training.data.feed import Dataset
from tuner.training.metrics import Mean, Metric, Metrics
from tuner.training.model.adapters import Model, as_model
from tuner.training.optim.build import OptimizerGroups, OptimizerSpec, WarmupCosine, as_optimizer, clipped_norm
from tuner.training.pytree import PyTree
from tuner.training.state import Average, Stream, TrainState

H = TypeVar("H", default=Any)
"""The class of a trainer's hyperparameters, usually a `Space`."""
Optimizer = OptimizerSpec | OptimizerGroups | optax.GradientTransformation


class TrainerDefinition(Generic[H]):
    """The methods of a `TrainerModule` that an author overrides, and methods derived from them."""

    loop: Literal["auto", "scan", "step"] = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    validate_every: int = 1

    # The model and its training: pure methods, which run inside compiled programs.

    def init_model(self, hparams: H) -> Any:
        """Return the model for these hyperparameters; traced ones are JAX values.

        Returns:
            A Linen module, an NNX module class (or a function of `rngs` that makes one), or a pair of pure functions
            `(init, apply)`; see `tuner.training.model.adapters.as_model`.
        """
        raise StudyError(f"{type(self).__name__} must define init_model(hparams)")

    def loss(self, outputs: PyTree, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        """Return the loss of each example and further metrics.

        Args:
            outputs: What the model returned.
            batch: The batch.
            hparams: The hyperparameters.

        Returns:
            Losses Float[Array, "batch"], and metrics by name: each has one value per example, Num[Array, "batch"],
            or is a `Metric` such as `ConfusionMatrix`.
        """
        raise StudyError(f"{type(self).__name__} must define loss(outputs, batch, hparams)")

    def penalty(self, params: PyTree, hparams: H) -> jax.Array | None:
        """Return a term to add to the mean loss before it is differentiated, Float[Array, ""]; None for nothing.

        It is reported separately, as `train_penalty`, so that losses of trials with different penalties are comparable.
        """
        return None

    def augment(self, batch: Batch, hparams: H, key: jax.Array) -> Batch:
        """Return a randomly changed training batch; runs inside the program."""
        return batch

    def batch_size(self, hparams: H) -> int:
        """Return the number of examples per training step; return a static hyperparameter to tune it."""
        return 64

    def order(self, hparams: H, key: jax.Array, step: jax.Array, rows: jax.Array, *, batch_size: int) -> Order:
        """Return the training batches of an epoch; by default every example once, in a random order.

        The result must depend only on the arguments: a training that is resumed within an epoch calls this again.

        Args:
            hparams: The hyperparameters.
            key: The trial's key.
            step: The epoch's first step, Int[Array, ""].
            rows: The positions of the training examples, in the data's order: Int[Array, "examples"].
            batch_size: Examples per batch.

        Returns:
            Elements of `rows`, Int[Array, "steps batch"], and their weights, Float[Array, "steps batch"]. The number of
            steps must be the number of batches that cover the examples.
        """
        return epoch_order(key, step, rows, batch_size=batch_size)

    def inputs(self, batch: Batch, *args: Any, **kwargs: Any) -> Any:
        """Return the model's arguments: by default the array `inputs`; a tuple for several arguments.

        Define it as `inputs(self, batch)`, or as `inputs(self, batch, hparams)`. It runs inside the program: traced
        hyperparameters are JAX values, static ones Python values.

        Args:
            batch: The batch.
            args: Nothing: a subclass may take `hparams`.
            kwargs: Likewise.
        """
        if "inputs" not in batch:
            raise StudyError(
                f"the data have no array 'inputs', only {', '.join(batch)}: add it, or define inputs(batch) in "
                f"{type(self).__name__}"
            )
        return batch["inputs"]

    def init_optimizer(self, hparams: H, total_steps: int) -> Optimizer:
        """Return the optimizer: an `OptimizerSpec`, `OptimizerGroups` or any optax transformation.

        By default AdamW with warm-up and cosine decay, with the hyperparameters `learning_rate` and, if the space has
        it, `weight_decay`.
        """
        given = hparams.get if isinstance(hparams, Mapping) else partial(getattr, hparams)
        rate = given("learning_rate", None)
        if rate is None:
            raise StudyError(
                f"the default optimizer needs a hyperparameter 'learning_rate': {type(hparams).__name__} has none; add "
                f"it, or define init_optimizer in {type(self).__name__}"
            )
        return OptimizerSpec("adamw", rate, schedule=WarmupCosine(), decay=given("weight_decay", 0.0))

    def ema_decay(self, hparams: H) -> float | jax.Array | None:
        """Return the share of the smoothed weights that each step keeps; None for no smoothed weights.

        Evaluation, and therefore the objective, uses the smoothed weights. A step that only accumulates gradients
        counts, a skipped step does not.
        """
        return None

    def init_state(self, hparams: H, batch: Batch, key: jax.Array, total_steps: int) -> TrainState:
        """Return the state before the first step.

        Args:
            hparams: The hyperparameters.
            batch: Any batch; only its shapes are used.
            key: The trial's key.
            total_steps: Updates of the whole training.
        """
        params, collections = self.build_model(hparams).init(Stream.INIT.key(key), self._arguments(batch, hparams))
        opt_state = self.build_optimizer(hparams, total_steps, Stream.NOISE.key(key)).init(params)
        average = None if self.ema_decay(hparams) is None else Average(params, collections)
        scale = _first_scale() if self.precision == "float16" else None
        return TrainState(
            jnp.zeros((), jnp.int32), params, opt_state, collections, key, average, scale, total_steps=total_steps
        )

    def train_step(self, state: TrainState, batch: Batch, hparams: H, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Return the state after one update, and the metrics of the batch.

        The metrics are those of `loss`, the loss, the norm of the gradient, and the penalty if there is one. If an
        `OptimizerSpec` clips, they include the norm after clipping, `clipped_grad_norm`; in float16, the loss scale and
        the share of steps whose gradient overflowed, `overflow`.
        """
        batch = self._augmented(batch, hparams, Stream.AUGMENT.key(key))

        def objective(params: PyTree) -> tuple[jax.Array, tuple[Any, Metrics]]:
            outputs, collections = self.apply_model(params, state.collections, batch, hparams, train=True, key=key)
            metrics = self._metrics(outputs, batch, hparams)
            loss, penalty = metrics["loss"].value, self.penalty(params, hparams)
            if penalty is not None:
                penalty = jnp.asarray(penalty, loss.dtype)
                loss, metrics["penalty"] = loss + penalty, Mean.of_steps(penalty)
            return loss, (collections, metrics)

        noise = None if state.key is None else Stream.NOISE.key(state.key)
        optimizer, decay = self.build_optimizer(hparams, state.total_steps, noise), self.ema_decay(hparams)
        scale, is_finite = state.scale, None
        if scale is None:
            (value, (collections, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        else:
            differentiate = scale.value_and_grad(objective, has_aux=True)
            scale, is_finite, (value, (collections, metrics)), grads = differentiate(state.params)
            metrics["loss_scale"] = Mean.of_steps(jnp.asarray(scale.scale))
            metrics["overflow"] = Mean.of_steps(1.0 - is_finite.astype(jnp.float32))
        metrics["grad_norm"] = Mean.of_steps(_norm(grads))
        weight = jnp.sum(batch["weight"])
        with jax.numpy_dtype_promotion("standard"):
            clipped = self._clipped_norm(grads, state, hparams, weight)
        if clipped is not None:
            metrics["clipped_grad_norm"] = Mean(*clipped)
        if is_finite is not None:  # there is no norm of an overflow
            for name in metrics.keys() & {"grad_norm", "clipped_grad_norm"}:
                metrics[name] = jax.tree.map(lambda part: jnp.where(is_finite, part, 0.0), metrics[name])
        after = state.apply_gradients(
            optimizer,
            grads,
            collections,
            value=value,
            value_fn=lambda params: objective(params)[0],
            ema_decay=decay,
            weight=weight,
        )
        return (after if is_finite is None else _unless_overflow(after, state, scale, is_finite)), metrics

    def eval_step(self, state: TrainState, batch: Batch, hparams: H) -> Metrics:
        """Return the metrics of the batch in evaluation mode, with smoothed weights if there are any."""
        weights, key = state.for_evaluation(), None
        if state.key is not None and state.step is not None:
            key = Stream.EVAL.key(state.key, state.step)
        outputs, _ = self.apply_model(weights.params, weights.collections, batch, hparams, train=False, key=key)
        return self._metrics(outputs, batch, hparams)

    # Hooks: run on the host, in this order; see `loop.Training`.

    def check_data(self, dataset: Dataset, hparams: H, part: str) -> None:
        """Raise StudyError if a dataset does not fit this trainer; called once for each dataset.

        By default nothing is checked. If the labels are classes, call `tuner.training.check_labels`.

        Args:
            dataset: An `ArrayDataset` or a `StreamDataset`.
            hparams: The hyperparameters of the first trial that uses it.
            part: The purpose of the dataset: `training`, `validation`, `test` or `evaluation`.
        """

    def on_training_start(self, state: TrainState, hparams: H) -> None:
        """Called before the first step of a new or resumed training."""

    def on_training_epoch_end(
        self, state: TrainState, hparams: H, epoch: int, metrics: Mapping[str, float]
    ) -> Mapping[str, float] | None:
        """Called after the steps of an epoch, with its training metrics.

        Returned metrics (numbers by name) are reported as well if the epoch is validated. Raise
        `tuner.errors.TrialPruned` to stop the trial. The state is valid only during the call.
        """

    def on_validation_epoch_end(
        self, state: TrainState, hparams: H, epoch: int, metrics: Mapping[str, float]
    ) -> Mapping[str, float] | None:
        """Called after a validation, with the metrics of the epoch. Returned metrics are reported as well.

        The metrics do not include those of the test set, which is evaluated once, after the last validation. Raise
        `tuner.errors.TrialPruned` to stop the trial after this epoch's report.
        """

    # Derived from the methods above.

    def build_model(self, hparams: H) -> Model:
        """Return the model as a pair of pure functions.

        Raises:
            StudyError: `init_model` did not return a model.
        """
        return as_model(self.init_model(hparams))

    def build_optimizer(
        self, hparams: H, total_steps: int, key: jax.Array | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer as an optax transformation; the key seeds its noise, if it has any."""
        return as_optimizer(self.init_optimizer(hparams, total_steps), total_steps, key)

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
        """Run the model in the trainer's precision.

        Args:
            params: The parameters.
            collections: The model's other variables.
            batch: The batch.
            hparams: The hyperparameters.
            train: Training mode: dropout is on, batch statistics are updated.
            key: The key for dropout and other random layers; needed in training mode.

        Returns:
            The outputs, floats as float32, and the collections after the call (the same in evaluation mode).
        """
        return self.apply_inputs(params, collections, self._arguments(batch, hparams), hparams, train=train, key=key)

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
        """Run the model on its arguments instead of a batch; otherwise like `apply_model`."""
        model = self.build_model(hparams)
        if self.precision == "float32":
            return model.apply(params, collections, inputs, train=train, key=key)
        params, inputs = _cast((params, inputs), self.precision)
        # Flax's normalisations mix precisions on purpose, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            outputs, after = model.apply(params, collections, inputs, train=train, key=key)
        return _cast(outputs, "float32"), after

    def _arguments(self, batch: Batch, hparams: H) -> tuple[Any, ...]:
        inputs = self.inputs(batch, hparams) if inputs_take_hparams(self) else self.inputs(batch)
        return inputs if isinstance(inputs, tuple) else (inputs,)

    def _metrics(self, outputs: PyTree, batch: Batch, hparams: H) -> Metrics:
        made = self.loss(outputs, batch, hparams)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)):
            raise StudyError(
                f"{type(self).__name__}.loss must return the losses and a dict of metrics: got {type(made).__name__}"
            )
        losses, metrics = made
        taken = {"loss", "penalty", "grad_norm", "clipped_grad_norm", "loss_scale", "overflow"} & set(metrics)
        if taken:
            raise StudyError(
                f"the metric name {taken.pop()!r} is reserved, because tuner reports it itself: rename the metric in "
                f"{type(self).__name__}"
            )
        made = {"loss": losses, **metrics}
        for name, values in made.items():
            if not isinstance(values, Metric) and jnp.shape(values) != batch["weight"].shape:
                raise StudyError(
                    f"losses and metrics must have one value per example, not a mean: {name!r} has shape "
                    f"{jnp.shape(values)} for {len(batch['weight'])} examples ({type(self).__name__}.loss)"
                )
        return {
            name: values if isinstance(values, Metric) else Mean.of(values, batch["weight"])
            for name, values in made.items()
        }

    def _clipped_norm(self, grads: PyTree, state: TrainState, hparams: H, weight: jax.Array) -> Any:
        if type(self).build_optimizer is not TrainerDefinition.build_optimizer:
            return None  # init_optimizer does not return an OptimizerSpec
        return clipped_norm(self.init_optimizer(hparams, state.total_steps), grads, state.opt_state, weight)

    def _augmented(self, batch: Batch, hparams: H, key: jax.Array) -> Batch:
        changed = self.augment(batch, hparams, key)
        if not isinstance(changed, Mapping) or batch.keys() - changed.keys():
            raise StudyError(
                f"{type(self).__name__}.augment must return all arrays of the batch, {', '.join(batch)}: got "
                f"{', '.join(changed) if isinstance(changed, Mapping) else type(changed).__name__}"
            )
        if changed["weight"].shape != batch["weight"].shape:
            raise StudyError(
                f"{type(self).__name__}.augment must not change the number of examples: got {changed['weight'].shape} "
                "for "
                f"{batch['weight'].shape}"
            )
        return changed


def inputs_take_hparams(trainer: TrainerDefinition) -> bool:
    """Return whether a trainer's `inputs` takes the hyperparameters.

    Raises:
        StudyError: it takes neither a batch, nor a batch and hyperparameters.
    """
    return takes_hparams(trainer.inputs, f"{type(trainer).__name__}.inputs", "batch")


def settings_of(trainer: TrainerDefinition) -> tuple[tuple[str, Any], ...]:
    """Return the settings of a trainer by name, hashable. Attributes that are objects are not settings."""
    given = {"precision": trainer.precision, **getattr(trainer, "__dict__", {})}
    names = sorted(name for name in given if not name.startswith("_") and name not in ("loop", "validate_every"))
    return tuple((name, given[name]) for name in names if _is_plain(given[name]))


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _cast(tree: PyTree, precision: str) -> Any:
    """Return the pytree with its floating-point arrays in another precision."""

    def cast(leaf: PyTree) -> Any:
        return leaf.astype(precision) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def _norm(grads: PyTree) -> jax.Array:
    # The barrier prevents XLA from fusing the sums into the backward pass, which made a small MLP's step a fifth
    # slower.
    return optax.tree.norm(jax.lax.optimization_barrier(grads))


def _first_scale() -> DynamicScale:
    # Arrays of a definite type: Python numbers would change type, and with it the program, at the first step.
    return DynamicScale(fin_steps=jnp.int32(0), scale=jnp.float32(2.0**15), minimum_scale=1.0)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _unless_overflow(
    after: TrainState, before: TrainState, scale: DynamicScale | None, is_finite: jax.Array
) -> TrainState:
    """Return the state after a step with a scaled loss; if the gradient overflowed, only the scale changes."""

    def chosen(new: PyTree, old: PyTree) -> Any:
        return jax.tree.map(lambda one, other: jnp.where(is_finite, one, other), new, old)

    kept = ("params", "opt_state", "collections", "average")
    changes = {name: chosen(getattr(after, name), getattr(before, name)) for name in kept}
    return dataclasses.replace(after, scale=scale, **changes)
