"""Launches a study on an engine, and follows it until it is finished, stopped or failing."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from tuner.errors import StorageLost, StudyFailed, StudyStopped, UsageError
from tuner.launch.engines.choose import make_engine
from tuner.launch.engines.engine import EngineError, Job, JobState
from tuner.launch.engines.job_notices import JobNotices, WorkersEnded, subscribe, watched
from tuner.launch.engines.jobs import cancel_job, close_job, find_job, submit_job
from tuner.launch.engines.plan import Plan, serves_one_host
from tuner.launch.signals import end_on_signals
from tuner.launch.study_launch import Interrupted
from tuner.output.log import tell
from tuner.results.rows import SEARCH_ENDED, progress, progress_line
from tuner.storage import connect_when_up
from tuner.storage.read.queries import find_study, last_errors
from tuner.storage.sql.dialect import now_s
from tuner.trial import Outcome
from tuner.trial.failures import reason_to_stop

if TYPE_CHECKING:
    from sqlalchemy import Engine as Database

    from tuner.results.json_rows import WatchedJson

_EVERY_S = 2.0
_ASK_ENGINE_S = 10.0
_LAST = 5
_ASKED_TO_STOP = {130, 143}
_EXIT_S, _POLL_S = 10.0, 0.5
"""Seconds that workers may take to exit by themselves when the study is finished."""


def launch_on(plan: Plan, show: Callable[[WatchedJson], None] | None) -> Job:
    """Submit a plan's job, and wait until its study is finished.

    Args:
        plan: The plan.
        show: Called with the progress, every other second; None returns after the submission.

    Returns:
        The job.

    Raises:
        UsageError: nothing would be left of the job after the submission.
        EngineError: the engine does not take the job.
        TunerError: as for `follow`.
    """
    engine = make_engine(plan.job.engine)
    is_here = engine.ends_with_launch(plan.job)
    if is_here and show is None:
        raise UsageError(
            f"`detach` needs a cluster: without `options` address=..., {plan.job.engine} runs on this machine and "
            "ends with this command; pass address=auto or address=HOST:PORT"
        )
    if serves_one_host(plan.url) and engine.passes_url(plan.job) and not is_here:
        message = (
            f"only this machine can reach the storage {plan.url}: workers on other hosts need a URL with its host name"
        )
        tell(message, "storage", "warning")
    database = connect_when_up(plan.url)
    try:
        study_id, job = submit_job(plan)
        place = engine.log_place(job)
        count = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
        tell(f"{job.name} of study {job.study!r} with {count}, logs in {place}", "submitted", study=job.study)
        if show is None:
            subscribe(plan.receivers, database, find_study(database, job.study))
        else:
            notify = JobNotices(plan.receivers, plan.url, database, job)
            with notify.until_end():
                follow(database, study_id, job, watched(notify, show))
    finally:
        database.dispose()
    return job


def tell_progress() -> Callable[[WatchedJson], None]:
    """Return a function that prints the progress of a study: one line for each change."""
    last = ""

    def show(state: WatchedJson) -> None:
        nonlocal last
        line = progress_line(state["study"])
        if line != last:
            last = line
            tell(line, "progress", study=state["study"]["study"])

    return show


def follow(database: Database, study_id: int, job: Job, show: Callable[[WatchedJson], None]) -> None:
    """Show the progress of a study until its job is not needed any more; then end what is left of the job.

    A signal of a lost terminal (SIGHUP) ends this process and leaves the job.

    Args:
        database: The storage's engine.
        study_id: The study.
        job: The job.
        show: Called with the progress, every other second.

    Raises:
        Interrupted: SIGINT or SIGTERM: the job is cancelled, after its workers have given back their trials. Or it was
            cancelled elsewhere.
        StudyStopped: a user stopped the study.
        StudyFailed: the study fails, or all workers have ended before the study.
    """
    asked_s, told = time.monotonic(), JobState(0, 0)
    with _interrupted() as stop:
        while not ((state := _progress(database, job.study)) and _is_over(state)):
            if state is not None:
                show(state)
            if stop.is_set():
                tell(f"{cancel_job(database, study_id, job).name} is cancelled", "cancelled")
                raise Interrupted(
                    f"stopped with {_used(state)} trials of {job.study!r} finished; run the same command again to "
                    "finish the rest"
                )
            if time.monotonic() > asked_s + _ASK_ENGINE_S:
                asked_s = time.monotonic()
                found = _ask(database, study_id, job)
                if found is not None and found.is_over and _search_has_ended(database, study_id, job, found.statuses):
                    break
                told = _tell_of_queue(job, found, told)
            stop.wait(_EVERY_S)
        if state is not None:
            show(state)
        is_stopped = state is not None and state["study"]["state"] == "stopped"
        _end(database, study_id, job, has_time=not is_stopped)
        if is_stopped:
            raise StudyStopped(f"study {job.study!r} is stopped: run `tuner resume {job.study}`, then launch it again")


def _ask(database: Database, study_id: int, job: Job) -> JobState | None:
    """Return the state of a job; None if the engine or the database does not answer.

    Raises:
        Interrupted: the job was cancelled elsewhere.
        StudyFailed: the study fails.
    """
    try:
        recorded = find_job(database, study_id, job.key)
        if recorded is None or not recorded.workers:
            state = _progress(database, job.study)
            if state is None or state["study"]["state"] == "stopped":  # whose workers are giving back their trials
                return None
            raise Interrupted(f"{job.name} was cancelled; run the same command again to finish the rest")
        why = _why_it_fails(database, study_id, job)
        if why is not None:
            _end(database, study_id, job, has_time=True)
            raise StudyFailed(why)
        return make_engine(job.engine).state(recorded)
    except (StorageLost, EngineError) as error:  # perhaps for a moment
        tell(f"cannot ask for the state of {job.name}: {error}", "job", "warning")
        return None


def _tell_of_queue(job: Job, found: JobState | None, told: JobState) -> JobState:
    """Print how many workers wait in the queue, if that has changed; return what was printed last."""
    if found is None or (found.pending, found.running) == (told.pending, told.running):
        return told
    if found.pending or told.pending:
        tell(f"{job.name}: {found.running} workers run, {found.pending} wait in the queue", "queue")
    return found


def _search_has_ended(database: Database, study_id: int, job: Job, statuses: Sequence[int]) -> bool:
    """Return whether workers have all ended because nothing is left to do; False if that is not known yet.

    Raises:
        Interrupted: they were asked to stop, or the job is gone.
        StudyFailed: they failed.
    """
    state = _progress(database, job.study)  # the last trials may have ended meanwhile
    if state is None or _is_over(state):
        return state is not None
    with contextlib.suppress(StorageLost):
        close_job(database, study_id, find_job(database, study_id, job.key) or job)
    _check_statuses(job, statuses)
    tell(f"{SEARCH_ENDED} with {_used(state)} trials finished", "finished")
    return True


def _end(database: Database, study_id: int, job: Job, *, has_time: bool) -> None:
    """Cancel what is left of a job: workers that wait in the queue would find nothing to do.

    Args:
        database: The storage's engine.
        study_id: The study.
        job: The job.
        has_time: Whether those that run get a moment to exit by themselves.
    """
    try:
        end_s = time.monotonic() + (_EXIT_S if has_time else 0.0)
        while time.monotonic() < end_s and make_engine(job.engine).state(job).running:
            time.sleep(_POLL_S)
        cancel_job(database, study_id, job)
    except EngineError as error:
        tell(f"cannot cancel what is left of {job.name}: {error}", "job", "warning")


def _progress(database: Database, study: str) -> WatchedJson | None:
    with contextlib.suppress(StorageLost):  # perhaps unreachable for a moment
        return progress(database, study, _LAST)
    return None


def _is_over(state: WatchedJson) -> bool:
    study = state["study"]
    if study["reason"] == SEARCH_ENDED:
        return False  # the other workers, each with a sampler of its own, may be about to claim a trial
    return study["state"] in ("finished", "stopped", "out of hours") and not state["workers"]


def _used(state: WatchedJson | None) -> str:
    if state is None:
        return "some"
    counts = dict[str, Any](state["study"])
    return str(sum(counts[outcome] for outcome in Outcome if outcome.uses_budget))


def _why_it_fails(database: Database, study_id: int, job: Job) -> str | None:
    """Return why the study fails, with the traceback; None if it does not."""
    since_s = now_s(database) - (time.time() - job.launched_at_s)
    errors = last_errors(database, study_id, since_s)
    why = reason_to_stop([kind for kind, _ in errors])
    return why and f"study {job.study!r} stopped: {why}; fix it and launch again\n{errors[0][1].rstrip()}"


def _check_statuses(job: Job, statuses: Sequence[int]) -> None:
    """Check the exit statuses of workers that have all ended although trials are left.

    Raises:
        Interrupted: all were asked to stop, or the engine does not know them any more.
        StudyFailed: none exited with status 0, as they do when a sampler has tried everything.
    """
    again = "run the same command again to finish the rest"
    if not statuses:
        raise Interrupted(f"{job.name} is gone: it was deleted, or ended long ago; {again}")
    if set(statuses) <= _ASKED_TO_STOP:
        raise Interrupted(f"the workers of {job.name} were stopped; {again}")
    if 0 not in statuses or StudyFailed.exit_status in statuses:
        found = ", ".join(map(str, sorted(set(statuses))))
        raise WorkersEnded(
            f"all workers of {job.name} have ended, but study {job.study!r} is not finished (exit statuses: {found}); "
            f"run `tuner logs {job.study}` to see why"
        )


@contextlib.contextmanager
def _interrupted() -> Generator[threading.Event]:
    """Set the event at the first signal while the body runs; a second one ends the process."""
    event = threading.Event()
    undo = end_on_signals((signal.SIGINT, signal.SIGTERM), event.set)
    try:
        yield event
    finally:
        undo()
