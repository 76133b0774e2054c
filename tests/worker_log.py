"""Runs a worker in the test's process, and keeps its events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuner import Study
from tuner.trial import Event
from tuner.worker import run_worker


class Log:
    """The events of a worker."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, *kinds: type[Any]) -> list[Any]:
        """Return the events of these kinds."""
        return [event for event in self.events if isinstance(event, kinds)]


def logged(study: Study, url: str, artifacts: Path, log: Log | None = None, **options: Any) -> Log:
    """Run trials of a study; return the events."""
    log = log or Log()
    run_worker(study, url, artifacts=str(artifacts), say=log, **options)
    return log
