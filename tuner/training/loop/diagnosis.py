"""Diagnoses a training: finds the first NaN and its origin, records profiler traces, shows progress bars."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tuner.errors import NonFinite, StudyError, is_int
from tuner.training.data.batches import Source
from tuner.training.definition import TrainerDefinition
from tuner.training.loop.programs import Carry
from tuner.training.model.adapters import watched
from tuner.training.pytree import PyTree
from tuner.training.state import Stream
from tuner.trial import Report


@contextlib.contextmanager
def unjitted() -> Iterator[None]:
    """Run the body without compiling."""
    with jax.disable_jit():
        yield


def check_finite(
    trainer: TrainerDefinition, hparams: PyTree, source: Source, before: Carry, after: Carry, step: int
) -> None:
    """Check the state after a step for NaN and infinities.

    Args:
        trainer: The trainer.
        hparams: The hyperparameters.
        source: The source of the step's batch.
        before: State, metrics and position before the step.
        after: State, metrics and position after the step.
        step: The step's number, counted from 1.

    Raises:
        NonFinite: a parameter, batch statistic or metric is NaN or infinite; the message names the origin of the first
            one: the inputs, a module's output, the loss, a gradient or the update.
    """
    made = {"params": after.state.params, "collections": after.state.collections, "metrics": after.totals}
    first = _first_nonfinite(made)
    if first is None:
        return
    where = _origin(trainer, hparams, source, before) or f"in {first}; the model's outputs were finite"
    raise NonFinite(f"step {step} produced the first NaN or infinity {where}")


def _origin(trainer: TrainerDefinition, hparams: PyTree, source: Source, before: Carry) -> str | None:
    """Run the model's forward pass again, and return where the first NaN or infinity appears."""
    state, batch = before.state, source.at(before.position)
    assert state.key is not None
    assert state.step is not None
    key = Stream.STEP.key(state.key, state.step)
    batch = trainer.augment(batch, hparams, Stream.AUGMENT.key(key))
    wrong = _first_nonfinite(batch)
    if wrong is not None:
        return f"in {wrong} of the batch, before the model"
    seen: list[str] = []

    def observe(path: str, inputs: PyTree, outputs: PyTree) -> None:
        if not seen and _first_nonfinite(outputs) is not None:
            is_before = _first_nonfinite(inputs) is not None
            seen.append(f"in the input of {path}" if is_before else f"in the output of {path}")

    with watched(observe):
        try:
            outputs, _ = trainer.apply_model(state.params, state.collections, batch, hparams, train=True, key=key)
        except Exception:  # an overridden train_step may call its models differently
            return seen[0] if seen else None
    if seen:
        return seen[0]
    if _first_nonfinite(outputs) is not None:
        return "in the model's output"
    try:
        losses, _ = trainer.loss(outputs, batch, hparams)
    except Exception:  # likewise, it may have another loss
        return None
    if _first_nonfinite(losses) is not None:
        return "in the loss; the model's outputs were finite"
    return None


def _first_nonfinite(tree: PyTree) -> str | None:
    """Return the path of the first array with a NaN or an infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            return jax.tree_util.keystr(path, simple=True, separator="/") or "an array"
    return None


@dataclass
class Profile:
    """Traces some steps with JAX's profiler, for TensorBoard or Perfetto.

    Attributes:
        folder: The folder for the trace.
        first: The first traced step, counted from 0; a scanned epoch is traced completely.
        last: The last traced step.

    Raises:
        StudyError: `first` or `last` is invalid.
    """

    folder: str | Path
    first: int
    last: int
    _is_running: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        are_whole = all(is_int(step) for step in (self.first, self.last))
        if not are_whole or not 0 <= self.first <= self.last:
            raise StudyError(
                "the steps of a Profile must be whole numbers with 0 <= first <= last: "
                f"got first={self.first!r}, last={self.last!r}"
            )

    def before(self, step: int, count: int) -> None:
        """Start the trace if it includes one of the `count` steps from `step` on."""
        if not self._is_running and step <= self.last and step + count > self.first:
            jax.profiler.start_trace(str(self.folder))
            self._is_running = True

    def after(self, step: int, made: PyTree) -> None:
        """End the trace if `step`, the next one, is after its last step."""
        if self._is_running and step > self.last:
            jax.block_until_ready(made)
            self.close()

    def close(self) -> None:
        """Write the trace, if it has started."""
        if self._is_running:
            self._is_running = False
            jax.profiler.stop_trace()


def with_progress(reports: Generator[Report, None, object], epochs: int) -> Generator[Report, None, Any]:
    """Yield the same reports, and show a progress bar with epochs and the latest metrics on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        # The other columns come first; the metrics get only the remaining width.
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with contextlib.closing(reports), Progress(*columns, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task("", total=epochs)
        while True:
            try:
                report = next(reports)
            except StopIteration as end:
                return end.value
            shown = ", ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
            bar.update(task, completed=report.epoch, description=shown)
            yield report
