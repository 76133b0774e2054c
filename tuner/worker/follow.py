"""What the ranks of a worker other than 0 do: they train the trials that rank 0 claims."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

from tuner.errors import UsageError
from tuner.search.population import PopulationPruner
from tuner.study import StudyData, StudySpec
from tuner.study.source import code_digest
from tuner.trial import Report
from tuner.trial.environment import DEVICES_VARIABLE
from tuner.worker.group import Dismissed, Follower, Group, Message
from tuner.worker.runtime import make_runtime
from tuner.worker.trainables.choose import make_trainable
from tuner.worker.trainables.trainable import UnstoredRun

STUDY, STUDY_FILE = "study", "study file"


def check_group(study: StudySpec, group: Group | None) -> None:
    """Raise UsageError if a study's trials cannot be trained by several processes together."""
    if group is not None and study.trainer is None:
        raise UsageError(
            f"a worker on several hosts needs a study with `trainer`: the trials of study {study.name!r} are run by "
            "other code, which cannot be divided among processes"
        )
    if group is not None and isinstance(study.make_pruner(), PopulationPruner):
        raise UsageError(
            f"population-based training (pruner 'pbt', study {study.name!r}) needs workers on one host: got a group of "
            "several"
        )
    if group is not None and study.seed_plan.most > 1:
        raise UsageError(
            f"a worker on several hosts trains one seed: study {study.name!r} has seeds={study.seeds!r}; use workers "
            "of one host each, which may have several devices, or seeds=1 and `tuner confirm`"
        )


def run_follower(study: StudySpec, group: Follower, *, file: str) -> None:
    """Train the trials of rank 0 until it ends.

    Args:
        study: The study, as rank 0 has it.
        group: The connection to rank 0; JAX is connected already.
        file: The study's file.

    Raises:
        UsageError: the study cannot run as it is written.
        RankLost: this rank is not in step with rank 0.
        Exception: this rank failed before the first trial.
    """
    from tuner.worker.dry_run import check_study

    check_group(study, group)
    runtime = make_runtime(os.environ.get(DEVICES_VARIABLE, ""), needs_jax=True, spans_hosts=True)
    assert study.data is not None
    data = StudyData(study.data, study.seed)
    check_study(study, data)
    group.check_same(STUDY_FILE, code_digest(Path(file)))
    try:
        record = group.agree(STUDY, dict[str, Any])
    except Dismissed:
        return
    study.check_unchanged(record)
    trainable = make_trainable(study, data.for_hparams, runtime, {}, record, lambda program, measure: measure(), group)
    for task in group.tasks():
        with group.together(), tempfile.TemporaryDirectory(prefix="tuner-") as folder:
            run = _FollowedRun(study, task, Path(folder))
            with trainable.saved(run) as saved:
                trainable.run(run, saved)
        runtime.tidy()


class _FollowedRun(UnstoredRun):
    """A trial that rank 0 claimed; implements `tuner.worker.trainables.trainable.Run`.

    It decides nothing: `ModuleTrainable` asks its group.

    Args:
        study: The study.
        task: What rank 0 says of the trial: number, seed, params, epochs.
        root: A folder for its files, which is removed afterwards.
    """

    resumes_later = True
    is_resumed = must_end = False

    def __init__(self, study: StudySpec, task: Message, root: Path) -> None:
        super().__init__(study, task["number"], task["params"], task["seed"], root)
        self.trial = optuna.trial.FixedTrial(task["params"], self.number)
        self._epochs: int = task["epochs"]

    @property
    def epochs(self) -> int:
        return self._epochs

    def report(self, report: Report, *, is_last: bool = False) -> bool:
        return False

    def store(self, report: Report, *, may_prune: bool = True) -> bool:
        return False

    def set_values(self, values: Sequence[float]) -> None:
        pass
