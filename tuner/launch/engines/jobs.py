"""The jobs of a study, recorded with it in the storage, so that any machine can scale and cancel them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tuner.errors import StorageLost, StudyStopped, UsageError
from tuner.launch.engines.choose import make_engine
from tuner.launch.engines.engine import EngineError, Job
from tuner.output.log import say, tell
from tuner.results.rows import progress
from tuner.storage import AnyURL, parse_url
from tuner.storage.read.queries import find_records
from tuner.storage.worker.searches import agree_on_search, prepare_search
from tuner.storage.worker.studies import Budget, put_record, register, store_budget
from tuner.study.ownership import OWNER_VARIABLE, default_owner
from tuner.trial.environment import LAUNCHED_VARIABLE

if TYPE_CHECKING:
    from sqlalchemy import Engine as Database

    from tuner.launch.engines.plan import Plan
    from tuner.storage.optuna.storage import Storage
    from tuner.study import StudySpec

_PREFIX = "tuner:job:"


def all_jobs(database: Database, study_id: int) -> list[Job]:
    """Return all jobs that a study had, oldest first."""
    records = find_records(database, study_id, _PREFIX)
    return sorted(map(Job.from_json, records.values()), key=lambda job: job.launched_at_s)


def open_jobs(database: Database, study_id: int) -> list[Job]:
    """Return the jobs of a study that have workers, oldest first, as far as it is recorded."""
    return [job for job in all_jobs(database, study_id) if job.workers]


def find_job(database: Database, study_id: int, key: str) -> Job | None:
    """Return a job as it is recorded now."""
    found = find_records(database, study_id, _PREFIX + key)
    return next(map(Job.from_json, found.values()), None)


def submit_job(plan: Plan) -> tuple[int, Job]:
    """Create the plan's study unless it exists, submit the job, and record it with the study.

    Returns:
        The id of the study, and the job.

    Raises:
        StudyError: the study differs from the one that the storage has.
        StudyStopped: its target, patience or terminator has ended it.
        EngineError: the engine does not take the job.
    """
    import optuna

    from tuner.storage.optuna.storage import Storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, job = plan.study, plan.job
    storage = Storage(plan.url)
    try:
        prepared = prepare_search(storage.engine, study)  # here, because nodes may have no network
        registered = register(storage, storage.engine, study.name, study.all_directions, study.record())
        study.check_unchanged(registered.record)
        agree_on_search(storage.engine, registered.study_id, study, prepared)
        for note in prepared.notes:
            say(note)
        _reopen(study, registered.study_id, storage)
        store_budget(storage.engine, registered.study_id, _budget_of(study))
        submitted = make_engine(job.engine).submit(job, plan.workers, _environment(job, plan.url))
        _record_submitted(storage.engine, registered.study_id, job, submitted)
    finally:
        storage.close()
    return registered.study_id, submitted


def _budget_of(study: StudySpec) -> Budget:
    hours = (study.wall_hours, study.device_hours)
    return Budget(study.trials, *(None if one is None else 3600 * one for one in hours))


def _reopen(study: StudySpec, study_id: int, storage: Storage) -> None:
    """Let a study that a rule has ended go on, or raise StudyStopped if its present rules end it as well."""
    import optuna

    from tuner.worker.stop_rules import StopRules

    ended = StopRules(study, study_id, optuna.load_study(study_name=study.name, storage=storage)).reopen(storage.engine)
    if ended is not None:
        raise StudyStopped(ended.describe(study.name))


def scale_jobs(database: Database, study_id: int, workers: int, url: AnyURL) -> list[Job]:
    """Change the number of workers of a study's jobs together; the newest job grows or shrinks first.

    Returns:
        The jobs that changed.

    Raises:
        UsageError: the study never had a job, or is stopped or finished.
        EngineError: an engine fails.
    """
    jobs = all_jobs(database, study_id)
    if not jobs:
        raise UsageError(
            "the study has no job on a cluster: submit one with `tuner launch FILE --on ENGINE` (slurm, kubernetes or "
            "ray); on this machine, start another `tuner worker FILE`, or stop a worker with Ctrl-C"
        )
    if workers:
        _check_state(database, jobs[-1].study)
    found = [job for job in jobs if job.workers and not close_if_ended(database, study_id, job)]
    if not found:
        found = [jobs[-1].closed()]
    changed: list[Job] = []
    left = workers - sum(job.workers for job in found)
    for job in reversed(found):
        wanted = max(0, job.workers + left)
        left -= wanted - job.workers
        if wanted != job.workers:
            changed.append(_scale(database, study_id, job, wanted, url))
    return changed


def _check_state(database: Database, study: str) -> None:
    row = progress(database, study, 0)["study"]
    state, more = row["state"], f"launch it with more trials{' or another setting' if row['reason'] else ''}"
    hints = {"stopped": f"run `tuner resume {study}` first", "finished": more}
    if state in hints:
        raise UsageError(f"study {study!r} is {state}, so its workers would exit at once: {hints[state]}")


def _scale(database: Database, study_id: int, job: Job, workers: int, url: AnyURL) -> Job:
    if workers == 0:
        return cancel_job(database, study_id, job).closed()
    scaled = make_engine(job.engine).scale(job, workers, _environment(job, url))
    _record_submitted(database, study_id, job, scaled)
    return scaled


def _record_submitted(database: Database, study_id: int, before: Job, job: Job) -> None:
    """Record a job; if that fails, cancel what it has more than before, because no one could scale or stop it."""
    try:
        _record(database, study_id, job)
    except BaseException:
        known = {part.id for part in before.parts}
        added = tuple(part for part in job.parts if part.id not in known)
        if added:
            make_engine(job.engine).cancel(dataclasses.replace(job, parts=added))
        raise


def close_if_ended(database: Database, study_id: int, job: Job) -> bool:
    """Record that a job has no workers any more, if that is so; return whether it is.

    Raises:
        EngineError: the engine fails.
    """
    is_over = make_engine(job.engine).state(job).is_over
    if is_over:
        close_job(database, study_id, job)
    return is_over


def close_job(database: Database, study_id: int, job: Job) -> None:
    """Record that a job has no workers any more."""
    _record(database, study_id, job.closed())


def cancel_job(database: Database, study_id: int, job: Job) -> Job:
    """Cancel a job with all its parts; return it as it was. The database may be unreachable.

    Raises:
        EngineError: the engine fails.
    """
    with contextlib.suppress(StorageLost):
        job = find_job(database, study_id, job.key) or job  # it may have grown since
    if job.workers:
        with contextlib.suppress(StorageLost):
            close_job(database, study_id, job)  # first, so that a launch that follows it knows why it ends
        try:
            make_engine(job.engine).cancel(job)
        except BaseException:
            with contextlib.suppress(StorageLost):
                _record(database, study_id, job)
            raise
    return job


def cancel_open_jobs(database: Database, study_id: int, otherwise: str) -> None:
    """Cancel the jobs of a study, and print what was cancelled; where that is not possible, print a warning.

    Args:
        database: The storage's engine.
        study_id: The study.
        otherwise: What happens to a job that cannot be cancelled from here.
    """
    for job in open_jobs(database, study_id):
        try:
            if close_if_ended(database, study_id, job):
                say(f"{job.name} has ended")
            else:
                say(f"{cancel_job(database, study_id, job).name} is cancelled")
        except EngineError as error:
            tell(f"cannot cancel {job.name} from here: {error}; {otherwise}", "job", "warning")


def _record(database: Database, study_id: int, job: Job) -> None:
    put_record(database, study_id, _PREFIX + job.key, job.to_json())


def _environment(job: Job, url: AnyURL) -> Mapping[str, str]:
    """Return the environment of the workers; the storage's URL, which has a password, is nowhere else."""
    owner = default_owner()
    return {
        **({} if owner is None else {OWNER_VARIABLE: owner}),
        "TUNER_STORAGE": parse_url(url).text,
        "PYTHONUNBUFFERED": "1",
        LAUNCHED_VARIABLE: str(job.launched_at_s),
    }
