"""Curriculum learning: easy examples first, then all, in stages (Bengio et al., 2009; Hacohen & Weinshall, 2019).

Difficulty is a number for each example, such as its noise, its length, or the loss of a quickly trained model
(`held_out_losses`). The training data are sorted by difficulty; the trainer draws from the first part of them.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tuner.errors import StudyError
from tuner.methods.classification import needed
from tuner.training import ArrayDataset, Splits, TrainerModule
from tuner.training.data.arrays import Batch
from tuner.training.data.batches import Order
from tuner.training.definition import H
from tuner.training.loop.checks import EVAL_BATCH
from tuner.training.pytree import PyTree
from tuner.training.state import Stream, TrainState


def difficulty(step: jax.Array, stage_steps: jax.Array | int, stages: jax.Array | int) -> jax.Array:
    """Return the share of the examples that may be drawn, (min(floor(s / S), N - 1) + 1) / N.

    Args:
        step: s, Int[Array, "..."].
        stage_steps: S, > 0; may be traced.
        stages: N, > 0; may be traced.
    """
    return _stage(step, stage_steps, stages).astype(jnp.float32) / jnp.asarray(stages, jnp.float32)


def allowed(step: jax.Array, stage_steps: jax.Array | int, stages: jax.Array | int, examples: int) -> jax.Array:
    """Return the number of examples that may be drawn: at least one, rounded up. Int[Array, "..."]."""
    stages = jnp.asarray(stages, jnp.int32)
    return _share(_stage(step, stage_steps, stages), stages, examples)


def _share(part: jax.Array, whole: jax.Array, count: int) -> jax.Array:
    """Return count * part / whole rounded up, for 0 <= part <= whole, where the product may need 62 bits.

    Long division by bits of `part`, from the highest: no intermediate number is larger than `whole` or `count`.
    """
    each, more = count // whole, count % whole  # of each unit of `part`

    def add_bit(at: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        quotient, rest = found  # rest < whole
        is_over = rest >= whole - rest
        quotient = 2 * quotient + is_over.astype(jnp.int32)
        rest = jnp.where(is_over, rest - (whole - rest), rest + rest)
        added = jnp.where(part >> (30 - at) & 1 == 1, more, 0)
        is_over = rest >= whole - added
        return quotient + is_over.astype(jnp.int32), jnp.where(is_over, rest - (whole - added), rest + added)

    nothing = jnp.zeros_like(part + whole)
    quotient, rest = jax.lax.fori_loop(jnp.int32(0), jnp.int32(31), add_bit, (nothing, nothing))
    return part * each + quotient + (rest > 0).astype(jnp.int32)


def _stage(step: jax.Array, stage_steps: jax.Array | int, stages: jax.Array | int) -> jax.Array:
    """Return the stage of a step, from 1 to N."""
    stages = jnp.asarray(stages, jnp.int32)
    return jnp.minimum(step.astype(jnp.int32) // jnp.asarray(stage_steps, jnp.int32), stages - 1) + 1


def easiest_first(dataset: ArrayDataset, scores: np.ndarray) -> ArrayDataset:
    """Return a view of the dataset sorted from easy to hard; examples with equal scores keep their order.

    Args:
        dataset: The training data.
        scores: Difficulties, Float[Array, "examples"]; finite.

    Raises:
        StudyError: there is not one finite number for each example.
    """
    scores = np.asarray(scores)
    if scores.shape != (len(dataset),) or not np.isfinite(scores).all():
        raise StudyError(
            f"scores must have one finite number for each of the {len(dataset)} examples: got shape {scores.shape}, "
            f"{int((~np.isfinite(scores)).sum())} of them not finite"
        )
    return dataset.take(np.argsort(scores, kind="stable"))


def held_out_losses(
    trainer: TrainerModule, hparams: PyTree, dataset: ArrayDataset, *, epochs: int, seed: int, folds: int = 3
) -> np.ndarray:
    """Return each example's loss with a model that was trained without it, as difficulty: Float[Array, "examples"].

    A model that was trained with an example may have memorised a wrong label. Folds of equal size share their programs.
    The numbers are the same on machines of the same kind.

    Args:
        trainer: Any trainer.
        hparams: The hyperparameters.
        dataset: The training data.
        epochs: The epochs of each training.
        seed: The seed of the folds and the trainings.
        folds: The number of folds; at least 2.

    Raises:
        StudyError: the number of folds is out of range.
    """
    if not 2 <= folds <= len(dataset):
        raise StudyError(f"folds must be from 2 to the number of examples, {len(dataset)}: got {folds}")
    order, losses = np.random.default_rng(seed).permutation(len(dataset)), np.empty(len(dataset), np.float32)
    for held_out in np.array_split(order, folds):
        part = Splits(dataset.take(np.setdiff1d(order, held_out)), dataset.take(held_out))
        training = trainer.train_model(hparams, part, epochs=epochs, seed=seed)
        list(training)
        losses[held_out] = _losses(trainer, training.state, hparams, part.validation)
    return losses


def _losses(trainer: TrainerModule, state: TrainState, hparams: PyTree, dataset: ArrayDataset) -> np.ndarray:
    """Return the loss of each example in evaluation mode."""

    @jax.jit
    def of_batch(weights: TrainState, hparams: PyTree, batch: Batch) -> jax.Array:
        outputs, _ = trainer.apply_model(weights.params, weights.collections, batch, hparams, train=False)
        return trainer.loss(outputs, batch, hparams)[0]

    weights, host, size = state.for_evaluation(), dataset.host(), EVAL_BATCH
    batches = [{name: array[at : at + size] for name, array in host.items()} for at in range(0, len(dataset), size)]
    return np.concatenate([of_batch(weights, hparams, batch) for batch in batches])


class Curriculum(TrainerModule[H]):
    """A mix-in for trainers that draws batches from the easy examples first: `class Trainer(Curriculum, Classifier)`.

    Sort the training data with `easiest_first`. A batch is drawn uniformly with replacement from the examples of its
    stage, so it may be larger than their number. It depends only on the trial's key and the step: a resumed training
    draws the same batches.

    Hyperparameters: `stages`, a whole number (1 is no curriculum), and `stage_epochs`, the length of each but the last
    in epochs. Both may be traced: `choice(1, 2, 4, traced=True)`.
    """

    def order(self, hparams: H, key: jax.Array, step: jax.Array, rows: jax.Array, *, batch_size: int) -> Order:
        stages, stage_epochs = needed(hparams, "stages"), needed(hparams, "stage_epochs")
        return staged_order(key, step, rows, stages, stage_epochs, batch_size=batch_size)


@partial(jax.jit, static_argnames=("batch_size",))
def staged_order(
    key: jax.Array,
    step: jax.Array,
    rows: jax.Array,
    stages: jax.Array | int,
    stage_epochs: float | jax.Array,
    *,
    batch_size: int,
) -> Order:
    """Return the batches of an epoch that begins at a step; see `Curriculum`.

    Args:
        key: The trial's key.
        step: The epoch's first step, Int[Array, ""].
        rows: The examples from easy to hard, Int[Array, "examples"].
        stages: The number of stages.
        stage_epochs: The length of a stage in epochs; at least one step.
        batch_size: Static.

    Returns:
        Indices Int[Array, "steps batch"] and weights Float[Array, "steps batch"], like `TrainerModule.order`.
    """
    examples = rows.shape[0]
    steps = -(-examples // batch_size)
    stage_steps = jnp.round(jnp.asarray(stage_epochs, jnp.float32) * steps)
    stage_steps = jnp.clip(stage_steps, 1, 2**31 - 128).astype(jnp.int32)  # the largest float32 that is an int32

    def draw(step: jax.Array) -> jax.Array:
        # The draws depend only on the step: epochs of another length would draw the same.
        count = allowed(step, stage_steps, stages, examples)
        return rows[jax.random.randint(Stream.ORDER.key(key, step), (batch_size,), 0, count)]

    indices = jax.vmap(draw)(step.astype(jnp.int32) + jnp.arange(steps, dtype=jnp.int32))
    return indices, jnp.ones(indices.shape, jnp.float32)
