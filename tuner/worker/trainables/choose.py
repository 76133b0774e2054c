"""Chooses what trains the trials of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.study import StudySpec
from tuner.study.command import Command
from tuner.study.objective import OptunaObjective
from tuner.worker.group import Follower, Leader
from tuner.worker.runtime import Runtime
from tuner.worker.trainables.trainable import Choose, DataFor, Trainable


def make_trainable(
    study: StudySpec,
    data_for: DataFor | None,
    runtime: Runtime,
    about: dict[str, Any],
    record: Mapping[str, Any],
    choose: Choose,
    group: Leader | Follower | None = None,
) -> Trainable:
    """Return the trainable of a study.

    Args:
        study: The study.
        data_for: Returns the data of a trial; None if the study has no trainer.
        runtime: The worker's runtime.
        about: Information to save with checkpoints.
        record: The settings that the study's first launch recorded.
        choose: See `Choose`.
        group: The processes that train each trial together, if there are several.
    """
    if study.trainer is not None:
        assert data_for is not None
        if study.seed_plan.most > 1:
            from tuner.worker.trainables.train_seeds import SeedsTrainable

            return SeedsTrainable(study, data_for, runtime.layout, about, record, choose, group)
        from tuner.worker.trainables.train_module import ModuleTrainable

        return ModuleTrainable(study, data_for, runtime.layout, about, record, choose, group)
    if isinstance(study.train, OptunaObjective):
        from tuner.worker.trainables.train_objective import ObjectiveTrainable

        return ObjectiveTrainable(study)
    if isinstance(study.train, Command):
        from tuner.worker.trainables.train_command import CommandTrainable

        return CommandTrainable(study, study.train)
    from tuner.worker.trainables.train_function import FunctionTrainable

    return FunctionTrainable(study, about)
