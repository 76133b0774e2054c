"""W&B: a run for each trial, in a group for the study. W&B's own environment variables set the server and the user."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.errors import TrackerLost
from tuner.output.sanitize import hide_password
from tuner.tracking.tracker import TrackedReport, TrackedStudy, TrackedTrial
from tuner.trial import Outcome

if TYPE_CHECKING:
    import wandb


class WandbTracker:
    """Passes a study to W&B, which stores it in its own files and uploads it when possible.

    Args:
        project: `PROJECT` or `ENTITY/PROJECT`.
    """

    def __init__(self, project: str) -> None:
        self._entity, _, self._project = project.rpartition("/")
        where = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        if os.environ.get("WANDB_MODE") == "offline":
            where = f"offline {os.uname().nodename}:{Path(os.environ.get('WANDB_DIR', '.')).absolute()}"
        self.target = hide_password(f"wandb {where} {project}")[:300]
        self._study: TrackedStudy | None = None
        self._runs: dict[str, wandb.Run] = {}
        self._dropped: dict[int, int] = {}  # trial number -> how often it was sent again

    def open_study(self, study: TrackedStudy, place: str | None, known: Collection[str]) -> str:
        self._study = study
        return self._project

    def open_trial(self, trial: TrackedTrial, run: str | None) -> str:
        assert self._study is not None
        if run is None:
            again = self._dropped.get(trial.number)
            run = f"{self._study.identity[:12]}-{trial.number}{f'-{again}' if again else ''}"
        with _answering():
            self._opened(run).config.update(
                {**trial.hparams, "tuner": {"outcome": trial.outcome.value, **trial.tags}}, allow_val_change=True
            )
        return run

    def _opened(self, run: str) -> wandb.Run:
        """Start or resume a run."""
        import wandb

        assert self._study is not None
        if run not in self._runs:
            self._runs[run] = wandb.init(
                project=self._project,
                entity=self._entity or None,
                id=run,
                name=f"{self._study.name} {run.split('-')[1]}",
                group=f"{self._study.name} {self._study.identity[:8]}"[:128],
                resume="allow",
                reinit="create_new",
                # This process does not train: its output and load do not belong to the trial.
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    x_disable_stats=True,
                    x_disable_meta=True,
                    x_disable_machine_info=True,
                    disable_git=True,
                    save_code=False,
                    init_timeout=10,
                ),
            )
        return self._runs[run]

    def log(self, run: str, reports: Sequence[TrackedReport]) -> None:
        with _answering():
            opened = self._opened(run)
            for report in reports:
                row = {**report.metrics, "tuner.epoch": report.epoch, "_timestamp": report.at_s}
                opened.log(row, step=report.step, commit=True)

    def end_trial(self, run: str, trial: TrackedTrial, reports: Sequence[TrackedReport]) -> None:
        if reports:
            self.log(run, reports)
        self.open_trial(trial, run)
        with _answering():
            opened = self._runs.pop(run)
            opened.summary.update({f"tuner.{name}": value for name, value in trial.results.items()})
            if trial.log:
                opened.config.update({"tuner.log": trial.log}, allow_val_change=True)
            opened.finish(exit_code=0 if trial.outcome in (Outcome.COMPLETE, Outcome.PRUNED) else 1)

    def drop_trial(self, run: str) -> None:
        _, number, *again = run.split("-")
        self._dropped[int(number)] = int(again[0]) + 1 if again else 2
        with _answering():
            opened = self._opened(run)
            opened.config.update({"tuner": {"outcome": "superseded"}}, allow_val_change=True)
            self._runs.pop(run).finish(exit_code=1)

    def end_study(self) -> None:
        pass  # groups have no state

    def close(self) -> None:
        """Wait until W&B has uploaded its data; the next process resumes open runs."""
        while self._runs:
            with contextlib.suppress(Exception):  # data that is not uploaded is in W&B's files
                self._runs.popitem()[1].finish(exit_code=0)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    import wandb

    try:
        yield
    except (wandb.Error, OSError) as error:
        raise TrackerLost(f"W&B: {' '.join(str(error).split())[:500]}") from None
