"""Shows the progress of `Study.run` in a notebook: one output that changes while the study runs."""

from __future__ import annotations

import html
import sys
import time
from typing import Any

from tuner.errors import TunerError
from tuner.output.numbers import as_text
from tuner.results.json_rows import StudyJson
from tuner.results.rows import progress_line, shown_counts, study_row
from tuner.storage import StorageURL, connected
from tuner.trial import Event, print_event
from tuner.trial.events import EpochEnded, StudyLoaded, TrialBegan, TrialEnded, WorkerDone, event_line

_EVERY_S = 0.5
"""The shortest time between two updates, so that fast trials do not fill the notebook's connection."""

_ENDED = ("complete", "pruned", "diverged", "out_of_memory", "timed_out")
"""The outcomes of ended trials that use budget."""


def is_in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class NotebookProgress:
    """Shows a run as a bar, counts, the best value and the current trial; warnings go to stderr.

    Call it with each event of the worker.

    Args:
        name: The study's name.
        storage: Where it is stored.
    """

    def __init__(self, name: str, storage: StorageURL) -> None:
        self._name, self._storage = name, storage
        self._trials = 0
        self._row: StudyJson | None = None
        self._now = ""
        self._handle: Any = None
        self._shown_s = -_EVERY_S

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case StudyLoaded(trials=trials):
                self._trials = trials
                self._show()
            case TrialBegan() | EpochEnded() | TrialEnded():
                self._now = event_line(event) or ""
                if time.monotonic() >= self._shown_s + _EVERY_S:
                    self._show()
            case WorkerDone():
                self._now = ""
                self._show()
            case _:
                print_event(event)

    def _show(self) -> None:
        from IPython.display import display  # pyright: ignore[reportUnknownVariableType]

        try:
            with connected(self._storage) as engine:
                self._row = study_row(engine, self._name)
        except TunerError:  # the worker waits for the database, and says so
            pass
        self._shown_s = time.monotonic()
        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)

    def __repr__(self) -> str:
        line = f"study {self._name}" if self._row is None else progress_line(self._row)
        return f"{line}; {self._now}" if self._now else line

    def _repr_html_(self) -> str:
        return progress_html(self._name, self._trials, self._row, self._now)


def progress_html(name: str, trials: int, row: StudyJson | None, now: str) -> str:
    """Return the progress of a study for a notebook.

    Args:
        name: The study's name.
        trials: The number of trials that were asked for.
        row: The study's row; None before it is stored.
        now: What its worker does.
    """
    counts = {} if row is None else shown_counts(row)
    done = sum(int(str(row[outcome])) for outcome in _ENDED) if row is not None else 0
    parts = [f"<b>{html.escape(name)}</b>: {done} of {trials} trials", *(f"{n} {kind}" for kind, n in counts.items())]
    if row is not None and row["best"] is not None:
        parts.append(f"best {html.escape(row['objective'] or '')} {as_text(row['best'])}")
    bar = f"<progress value='{min(done, trials)}' max='{max(trials, 1)}' style='width:20em'></progress>"
    return f"<div>{bar} {', '.join(parts)}<br><code>{html.escape(now)}</code></div>"
