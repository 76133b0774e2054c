"""A study of a launch: starts its workers on their places, watches them, restarts those that die, and counts trials."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tuner.errors import TRY_AGAIN, StorageLost, StudyBusy, StudyFailed, StudyStopped, TunerError, UsageError
from tuner.launch.compile_process import CompileProcess
from tuner.launch.database import Counts, StudyDatabase
from tuner.launch.devices import DeviceGroup, environment
from tuner.launch.mirror_process import MirrorProcess
from tuner.launch.process import Message, WorkerProcess
from tuner.launch.progress import Progress, Snapshot
from tuner.launch.prometheus import LaunchMetrics
from tuner.notify.receivers import VARIABLE as NOTIFY_VARIABLE
from tuner.output.log import set_about
from tuner.output.sanitize import hide_password
from tuner.storage import StorageURL
from tuner.study.file import split_path
from tuner.study.source import code_digest
from tuner.trial import Event, event_line
from tuner.trial.environment import LAUNCHED_VARIABLE
from tuner.trial.events import (
    EpochEnded,
    HoursUsed,
    SearchFinished,
    StudyEnded,
    StudyLoaded,
    StudyRefused,
    TrialBegan,
    TrialEnded,
    TrialLost,
    TrialReleased,
    TrialRetried,
    WorkerDone,
    WorkerIdle,
)

if TYPE_CHECKING:
    from tuner.launch.notices import LaunchNotices

_GRACE_S = 5.0
"""Seconds that a worker may take to give back its trial; then it is killed, and the launcher gives back the trial."""
_POLL_S = 0.5
_WAIT_S, _LAST_WAIT_S = 2.0, 1.0
"""Seconds to wait for an answer of the database (a late one is used later); and after a signal."""
_FINAL_COUNT_S = 15.0
_COUNT_SHARE = 0.05
"""The share of its time for which a launch may keep the database busy with counting; large studies take a second."""
_MAX_EARLY_DEATHS = 4
"""A worker that dies this often in a row, without ending a trial or getting one further, is not restarted. This is one
more than the deaths after which a trial fails (`storage.claims.MAX_DEATHS`), so that one bad trial does not stop the
study."""


class Interrupted(TunerError):
    """The launch was stopped by a signal."""

    exit_status = 130


@dataclass
class Place:
    """A device group and its current worker, for one study.

    A place that moves to another study continues its number of starts, so that all workers have different names.
    """

    index: int
    group: DeviceGroup
    worker: WorkerProcess | None = None
    starts: int = 0
    early_deaths: int = 0
    is_done: bool = False
    is_finished: bool = False
    """Whether its worker has exited because nothing is left to do."""
    is_at_work: bool = False
    """Whether the worker has the study loaded."""
    refusal: str = ""
    """The worker's message if the study's file cannot be used any more."""
    is_busy: bool = False
    """Whether it said that other workers run a study of this file."""
    trial: int | None = None
    """The trial whose start the worker has reported, until it reports the end."""
    has_moved: bool = False
    """Whether another study has the devices now."""

    def move(self) -> Place:
        """Return the place for another study."""
        self.has_moved = True
        return Place(self.index, self.group, starts=self.starts)


_Burial = tuple[Place, str, Future[TrialEnded | None]]


@dataclass
class StudyLaunch:
    """A study that is launched, with the workers that run it."""

    command: Sequence[str]
    url: StorageURL
    target: str
    places: list[Place]
    mirror: MirrorProcess
    notices: LaunchNotices
    metrics: LaunchMetrics
    inbox: queue.Queue[Message] = field(default_factory=queue.Queue[Message])
    snapshot: Snapshot = field(default_factory=Snapshot)
    error: TunerError | None = None
    counting: Future[Counts | None] | None = None
    asked_s: float = 0.0
    counted_s: float = 0.0
    count_pause_s: float = _POLL_S
    burials: list[_Burial] = field(default_factory=list[_Burial])
    farthest: dict[int, int] = field(default_factory=dict[int, int])
    """The greatest epoch that a worker has reported of each trial."""
    began_s: float = field(default_factory=time.time)
    compiling: CompileProcess | None = None
    """Compiles programs before a trial needs them."""
    is_shared: bool = False
    """Whether other studies run in this launch at the same time."""
    code: str | None = None
    """The digest of the study's code at the start of this launch, or of the last version that was reported."""

    changed_trials: int | None = None
    """Another number of trials, until it is told."""

    has_no_worker: threading.Event = field(default_factory=threading.Event)
    """Set at the end, when all workers have exited."""

    def __post_init__(self) -> None:
        self.database = StudyDatabase(self.url)
        self.snapshot.file = self.target

    def run(self, progress: Progress, stop: threading.Event) -> None:
        """Start the workers and return when all are done.

        Raises:
            TunerError: an error that a worker reported, `StudyFailed` if no worker stays alive, or `Interrupted`.
        """
        try:
            for place in self.places:
                self._start(place)
            while not (stop.is_set() or self.is_over):
                self.watch(progress)
        finally:
            self.end(progress, stop)
        error = self.reason(stop)
        if error is not None:
            raise error

    @property
    def is_over(self) -> bool:
        """Whether all workers are done, or an error ends the study."""
        return self.error is not None or all(place.is_done for place in self.places)

    @property
    def is_ending(self) -> bool:
        """Whether one of its workers had nothing left to do, so that another worker would have nothing either."""
        return any(place.is_finished for place in self.places)

    def add(self, place: Place) -> None:
        """Start a worker on a place."""
        self.places.append(place)
        self._start(place)

    def watch(self, progress: Progress) -> None:
        """Handle what the workers have said, replace those that have died, and show the progress."""
        self._read_messages(progress)
        self._watch(progress)
        self.mirror.watch(progress)
        if self.compiling is not None:
            self.compiling.watch(progress)
        self.notices.watch(progress, self.snapshot)
        self._count(self.count_pause_s)
        self._tell_of_trials(progress)
        self._take_burials(progress)
        progress.update(self.snapshot)
        workers = [place.worker for place in self.places if place.worker is not None]
        self.metrics.observe(self.snapshot, sum(worker.process.poll() is None for worker in workers))

    def end(self, progress: Progress, stop: threading.Event) -> None:
        """End the workers, count the trials, and wait until trackers and notifications have all that is new."""
        if self.compiling is not None:
            self.compiling.end()
        self._end_workers(progress)
        self.has_no_worker.set()
        self._count_at_end(stop)
        progress.update(self.snapshot)
        is_gone = all(place.is_done and not place.is_finished for place in self.places)
        self.notices.end(progress, self.snapshot, stop, self.error, is_gone=is_gone)
        self.mirror.end(progress, stop)
        self.database.close()

    def reason(self, stop: threading.Event) -> TunerError | None:
        """Return why the study has not finished; None if it has."""
        if self.error is not None:
            return self.error
        if not self.snapshot.study and not stop.is_set():
            return TunerError(f"all workers of {self.target} exited before starting the study")
        if stop.is_set():
            return Interrupted(
                f"stopped with {self.snapshot.used} of {self.snapshot.trials or 'its'} trials finished; "
                "run the same command again to finish the rest"
            )
        return None

    def _place(self, index: int) -> Place:
        """Return the place with this index; if it has been here twice, the later one."""
        return next(place for place in reversed(self.places) if place.index == index)

    def _start(self, place: Place) -> None:
        place.starts += 1
        place.is_at_work, place.refusal, place.is_busy = False, "", False
        host = os.uname().nodename
        name = f"{host}:{os.getpid()}:{place.index}.{place.starts}"
        env = {**environment(place.group, os.environ), "TUNER_STORAGE": self.url.text, "PYTHONUNBUFFERED": "1"}
        env[LAUNCHED_VARIABLE] = str(self.began_s)
        env.pop(NOTIFY_VARIABLE, None)  # secrets that no worker needs
        place.worker = WorkerProcess(place.index, name, self.command, env, self.inbox)
        self.snapshot.workers[place.index] = "starting"

    def _read_messages(self, progress: Progress) -> None:
        """Wait a moment for messages and handle all of them."""
        try:
            message = self.inbox.get(timeout=0.1)
            while True:
                if isinstance(message.said, Event):
                    self._take(message.index, message.said)
                if not isinstance(message.said, StudyRefused):  # that is raised
                    progress.say(message.said, worker=message.worker, place=message.index)
                message = self.inbox.get_nowait()
        except queue.Empty:
            return

    def _take(self, index: int, event: Event) -> None:
        snapshot, place = self.snapshot, self._place(index)
        self.metrics.take(index, event)
        match event:
            case StudyLoaded(study, trials, objective, combinations):
                if not self.is_shared:
                    set_about(study=study)
                snapshot.study, snapshot.trials, snapshot.objective = study, trials, objective
                place.is_at_work = True
                self.mirror.start(study)
                self.notices.start(study)
                if self.compiling is not None:
                    like = None if place.worker is None else place.worker.process.pid
                    self.compiling.start(combinations, os.environ, like)
                if snapshot.began_s is None:
                    self._count(wait_s=_WAIT_S)
            case TrialBegan(trial):
                snapshot.workers[index] = f"trial {trial}"
                place.trial = trial
            case EpochEnded(trial, epoch):
                snapshot.workers[index] = event_line(event) or ""
                if trial not in self.farthest or epoch > self.farthest[trial]:
                    place.early_deaths, self.farthest[trial] = 0, epoch
            case TrialEnded() | TrialReleased() | TrialRetried():
                place.early_deaths, place.trial = 0, None
            case TrialLost():
                place.trial = None
            case HoursUsed():
                snapshot.is_out_of_hours = True
            case SearchFinished():
                snapshot.is_finished = True
            case StudyEnded(_, message):
                snapshot.ended = message
            case WorkerIdle():
                snapshot.workers[index] = "waiting for other workers' trials"
            case WorkerDone():
                snapshot.workers[index] = "done"
            case StudyRefused(message, exit_status):
                place.refusal, place.is_busy = hide_password(message), exit_status == StudyBusy.exit_status
                if exit_status in (StudyStopped.exit_status, StudyFailed.exit_status):
                    ended = StudyStopped if exit_status == StudyStopped.exit_status else StudyFailed
                    self.error = self.error or ended(place.refusal)
            case _:
                pass

    def _watch(self, progress: Progress) -> None:
        """Check for workers that have exited; restart those that died."""
        for place in self.places:
            if place.is_done or place.worker is None or not place.worker.has_ended():
                continue
            self._read_messages(progress)
            if place.worker.process.returncode == 0:
                place.is_done, place.is_finished, place.is_at_work = True, True, False
            elif place.worker.process.returncode == UsageError.exit_status or place.is_busy:
                self._give_up(place, place.worker, progress)
            elif self.error is None:
                self._replace(place, place.worker, progress)

    def _give_up(self, place: Place, refused: WorkerProcess, progress: Progress) -> None:
        """Note that a worker cannot run the study's file, which a restart would not change.

        This ends the launch, unless other workers of it are running: then the file was changed after they had read it.
        """
        place.is_done, place.is_at_work = True, False
        why = place.refusal or hide_password("\n".join(refused.last_lines[-5:]))
        if not any(other.is_at_work for other in self.places):
            refusal = StudyBusy if place.is_busy else UsageError
            self.error = self.error or refusal(why)
            return
        self.snapshot.workers[place.index] = "given up (the study's file)"
        about = {"worker": refused.name, "place": place.index}
        told = f"worker {place.index} cannot run the study's file as it is now; the other workers continue: {why}"
        progress.note(told, "not_restarted", "error", **about)

    def _tell_of_change(self, place: Place, progress: Progress) -> None:
        """Warn that the study's file has changed when a worker restarts and reads it again."""
        code = code_digest(split_path(self.target)[0])
        if code != self.code:
            progress.note(
                f"the study's file has changed: worker {place.index} restarts with the new version; "
                "workers that are already running keep the old one",
                "study_changed",
                "warning",
                place=place.index,
            )
        self.code = code

    def _tell_of_trials(self, progress: Progress) -> None:
        """Tell that the study has another number of trials than this launch asked for, or than a moment ago."""
        trials, self.changed_trials = self.changed_trials, None
        if trials is not None:
            progress.note(
                f"the study's number of trials is now {trials}, as set in the dashboard or by another launch",
                "trials",
                trials=trials,
            )

    def _replace(self, place: Place, dead: WorkerProcess, progress: Progress) -> None:
        self._bury(place, dead, progress, died=True)
        place.early_deaths += 1
        self.metrics.add_death(place.index)
        about = {"worker": dead.name, "place": place.index, "ending": dead.ending}
        is_last = place.early_deaths >= _MAX_EARLY_DEATHS
        told = f"worker {place.index} died ({dead.ending})" + ("; it is not restarted" if is_last else "")
        progress.note(told, "died", "error" if is_last else "warning", **about)
        if place.early_deaths < _MAX_EARLY_DEATHS:
            self._tell_of_change(place, progress)
            self._start(place)
            return
        place.is_done, place.is_at_work = True, False
        self.snapshot.workers[place.index] = f"given up ({dead.ending})"
        if all(other.is_done and not other.is_finished for other in self.places):
            last = hide_password("\n".join(dead.last_lines[-5:]))
            if dead.process.returncode == TRY_AGAIN:
                self.error = StorageLost(last.removeprefix("tuner: "))
                return
            self.error = StudyFailed(
                f"every worker died {_MAX_EARLY_DEATHS} times in a row, the last with {dead.ending}; "
                f"run `tuner worker {self.target}` to see why\n{last}".rstrip()
            )

    def _bury(
        self, place: Place, dead: WorkerProcess, progress: Progress, *, died: bool, wait_s: float = _WAIT_S
    ) -> None:
        """Free the trial of a worker that has exited; otherwise it would be free only when its lease ends."""
        burial = self.database.release(dead.name, self.snapshot.study, place.trial, died=died)
        place.trial = None
        self.burials.append((place, dead.name, burial))
        self.database.wait(burial, wait_s)
        self._take_burials(progress)

    def _take_burials(self, progress: Progress) -> None:
        """Handle the ends of trials that dead workers told the storage but not this launcher."""
        done = [burial for burial in self.burials if burial[2].done()]
        self.burials = [burial for burial in self.burials if burial not in done]
        for place, name, burial in done:
            end = burial.result()
            if end is not None:
                now = place.trial, place.early_deaths
                self._take(place.index, end)
                if place.worker is not None and place.worker.name != name:
                    place.trial, place.early_deaths = now  # of the worker that has replaced the dead one
                progress.say(end, worker=name, place=place.index)

    def _end_workers(self, progress: Progress) -> None:
        alive = [(place, place.worker) for place in self.places if place.worker is not None and not place.is_done]
        for _, worker in alive:
            worker.stop()
        deadline_s = time.monotonic() + _GRACE_S
        while any(worker.process.poll() is None for _, worker in alive) and time.monotonic() < deadline_s:
            self._read_messages(progress)
        for _, worker in alive:
            if worker.process.poll() is None:
                worker.kill()
            worker.has_ended()
        self._read_messages(progress)  # their last messages
        deadline_s = max(deadline_s, time.monotonic() + (0.0 if self._is_silent() else _LAST_WAIT_S))
        for place, worker in alive:
            if worker.process.returncode != 0:
                self._bury(place, worker, progress, died=False, wait_s=deadline_s - time.monotonic())

    def _is_silent(self) -> bool:
        """Return whether the database has not answered for a while."""
        return self.counting is not None and time.monotonic() > self.asked_s + _LAST_WAIT_S

    def _count_at_end(self, stop: threading.Event) -> None:
        """Count the ended trials; after a signal only if the database answers immediately."""
        if stop.is_set() and (self.burials or self._is_silent()):
            return
        began_s, is_latest = time.monotonic(), self.counting is None  # else it may be from before the last ends
        while self.snapshot.study:
            # A signal may come while this waits.
            if time.monotonic() > began_s + (_LAST_WAIT_S if stop.is_set() else _FINAL_COUNT_S):
                return
            self._count()
            if self.counting is None and is_latest:
                return
            is_latest = is_latest or self.counting is None

    def _count(self, at_most_every_s: float = 0.0, wait_s: float = 0.2) -> None:
        """Read the progress of the study from the storage, now or, if the answer is late, in a later call."""
        if self.counting is None:
            if not self.snapshot.study or time.monotonic() < self.counted_s + at_most_every_s:
                return
            self.counting, self.asked_s = self.database.count(self.snapshot.study), time.monotonic()
        if not self.database.wait(self.counting, wait_s):
            return
        counts, self.counting, self.counted_s = self.counting.result(), None, time.monotonic()
        snapshot = self.snapshot
        if counts is None:  # down for a moment
            return
        self.count_pause_s = max(_POLL_S, counts.seconds / _COUNT_SHARE)
        snapshot.counts = counts.by_outcome
        if counts.trials not in (None, snapshot.trials):
            snapshot.trials = self.changed_trials = counts.trials
        if counts.best is not None:
            error = "" if counts.best_stderr is None else f" ± {counts.best_stderr:.2g}"
            snapshot.best_value, snapshot.best_trial = counts.best, counts.best_trial
            snapshot.best = f"{counts.best:.4f}{error} (trial {counts.best_trial})"
        if snapshot.began_s is None:
            snapshot.began_s, snapshot.already = time.monotonic(), snapshot.used
