"""Compiles the programs of a training that nobody has started yet, into the compile cache."""

from __future__ import annotations

from typing import Any

from tuner.study.launch_record import OPTIMIZER_RULES
from tuner.training.data.arrays import Splits
from tuner.training.data.feed import Feed
from tuner.training.definition import TrainerDefinition
from tuner.training.hparams import register
from tuner.training.loop.checks import asked_batch_size
from tuner.training.loop.execution import First, Solo
from tuner.training.loop.modes import Mode, alone
from tuner.training.mesh import Layout
from tuner.training.model.tracing import explained
from tuner.training.pytree import PyTree


@explained()
def compile_ahead(
    trainer: TrainerDefinition,
    hparams: PyTree,
    splits: Splits[Any],
    *,
    epochs: int,
    layout: Layout,
    optimizer_rules: int = OPTIMIZER_RULES,
) -> None:
    """Compile the programs that a training with these static hyperparameters runs alone on one device.

    Its first state is created, no step runs. A training that measures whether scans or steps are faster needs both.

    Raises:
        MemoryError: the program of a step does not fit into the memory of the device.
        Exception: the trainer's own error.
    """
    register(hparams)
    feed = Feed(splits.train, layout, asked_batch_size(trainer, hparams))
    first = First(feed.first(), 0, epochs * feed.steps, optimizer_rules)
    modes: tuple[Mode, ...] = ("step", "scan") if trainer.loop == "auto" else (trainer.loop,)
    for mode in modes:

        def choose(program: str, measure: Any, mode: Mode = mode) -> Mode:
            return mode

        solo = Solo(trainer, hparams, feed, layout=layout, choose=choose, agree=alone)
        solo.compile(first, [part for part in (splits.validation, splits.test) if part is not None])
