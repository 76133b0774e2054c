"""What is asked of a trainer beside training: evaluate, predict, describe, check before anything is stored."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from tuner.errors import StudyError, nearest
from tuner.training import metrics as metrics_
from tuner.training.data import Splits, steps_per_epoch
from tuner.training.feed import Dataset, Feed
from tuner.training.hparams import register
from tuner.training.mesh import Layout
from tuner.training.metrics import Metrics
from tuner.training.modes import Mode, check_settings
from tuner.training.optimizer import OptimizerGroups, OptimizerSpec
from tuner.training.programs import Carry, Programs, programs
from tuner.training.schedules import require
from tuner.training.state import TrainState
from tuner.training.trainer import TrainerModule, settings_of

_EVAL_BATCH = 512


def eval_metrics(programs: Programs, layout: Layout, hparams: Any, dataset: Dataset, state: Any, mode: Mode) -> Metrics:
    """Return the metrics over a dataset, still on the device."""
    feed = Feed(dataset, layout, layout.size * -(-_EVAL_BATCH // layout.size))
    order = feed.in_order()
    if feed.is_resident and (mode == "scan" or feed.steps == 1):
        return programs.eval_all(feed.resident(order), hparams, state)
    totals, position = None, layout.put(np.int32(0))
    with contextlib.closing(feed.sources(order)) as sources:
        for _, source in zip(range(feed.steps), sources, strict=False):
            totals, position = programs.eval_step(source, hparams, state, totals, position)
    assert totals is not None
    return totals


def evaluate(trainer: TrainerModule, state: TrainState, dataset: Dataset, hparams: Any) -> dict[str, float]:
    """See `TrainerModule.eval_model`."""
    register(hparams)
    layout, hparams = Layout(), jax.device_put(hparams)
    made = programs(trainer, hparams, layout)
    mode: Mode = "scan" if trainer.loop == "scan" else "step"
    return metrics_.to_floats(eval_metrics(made, layout, hparams, dataset, jax.device_put(state), mode))


def bind(trainer: TrainerModule, state: TrainState, hparams: Any) -> Callable[..., Any]:
    """See `TrainerModule.bind_model`."""
    register(hparams)
    weights, hparams = jax.device_put((state.for_evaluation(), hparams))
    made = programs(trainer, hparams, Layout())

    def bound(*inputs: Any) -> Any:
        return made.predict(weights.params, weights.collections, jax.device_put(inputs), hparams)

    return bound


def first_shapes(trainer: TrainerModule, hparams: Any, splits: Splits, epochs: int = 1) -> Carry:
    """Return the shapes of what a training starts with; nothing is computed."""
    layout = Layout()
    register(hparams)
    feed = Feed(splits.train, layout, asked_batch_size(trainer, hparams))
    made = programs(trainer, hparams, layout)
    return made.init.eval_shape(feed.first(), hparams, np.uint32(0), total_steps=epochs * feed.steps)


def tabulate(trainer: TrainerModule, hparams: Any, splits: Splits) -> str:
    """See `TrainerModule.print_tabulate`."""
    table = Table("parameter", "shape", "type", "size")
    leaves = jax.tree_util.tree_leaves_with_path(first_shapes(trainer, hparams, splits).state.params)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        table.add_row(name, " x ".join(map(str, leaf.shape)) or "1", str(leaf.dtype), f"{math.prod(leaf.shape):,}")
    table.add_row("total", "", "", f"{sum(math.prod(leaf.shape) for _, leaf in leaves):,}", style="bold")
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def memory(trainer: TrainerModule, hparams: Any, splits: Splits, layout: Layout | None = None) -> dict[str, int]:
    """Return what a training step needs of a device's memory, in bytes, from the compiled program.

    Returns:
        `arguments` (state, batch source), `temporary` (activations and the like), `outputs` beyond what the state
        given leaves free.
    """
    register(hparams)
    layout = layout or Layout()
    feed = Feed(splits.train, layout, asked_batch_size(trainer, hparams))
    hparams = layout.put(hparams)
    made, source = programs(trainer, hparams, layout), feed.first()
    carry = made.init.eval_shape(source, hparams, np.uint32(0), total_steps=feed.steps)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        carry.state,
        layout.shardings(carry.state),
    )
    analysis: Any = made.step.lower(source, hparams, placed, carry.totals, carry.position).compile().memory_analysis()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
    }


@lru_cache(maxsize=256)
def _asked_batch_size(trainer: TrainerModule, settings: Any, structure: Any, types: tuple[Any, ...]) -> Any:
    sizes: list[Any] = []
    # Traced, as in a program: a size that differs from trial to trial would compile anew for each.
    hparams = structure.unflatten(jax.ShapeDtypeStruct(*of) for of in types)
    jax.eval_shape(lambda hparams: sizes.append(trainer.batch_size(hparams)), hparams)
    return sizes[0]


def asked_batch_size(trainer: TrainerModule, hparams: Any) -> int:
    """Return the trainer's batch size.

    Raises:
        StudyError: it is no static integer of at least 1.
    """
    leaves, structure = jax.tree.flatten(hparams)
    size = _asked_batch_size(
        trainer, settings_of(trainer), structure, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    )
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise StudyError(f"batch_size(hparams) must return a static integer of at least 1: got {size!r}")
    return size


def check_data(splits: Any) -> None:
    """Raise StudyError unless data are splits."""
    if not isinstance(splits, Splits):
        raise StudyError(
            f"data must be tuner.training.Splits, of training and validation: got {type(splits).__name__}; see "
            "ArrayDataset.split"
        )


def check_hparams(hparams: Any) -> None:
    """Make hyperparameters a pytree, and raise StudyError unless its leaves are numbers."""
    register(hparams)
    for path, leaf in jax.tree_util.tree_leaves_with_path(hparams):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise StudyError(
                f"hyperparameters must be a Space or a pytree of numbers: got {leaf!r}{where and f' ({where})'}; what "
                "is no number, or sets a shape, is a choice of a Space"
            )


def check_average(trainer: TrainerModule, hparams: Any) -> None:
    """Raise StudyError unless the decay of smoothed weights is a share."""
    if not overrides(trainer, "ema_decay"):
        return
    decay = trainer.ema_decay(hparams)
    if decay is not None:
        require("ema_decay", decay, "at least 0 and at most 1", lambda share: 0 <= share <= 1)


def check_optimizer(trainer: TrainerModule, hparams: Any, total_steps: int) -> None:
    """Check an `OptimizerSpec` with the trial's own numbers, which inside a program are not known.

    Raises:
        StudyError: something in it is wrong.
    """
    if overrides(trainer, "init_state") and overrides(trainer, "train_step"):
        return  # it has optimizers of its own
    made = trainer.init_optimizer(hparams, total_steps)
    if isinstance(made, OptimizerSpec | OptimizerGroups):
        made.check(total_steps)


def has_hooks(trainer: TrainerModule) -> bool:
    """Return whether a trainer may report metrics of its own."""
    return any(overrides(trainer, hook) for hook in ("on_training_epoch_end", "on_validation_epoch_end"))


def overrides(trainer: TrainerModule, method: str) -> bool:
    """Return whether a trainer has its own version of a method."""
    return getattr(type(trainer), method) is not getattr(TrainerModule, method)


def check_trainer(trainer: Any, hparams: Any, splits: Any, objectives: Sequence[str], epochs: int) -> None:
    """Trace the whole training without running it, to find what would fail in every trial.

    Raises:
        StudyError: the trainer or the data are of the wrong type, or an objective is never reported; the message
            lists what is reported.
        MissingHParam: the trainer reads a hyperparameter that the space lacks.
    """
    check_settings(trainer)
    check_data(splits)
    check_hparams(hparams)
    size = asked_batch_size(trainer, hparams)
    check_optimizer(trainer, hparams, epochs * steps_per_epoch(len(splits.train), size))
    carry = first_shapes(trainer, hparams, splits, epochs)
    made, layout = programs(trainer, hparams, Layout()), Layout()
    made.step.eval_shape(Feed(splits.train, layout, size).first(), hparams, *carry)
    position = jax.ShapeDtypeStruct((), jnp.int32)
    source = Feed(splits.validation, layout, _EVAL_BATCH).first()
    validated, _ = made.eval_step.eval_shape(source, hparams, carry.state, None, position)
    reported = [*_names(validated), *(f"train_{name}" for name in _names(carry.totals))]
    if has_hooks(trainer):
        return  # a hook may report anything
    for objective in objectives:
        if objective not in reported:
            raise StudyError(
                f"the objective must be a metric that the trainer reports: {objective!r} is not, "
                f"it reports {', '.join(reported)}{nearest(objective, reported)}"
            )


def _names(shapes: Metrics) -> list[str]:
    """Return the names under which metrics of these shapes are reported."""
    with np.errstate(all="ignore"):
        return list(metrics_.as_floats(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)))
