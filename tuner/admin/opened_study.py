"""A study in a storage, for notebooks and scripts: `tuner.open_study`. Imports JAX only to load a model."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuner.admin import edits, lifecycle
from tuner.errors import TunerError, UsageError, how_to_install, is_int
from tuner.output.log import say
from tuner.output.numbers import as_text
from tuner.results.rows import best_rows, no_feasible, progress_line, shown_counts, study_row
from tuner.storage import StorageURL, connected
from tuner.storage.read.lineage import read_curves, read_metrics
from tuner.storage.read.queries import StudyRow, find_study, read_trial

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from sqlalchemy import Engine

    from tuner.training import TrainerModule
    from tuner.training.restore import Loaded


@dataclass(frozen=True)
class StoredTrial:
    """A trial as the storage has it.

    Attributes:
        number: Its number in the study, from 0.
        outcome: How it ended, such as `complete` or `pruned`; or `running`, `waiting` or `preempted`.
        values: The objectives, in the study's order; None unless the trial is complete.
        objectives: Their names.
        hparams: Its hyperparameters; of a choice, the label.
        metrics: The metrics of its last report.
        seconds: The time from its start to its end; None before it has ended.
        is_feasible: Whether it satisfies all its constraints; None if it has none.
        user_attrs: Attributes that the training has stored with Optuna's `set_user_attr`.
        checkpoint: The folder or the URL of its saved model; None if it has none.
        error: The traceback of a failed trial.
        stderrs: The standard error of each value, which is the mean over several seeds; None with one seed.
    """

    number: int
    outcome: str
    values: tuple[float, ...] | None
    objectives: tuple[str, ...]
    hparams: Mapping[str, Any]
    metrics: Mapping[str, float]
    seconds: float | None
    is_feasible: bool | None
    user_attrs: Mapping[str, Any]
    checkpoint: str | None
    error: str | None
    stderrs: tuple[float, ...] | None = None

    @property
    def value(self) -> float | None:
        """The objective; None unless the trial is complete.

        Raises:
            UsageError: the study has several objectives.
        """
        if self.values is None:
            return None
        if len(self.values) != 1:
            raise UsageError(f"trial {self.number} has {len(self.values)} objectives: use `values`")
        return self.values[0]

    def _repr_html_(self) -> str:
        """Return the trial as a table, for notebooks."""
        shown: dict[str, object] = {"number": self.number, "outcome": self.outcome}
        values = self.values or [None] * len(self.objectives)
        names = ["value"] if len(self.objectives) == 1 else [f"values.{name}" for name in self.objectives]
        shown |= {name: as_text(value) for name, value in zip(names, values, strict=True)}
        shown["seconds"] = as_text(self.seconds)
        groups = (("hparams", self.hparams), ("metrics", self.metrics), ("user_attrs", self.user_attrs))
        for group, values in groups:
            shown |= {f"{group}.{name}": as_text(value) for name, value in values.items()}
        return _table(shown)


@dataclass(frozen=True)
class Plot:
    """A drawn plot; a notebook shows it.

    Attributes:
        figure: The matplotlib figure, to change or save it.
    """

    figure: Figure

    def save(self, path: str | Path) -> None:
        """Save the figure; the file's suffix says the format, such as `.png` or `.svg`."""
        self.figure.savefig(path, dpi=200, bbox_inches="tight")

    def _repr_png_(self) -> bytes:
        from tuner.results.plots import written

        return written(self.figure, "png", dpi=100)


@dataclass(frozen=True)
class OpenedStudy:
    """A study in a storage. Each call reads the storage, so results are always current.

    Attributes:
        name: The study's name.
        storage: The storage's URL; printed without its password.
    """

    name: str
    storage: StorageURL

    def __repr__(self) -> str:
        try:
            with connected(self.storage) as engine:
                return f"<study {progress_line(study_row(engine, self.name))} ({self.storage})>"
        except TunerError:
            return f"<study {self.name} ({self.storage}): not readable>"

    def _repr_html_(self) -> str:
        """Return the state of the study as a table, for notebooks."""
        with connected(self.storage) as engine:
            row = study_row(engine, self.name)
        shown = {name: row[name] for name in ("study", "state", "workers", "objective", "direction", "best")}
        return _table({**{key: as_text(value) for key, value in shown.items()}, **shown_counts(row)})

    @property
    def state(self) -> str | None:
        """`finished`, `running`, `idle`, `stopped` or `out of hours`; None for a study of plain Optuna."""
        with connected(self.storage) as engine:
            return study_row(engine, self.name)["state"]

    def trials(self) -> pd.DataFrame:
        """Return a row for each trial, with the columns of `tuner export`.

        Returns:
            Columns `number`, `outcome`, `value` (or `values.NAME` for each of several objectives), `hparams.NAME` for
            each hyperparameter, and more; see `docs/json.md`. What a trial does not have is missing.

        Raises:
            UnknownStudy: the study was deleted.
            UsageError: pandas is not installed.
        """
        from tuner.results.export import flat_rows

        with connected(self.storage) as engine:
            return _frame(flat_rows(engine, self.name), ["number", "outcome"])

    def curves(self) -> pd.DataFrame:
        """Return a row for each report of each trial.

        Returns:
            Columns `number` (the trial's), `epoch` (from 1), `step` (optimizer updates so far), and one for each
            metric, sorted by trial and epoch. A study of plain Optuna has its intermediate values as `value`. For
            example, `study.curves().pivot(index="epoch", columns="number", values="accuracy").plot()`.

        Raises:
            UnknownStudy: the study was deleted.
            UsageError: pandas is not installed.
        """
        with connected(self.storage) as engine:
            points = read_curves(engine, self._row(engine).study_id)
        rows = [{"number": one.number, "epoch": one.epoch, "step": one.step, **one.metrics} for one in points]
        return _frame(rows, ["number", "epoch", "step"])

    def trial(self, number: int) -> StoredTrial:
        """Return one trial.

        Raises:
            UnknownStudy: there is no such trial.
            UsageError: the number is not an integer.
        """
        if not is_int(number):
            raise UsageError(f"a trial's number must be an integer: got {number!r}")
        with connected(self.storage) as engine:
            return self._trial(engine, number)

    def best(self, prefer: str | None = None) -> StoredTrial:
        """Return the best complete trial that satisfies its constraints, as `tuner best` finds it.

        Args:
            prefer: With several objectives, the trial of the Pareto front that is best in this objective, or `"knee"`
                for the one that balances all; see `tuner.results.choice.preferred`.

        Raises:
            UsageError: there is none yet; or the study has several objectives, and `prefer` does not name one.
        """
        from tuner.results.export import best_number

        with connected(self.storage) as engine:
            study = self._row(engine)
            if len(study.directions) > 1 and prefer is None:
                known = ", ".join(repr(name) for name in [*study.objectives, "knee"])
                raise UsageError(
                    f"study {self.name!r} has several objectives: call `pareto` for its best trials, or pass one of "
                    f"{known} as `prefer`"
                )
            return self._trial(engine, best_number(engine, self.name, prefer))

    def pareto(self) -> list[StoredTrial]:
        """Return the Pareto front: the trials that no other one beats in all objectives, by number.

        Raises:
            UsageError: the study has one objective, or no complete trial that satisfies its constraints.
        """
        with connected(self.storage) as engine:
            if len(self._row(engine).directions) == 1:
                raise UsageError(f"study {self.name!r} has one objective, and so no Pareto front: call `best`")
            rows = best_rows(engine, self.name, None)
            if not rows:
                missing = f"study {self.name!r} has no complete trials yet"
                raise UsageError(no_feasible(engine, self.name) or missing)
            return [self._trial(engine, row["number"]) for row in rows]

    def importance(self, of: Literal["objective", "seconds"] = "objective") -> pd.DataFrame:
        """Return the importance of each hyperparameter, as `tuner importance` does.

        Args:
            of: Importance for each objective, or for the seconds that a complete trial trains.

        Returns:
            Columns `objective`, `hparam`, `ped_anova` and `fanova`; both methods sum to 1 for each objective.

        Raises:
            UsageError: there are too few complete trials, no hyperparameter varies, or pandas is not installed.
        """
        from tuner.results.compare import importance_rows

        rows, _ = importance_rows(self.storage, self.name, of)
        return _frame([dict(row) for row in rows], ["objective", "hparam"])

    def replay(self, pruners: Sequence[Any], *, orders: int = 20, workers: int = 4) -> pd.DataFrame:
        """Return what each pruner would have stopped, saved and lost in this study, as `tuner replay` does.

        Args:
            pruners: Each a name, a mapping with `name` and options, or an Optuna pruner.
            orders: The number of random orders in which the trials arrive.
            workers: The number of trials that run at once.

        Returns:
            A row for each pruner, with the columns of `tuner replay --format csv`: for example `stopped.mean`,
            `stopped.low` and `stopped.high`. The means are missing if the study ran with pruning.

        Raises:
            UsageError: the study has several objectives, no curves or no complete trial, or pandas is not installed.
            StudyError: a pruner's name or an option is unknown.
        """
        from tuner.results.replay import flat_row, replay_rows

        with connected(self.storage) as engine:
            rows, _ = replay_rows(engine, self.name, pruners, orders=orders, workers=workers)
        return _frame([flat_row(row) for row in rows], ["pruner"])

    def plot(self, kind: str = "history") -> Plot:
        """Draw a plot with matplotlib; a notebook shows it.

        Args:
            kind: A plot of `tuner plot`: `history`, `intermediate`, `importances`, `parallel`, `contour`, `slice`,
                `edf`, `pareto`, `timeline`, `rungs`, `savings` or `lineage`.

        Raises:
            UsageError: the kind is unknown or cannot be drawn for this study, or matplotlib is not installed.
        """
        from tuner.results.plots import check_kind, draw_figure, opened

        check_kind(kind)
        with opened(self.storage, self.name, has_screen=True) as subject:
            return Plot(draw_figure(subject, kind))

    def load(
        self,
        number: int | None = None,
        *,
        prefer: str | None = None,
        trainer: TrainerModule | None = None,
        trust: bool = False,
    ) -> Loaded:
        """Return the trained model of a trial; see `tuner.training.load_from_checkpoint`.

        Args:
            number: The trial; the best if None. Only the best trials of a study, or those of its Pareto front, keep
                their model (`keep_best`).
            prefer: With several objectives and no number, the trial to load; see `best`.
            trainer: The trainer; then no file is imported for it.
            trust: Import the study's file, which runs its code, if this process has not imported it yet.

        Raises:
            UsageError: the trial has no checkpoint, or the study has no trainer; for a training function, call
                `tuner.load_state` with the trial's `checkpoint`.
            CheckpointError: the checkpoint is damaged, or its study is not found or trusted.
        """
        from tuner.results.model import load_model

        with connected(self.storage) as engine:
            return load_model(engine, self.name, number, prefer=prefer, trainer=trainer, trust=trust)

    def enqueue(self, **hparams: object) -> None:
        """Queue a trial with these hyperparameters for the next free worker; the others are sampled.

        The trial counts towards the study's number of trials. If that is used up, a line on stderr says so.

        Raises:
            UsageError: a hyperparameter is unknown or outside its domain, or the study has no trials yet.
        """
        edits.enqueue(self.storage, self.name, {name: str(value) for name, value in hparams.items()})
        with connected(self.storage) as engine:
            shortage = edits.find_shortage(engine, self.name)
        if shortage is not None:
            say(shortage.describe(self.name))

    def stop(self) -> None:
        """Stop the study on all machines, as `tuner stop` does: its workers give back their trials and exit.

        Jobs of an engine such as Slurm are cancelled too.

        Raises:
            UsageError: the study was not created by tuner.
        """
        with connected(self.storage) as engine:
            lifecycle.stop(engine, self._ours(engine).name)

    def resume(self) -> None:
        """Allow a stopped study to be launched again, as `tuner resume` does.

        A study that its target, patience or terminator has ended needs another setting instead; a line on stderr says
        so.

        Raises:
            UsageError: the study was not created by tuner.
        """
        with connected(self.storage) as engine:
            end = lifecycle.resume(engine, self._ours(engine).name).end
        if end is not None:
            say(end.describe(self.name))

    def _row(self, engine: Engine) -> StudyRow:
        return find_study(engine, self.name)

    def _ours(self, engine: Engine) -> StudyRow:
        row = self._row(engine)
        if not row.record:
            raise UsageError(f"study {self.name!r} was not created by tuner, so it has no workers to stop")
        return row

    def _trial(self, engine: Engine, number: int) -> StoredTrial:
        study = self._row(engine)
        trial = read_trial(engine, study, number)
        metrics = read_metrics(engine, trial.trial_id)
        last = metrics[max(metrics)][1] if metrics else {}
        if not last and trial.reports:  # a trial of plain Optuna
            last = {"value": trial.reports[max(trial.reports)]}
        return StoredTrial(
            number=trial.number,
            outcome=trial.outcome.value,
            values=None if trial.values is None else tuple(trial.values),
            objectives=tuple(study.objectives),
            hparams=trial.hparams,
            metrics=last,
            seconds=trial.seconds,
            is_feasible=trial.is_feasible,
            user_attrs=trial.user_attrs,
            checkpoint=trial.record.checkpoint,
            error=trial.record.error,
            stderrs=None if trial.stderrs is None else tuple(trial.stderrs),
        )


def _frame(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a DataFrame, which has these columns even without rows.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UsageError(f"DataFrames need pandas: {how_to_install('pandas')}") from None
    return pd.DataFrame(list(rows)) if rows else pd.DataFrame(columns=list(columns))


def _table(fields: Mapping[str, object]) -> str:
    """Return an HTML table with a line for each field."""
    lines = [
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in fields.items()
    ]
    return f"<table>{''.join(lines)}</table>"
