"""Runs several studies at once on the workers of one launch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

from tuner.errors import TunerError
from tuner.launch.progress import Progress, Snapshot
from tuner.launch.study_launch import Interrupted, Place, StudyLaunch
from tuner.output.log import LogLine
from tuner.trial import Event


@dataclass
class _OfStudy:
    """Shows the progress of one of several studies: its messages have its name."""

    progress: Progress
    launch: StudyLaunch

    @property
    def study(self) -> str:
        """The study's name; until a worker has loaded it, its file."""
        return self.launch.snapshot.study or self.launch.target

    def update(self, snapshot: Snapshot) -> None:
        self.progress.update(snapshot)

    def note(self, message: str, event: str, level: str = "info", **fields: object) -> None:
        self.progress.note(f"{self.study}: {message}", event, level, study=self.study, **fields)

    def say(self, said: Event | LogLine, *, worker: str | None = None, place: int | None = None, **_: object) -> None:
        self.progress.say(said, worker=worker, place=place, study=self.study)

    def __enter__(self) -> _OfStudy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass
class Sharing:
    """Several studies that share places.

    Args:
        launches: The studies, without places.
        places: The places.
        progress: Shows the progress of all.
        tell_end: Tells why a study has ended.
    """

    launches: Sequence[StudyLaunch]
    places: Sequence[Place]
    progress: Progress
    tell_end: Callable[[Snapshot, Progress], None]
    _free: list[Place] = field(init=False)
    _waiting: list[StudyLaunch] = field(init=False)
    _running: list[StudyLaunch] = field(default_factory=list[StudyLaunch])
    _ending: list[tuple[StudyLaunch, Future[None]]] = field(default_factory=list[tuple[StudyLaunch, "Future[None]"]])

    def __post_init__(self) -> None:
        self._free, self._waiting = list(self.places), list(self.launches)

    def run(self, stop: threading.Event) -> dict[str, TunerError]:
        """Run all studies until each has ended.

        Returns:
            The errors of those that did not finish, by file.

        Raises:
            Interrupted: `stop` was set.
        """
        failed: dict[str, TunerError] = {}
        with ThreadPoolExecutor(len(self.launches), "end-of-study") as pool:

            def end(launch: StudyLaunch) -> None:
                self._ending.append((launch, pool.submit(launch.end, _OfStudy(self.progress, launch), stop)))

            try:
                while (self._waiting or self._running or self._ending) and not stop.is_set():
                    self._give_places()
                    for launch in list(self._running):
                        launch.watch(_OfStudy(self.progress, launch))
                        if launch.is_over:
                            self._running.remove(launch)
                            end(launch)
                    if not self._running:
                        stop.wait(0.1)
                    failed |= self._take_ended(stop)
            finally:
                for launch in self._running:
                    end(launch)
                for _, ended in self._ending:
                    ended.result()
        if stop.is_set():
            used = sum(launch.snapshot.used for launch in self.launches)
            raise Interrupted(f"stopped with {used} trials finished; run the same command again to finish the rest")
        return failed

    def _take_ended(self, stop: threading.Event) -> dict[str, TunerError]:
        failed: dict[str, TunerError] = {}
        for launch, ended in [one for one in self._ending if one[1].done()]:
            self._ending.remove((launch, ended))
            ended.result()
            error, progress = launch.reason(stop), _OfStudy(self.progress, launch)
            if error is None:
                self.tell_end(launch.snapshot, progress)
                progress.note("finished", "study_finished")
            elif not isinstance(error, Interrupted):
                progress.note(str(error), "study_failed", "error")
                failed[launch.target] = error
        return failed

    def _give_places(self) -> None:
        """Give free places to studies that wait, then to those with the fewest workers."""
        for launch in self.launches:
            for place in launch.places:
                if not place.has_moved and (place.is_done or launch.has_no_worker.is_set()):
                    self._free.append(place.move())
                    launch.snapshot.workers.pop(place.index, None)
        while self._free:
            found = self._next_study()
            if found is None:
                return
            found.add(self._free.pop(0))

    def _next_study(self) -> StudyLaunch | None:
        if self._waiting:
            self._running.append(self._waiting.pop(0))
            return self._running[-1]
        takers = [launch for launch in self._running if not launch.is_ending]
        return min(takers, key=_workers_of, default=None)


def _workers_of(launch: StudyLaunch) -> int:
    return sum(not place.is_done for place in launch.places)
