"""The worker's loop: claims and runs one trial after another until the budget is used up."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import LeaseLost, RankLost, StorageLost, StudyError, StudyFailed, StudyStopped, TunerError
from tuner.output.captured import CapturedOutput
from tuner.output.log import set_about
from tuner.output.sanitize import hide_password
from tuner.results.stopping import recorded_end
from tuner.storage import AnyURL, storage_url, warn_of_password
from tuner.storage.artifacts import artifacts_of
from tuner.storage.read.queries import last_errors
from tuner.storage.sql.background_calls import Background
from tuner.storage.sql.retry import IMPATIENT, Patience, patient
from tuner.storage.sql.wait_time import database_s
from tuner.storage.worker import claims, leases
from tuner.storage.worker.checkpoints import checkpoints_below, move_checkpoint
from tuner.storage.worker.claims import NoTrial
from tuner.storage.worker.fences import Lease
from tuner.storage.worker.studies import forget_search_end, join, leave, note_search_ended
from tuner.study import StudyData, StudySpec
from tuner.study.source import code_digest
from tuner.trial import Event, Stop
from tuner.trial import optuna_private as private
from tuner.trial.environment import DEVICES_VARIABLE, LAUNCHED_VARIABLE, worker_name
from tuner.trial.events import (
    CohortChosen,
    GpusUnwatched,
    HoursUsed,
    HparamsUnused,
    SamplerFailed,
    SearchFinished,
    StudyEnded,
    StudyLoaded,
    TrialDeadly,
    TrialLost,
    TrialReleased,
    WorkerDone,
    WorkerIdle,
)
from tuner.trial.failures import describe, last_line, reason_to_stop
from tuner.worker.attempts.attempt import Attempt, Ended
from tuner.worker.attempts.tell_sampler import tell_of_end_elsewhere
from tuner.worker.compile_ahead import count_static
from tuner.worker.context import Place, ProgramModes, WorkerContext
from tuner.worker.files.trial_files import check_writable
from tuner.worker.fixed_names import FixedNames
from tuner.worker.follow import STUDY_FILE, check_group
from tuner.worker.gpu_use import GpuWatch
from tuner.worker.group import Leader
from tuner.worker.opening import open_study
from tuner.worker.runtime import make_runtime
from tuner.worker.stop_rules import StopRules
from tuner.worker.time_use import TimeUse

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tuner.worker.cohorts.cohort import Cohort


PATIENCE_S = 600.0
"""Seconds that a worker waits for a database that is down; it continues training its trial."""
_STATEMENT_S = 20.0
_POLL_S = 0.5


def run_worker(
    study: StudySpec,
    storage: AnyURL | None = None,
    *,
    artifacts: str | None = None,
    file: str | None = None,
    function: str | None = None,
    name: str | None = None,
    say: Callable[[Event], None] = lambda event: None,
    stop: Stop | None = None,
    group: Leader | None = None,
) -> None:
    """Run trials of a study until its budget is used up.

    Args:
        study: The study.
        storage: Its storage's URL; `$TUNER_STORAGE`, else `sqlite:///tuner.db`, if None.
        artifacts: The folder for checkpoints, or the URL of object storage such as `s3://bucket/prefix`;
            `$TUNER_ARTIFACTS`, else `tuner-artifacts`, if None. Workers on several machines that share one can go on
            with each other's trials.
        file: The study's file, which checkpoints refer to.
        function: The name of a function in the file, if the file has no `Study`.
        name: The worker's name.
        say: Called with each event, see `tuner.trial.events`.
        stop: Set by another thread to end early.
        group: The other processes of a worker that spans hosts; see `tuner.worker.follow.run_follower`.

    Raises:
        UsageError: the study cannot run as it is written; nothing has been stored.
        StudyStopped: a user stopped the study (`tuner stop`).
        StudyFailed: the same error ended three trials in a row; the message has its traceback.
        StorageLost: the database cannot be reached, or is down for `PATIENCE_S` seconds.

    Concurrency: any number of workers, on any number of machines.
    """
    from tuner.storage.optuna.storage import Storage
    from tuner.worker.dry_run import check_study

    if study.kind == "ask":
        raise StudyError(f"study {study.name!r} has nothing to run: set trainer= or train=, or use ask() and tell()")
    check_group(study, group)
    url, files = storage_url(storage), artifacts_of(artifacts)
    if LAUNCHED_VARIABLE not in os.environ:  # a launcher has checked them
        check_writable(files)
    devices = os.environ.get(DEVICES_VARIABLE, "")
    runtime = make_runtime(devices, needs_jax=study.trainer is not None, artifacts=files, spans_hosts=group is not None)
    data = None if study.data is None else StudyData(study.data, study.seed)
    check_study(study, data)
    if group is not None:
        group.check_same(STUDY_FILE, None if file is None else code_digest(Path(file)))
    about = {"study": study.name, "file": None if file is None else os.path.abspath(file)}
    time_use = TimeUse({"compiling": lambda: runtime.clock.total_s, "database": database_s})
    gpus = GpuWatch(os.environ, is_wanted=runtime.trains_on_gpus())
    place = Place(files, about, function, devices, runtime, time_use, gpus, () if group is None else group.hosts)
    stop = stop or Stop()
    stop.is_heeded = True
    patience = Patience(PATIENCE_S, lambda: stop.requested, statement_s=_STATEMENT_S)
    # A launcher has checked the storage before it started this worker; a user may have mistyped the URL.
    optuna_storage = Storage(url, patience if LAUNCHED_VARIABLE in os.environ else IMPATIENT)
    optuna_storage.engine = patient(optuna_storage.engine, patience)
    warn_of_password()
    # Elsewhere, as in a notebook, the output is not only that of trials; a command has pipes of its own.
    is_captured = stop.owns_process and study.kind != "command"
    with contextlib.ExitStack() as stack:
        stack.callback(optuna_storage.close)
        output = CapturedOutput(by_thread=study.cohort != 1) if is_captured else None
        if output is not None:
            stack.callback(output.close)
        given: dict[str, Any] = {"group": group, "output": output}
        context = open_study(study, data, optuna_storage, name or worker_name(), say, stop, place, **given)
        Worker(context, group).run()


class Worker:
    """The loop of a worker: claim, train, tell.

    Args:
        context: The context of its trials.
        group: The other processes of a worker that spans hosts.
    """

    def __init__(self, context: WorkerContext, group: Leader | None = None) -> None:
        self.context, self.group, self.study = context, group, context.study
        self.storage, self.engine, self.claimant = context.storage, context.engine, context.claimant
        self.say = self.context.say
        context.place.gpus.tell = self._tell_of_gpus
        self.rules = StopRules(self.study, self.claimant.study_id, self.context.optuna_study)
        self.grid_limits = getattr(self.context.optuna_study.sampler, "limits", None)
        self.numbers: set[int] = set()  # of the trials that run
        self.no_trial: NoTrial | None = None  # the answer to the latest claim of a cohort
        self.next_claim_s = 0.0
        self.is_settled = False  # whether no trial of the cohort ran at that claim
        self.cohort: Cohort | None = None
        self.has_claimed = False  # so that the search goes on, if a sampler had ended it
        self.is_finished = False  # whether the sampler has ended the search
        self.fixed_names = FixedNames(self.study)
        self.sampler_errors: list[str] = []  # their kinds, newest first, since the last trial without an error

    def run(self) -> None:
        """Claim and run trials until the budget is used up or a stop is requested."""
        self.join()
        try:
            self._work()
        except StorageLost:
            if not self.context.stop.requested:  # otherwise it stopped waiting, because it must exit
                raise
        finally:
            self.leave()
        self.say(WorkerDone())

    def join(self) -> None:
        """Register the worker with the study."""
        study = self.study
        join(self.engine, self.claimant, self.context.place.describe())
        self.rules.reopen(self.engine)
        self.context.stop.give_back = self._give_back_now
        if self.group is not None:
            self.group.on_loss = self._bury_now
        if self.context.artifacts.store is not None:
            folder = self.context.artifacts.folder
            self.context.files.resume(checkpoints_below(self.engine, self.claimant.study_id, folder))
        combinations = count_static(study) if self.group is None else 0
        self.say(StudyLoaded(study.name, study.trials, ", ".join(study.objectives), combinations))

    def leave(self) -> None:
        """Store that the worker has exited."""
        if isinstance(self.context.background, Background):
            self.context.background.close()
        self.context.renewals.close()
        if self.context.population is not None:
            self.context.population.close()
        self.context.files.close()
        if not self.context.final_writes.is_over():
            with contextlib.suppress(StorageLost):
                self._store_arrived(self.context.final_writes.engine())
                leave(self.context.final_writes.engine(), self.claimant.worker)

    def _work(self) -> None:
        if self.study.cohort != 1:
            cohort = self._make_cohort()
            if cohort is not None and self._work_together(cohort):
                return
        is_idle = False
        while not self.context.stop.requested:
            lease = self.claim()
            if lease is NoTrial.WAIT:
                if not is_idle:
                    self.say(WorkerIdle())
                is_idle = True
                with self.context.time_use.doing("waiting"):
                    time.sleep(_POLL_S)
                self.context.say_seconds()
                continue
            if isinstance(lease, NoTrial):
                self.end(lease)
                break
            is_idle = False
            self.context.final_writes.forget()
            self.numbers = {lease.number}
            set_about(trial=lease.number)
            try:
                ended = Attempt(self.context, lease).run()
            except LeaseLost as error:
                self._note_lost(lease, error)
            else:
                if ended is not None:
                    self._note_ended(lease.number, ended)
            finally:
                self.numbers = set()
                set_about(trial=None)
            self._store_arrived(self.engine)
            if self.group is not None and self.group.is_broken:
                raise RankLost("a rank did not leave a training that had ended: the group ends")
            self.context.place.runtime.tidy()
            if private.has_stopped(self.context.optuna_study):
                self._note_search_ended()
                break

    def _make_cohort(self) -> Cohort | None:
        """Return what trains several trials at once; None if this worker cannot."""
        if self.group is not None or self.context.place.runtime.layout.size > 1:
            why = "trials of a worker with several devices train one by one: cohorts need one device"
            self.say(CohortChosen(1, why))
            return None
        from tuner.worker.cohorts.cohort import Cohort

        choose: Any = ProgramModes(self.engine, self.claimant.study_id).choose
        return Cohort(self.context, self.study.cohort, choose, self._claim_several, self._note_end)

    def _work_together(self, cohort: Cohort) -> bool:
        """Run several trials at once; return False if the worker must go on with one at a time."""
        from tuner.worker.cohorts.cohort import CannotShare, ProgramFailed

        stop, is_idle, self.cohort = self.context.stop, False, cohort
        while not (cohort.is_empty and (stop.requested or self.is_finished)):
            try:
                with self.context.time_use.doing("training"):
                    cohort.run()
            except CannotShare as error:
                self.say(CohortChosen(1, str(error)))
                return False
            except ProgramFailed as error:
                if not error.is_out_of_memory or not cohort.halve():
                    self.say(
                        CohortChosen(1, f"the program of several trials failed, so they train one by one: {error}")
                    )
                    return False
            self.context.say_seconds()
            if not cohort.is_empty or stop.requested or self.is_finished:
                is_idle = False
            elif self.no_trial is NoTrial.WAIT:
                if not is_idle:
                    self.say(WorkerIdle())
                is_idle = True
                with self.context.time_use.doing("waiting"):
                    time.sleep(_POLL_S)
            elif self.no_trial is not None and self.is_settled:
                self.end(self.no_trial)
                return True
            else:
                self.next_claim_s = 0.0  # trials have ended since
            self.context.final_writes.forget()
        if self.is_finished:
            self._note_search_ended()
        return True

    def _claim_several(self, most: int) -> list[Lease]:
        """Claim trials for a cohort; after a claim without a trial, not again for a while."""
        if self.is_finished or (self.no_trial is not None and time.monotonic() < self.next_claim_s):
            return []
        assert self.cohort is not None
        self.is_settled = self.cohort.is_empty
        try:
            # Trials that train do not wait for a database that is down.
            claimed = self._claim(most, self.engine if self.is_settled else self.context.prompt_engine)
        except StorageLost:
            if self.is_settled:
                raise
            claimed = NoTrial.WAIT
        self.no_trial = claimed if isinstance(claimed, NoTrial) else None
        self.next_claim_s = time.monotonic() + _POLL_S
        if isinstance(claimed, NoTrial):
            return []
        self.claimant.held |= {lease.trial_id for lease in claimed}
        self.numbers |= {lease.number for lease in claimed}
        return claimed

    def _note_end(self, lease: Lease, ended: Ended | None, error: BaseException | None) -> None:
        """Note that a trial of a cohort has ended or was given back.

        Raises:
            BaseException: an error of the worker.
        """
        self.numbers.discard(lease.number)
        if isinstance(error, LeaseLost):
            self._note_lost(lease, error)
        elif error is not None:
            raise error
        elif ended is not None:
            self._note_ended(lease.number, ended)
        self._store_arrived(self.engine)
        self.is_finished = self.is_finished or (self.cohort is not None and self.cohort.has_stopped)
        if error is None:
            self.context.final_writes.forget()  # the other trials have as long for theirs

    def _note_lost(self, lease: Lease, error: LeaseLost) -> None:
        self.say(TrialLost(lease.number, str(error)))
        with contextlib.suppress(StorageLost):
            leases.withdraw_death(self.context.final_writes.engine(), lease)
        self.context.final_writes.forget()

    def claim(self) -> Lease | NoTrial:
        """Claim the next trial; return the reason if there is none."""
        claimed = self._claim(1, self.engine)
        return claimed if isinstance(claimed, NoTrial) else claimed[0]

    def _claim(self, most: int, engine: Engine) -> list[Lease] | NoTrial:
        self._limit_to_grid()
        self.rules.apply(engine)
        claimed = claims.claim_several(engine, self.claimant, most)
        if not self.has_claimed and not isinstance(claimed, NoTrial):
            with contextlib.suppress(StorageLost):
                forget_search_end(self.context.prompt_engine, self.claimant.study_id)
                self.has_claimed = True
        for lease in self.claimant.deadly:
            why = f"trial {lease.number} failed: its workers died without it getting further"
            self.say(TrialDeadly(lease.number, why))
            tell_of_end_elsewhere(self.context, lease)
        return claimed

    def _give_back_now(self) -> None:
        """Give back the trial from another thread, because its own does not return and the process must exit."""
        with contextlib.suppress(TunerError):
            claims.release_all(self.context.final_writes.engine(), self.claimant.worker, died=False)
        for number in sorted(self.numbers):
            self.context.say_aside(TrialReleased(number))

    def _bury_now(self) -> None:
        """Give back the trial from another thread, because a process of the group has died in it."""
        with contextlib.suppress(TunerError):
            claims.release_all(self.context.final_writes.engine(), self.claimant.worker, died=True)
        for number in sorted(self.numbers):
            self.context.say_aside(TrialReleased(number))

    def _store_arrived(self, engine: Engine) -> None:
        """Store where checkpoints are that were uploaded after the end of their trial."""
        for late in self.context.files.take_arrived():
            move_checkpoint(engine, late.trial_id, late.path, late.url)

    def _limit_to_grid(self) -> None:
        """Limit the number of trials to those needed to try every point of a grid."""
        if self.grid_limits is None:
            return
        limits = self.grid_limits(self.storage.get_all_trials(self.claimant.study_id, deepcopy=False))
        self.claimant.trials = min(self.claimant.asked, limits.trials)
        self.claimant.new_trials = min(self.claimant.asked, limits.new)

    def end(self, reason: NoTrial) -> None:
        """Raise StudyStopped unless the worker exits because everything is done."""
        name = self.study.name
        if reason is NoTrial.HOURS:
            self.say(HoursUsed())
        if reason is NoTrial.DONE and self.context.population is not None:
            self.context.population.remove()
        if reason is NoTrial.DONE and self.claimant.trials < self.claimant.asked:
            self._note_search_ended()
        ended = recorded_end(self.engine, self.claimant.study_id) if reason is NoTrial.STOPPED else None
        if ended is not None:
            self.say(StudyEnded(ended.rule, ended.describe(name)))
            return
        if reason is NoTrial.STOPPED:
            raise StudyStopped(f"study {name!r} is stopped: run `tuner resume {name}`, then launch it again")
        if reason is NoTrial.FAILING:
            assert self.claimant.failures_since_s is not None
            errors = last_errors(self.engine, self.claimant.study_id, self.claimant.failures_since_s)
            why = reason_to_stop([kind for kind, _ in errors])
            trace = f"\n{errors[0][1].rstrip()}" if errors else ""
            raise StudyFailed(f"study {name!r} stopped: {why}; fix it and launch again{trace}")

    def _note_search_ended(self) -> None:
        self.say(SearchFinished())
        with contextlib.suppress(StorageLost):
            note_search_ended(self.context.prompt_engine, self.claimant.study_id)

    def _tell_of_gpus(self, message: str) -> None:
        self.context.say_aside(GpusUnwatched(message))

    def _note_ended(self, number: int, ended: Ended) -> None:
        for line in self.fixed_names.check(lambda: self.storage.get_all_trials(self.claimant.study_id, deepcopy=False)):
            self.say(HparamsUnused(number, line))
        self._note_sampler_error(number, ended)

    def _note_sampler_error(self, number: int, ended: Ended) -> None:
        """Warn if the sampler raised an error after a trial, which is already stored.

        Raises:
            StudyFailed: it raised an error after each of the latest trials.
        """
        error = ended.sampler_error
        if error is None:
            self.sampler_errors = []
            return
        if not isinstance(error, Exception):
            raise error
        described = describe(error)
        trace = hide_password(described["error"]).rstrip()
        message = f"the sampler failed after trial {number}, which is stored as {ended.outcome}: {last_line(trace)}"
        self.say(SamplerFailed(number, message))
        self.sampler_errors.insert(0, described["error_kind"])
        if reason_to_stop(self.sampler_errors) is not None:
            raise StudyFailed(
                f"study {self.study.name!r} stopped: the sampler failed after {len(self.sampler_errors)} trials in a "
                f"row, which are stored; fix the sampler and launch again\n{trace}"
            )
