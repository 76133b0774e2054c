"""`TrainerModule`: what differs between models, as methods to override. Instances hold no training state."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tuner.errors import StudyError
from tuner.training.data import ArrayDataset, Batch, Splits
from tuner.training.metrics import Mean, Metrics
from tuner.training.optimizer import adamw
from tuner.training.state import Stream, TrainState
from tuner.trial import Report


class TrainerModule:
    """A model, its loss and its optimizer, as pure functions of hyperparameters.

    Every method that touches arrays is pure and takes `hparams`: trials that differ only in traced hyperparameters
    run the same compiled program. Override `init_model` and `loss`; the rest has defaults.

    Attributes:
        loop: `"scan"` runs an epoch as one compiled program, `"step"` as a loop of compiled steps. On CPUs a scan is
            faster for small dense models and slower for convolutions.
    """

    loop: Literal["scan", "step"] = "scan"

    def init_model(self, hparams: Any) -> nn.Module:
        """Return the Linen module for these hyperparameters; traced ones are JAX values here."""
        raise StudyError(f"a trainer must define init_model(hparams): {type(self).__name__} does not")

    def loss(self, outputs: Any, batch: Batch, hparams: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss of each example and further metrics of each example.

        Args:
            outputs: What the model returned.
            batch: The batch.
            hparams: The hyperparameters.

        Returns:
            Losses Float[Array, "batch"], and metrics by name, each Num[Array, "batch"].
        """
        raise StudyError(f"a trainer must define loss(outputs, batch, hparams): {type(self).__name__} does not")

    def batch_size(self, hparams: Any) -> int:
        """Return the examples per training step; return a static hyperparameter to tune it."""
        return 64

    def inputs(self, batch: Batch) -> Any:
        """Return what the model is called with."""
        return batch["inputs"]

    def init_optimizer(self, hparams: Any, total_steps: int) -> optax.GradientTransformation:
        """Return the optimizer: AdamW over `hparams.learning_rate` and, where there is one, `hparams.weight_decay`."""
        return adamw(hparams.learning_rate, getattr(hparams, "weight_decay", 0.0), total_steps)

    def init_state(self, hparams: Any, batch: Batch, key: jax.Array, total_steps: int) -> TrainState:
        """Return the state before the first step.

        Args:
            hparams: The hyperparameters.
            batch: Any batch; only its shapes matter.
            key: The trial's key.
            total_steps: Updates of the whole training.
        """
        variables = self._call("init", hparams, {"params": Stream.INIT.key(key)}, batch, train=False)
        params = variables.pop("params", {})
        opt_state = self.init_optimizer(hparams, total_steps).init(params)
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, variables, key, total_steps)

    def apply_model(
        self, params: Any, collections: Any, batch: Batch, hparams: Any, *, train: bool, key: jax.Array | None = None
    ) -> tuple[Any, Any]:
        """Run the model.

        Args:
            params: The parameters.
            collections: The model's other variables.
            batch: The batch.
            hparams: The hyperparameters.
            train: Training mode: dropout is on, batch statistics are updated.
            key: For dropout; needed in training mode.

        Returns:
            The outputs, and the collections after the call (the same in evaluation mode).
        """
        variables = {"params": params, **collections}
        if not train:
            return self._call("apply", hparams, variables, batch, train=False), collections
        return self._call(
            "apply", hparams, variables, batch, train=True, rngs={"dropout": key}, mutable=list(collections)
        )

    def _call(self, method: str, hparams: Any, first: Any, batch: Batch, *, train: bool, **options: Any) -> Any:
        """Call `module.init` or `module.apply`, with `train` if the module's `__call__` takes it."""
        module = self.init_model(hparams)
        if not isinstance(module, nn.Module):
            raise StudyError(f"init_model must return a flax.linen module: got {type(module).__name__}")
        if "train" in inspect.signature(type(module).__call__).parameters:
            options["train"] = train
        return getattr(module, method)(first, self.inputs(batch), **options)

    def train_step(self, state: TrainState, batch: Batch, hparams: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Return the state after one update, and the batch's metrics: those of `loss`, and the loss itself."""

        def mean_loss(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            outputs, collections = self.apply_model(params, state.collections, batch, hparams, train=True, key=key)
            metrics = self._metrics(outputs, batch, hparams)
            return metrics["loss"].value, (collections, metrics)

        grads, (collections, metrics) = jax.grad(mean_loss, has_aux=True)(state.params)
        optimizer = self.init_optimizer(hparams, state.total_steps)
        return state.apply_gradients(optimizer, grads, collections), metrics

    def eval_step(self, state: TrainState, batch: Batch, hparams: Any) -> Metrics:
        """Return the batch's metrics in evaluation mode: those of `loss`, and the loss itself."""
        outputs, _ = self.apply_model(state.params, state.collections, batch, hparams, train=False)
        return self._metrics(outputs, batch, hparams)

    def _metrics(self, outputs: Any, batch: Batch, hparams: Any) -> Metrics:
        losses, metrics = self.loss(outputs, batch, hparams)
        if "loss" in metrics:
            raise StudyError(
                f"a metric must not be called 'loss', which is what is minimised: rename it in {type(self).__name__}"
            )
        return {name: Mean.of(values, batch["weight"]) for name, values in {"loss": losses, **metrics}.items()}

    def train_model(self, hparams: Any, splits: Splits, *, epochs: int, seed: int) -> Iterator[Report]:
        """Train and yield a report after each epoch; closing the generator ends the training.

        The generator's return value is the final `TrainState`.

        Args:
            hparams: The hyperparameters.
            splits: Training and validation data.
            epochs: Passes over the training data; > 0.
            seed: In [0, 2^31). The same seed gives the same reports, bit for bit on the same machine.
        """
        from tuner.training.loop import train

        return train(self, hparams, splits, epochs=epochs, seed=seed)

    def eval_model(self, state: TrainState, dataset: ArrayDataset, hparams: Any) -> dict[str, float]:
        """Return the example-weighted means of all metrics over a dataset, in evaluation mode."""
        from tuner.training.loop import evaluate

        return evaluate(self, state, dataset, hparams)
