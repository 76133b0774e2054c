"""Adversarial examples, and adversarial training.

    FGSM:  x' = x + e sign(grad L(x))        (Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572, section 4)
    PGD:   x <- P(x + a sign(grad L(x)))     (Madry et al., 2018, https://arxiv.org/abs/1706.06083, section 2.1)

where P projects to the nearest point within e of the original in every element. Both clip to the bounds of the data,
which you must pass: standardised images, for example, are not within [0, 1]. Inputs must be within the bounds. The
bounds and e are numbers, or one number for each channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from tuner.errors import StudyError
from tuner.methods.augmentations import Bounds, spread, within
from tuner.methods.classification import Classifier, field
from tuner.training import Mean, TrainState
from tuner.training.data.arrays import Batch
from tuner.training.definition import H
from tuner.training.metrics import Metrics
from tuner.training.state import Stream

Losses = Callable[[jax.Array], jax.Array]
"""Inputs, Float[Array, "batch ..."], -> the loss of each example, Float[Array, "batch"]."""


def fgsm(losses: Losses, inputs: jax.Array, epsilon: float | jax.Array, bounds: Bounds = (0.0, 1.0)) -> jax.Array:
    """Return the inputs after one step of size epsilon uphill in every element.

    Args:
        losses: The losses of a model in evaluation mode: the loss of an example must not depend on other examples.
        inputs: Float[Array, "batch ... channels"].
        epsilon: The largest change of an element; may be traced, 0 changes nothing.
        bounds: The bounds of the data.

    Returns:
        Attacked inputs with the same shape.
    """
    return within(inputs + spread(epsilon, inputs) * _uphill(losses, inputs), bounds)


def pgd(
    losses: Losses,
    inputs: jax.Array,
    epsilon: float | jax.Array,
    steps: int,
    key: jax.Array | None,
    bounds: Bounds = (0.0, 1.0),
    step_size: float | jax.Array | None = None,
) -> jax.Array:
    """Return the inputs after projected steps uphill, from a random start.

    Args:
        losses: See `fgsm`.
        inputs: Float[Array, "batch ... channels"].
        epsilon: The largest change of an element.
        steps: The number of steps; static.
        key: The key of the random start, uniform within epsilon; None starts at the inputs.
        bounds: The bounds of the data.
        step_size: The size of a step; 2.5 epsilon / steps if None, enough to reach any point from any start.

    Returns:
        Attacked inputs with the same shape.
    """
    radius = spread(epsilon, inputs)
    size = radius * (2.5 / steps) if step_size is None else spread(step_size, inputs)
    lowest, highest = within(inputs - radius, bounds), within(inputs + radius, bounds)
    start = inputs
    if key is not None:
        away = jax.random.uniform(key, inputs.shape, inputs.dtype, -1.0, 1.0)
        start = jnp.clip(inputs + radius * away, lowest, highest)

    def step(attacked: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.clip(attacked + size * _uphill(losses, attacked), lowest, highest), None

    return jax.lax.scan(step, start, None, length=steps)[0]


def _uphill(losses: Losses, inputs: jax.Array) -> jax.Array:
    # The gradient of the sum contains the gradient of each example's own loss.
    return jnp.sign(jax.grad(lambda inputs: jnp.sum(losses(inputs)))(inputs))


class AdversarialClassifier(Classifier[H]):
    """A classifier trained on clean and attacked examples in equal parts; subclasses define `init_model`.

    Each step attacks the array `inputs` of its (augmented) batch with the current weights, in evaluation mode, and then
    minimises the mean of both losses. Clean and attacked examples go through the model together, so that the batch
    statistics include both. Optional hyperparameters: `epsilon_train`, the strength of attacks in training (default
    `epsilon`; 0 is plain training), `attack_steps` (static), the steps of PGD in training (1, the default, is FGSM),
    and those of `Classifier`.

    Validation reports `fgsm_accuracy` and `pgd_accuracy` next to `accuracy`. `pgd_accuracy` should be the lowest. If it
    is higher than `fgsm_accuracy`, gradients are masked, and neither measures robustness (Athalye et al., 2018).

    Args:
        classes: The number of classes.
        epsilon: The strength of attacks in validation; the same for all trials.
        bounds: The bounds of the data.
        pgd_steps: The steps of PGD in validation.
        target: Whether attacks use the true label (`label`), or the model's prediction without an attack
            (`prediction`). A single step away from the true label can leave traces in the example from which training
            learns the label (label leaking; Kurakin et al., 2017, https://arxiv.org/abs/1611.01236).
    """

    def __init__(
        self,
        classes: int,
        *,
        epsilon: float | tuple[float, ...],
        bounds: Bounds = (0.0, 1.0),
        pgd_steps: int = 10,
        target: Literal["label", "prediction"] = "label",
    ) -> None:
        if target not in ("label", "prediction"):
            raise StudyError(f"target must be 'label' or 'prediction': got {target!r}")
        if pgd_steps < 1:
            raise StudyError(f"pgd_steps must be at least 1: got {pgd_steps}")
        super().__init__(classes)
        self.epsilon = epsilon
        self.bounds = bounds
        self.pgd_steps = pgd_steps
        self.target = target

    def attack(
        self, weights: TrainState, batch: Batch, hparams: H, epsilon: Any, steps: int | None, key: jax.Array
    ) -> jax.Array:
        """Return the attacked `inputs` of the batch: with FGSM if `steps` is None, else with PGD."""

        def logits(inputs: jax.Array) -> jax.Array:
            changed = {**batch, "inputs": inputs}
            return self.apply_model(weights.params, weights.collections, changed, hparams, train=False)[0]

        inputs, labels = batch["inputs"], batch["labels"].astype(jnp.int32)
        if self.target == "prediction":
            labels = jnp.argmax(logits(inputs), axis=-1)

        def losses(inputs: jax.Array) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(logits(inputs), labels)

        if steps is None:
            return fgsm(losses, inputs, epsilon, self.bounds)
        return pgd(losses, inputs, epsilon, steps, key, self.bounds)

    def train_step(self, state: TrainState, batch: Batch, hparams: H, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Return the state after a step on the batch and its attacked copy, and metrics with `attacked_accuracy`."""
        batch = self._augmented(batch, hparams, Stream.AUGMENT.key(key))
        epsilon, steps = field(hparams, "epsilon_train", self.epsilon), field(hparams, "attack_steps", 1)
        # Outside of the differentiated function: the step treats the attacked examples as constants.
        attacked = self.attack(state, batch, hparams, epsilon, None if steps == 1 else steps, Stream.NOISE.key(key))
        return super().train_step(state, {**batch, "attacked": attacked}, hparams, key)

    def _augmented(self, batch: Batch, hparams: H, key: jax.Array) -> Batch:
        # The attacked examples are already augmented.
        return batch if "attacked" in batch else super()._augmented(batch, hparams, key)

    def inputs(self, batch: Batch) -> Any:
        """Return the inputs, followed by the attacked ones if there are any."""
        inputs = super().inputs(batch)
        return jnp.concatenate([inputs, batch["attacked"]]) if "attacked" in batch else inputs

    def loss(self, outputs: jax.Array, batch: Batch, hparams: H) -> tuple[jax.Array, dict[str, Any]]:
        """Return the losses like `Classifier`; with attacked copies, the mean of each example's two losses."""
        if "attacked" not in batch:
            return super().loss(outputs, batch, hparams)
        of_clean, of_attacked = jnp.split(outputs, 2)
        clean, metrics = super().loss(of_clean, batch, hparams)
        attacked, more = super().loss(of_attacked, batch, hparams)
        return (clean + attacked) / 2, {**metrics, "attacked_accuracy": more["accuracy"]}

    def eval_step(self, state: TrainState, batch: Batch, hparams: H) -> Metrics:
        """Return the metrics of the clean batch, and the accuracies under attack."""
        metrics = super().eval_step(state, batch, hparams)
        weights = state.for_evaluation()
        for name, steps in (("fgsm_accuracy", None), ("pgd_accuracy", self.pgd_steps)):
            # Attacks start at the same points in every validation.
            attacked = self.attack(weights, batch, hparams, self.epsilon, steps, jax.random.key(0))
            changed = {**batch, "inputs": attacked}
            logits, _ = self.apply_model(weights.params, weights.collections, changed, hparams, train=False)
            hits = jnp.argmax(logits, axis=-1) == batch["labels"].astype(jnp.int32)
            metrics[name] = Mean.of(hits, batch["weight"])
        return metrics
