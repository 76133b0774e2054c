"""Loads the trained model of a stored trial. Imports JAX only then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine

from tuner.results.export import best_number, check_has_model, checkpoint_of
from tuner.results.rows import show_row
from tuner.storage.read.queries import find_study

if TYPE_CHECKING:
    from tuner.training import TrainerModule
    from tuner.training.restore import Loaded


def load_model(
    engine: Engine,
    name: str,
    number: int | None = None,
    *,
    prefer: str | None = None,
    trainer: TrainerModule | None = None,
    trust: bool = False,
) -> Loaded:
    """Return the model of a trial; see `tuner.training.load_from_checkpoint`.

    Args:
        engine: The storage's engine.
        name: The study.
        number: The trial; the best if None.
        prefer: The trial of a Pareto front if `number` is None; see `tuner.results.export.best_number`.
        trainer: The trainer; then no file is imported for it.
        trust: Import the study's file, which runs its code.

    Raises:
        UnknownStudy: there is no such study or trial.
        UsageError: the study has no trainer, or the trial has no checkpoint on this machine.
        CheckpointError: the checkpoint is damaged, or its study is not found or trusted.
    """
    check_has_model(find_study(engine, name))
    trial = show_row(engine, name, best_number(engine, name, prefer) if number is None else number)
    checkpoint = checkpoint_of(trial)

    from tuner.training import load_from_checkpoint

    return load_from_checkpoint(checkpoint, trainer=trainer, trust=trust)
