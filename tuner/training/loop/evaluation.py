"""Evaluates, predicts with and describes a trained model."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from tuner.training import metrics as metrics_
from tuner.training.data.arrays import Splits
from tuner.training.data.feed import Dataset, Feed
from tuner.training.definition import TrainerDefinition
from tuner.training.hparams import register
from tuner.training.loop.checks import EVAL_BATCH, asked_batch_size, check_examples, first_shapes
from tuner.training.loop.compiling import placed
from tuner.training.loop.modes import Mode
from tuner.training.loop.programs import Programs, programs
from tuner.training.mesh import Layout
from tuner.training.metrics import Metrics
from tuner.training.model.tracing import explained
from tuner.training.pytree import PyTree
from tuner.training.state import TrainState


def eval_metrics(
    programs: Programs, layout: Layout, hparams: PyTree, dataset: Dataset, state: TrainState, mode: Mode
) -> Metrics:
    """Return the metrics over a dataset, still on the device."""
    feed = _eval_feed(dataset, layout)
    order = feed.in_order()
    if feed.is_resident and (mode == "scan" or feed.steps == 1):
        return programs.eval_all(feed.resident(order), hparams, state)
    totals, position = None, layout.put(np.int32(0))
    with contextlib.closing(feed.sources(order)) as sources:
        for _, source in zip(range(feed.steps), sources, strict=False):
            totals, position = programs.eval_step(source, hparams, state, totals, position)
    assert totals is not None
    return totals


def compile_eval(
    programs: Programs, layout: Layout, hparams: PyTree, dataset: Dataset, state: TrainState, mode: Mode
) -> list[Future[Any]]:
    """Start to compile what `eval_metrics` runs, if the data are on the device.

    The arguments are those of `eval_metrics`; of the state, the shapes and types are enough.
    """
    feed = _eval_feed(dataset, layout)
    if not feed.is_resident:
        return []
    start, source = programs.compiling.start, feed.resident(feed.in_order())
    if mode == "scan" or feed.steps == 1:
        return [start(programs.eval_all, source, hparams, state)]
    args = source, hparams, state
    position = layout.put(np.int32(0))
    totals, after = programs.eval_step.eval_shape(*args, None, position)
    return [
        start(programs.eval_step, *args, None, position),
        start(programs.eval_step, *args, *placed((totals, after), layout)),
    ]


def _eval_feed(dataset: Dataset, layout: Layout) -> Feed:
    return Feed(dataset, layout, layout.size * -(-EVAL_BATCH // layout.size))


@explained()
def evaluate(trainer: TrainerDefinition, state: TrainState, dataset: Dataset, hparams: PyTree) -> dict[str, float]:
    """See `TrainerModule.eval_model`."""
    register(hparams)
    check_examples(trainer, hparams, {"evaluation": dataset})
    layout, hparams = Layout(), jax.device_put(hparams)
    made = programs(trainer, hparams, layout)
    mode: Mode = "scan" if trainer.loop == "scan" else "step"
    return metrics_.to_floats(eval_metrics(made, layout, hparams, dataset, jax.device_put(state), mode))


def bind(trainer: TrainerDefinition, state: TrainState, hparams: PyTree) -> Callable[..., Any]:
    """See `TrainerModule.bind_model`."""
    register(hparams)
    weights, hparams = jax.device_put((state.for_evaluation(), hparams))
    made = programs(trainer, hparams, Layout())

    def bound(*inputs: PyTree) -> Any:
        return made.predict(weights.params, weights.collections, jax.device_put(inputs), hparams)

    return bound


@explained()
def tabulate(trainer: TrainerDefinition, hparams: PyTree, splits: Splits) -> str:
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


@explained()
def memory(trainer: TrainerDefinition, hparams: PyTree, splits: Splits, layout: Layout | None = None) -> dict[str, int]:
    """Return the memory that a training step needs on a device, in bytes, from the compiled program.

    Returns:
        `arguments` (state, batch source), `temporary` (such as activations), and `outputs` that do not reuse the memory
        of the state.
    """
    register(hparams)
    layout = layout or Layout()
    feed = Feed(splits.train, layout, asked_batch_size(trainer, hparams))
    hparams = layout.put(hparams)
    made, source = programs(trainer, hparams, layout), feed.shapes()
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
