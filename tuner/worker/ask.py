"""Trials for a loop that lives elsewhere: `ask` for one, train it, `tell` its result."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from tuner.errors import LeaseLost, StudyError, TrialPruned, TunerError
from tuner.storage import AnyURL, storage_url
from tuner.storage.artifacts import artifacts_of
from tuner.storage.optuna.storage import Storage
from tuner.storage.sql.retry import Patience, patient
from tuner.storage.sql.wait_time import database_s
from tuner.storage.worker import leases
from tuner.storage.worker.claims import NoTrial
from tuner.study import StudySpec
from tuner.study.space import Space
from tuner.study.trial import Saves, Trial, TrialRun
from tuner.trial import Event, Stop, print_event
from tuner.trial.environment import DEVICES_VARIABLE, process_name
from tuner.trial.events import StudyEnded
from tuner.worker.attempts.attempt import Attempt
from tuner.worker.context import Place
from tuner.worker.files.trial_files import check_writable
from tuner.worker.gpu_use import GpuWatch
from tuner.worker.loop import PATIENCE_S, Worker
from tuner.worker.opening import open_study
from tuner.worker.runtime import make_runtime
from tuner.worker.time_use import TimeUse
from tuner.worker.trainables.saves import TrialSaves
from tuner.worker.trainables.train_function import FunctionTrainable
from tuner.worker.trainables.trainable import End, Run

_POLL_S = 0.5


class AskedTrial(Trial):
    """A trial that `Study.ask` returned; see `tuner.Trial`.

    Attributes:
        hparams: Its hyperparameters, an instance of the study's space.
    """

    def __init__(self, run: TrialRun, saves: Saves, hparams: Space) -> None:
        super().__init__(run, saves)
        self.hparams = hparams
        self.told: queue.Queue[_Told] = queue.Queue()


class _Told:
    """What was told about a trial.

    Args:
        value: Its value or metrics; None if it failed.
        error: The error with which it failed.
        is_release: Whether to give the trial back instead.
    """

    def __init__(self, value: object, error: BaseException | None, *, is_release: bool = False) -> None:
        self.value, self.error, self.is_release = value, error, is_release


class _HandOver(FunctionTrainable):
    """Hands each trial over to the caller of `ask`, and waits for `tell`."""

    def __init__(self, study: StudySpec, about: dict[str, Any]) -> None:
        super().__init__(study, about)
        self.asked: queue.Queue[AskedTrial] = queue.Queue()

    def train(self, run: Run, trial: Any) -> Any:
        self.asked.put(trial)
        told: _Told = trial.told.get()
        if told.is_release:
            raise _Released
        if told.error is not None:
            raise told.error
        if trial.is_told_to_end:
            raise TrialPruned
        return told.value

    def make_handle(self, run: Run, saved: TrialSaves, hparams: Any) -> Trial:
        return AskedTrial(run, saved, hparams)

    def run(self, run: Run, saved: TrialSaves) -> End:
        try:
            return super().run(run, saved)
        except _Released:
            return End.STOPPED


class _Released(Exception):
    """The trial is given back."""


def _say(event: Event) -> None:
    """Print only why the study has ended, because its caller knows the rest."""
    if isinstance(event, StudyEnded):
        print_event(event)


class Asking:
    """A worker whose trials are trained by its caller.

    Args:
        study: The study.
        storage: Its storage's URL; `$TUNER_STORAGE`, else `sqlite:///tuner.db`, if None.

    Raises:
        UsageError: the study cannot be used as it is written.
        StorageLost: the database cannot be reached.

    Concurrency: any number of processes may ask for trials of a study; one thread in each.
    """

    def __init__(self, study: StudySpec, storage: AnyURL | None) -> None:
        devices = os.environ.get(DEVICES_VARIABLE, "")
        files = artifacts_of(None)
        check_writable(files)
        runtime = make_runtime(devices, needs_jax=False, artifacts=files)
        about = {"study": study.name, "file": None}
        time_use = TimeUse({"compiling": lambda: runtime.clock.total_s, "database": database_s})
        gpus = GpuWatch(os.environ, is_wanted=runtime.trains_on_gpus())
        place = Place(files, about, None, devices, runtime, time_use, gpus)
        stop = Stop(is_heeded=True)
        self._storage = Storage(storage_url(storage))
        self._storage.engine = patient(self._storage.engine, Patience(PATIENCE_S, lambda: stop.requested))
        self._trainable = _HandOver(study, about)
        name, trainable = process_name(), self._trainable
        self._worker = Worker(open_study(study, None, self._storage, name, _say, stop, place, trainable))
        self._worker.join()
        self._open: dict[int, _Open] = {}
        self.close = weakref.finalize(self, _close, self._worker, self._storage, self._open)

    def ask(self) -> AskedTrial | None:
        """Return the next trial; None if the budget is used up, or the caller has the rest of it."""
        while True:
            lease = self._worker.claim()
            if not isinstance(lease, NoTrial):
                break
            if lease is not NoTrial.WAIT:
                self._worker.end(lease)
                return None
            if self._open:
                return None
            time.sleep(_POLL_S)
        attempt, ended = Attempt(self._worker.context, lease), threading.Event()
        failure: list[BaseException] = []

        def run() -> None:
            try:
                attempt.run()
            except LeaseLost as error:
                leases.withdraw_death(self._worker.engine, lease)
                failure.append(error)
            except BaseException as error:
                failure.append(error)
            finally:
                ended.set()

        threading.Thread(target=run, name=f"trial-{lease.number}", daemon=True).start()
        while True:
            try:
                trial = self._trainable.asked.get(timeout=0.05)
                break
            except queue.Empty:
                if ended.is_set():
                    raise failure[0] if failure else StudyError(f"trial {lease.number} could not start") from None
        self._open[trial.number] = _Open(trial, ended, failure)
        return trial

    def tell(self, trial: AskedTrial, value: object = None, *, error: BaseException | None = None) -> None:
        """End a trial.

        Raises:
            StudyError: the trial is not one of those that were asked for, or was told before; the value is wrong.
            LeaseLost: another worker has the trial.
        """
        given = self._open.pop(trial.number, None)
        if given is None or given.trial is not trial:
            raise StudyError(f"trial {trial.number} was not asked for here, or has been told already")
        given.end(_Told(value, error))


class _Open:
    """A trial that was asked for and not told yet.

    Args:
        trial: The trial.
        ended: Set when its end is stored.
        failure: The error that prevented that, if any.
    """

    def __init__(self, trial: AskedTrial, ended: threading.Event, failure: list[BaseException]) -> None:
        self.trial, self._ended, self._failure = trial, ended, failure

    def end(self, told: _Told) -> None:
        """End the trial, and wait until its end is stored."""
        self.trial.told.put(told)
        self._ended.wait()
        if self._failure:
            raise self._failure[0]


def _close(worker: Worker, storage: Storage, still_open: Mapping[int, _Open]) -> None:
    """Give back the trials that were not told, and leave the study."""
    for one in list(still_open.values()):
        with contextlib.suppress(TunerError):
            one.end(_Told(None, None, is_release=True))
    worker.leave()
    storage.close()
