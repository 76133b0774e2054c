"""The training loop: three compiled programs (start, epoch, evaluation) and the generator that drives them.

The trainer and the static hyperparameters are part of a program's identity, traced hyperparameters are its arguments.
So `jax.jit`'s own cache is the compile cache: N trials that differ in traced hyperparameters compile once.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from tuner.errors import StudyError, nearest
from tuner.training import metrics as metrics_
from tuner.training.data import ArrayDataset, Batch, Splits, batch_order, gather, steps_per_epoch
from tuner.training.hparams import register
from tuner.training.metrics import Metrics
from tuner.training.state import TrainState
from tuner.training.trainer import TrainerModule
from tuner.trial import Report

_EVAL_BATCH = 512


def _batch_size(trainer: TrainerModule, hparams: Any, length: int) -> int:
    size = trainer.batch_size(hparams)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise StudyError(f"batch_size(hparams) must return a static integer of at least 1: got {size!r}")
    return min(size, length)


@partial(jax.jit, static_argnames=("trainer", "total_steps"))
def init_state(trainer: TrainerModule, arrays: Batch, hparams: Any, seed: jax.Array, total_steps: int) -> TrainState:
    """Return the state before the first step, from a seed (Int[Array, ""])."""
    size = _batch_size(trainer, hparams, len(arrays["weight"]))
    batch = {name: array[:size] for name, array in arrays.items()}
    return trainer.init_state(hparams, batch, jax.random.key(seed), total_steps)


def _epoch_order(state: TrainState, length: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Return this epoch's batches; the order depends on the trial's key and the step only."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, -2), state.step)
    return batch_order(jax.random.permutation(key, length), batch_size)


def _step(
    trainer: TrainerModule, arrays: Batch, hparams: Any, state: TrainState, at: tuple[jax.Array, jax.Array]
) -> tuple[TrainState, Metrics]:
    return trainer.train_step(state, gather(arrays, *at), hparams, jax.random.fold_in(state.key, state.step))


@partial(jax.jit, static_argnames=("trainer",), donate_argnames=("state",))
def train_epoch(
    trainer: TrainerModule, arrays: Batch, hparams: Any, state: TrainState
) -> tuple[TrainState, Metrics]:
    """Run one epoch as one program."""
    length = len(arrays["weight"])
    batches = _epoch_order(state, length, _batch_size(trainer, hparams, length))
    state, stacked = jax.lax.scan(partial(_step, trainer, arrays, hparams), state, batches)
    return state, metrics_.sum_steps(stacked)


@partial(jax.jit, static_argnames=("trainer",))
def epoch_order(trainer: TrainerModule, arrays: Batch, hparams: Any, state: TrainState) -> Any:
    """Return the epoch's batches, one (indices, weights) a step."""
    length = len(arrays["weight"])
    indices, weights = _epoch_order(state, length, _batch_size(trainer, hparams, length))
    return list(zip(indices, weights, strict=True))


@partial(jax.jit, static_argnames=("trainer",), donate_argnames=("state", "total"))
def train_step(
    trainer: TrainerModule, arrays: Batch, hparams: Any, state: TrainState, at: Any, total: Metrics | None
) -> tuple[TrainState, Metrics]:
    """Run one step as one program, and add its metrics to `total`."""
    state, metrics = _step(trainer, arrays, hparams, state, at)
    return state, metrics if total is None else metrics_.add(total, metrics)


@partial(jax.jit, static_argnames=("trainer",))
def eval_batches(trainer: TrainerModule, arrays: Batch, hparams: Any, state: TrainState) -> Metrics:
    """Return the metrics over all examples."""
    length = len(arrays["weight"])
    indices, weights = batch_order(jnp.arange(length), min(_EVAL_BATCH, length))

    def step(at: tuple[jax.Array, jax.Array]) -> Metrics:
        return trainer.eval_step(state, gather(arrays, *at), hparams)

    if trainer.loop == "step":
        # Convolutions are slow inside XLA's loops on CPUs: unrolled instead.
        return reduce(metrics_.add, [step(at) for at in zip(indices, weights, strict=True)])
    return metrics_.sum_steps(jax.lax.map(step, (indices, weights)))


def _run_epoch(
    trainer: TrainerModule, arrays: Batch, hparams: Any, state: TrainState
) -> tuple[TrainState, Metrics]:
    if trainer.loop == "scan":
        return train_epoch(trainer, arrays, hparams, state)
    total = None
    for at in epoch_order(trainer, arrays, hparams, state):
        state, total = train_step(trainer, arrays, hparams, state, at, total)
    assert total is not None
    return state, total


def train(
    trainer: TrainerModule, hparams: Any, splits: Splits, *, epochs: int, seed: int
) -> Generator[Report, None, TrainState]:
    """See `TrainerModule.train_model`."""
    register(hparams)
    hparams = jax.device_put(hparams)
    arrays = splits.train.arrays
    per_epoch = steps_per_epoch(len(splits.train), _batch_size(trainer, hparams, len(splits.train)))
    state = init_state(trainer, arrays, hparams, jax.device_put(jnp.uint32(seed)), epochs * per_epoch)
    for epoch in range(1, epochs + 1):
        state, trained = _run_epoch(trainer, arrays, hparams, state)
        validated = eval_batches(trainer, splits.validation.arrays, hparams, state)
        values = {**metrics_.to_floats(validated), **metrics_.to_floats(trained, "train_")}
        yield Report(epoch, epoch * per_epoch, values)
    return state


def evaluate(trainer: TrainerModule, state: TrainState, dataset: ArrayDataset, hparams: Any) -> dict[str, float]:
    """See `TrainerModule.eval_model`."""
    register(hparams)
    return metrics_.to_floats(eval_batches(trainer, dataset.arrays, jax.device_put(hparams), state))


def check_trainer(trainer: Any, hparams: Any, splits: Any, objectives: Sequence[str]) -> None:
    """Trace the whole training without running it, to find what would fail in every trial.

    Raises:
        StudyError: the trainer or the data are of the wrong type, or an objective is never reported; the message
            lists what is reported.
        MissingHParam: the trainer reads a hyperparameter that the space lacks.
    """
    if not isinstance(trainer, TrainerModule):
        raise StudyError(f"trainer must be a TrainerModule: got {trainer!r}")
    if not isinstance(splits, Splits):
        raise StudyError(f"data(seed) must return tuner.training.Splits: got {type(splits).__name__}")
    register(hparams)
    arrays = splits.train.arrays
    state = jax.eval_shape(partial(init_state, trainer, total_steps=10), arrays, hparams, jnp.uint32(0))

    def step(state: TrainState, arrays: Batch, hparams: Any) -> tuple[TrainState, Metrics]:
        length = len(arrays["weight"])
        indices, weights = _epoch_order(state, length, _batch_size(trainer, hparams, length))
        return _step(trainer, arrays, hparams, state, (indices[0], weights[0]))

    _, trained = jax.eval_shape(step, state, arrays, hparams)
    validated = jax.eval_shape(partial(eval_batches, trainer), splits.validation.arrays, hparams, state)
    reported = [*validated, *(f"train_{name}" for name in trained)]
    for objective in objectives:
        if objective not in reported:
            raise StudyError(
                f"the objective must be a metric that the trainer reports: {objective!r} is not, "
                f"it reports {', '.join(reported)}{nearest(objective, reported)}"
            )
