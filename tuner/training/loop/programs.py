"""The compiled programs of a training: start, steps, epoch, evaluation.

Traced hyperparameters are arguments; the trainer, the static hyperparameters and the layout identify the programs. So
N trials that differ in traced hyperparameters compile once.
"""

from __future__ import annotations

import gc
from collections.abc import Hashable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tuner.errors import StudyError
from tuner.study.launch_record import OPTIMIZER_RULES
from tuner.training import metrics as metrics_
from tuner.training.data.arrays import Batch
from tuner.training.data.batches import Source
from tuner.training.definition import TrainerDefinition, settings_of
from tuner.training.loop.compiling import Compiling
from tuner.training.mesh import Layout
from tuner.training.metrics import Metrics
from tuner.training.optim.stacks import collect_stacks
from tuner.training.pytree import PyTree
from tuner.training.state import Stream, TrainState

_KEPT = 16
"""Sets of programs to keep in memory. Without a limit, a study of hundreds of widths would keep all its programs."""
_DROPPED = 32
"""Number of dropped sets after which JAX's caches are cleared."""


class Carry(NamedTuple):
    """Values passed from step to step: the state, the epoch's metrics so far, and the position in the epoch."""

    state: TrainState
    totals: Metrics
    position: jax.Array


def first_carry(
    trainer: TrainerDefinition,
    hparams: PyTree,
    batch: Batch,
    seed: jax.Array,
    total_steps: int,
    optimizer_rules: int = OPTIMIZER_RULES,
) -> Carry:
    """Return the state before the first step, from a seed (Int[Array, ""]), and empty metrics."""
    with collect_stacks(optimizer_rules):
        state = trainer.init_state(hparams, batch, jax.random.key(seed), total_steps)
    if state.key is None or state.step is None:
        raise StudyError("init_state(...) must return a state with key and step: got None for at least one of them")
    shapes = jax.eval_shape(partial(trainer.train_step, state, batch, hparams, state.key))[1]
    return Carry(state, metrics_.zeros(shapes), jnp.zeros((), jnp.int32))


def one_step(trainer: TrainerDefinition, layout: Layout, hparams: PyTree, source: Source, carry: Carry) -> Carry:
    """Return the carry after one training step. Pure; may be vmapped over `hparams` and `carry`."""
    state, totals, position = carry
    assert state.key is not None
    assert state.step is not None
    batch = layout.divide(source.at(position))
    state, metrics = trainer.train_step(state, batch, hparams, Stream.STEP.key(state.key, state.step))
    return Carry(layout.keep(state), layout.copy(metrics_.add(totals, metrics)), position + 1)


def many_steps(
    trainer: TrainerDefinition, layout: Layout, hparams: PyTree, source: Source, carry: Carry, count: int
) -> Carry:
    """Return the carry after `count` training steps, as one loop inside the program."""

    def step(carry: Carry, _: None) -> tuple[Carry, None]:
        return one_step(trainer, layout, hparams, source, carry), None

    return jax.lax.scan(step, carry, None, length=count)[0]


def eval_batch(trainer: TrainerDefinition, layout: Layout, hparams: PyTree, batch: Batch, state: TrainState) -> Metrics:
    """Return the metrics of one batch."""
    return layout.copy(trainer.eval_step(state, layout.divide(batch), hparams))


def eval_all(trainer: TrainerDefinition, layout: Layout, hparams: PyTree, source: Source, state: TrainState) -> Metrics:
    """Return the metrics over all batches of an order, as one loop inside the program."""
    assert source.order is not None
    start = jnp.zeros((), jnp.int32)
    first = eval_batch(trainer, layout, hparams, source.at(start), state)

    def step(totals: Metrics, position: jax.Array) -> tuple[Metrics, None]:
        return metrics_.add(totals, eval_batch(trainer, layout, hparams, source.at(position), state)), None

    steps = source.order[1].shape[0]
    return first if steps == 1 else jax.lax.scan(step, first, jnp.arange(1, steps, dtype=jnp.int32))[0]


class Programs:
    """The compiled programs of one trainer, one set of static hyperparameters and one layout.

    Attributes:
        init: (source, hparams, seed, total_steps=, optimizer_rules=) -> `Carry` before the first step.
        step: (source, hparams, state, totals, position) -> `Carry` after one step; the given state becomes invalid.
        steps: the same after `count=` steps.
        eval_step: (source, hparams, state, totals, position) -> totals and position after one more batch.
        eval_all: (source, hparams, state) -> metrics over all batches.
        predict: (params, collections, inputs, hparams) -> outputs in evaluation mode.
        copy: a pytree of arrays -> a copy, which may be donated.
        compiling: Those that are compiled before their first call.
    """

    def __init__(self, trainer: TrainerDefinition, layout: Layout) -> None:
        self.compiling = Compiling()

        # The state and the batch are separate arguments below, because only the state is donated.
        def init_state(
            source: Source,
            hparams: PyTree,
            seed: jax.Array,
            *,
            total_steps: int,
            optimizer_rules: int = OPTIMIZER_RULES,
        ) -> Carry:
            batch = layout.divide(source.at(jnp.zeros((), jnp.int32)))
            carry = first_carry(trainer, hparams, batch, seed, total_steps, optimizer_rules)
            return carry._replace(state=layout.keep(carry.state), totals=layout.copy(carry.totals))

        def train_step(
            source: Source, hparams: PyTree, state: TrainState, totals: Metrics, position: jax.Array
        ) -> Carry:
            return one_step(trainer, layout, hparams, source, Carry(state, totals, position))

        def train_steps(
            source: Source, hparams: PyTree, state: TrainState, totals: Metrics, position: jax.Array, *, count: int
        ) -> Carry:
            return many_steps(trainer, layout, hparams, source, Carry(state, totals, position), count)

        def eval_step(
            source: Source, hparams: PyTree, state: TrainState, totals: Metrics | None, position: jax.Array
        ) -> tuple[Metrics, jax.Array]:
            metrics = eval_batch(trainer, layout, hparams, source.at(position), state)
            return metrics if totals is None else metrics_.add(totals, metrics), position + 1

        def eval_batches(source: Source, hparams: PyTree, state: TrainState) -> Metrics:
            return eval_all(trainer, layout, hparams, source, state)

        def predict(params: PyTree, collections: PyTree, inputs: tuple[PyTree, ...], hparams: PyTree) -> Any:
            return trainer.apply_inputs(params, collections, inputs, hparams, train=False)[0]

        # Runs once per trial and takes long to optimise, so it is compiled without optimisation.
        fast_to_compile = {"xla_backend_optimization_level": 0}
        static = ("total_steps", "optimizer_rules")
        self.init = jax.jit(init_state, static_argnames=static, compiler_options=fast_to_compile)
        self.step = jax.jit(train_step, donate_argnames=("state",))
        self.steps = jax.jit(train_steps, static_argnames=("count",), donate_argnames=("state",))
        self.eval_step = jax.jit(eval_step)
        self.eval_all = jax.jit(eval_batches)
        self.predict = jax.jit(predict)
        self.copy = jax.jit(partial(jax.tree.map, jnp.copy))


@lru_cache(maxsize=_KEPT)
def _programs(trainer: TrainerDefinition, settings: Hashable, structure: Hashable, layout: Layout) -> Programs:
    return Programs(trainer, layout)


def programs(trainer: TrainerDefinition, hparams: PyTree, layout: Layout) -> Programs:
    """Return the programs for a trainer and the static part of these hyperparameters; the latest few are kept."""
    return _programs(trainer, settings_of(trainer), jax.tree.structure(hparams), layout)


def forget_dropped() -> None:
    """Free the memory of programs that are no longer kept, once there are many; call it between trials.

    JAX keeps about 1 MB for each dropped set of programs, and can only clear all of its caches. Programs that are still
    kept are traced again at their next use, and read from the persistent cache. A study with fewer sets of programs
    than the limit is not affected.
    """
    info = _programs.cache_info()
    if info.misses - info.currsize >= _DROPPED:
        _programs.cache_clear()  # which also sets these counts to 0
        jax.clear_caches()
        gc.collect()
