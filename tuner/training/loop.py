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
import numpy as np

from tuner.errors import StudyError, nearest
from tuner.training import metrics as metrics_
from tuner.training.data import ArrayDataset, Batch, Splits, batch_order, gather, steps_per_epoch
from tuner.training.hparams import register
from tuner.training.metrics import Metrics
from tuner.training.state import Stream, TrainState
from tuner.training.trainer import TrainerModule
from tuner.trial import Report

_EVAL_BATCH = 512


def _batch_size(trainer: TrainerModule, hparams: Any, length: int) -> int:
    size = trainer.batch_size(hparams)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise StudyError(f"batch_size(hparams) must return a static integer of at least 1: got {size!r}")
    return min(size, length)


# Runs once a trial and takes long to optimise, so the compiler is told not to.
@partial(
    jax.jit,
    static_argnames=("trainer", "total_steps"),
    compiler_options={"xla_backend_optimization_level": 0},
)
def init_state(trainer: TrainerModule, arrays: Batch, hparams: Any, seed: jax.Array, total_steps: int) -> TrainState:
    """Return the state before the first step, from a seed (Int[Array, ""])."""
    size = _batch_size(trainer, hparams, len(arrays["weight"]))
    batch = {name: array[:size] for name, array in arrays.items()}
    return trainer.init_state(hparams, batch, jax.random.key(seed), total_steps)


def _key_and_step(state: TrainState) -> tuple[jax.Array, jax.Array]:
    if state.key is None or state.step is None:
        raise StudyError("a state made by init_state needs key and step to be trained: one of them is None")
    return state.key, state.step


@partial(jax.jit, static_argnames=("length", "batch_size"))
def epoch_order(key: jax.Array, step: jax.Array, *, length: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Return an epoch's batches, as `batch_order` does; they depend on the trial's key and the step only.

    A program of its own: sorting takes long to compile, and models of all sizes share it.
    """
    return batch_order(jax.random.permutation(Stream.ORDER.key(key, step), length), batch_size)


def _step(
    trainer: TrainerModule, arrays: Batch, hparams: Any, state: TrainState, at: tuple[jax.Array, jax.Array]
) -> tuple[TrainState, Metrics]:
    return trainer.train_step(state, gather(arrays, *at), hparams, Stream.STEP.key(*_key_and_step(state)))


@partial(jax.jit, static_argnames=("trainer",), donate_argnames=("state",))
def train_epoch(
    trainer: TrainerModule, arrays: Batch, hparams: Any, state: TrainState, batches: tuple[jax.Array, jax.Array]
) -> tuple[TrainState, Metrics]:
    """Run one epoch as one program."""
    state, stacked = jax.lax.scan(partial(_step, trainer, arrays, hparams), state, batches)
    return state, metrics_.sum_steps(stacked)


@partial(jax.jit, static_argnames=("trainer",), donate_argnames=("state",))
def train_step(
    trainer: TrainerModule, arrays: Batch, hparams: Any, state: TrainState, at: tuple[jax.Array, jax.Array]
) -> tuple[TrainState, Metrics]:
    """Run one step as one program."""
    return _step(trainer, arrays, hparams, state, at)


@jax.jit
def unstack(batches: tuple[jax.Array, jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    """Return the batches one by one."""
    return list(zip(*batches, strict=True))


@jax.jit
def sum_all(metrics: list[Metrics]) -> Metrics:
    """Return the metrics of all steps together."""
    return reduce(metrics_.add, metrics)


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
    trainer: TrainerModule, arrays: Batch, hparams: Any, state: TrainState, batches: tuple[jax.Array, jax.Array]
) -> tuple[TrainState, Metrics]:
    if trainer.loop == "scan":
        return train_epoch(trainer, arrays, hparams, state, batches)
    steps = []
    for at in unstack(batches):
        state, metrics = train_step(trainer, arrays, hparams, state, at)
        steps.append(metrics)
    return state, sum_all(steps)


def train(
    trainer: TrainerModule, hparams: Any, splits: Splits, *, epochs: int, seed: int
) -> Generator[Report, None, TrainState]:
    """See `TrainerModule.train_model`."""
    register(hparams)
    hparams = jax.device_put(hparams)
    arrays, length = splits.train.arrays, len(splits.train)
    batch_size = _batch_size(trainer, hparams, length)
    per_epoch = steps_per_epoch(length, batch_size)
    state = init_state(trainer, arrays, hparams, jax.device_put(np.uint32(seed)), epochs * per_epoch)
    for epoch in range(1, epochs + 1):
        batches = epoch_order(*_key_and_step(state), length=length, batch_size=batch_size)
        state, trained = _run_epoch(trainer, arrays, hparams, state, batches)
        validated = eval_batches(trainer, splits.validation.arrays, hparams, state)
        values = {**metrics_.to_floats(validated), **metrics_.to_floats(trained, "train_")}
        yield Report(epoch, epoch * per_epoch, values)
    return state


def evaluate(trainer: TrainerModule, state: TrainState, dataset: ArrayDataset, hparams: Any) -> dict[str, float]:
    """See `TrainerModule.eval_model`."""
    register(hparams)
    return metrics_.to_floats(eval_batches(trainer, dataset.arrays, jax.device_put(hparams), state))


def check_trainer(trainer: Any, hparams: Any, splits: Any, objectives: Sequence[str], epochs: int) -> None:
    """Trace the whole training without running it, to find what would fail in every trial.

    Raises:
        StudyError: the trainer or the data are of the wrong type, or an objective is never reported; the message
            lists what is reported.
        MissingHParam: the trainer reads a hyperparameter that the space lacks.
    """
    if not isinstance(trainer, TrainerModule):
        raise StudyError(f"trainer must be a TrainerModule: got {trainer!r}")
    if trainer.loop not in ("scan", "step"):
        raise StudyError(f"a trainer's loop must be 'scan' or 'step': got {trainer.loop!r}")
    if not isinstance(splits, Splits):
        raise StudyError(f"data(seed) must return tuner.training.Splits: got {type(splits).__name__}")
    register(hparams)
    arrays = splits.train.arrays
    length = len(splits.train)
    size = _batch_size(trainer, hparams, length)
    total_steps = epochs * steps_per_epoch(length, size)
    state = init_state.eval_shape(trainer, arrays, hparams, np.uint32(0), total_steps=total_steps)
    at = (jax.ShapeDtypeStruct((size,), jnp.int32), jax.ShapeDtypeStruct((size,), jnp.float32))
    _, trained = jax.eval_shape(partial(_step, trainer), arrays, hparams, state, at)
    validated = eval_batches.eval_shape(trainer, splits.validation.arrays, hparams, state)
    reported = [*validated, *(f"train_{name}" for name in trained)]
    for objective in objectives:
        if objective not in reported:
            raise StudyError(
                f"the objective must be a metric that the trainer reports: {objective!r} is not, "
                f"it reports {', '.join(reported)}{nearest(objective, reported)}"
            )
