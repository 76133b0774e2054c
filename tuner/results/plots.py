"""Plots of a study: those of Optuna, our own of workers, rungs and saved time, and a page with all of them.

matplotlib draws them without a screen. For a study with very many trials, plots with a line for each trial show only a
part of them, and say so.
"""

from __future__ import annotations

import contextlib
import datetime
import html
import io
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Engine

from tuner.errors import UsageError, how_to_install, nearest
from tuner.output.labels import labelled
from tuner.results.compare import compare_rows, saved_s, typical_epoch_s
from tuner.results.export import in_place
from tuner.results.json_rows import JsonRow
from tuner.results.rows import best_rows
from tuner.storage import AnyURL, connected, open_to_read
from tuner.storage.read.lineage import read_curves, read_efforts, read_rungs, read_timeline
from tuner.storage.read.population import read_copies
from tuner.storage.read.queries import StudyRow, find_study
from tuner.study.population import lineage

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

    from tuner.storage.optuna.storage import Storage

MOST_LINES = 500
"""The maximum number of trials in plots with a line per trial, and of importances, whose time is quadratic."""
_MOST_PARAMS = 4
_MOST_LABELS = 15
_SIZE = (8.0, 4.5)
_SIZES = {"plot_contour": (13.0, 11.0), "plot_slice": (12.0, 4.0), "plot_parallel_coordinate": (9.0, 4.5)}
_ENDING_COLOURS = {
    "complete": "tab:green", "pruned": "tab:gray", "diverged": "tab:orange", "out_of_memory": "tab:purple",
    "timed_out": "tab:brown", "failed": "tab:red", "preempted": "tab:cyan", "died": "black", None: "tab:blue",
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A study to plot: its row, an engine, all its trials as Optuna objects, and a part of them."""

    row: StudyRow
    engine: Engine
    whole: optuna.Study
    part: optuna.Study

    @property
    def objectives(self) -> list[str]:
        """The names of the objectives."""
        return self.row.named_objectives or [f"objective {at}" for at, _ in enumerate(self.row.directions)]

    def target(self, objective: int) -> dict[str, Any]:
        """Return the arguments of Optuna's plots for an objective."""
        name = {"target_name": self.objectives[objective]}
        if len(self.row.directions) == 1:
            return name

        def value_of(trial: FrozenTrial) -> float:
            return trial.values[objective]

        return {**name, "target": value_of}


@contextlib.contextmanager
def opened(url: AnyURL, name: str, *, has_screen: bool = False) -> Generator[Subject]:
    """Yield a study to plot.

    Args:
        url: The storage's URL.
        name: The study.
        has_screen: Whether this process shows other figures, such as those of a notebook; if so, matplotlib's backend
            stays as it is.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: it has no trials yet, or matplotlib is not installed.
    """
    with connected(url) as engine:
        row = find_study(engine, name)
        with contextlib.closing(open_to_read(url)) as storage:
            yield subject_of(storage, row, has_screen=has_screen)


def subject_of(storage: Storage, row: StudyRow, *, has_screen: bool = False) -> Subject:
    """Return a study to plot; see `opened`.

    Raises:
        UsageError: it has no trials yet, or matplotlib is not installed.
    """
    need_matplotlib(has_screen=has_screen)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    whole = optuna.load_study(study_name=row.name, storage=storage)
    if not whole.get_trials(deepcopy=False):
        raise UsageError(f"study {row.name!r} has no trials to plot yet")
    return Subject(row, storage.engine, whole, _part(whole))


def need_matplotlib(*, has_screen: bool = False) -> None:
    """Configure matplotlib to write reproducible files and, unless the process has a screen, to draw without one.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError(f"plots need matplotlib: {how_to_install('plots')}") from None
    if not has_screen:
        matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tuner"


def _part(study: optuna.Study) -> optuna.Study:
    """Return an in-memory copy of the ended trials; of very many, a part at equal distances.

    A trial that was removed from the queue has never started: it has nothing to draw, and Optuna refuses its copy.
    """
    import optuna

    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state.is_finished() and trial.datetime_start is not None]
    count = min(len(ended), MOST_LINES)
    copy = optuna.create_study(study_name=study.study_name, directions=study.directions)
    copy.add_trials([ended[len(ended) * at // count] for at in range(count)])
    return copy


# --- Optuna's


def _optunas(name: str, *, of_part: bool = False, with_target: bool = True) -> Callable[[Subject], Figure]:
    """Return a function that draws with one of `optuna.visualization.matplotlib`, for the first objective."""

    def draw(subject: Subject) -> Figure:
        import optuna.visualization.matplotlib as plots

        study = subject.part if of_part else subject.whole
        options: dict[str, Any] = subject.target(0) if with_target else {}
        if name in ("plot_contour", "plot_slice"):
            options["params"] = _most_important(subject)
        figure = _figure_of(getattr(plots, name)(study, **options))
        if name in _SIZES:
            figure.set_size_inches(*_SIZES[name])
        for axes in figure.axes:
            legend = axes.get_legend()
            if legend is not None and len(legend.get_texts()) > _MOST_LABELS:
                legend.remove()
        if of_part and len(subject.part.trials) < len(subject.whole.get_trials(deepcopy=False)):
            # matplotlib does not annotate its `**kwargs`.
            cast("Any", figure).text(0.99, 0.01, f"{len(subject.part.trials)} of the trials", ha="right", fontsize=8)
        return figure

    return draw


def _figure_of(axes: Any) -> Figure:
    """Return the figure of an axes object or of an array of them."""
    while not hasattr(axes, "figure"):
        axes = axes[0]
    return axes.figure


def _most_important(subject: Subject) -> list[str]:
    """Return the names of the few most important hyperparameters."""
    import optuna

    names = sorted({name for trial in subject.part.get_trials(deepcopy=False) for name in trial.params})
    if len(names) <= _MOST_PARAMS:
        return names
    try:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()  # the fast method
        found = optuna.importance.get_param_importances(subject.part, evaluator=evaluator, **_target_only(subject))
    except (ValueError, RuntimeError):
        return names[:_MOST_PARAMS]
    return list(found)[:_MOST_PARAMS]


def _target_only(subject: Subject) -> dict[str, Any]:
    return {key: value for key, value in subject.target(0).items() if key == "target"}


def _pareto(subject: Subject) -> Figure:
    import optuna.visualization.matplotlib as plots

    if len(subject.row.directions) not in (2, 3):
        raise UsageError(
            f"a Pareto front needs two or three objectives: study {subject.row.name!r} has "
            f"{len(subject.row.directions)}"
        )
    return _figure_of(plots.plot_pareto_front(subject.whole, target_names=subject.objectives))


# --- Ours


def _axes(title: str, xlabel: str, ylabel: str) -> Any:
    from matplotlib import pyplot

    figure, axes = cast("tuple[Figure, Any]", pyplot.subplots(figsize=_SIZE, layout="constrained"))
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _timeline(subject: Subject) -> Figure:
    """Draw each attempt as a bar in the row of its worker."""
    attempts = read_timeline(subject.engine, subject.row.study_id)
    if not attempts:
        raise UsageError(f"a timeline needs trials that workers ran: study {subject.row.name!r} has none")
    labels = {attempt.worker: f"{attempt.worker}\n{attempt.devices}" for attempt in attempts}
    rows = {worker: at for at, worker in enumerate(labels)}
    began_s = min(attempt.started_at_s for attempt in attempts)
    scale, unit = (3600.0, "h") if max(one.ended_at_s for one in attempts) - began_s > 7200 else (1.0, "s")
    start = datetime.datetime.fromtimestamp(began_s, datetime.UTC)
    figure, axes = _axes("Timeline", f"{unit} since {start:%Y-%m-%d %H:%M:%S} UTC", "")
    figure.set_size_inches(_SIZE[0], max(2.0, 0.6 * len(rows) + 1.2))
    for ending in dict.fromkeys(attempt.ending for attempt in attempts):
        those = [attempt for attempt in attempts if attempt.ending == ending]
        axes.barh(
            [rows[one.worker] for one in those],
            [(one.ended_at_s - one.started_at_s) / scale for one in those],
            left=[(one.started_at_s - began_s) / scale for one in those],
            color=_ENDING_COLOURS.get(ending, "tab:olive"), edgecolor="white", linewidth=0.3, label=ending or "running",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), list(labels.values()), fontsize=7)
    axes.legend(fontsize=8)
    return figure


def _rungs(subject: Subject) -> Figure:
    """Draw the number of trials that reached each rung, and of those that were promoted immediately."""
    rungs = read_rungs(subject.engine, subject.row.study_id)
    if not rungs:
        raise UsageError(f"only the pruners asha and hyperband have rungs: study {subject.row.name!r} has none")
    figure, axes = _axes("Rung survival", "bracket / rung", "trials")
    names = [f"{rung.bracket} / {rung.rung}" for rung in rungs]
    axes.bar(names, [rung.entered for rung in rungs], color="tab:gray", label="reached the rung")
    axes.bar(names, [rung.promoted for rung in rungs], color="tab:green", label="promoted")
    axes.legend(fontsize=8)
    return figure


def _savings(subject: Subject) -> Figure:
    """Draw the device hours spent, and those saved by pruning, over the trials."""
    efforts, epochs = read_efforts(subject.engine, subject.row.study_id), subject.row.record.get("epochs")
    if not efforts or not epochs:
        is_ours = bool(subject.row.record)
        reason = "does not say how many epochs a trial trains (`epochs`)" if is_ours else "was not created by tuner"
        raise UsageError(f"the time saved is not known: study {subject.row.name!r} {reason}")
    figure, axes = _axes("Time saved by pruning (estimate)", "trial", "device hours")
    spent, saved, typical_s = [0.0], [0.0], typical_epoch_s(efforts)
    for effort in efforts:
        spent.append(spent[-1] + effort.device_s / 3600)
        saved.append(saved[-1] + (saved_s(effort, epochs, typical_s) or 0.0) / 3600)
    numbers = [0, *(effort.number + 1 for effort in efforts)]
    axes.fill_between(numbers, spent, color="tab:blue", alpha=0.6, label="spent")
    whole = [a + b for a, b in zip(spent, saved, strict=True)]
    axes.fill_between(numbers, spent, whole, color="tab:green", alpha=0.4, label="saved")
    axes.legend(fontsize=8, loc="upper left")
    return figure


def _lineage(subject: Subject) -> Figure:
    """Draw each trial as a line over its epochs, copies of others as arrows, and what led to the best trial thicker."""
    copies = read_copies(subject.engine, subject.row.study_id)
    if not copies:
        raise UsageError(f"only trials of the pruner pbt copy each other: those of study {subject.row.name!r} have not")
    lengths: dict[int, int] = {}
    for point in read_curves(subject.engine, subject.row.study_id):
        lengths[point.number] = max(point.epoch, lengths.get(point.number, 0))
    figure, axes = _axes("Copies of trials", "epoch", "trial")
    axes.hlines(list(lengths), 0, list(lengths.values()), color="tab:gray", linewidth=1)
    for number, taken in copies.items():
        for copy in taken:
            ends = {"xy": (copy.epoch, number), "xytext": (copy.epoch, copy.trial)}
            axes.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": "tab:blue", "shrinkA": 0, "shrinkB": 0})
    for best in best_rows(subject.engine, subject.row.name, confirmed=False):
        for stretch in lineage(best["number"], copies, {number: {} for number in lengths}):
            ends = (stretch.first - 1, stretch.last or lengths[stretch.trial])
            axes.hlines([stretch.trial], *ends, color="tab:green", linewidth=3)
    return figure


KINDS: dict[str, Callable[[Subject], Figure]] = {
    "history": _optunas("plot_optimization_history"),
    "intermediate": _optunas("plot_intermediate_values", of_part=True, with_target=False),
    "importances": _optunas("plot_param_importances", of_part=True),
    "parallel": _optunas("plot_parallel_coordinate", of_part=True),
    "contour": _optunas("plot_contour", of_part=True),
    "slice": _optunas("plot_slice", of_part=True),
    "edf": _optunas("plot_edf"),
    "pareto": _pareto,
    "timeline": _timeline,
    "rungs": _rungs,
    "savings": _savings,
    "lineage": _lineage,
}


def plot(url: AnyURL, name: str, kind: str, path: Path, *, force: bool = False) -> None:
    """Plot a study to a file.

    Args:
        url: The storage's URL.
        name: The study.
        kind: One of `KINDS`, or `report` for a page with all plots.
        path: `.png` or `.svg`; for a report, `.html`.
        force: Whether a file that is there may be replaced.

    Raises:
        UnknownStudy: there is no such study.
        UsageError: the kind is unknown or cannot be drawn for this study, or the file has another suffix.
    """
    if kind != "report":
        check_kind(kind, (*KINDS, "picture", "report"))
    check_suffix(kind, path)
    with opened(url, name) as subject, in_place(path, force) as scratch:
        if kind == "report":
            scratch.write_text(report(subject), encoding="utf-8")
        else:
            scratch.write_bytes(draw(subject, kind, path.suffix.lower().removeprefix(".")))


def check_kind(kind: str, known: Sequence[str] = tuple(KINDS)) -> None:
    """Raise UsageError unless `kind` is a plot that `KINDS` can draw.

    Args:
        kind: The plot.
        known: The plots that the message names.
    """
    if kind not in KINDS:
        raise UsageError(f"a plot must be one of {', '.join(known)}: got {kind!r}{nearest(kind, known)}")


def check_suffix(kind: str, path: Path) -> None:
    """Raise UsageError unless a plot of this kind can be written to a file of this name."""
    suffixes = (".html",) if kind == "report" else (".png", ".svg")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"the file of the plot {kind!r} must end in {' or '.join(suffixes)}: got {str(path)!r}")


def draw(subject: Subject, kind: str, format: str) -> bytes:
    """Return the content of a plot's file.

    Raises:
        UsageError: the plot cannot be drawn for this study.
    """
    return written(draw_figure(subject, kind), format)


def draw_figure(subject: Subject, kind: str) -> Figure:
    """Return a plot as a figure that pyplot does not keep.

    Raises:
        UsageError: the plot is unknown or cannot be drawn for this study.
    """
    from matplotlib import pyplot
    from optuna.exceptions import ExperimentalWarning

    others = set(pyplot.get_fignums())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("ignore", UserWarning)  # about layouts, and about equal values
            return KINDS[kind](subject)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"cannot draw the plot {kind!r} of study {subject.row.name!r}: {error}") from None
    finally:
        for number in set(pyplot.get_fignums()) - others:
            pyplot.close(number)


def written(figure: Figure, format: str, *, dpi: int = 200) -> bytes:
    """Return the content of a figure's file; the same figure gives the same file."""
    file = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else {"Software": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about layouts, when it is drawn
        cast("Any", figure).savefig(file, format=format, dpi=dpi, bbox_inches="tight", metadata=metadata)
    return file.getvalue()


def report(subject: Subject) -> str:
    """Return a self-contained HTML page with the best trials and every plot that can be drawn."""
    name = html.escape(subject.row.name)
    parts = [f"<h1>{name}</h1>", "<h2>Study</h2>", _table(compare_rows(subject.engine, [subject.row.name]))]
    best = best_rows(subject.engine, subject.row.name, 5)
    shown = [labelled({**row, "hparams": _words(row["hparams"])}) for row in best]
    parts += ["<h2>Best trials</h2>", _table(shown)]
    missing: list[str] = []
    for kind in KINDS:
        try:
            picture = draw(subject, kind, "svg").decode()
            parts += [f"<h2>{kind.capitalize()}</h2>", picture[picture.index("<svg") :]]
        except UsageError as error:
            missing.append(f"<li>{html.escape(str(error))}</li>")
    if missing:
        parts += ["<h2>Not drawn</h2>", f"<ul>{''.join(missing)}</ul>"]
    return _PAGE.format(title=name, body="\n".join(parts))


def _words(hparams: Mapping[str, object]) -> str:
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in hparams.items()
    )


def _table(rows: Sequence[JsonRow]) -> str:
    if not rows:
        return "<p>none</p>"
    columns = [column for column in rows[0] if any(not isinstance(row[column], dict | None) for row in rows)]
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = ["".join(f"<td>{html.escape(_cell(row[column]))}</td>" for column in columns) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }}
th, td {{ text-align: left; padding: 0.2em 0.8em 0.2em 0; border-bottom: 1px solid #ddd; white-space: nowrap; }}
svg {{ max-width: 100%; height: auto; }}
</style></head><body>
{body}
</body></html>
"""
