"""Adversarial examples, and adversarial training.

    FGSM:  x' = x + e sign(grad L(x))        (Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572, section 4)
    PGD:   x <- P(x + a sign(grad L(x)))     (Madry et al., 2018, https://arxiv.org/abs/1706.06083, section 2.1)

where P goes back to the nearest point within e of the original in every element. Both are cut off at the bounds of the
data, which only their author knows: standardised images are not within [0, 1]. Inputs must be within the bounds; these
and e are numbers, or one for each channel.
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
from tuner.training.metrics import Metrics
from tuner.training.state import Stream

Losses = Callable[[jax.Array], jax.Array]
"""Inputs, Float[Array, "batch ..."], -> the loss of each, Float[Array, "batch"]."""


def fgsm(losses: Losses, inputs: jax.Array, epsilon: Any, bounds: Bounds = (0.0, 1.0)) -> jax.Array:
    """Return the inputs after one step of size epsilon uphill in every element.

    Args:
        losses: Of a model in evaluation mode: the loss of an example must not depend on other examples.
        inputs: Float[Array, "batch ... channels"].
        epsilon: How far an element may move; may be traced, 0 changes nothing.
        bounds: Of the data.

    Returns:
        Attacked inputs, of the same shape.
    """
    return within(inputs + spread(epsilon, inputs) * _uphill(losses, inputs), bounds)


def pgd(
    losses: Losses,
    inputs: jax.Array,
    epsilon: Any,
    steps: int,
    key: jax.Array | None,
    bounds: Bounds = (0.0, 1.0),
    step_size: Any = None,
) -> jax.Array:
    """Return the inputs after projected steps uphill, from a random start.

    Args:
        losses: As for `fgsm`.
        inputs: Float[Array, "batch ... channels"].
        epsilon: How far an element may be from where it began.
        steps: Static.
        key: For the start, uniform within epsilon; None starts at the inputs.
        bounds: Of the data.
        step_size: Of one step; 2.5 epsilon / steps if None, enough to get from any start to any end.

    Returns:
        Attacked inputs, of the same shape.
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
    # The gradient of the sum has that of each example's own loss in its place.
    return jnp.sign(jax.grad(lambda inputs: jnp.sum(losses(inputs)))(inputs))


class AdversarialClassifier(Classifier):
    """Classification trained half on clean, half on attacked examples; subclasses define `init_model`.

    Each step attacks the array `inputs` of its (augmented) batch with the weights it has, in evaluation mode, and then
    descends the mean of both losses; clean and attacked examples go through the model together, so that batch
    statistics are those of both. Hyperparameters that are taken where a space has them: `epsilon_train`, how far
    training attacks (else `epsilon`; with 0 it is plain training), and `attack_steps` (static), the steps of PGD in
    training, 1 (or none given) being FGSM; and those of `Classifier`.

    Validation reports `fgsm_accuracy` and `pgd_accuracy` beside `accuracy`. Where gradients are of use to an attack,
    the latter is the lowest; if it is above the former, they are masked and neither tells of robustness (Athalye et
    al., 2018).

    Args:
        classes: How many there are.
        epsilon: How far an element is moved in validation; the same for all trials.
        bounds: Of the data.
        pgd_steps: In validation.
        target: Whether attacks lead away from the true label, or from what the model predicts without an attack.
            Of the true label a single step may leave traces in the example, from which training learns to read it
            (label leaking; Kurakin et al., 2017, https://arxiv.org/abs/1611.01236).
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
        self, weights: TrainState, batch: Batch, hparams: Any, epsilon: Any, steps: int | None, key: jax.Array
    ) -> jax.Array:
        """Return the batch's `inputs` attacked: by FGSM if `steps` is None, else by PGD."""

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

    def train_step(self, state: TrainState, batch: Batch, hparams: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Return the state after a step on the batch and its attacked copy, and metrics; `attacked_accuracy` too."""
        batch = self._augmented(batch, hparams, Stream.AUGMENT.key(key))
        epsilon, steps = field(hparams, "epsilon_train", self.epsilon), field(hparams, "attack_steps", 1)
        # Here, outside of what is differentiated: the step takes the attacked examples as given.
        attacked = self.attack(state, batch, hparams, epsilon, None if steps == 1 else steps, Stream.NOISE.key(key))
        return super().train_step(state, {**batch, "attacked": attacked}, hparams, key)

    def _augmented(self, batch: Batch, hparams: Any, key: jax.Array) -> Batch:
        # What has been attacked was augmented before.
        return batch if "attacked" in batch else super()._augmented(batch, hparams, key)

    def inputs(self, batch: Batch) -> Any:
        """Return the inputs, with the attacked ones behind them where there are any."""
        inputs = super().inputs(batch)
        return jnp.concatenate([inputs, batch["attacked"]]) if "attacked" in batch else inputs

    def loss(self, outputs: jax.Array, batch: Batch, hparams: Any) -> tuple[jax.Array, dict[str, Any]]:
        """Return the losses as `Classifier` does; of a batch with attacked copies, the mean of each example's two."""
        if "attacked" not in batch:
            return super().loss(outputs, batch, hparams)
        of_clean, of_attacked = jnp.split(outputs, 2)
        clean, metrics = super().loss(of_clean, batch, hparams)
        attacked, more = super().loss(of_attacked, batch, hparams)
        return (clean + attacked) / 2, {**metrics, "attacked_accuracy": more["accuracy"]}

    def eval_step(self, state: TrainState, batch: Batch, hparams: Any) -> Metrics:
        """Return the metrics of the clean batch, and the accuracies under attack."""
        metrics = super().eval_step(state, batch, hparams)
        weights = state.for_evaluation()
        for name, steps in (("fgsm_accuracy", None), ("pgd_accuracy", self.pgd_steps)):
            # Every validation begins its attacks at the same points.
            attacked = self.attack(weights, batch, hparams, self.epsilon, steps, jax.random.key(0))
            changed = {**batch, "inputs": attacked}
            logits, _ = self.apply_model(weights.params, weights.collections, changed, hparams, train=False)
            hits = jnp.argmax(logits, axis=-1) == batch["labels"].astype(jnp.int32)
            metrics[name] = Mean.of(hits, batch["weight"])
        return metrics
