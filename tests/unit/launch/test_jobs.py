"""The jobs of a study, with an engine that only notes what it is asked to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from sampler_study import Floats, make_study
from sqlalchemy import Engine as Database

import tuner
from tuner.errors import StorageLost, StudyFailed, UsageError
from tuner.launch.engines import follow, jobs
from tuner.launch.engines.engine import EngineError, Job, JobState, Part
from tuner.launch.engines.plan import Plan
from tuner.launch.study_launch import Interrupted
from tuner.results.rows import SEARCH_ENDED, progress
from tuner.storage import connect, parse_url
from tuner.storage.read.queries import find_records, find_study
from tuner.storage.worker.studies import stop

URL = "postgresql://me@db/d"


class Noted:
    """An engine that notes its calls; a test says which workers are left of each job."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []
        self.states: dict[str, JobState] = {}
        self.error: EngineError | None = None

    def check(self, job: Job) -> None: ...

    def script(self, job: Job, workers: int) -> str:
        return ""

    def submit(self, job: Job, workers: int, environment: Mapping[str, str]) -> Job:
        self.calls.append(("submit", job.key, workers))
        return dataclasses.replace(job, parts=(*job.parts, Part(f"{job.key}-{len(job.parts)}", workers)))

    def scale(self, job: Job, workers: int, environment: Mapping[str, str]) -> Job:
        self.calls.append(("scale", job.key, workers))
        return dataclasses.replace(job, parts=(Part(job.key, workers),))

    def state(self, job: Job) -> JobState:
        if self.error is not None:
            raise self.error
        return self.states.get(job.key, JobState(0, job.workers))

    def cancel(self, job: Job) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("cancel", job.key, job.workers))

    def logs(self, job: Job, workers: Sequence[str]) -> list[Path]:
        return []


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Noted:
    made = Noted()
    for module in (jobs, follow):
        monkeypatch.setattr(module, "make_engine", lambda name: made)
    return made


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    storage = tuner.open_storage(sqlite_url)
    optuna.create_study(storage=storage, study_name="tiny")
    storage.close()
    found = connect(sqlite_url)
    yield found
    found.dispose()


@pytest.fixture
def study_id(database: Database) -> int:
    return find_study(database, "tiny").study_id


def job(key: str, workers: int, launched_at_s: float) -> Job:
    return Job(
        key=key,
        engine="slurm",
        study="tiny",
        command=("worker",),
        folder=Path("/f"),
        logs=Path("/l"),
        devices_per_worker=0,
        options={},
        launched_at_s=launched_at_s,
        parts=(Part(key, workers),),
    )


@pytest.fixture
def two(database: Database, study_id: int) -> list[Job]:
    made = [job("new", 8, 2e9), job("old", 8, 1e9)]
    for one in made:
        jobs._record(database, study_id, one)
    return made


def workers_of(database: Database, study_id: int) -> dict[str, int]:
    return {one.key: one.workers for one in jobs.all_jobs(database, study_id)}


@pytest.mark.parametrize(
    ("workers", "calls"),
    [
        (20, [("scale", "new", 12)]),
        (12, [("scale", "new", 4)]),
        (3, [("cancel", "new", 8), ("scale", "old", 3)]),
        (16, []),
    ],
)
def test_the_newest_job_changes_first(
    engine: Noted, database: Database, study_id: int, two: list[Job], workers: int, calls: list[Any]
) -> None:
    changed = jobs.scale_jobs(database, study_id, workers, URL)

    assert engine.calls == calls
    assert sum(workers_of(database, study_id).values()) == workers
    assert [one.key for one in changed] == [key for _, key, _ in calls]


def test_workers_of_a_job_that_is_over_do_not_count(
    engine: Noted, database: Database, study_id: int, two: list[Job]
) -> None:
    engine.states["old"] = JobState(0, 0)
    jobs.scale_jobs(database, study_id, 4, URL)
    assert engine.calls == [("scale", "new", 4)]
    assert workers_of(database, study_id) == {"old": 0, "new": 4}


def test_a_job_without_workers_grows_again(engine: Noted, database: Database, study_id: int, two: list[Job]) -> None:
    engine.states = {"old": JobState(0, 0), "new": JobState(0, 0)}
    jobs.scale_jobs(database, study_id, 2, URL)
    assert engine.calls == [("scale", "new", 2)]


@pytest.mark.slow
def test_a_study_without_jobs_cannot_be_scaled(engine: Noted, database: Database, study_id: int) -> None:
    with pytest.raises(UsageError, match="the study has no job on a cluster"):
        jobs.scale_jobs(database, study_id, 2, URL)


def test_a_job_is_cancelled_as_it_is_recorded_now(
    engine: Noted, database: Database, study_id: int, two: list[Job]
) -> None:
    new, _ = two
    jobs._record(database, study_id, job("new", 11, 2e9))
    jobs.cancel_job(database, study_id, new)
    assert engine.calls == [("cancel", "new", 11)]
    assert [one.key for one in jobs.open_jobs(database, study_id)] == ["old"]
    jobs.cancel_job(database, study_id, new)
    assert len(engine.calls) == 1, "it has no workers any more"


def test_a_job_is_cancelled_without_the_database(
    engine: Noted, database: Database, study_id: int, two: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise StorageLost("away")

    for name in ("find_records", "put_record"):
        monkeypatch.setattr(jobs, name, lost)
    jobs.cancel_job(database, study_id, two[0])
    assert engine.calls == [("cancel", "new", 8)]


# --- What follows a job


def ended(database: Database, study_id: int, one: Job) -> bool:
    """Ask once whether a job has ended, as `follow` does."""
    found = follow._ask(database, study_id, one)
    return found is not None and found.is_over and follow._search_has_ended(database, study_id, one, found.statuses)


def test_a_job_goes_on_while_workers_wait_or_run(
    engine: Noted, database: Database, study_id: int, two: list[Job]
) -> None:
    assert not ended(database, study_id, two[0])
    engine.states["new"] = JobState(3, 0)
    assert not ended(database, study_id, two[0])


@pytest.mark.parametrize("error", [EngineError("squeue did not answer"), StorageLost("away")])
def test_an_engine_or_a_database_that_is_away_for_a_moment_ends_nothing(
    engine: Noted, database: Database, study_id: int, two: list[Job], error: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.error = error
    assert not ended(database, study_id, two[0])
    assert str(error) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statuses", "raised", "message"),
    [
        ((0, 0), None, ""),
        ((130, 143), Interrupted, "the workers of slurm job new were stopped; run the same command again"),
        ((0, 130, 143, 9), None, ""),
        ((0, 3), StudyFailed, r"is not finished \(exit statuses: 0, 3\); run `tuner logs tiny` to see why"),
        ((9, 130), StudyFailed, r"\(exit statuses: 9, 130\)"),
        ((), Interrupted, "slurm job new is gone: it was deleted, or ended long ago; run the same command again"),
    ],
)
def test_workers_that_have_all_ended(
    engine: Noted, database: Database, study_id: int, two: list[Job], statuses: Any, raised: Any, message: str
) -> None:
    engine.states["new"] = JobState(0, 0, statuses)
    if raised is None:
        assert ended(database, study_id, two[0])
    else:
        with pytest.raises(raised, match=message):
            ended(database, study_id, two[0])
    assert workers_of(database, study_id) == {"old": 8, "new": 0}, "it is closed"


def test_a_job_that_was_cancelled_elsewhere(engine: Noted, database: Database, study_id: int, two: list[Job]) -> None:
    jobs.close_job(database, study_id, two[0])
    with pytest.raises(Interrupted, match="slurm job new was cancelled; run the same command again"):
        ended(database, study_id, two[0])


def test_a_job_that_ends_because_the_study_is_stopped_is_waited_for(
    engine: Noted, database: Database, study_id: int, two: list[Job]
) -> None:
    stop(database, study_id)
    jobs.close_job(database, study_id, two[0])
    assert not ended(database, study_id, two[0]), "its workers are giving back their trials"


def test_a_stopped_study_is_not_scaled_but_to_nothing(
    engine: Noted, database: Database, study_id: int, two: list[Job]
) -> None:
    stop(database, study_id)
    with pytest.raises(UsageError, match="study 'tiny' is stopped, so its workers would exit at once: run `tuner res"):
        jobs.scale_jobs(database, study_id, 2, URL)
    assert engine.calls == []
    assert jobs.scale_jobs(database, study_id, 0, URL)


def test_what_cannot_be_recorded_is_cancelled(
    engine: Noted, database: Database, study_id: int, two: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise StorageLost("away")

    monkeypatch.setattr(engine, "scale", lambda job, workers, environment: engine.submit(job, workers - 8, {}))
    monkeypatch.setattr(jobs, "put_record", lost)
    with pytest.raises(StorageLost):
        jobs.scale_jobs(database, study_id, 20, URL)
    assert engine.calls == [("submit", "new", 4), ("cancel", "new", 4)], "not the eight that it had"


def test_a_job_that_cannot_be_cancelled_stays_open(
    engine: Noted, database: Database, study_id: int, two: list[Job]
) -> None:
    engine.error = EngineError("no command")
    with pytest.raises(EngineError):
        jobs.cancel_job(database, study_id, two[0])
    assert workers_of(database, study_id) == {"old": 8, "new": 8}


def test_a_launch_sees_a_job_closed_before_its_workers_are_gone(
    engine: Noted, database: Database, study_id: int, two: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(engine, "cancel", lambda job: seen.append(workers_of(database, study_id)["new"]))
    jobs.cancel_job(database, study_id, two[0])
    assert seen == [0]


def test_the_queue_is_told_when_it_changes(two: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    told = JobState(0, 0)
    for found in (JobState(8, 0), JobState(8, 0), None, JobState(2, 6), JobState(0, 8), JobState(0, 7)):
        told = follow._tell_of_queue(two[0], found, told)
    assert [line.partition("new: ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "0 workers run, 8 wait in the queue",
        "6 workers run, 2 wait in the queue",
        "8 workers run, 0 wait in the queue",
    ]


def test_the_machine_that_launches_stores_what_the_sampler_needs(
    engine: Noted, sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nodes may have no network, so the module is stored before a job is submitted."""
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "__init__.py").write_text("from optuna.samplers import RandomSampler\n\nclass Own(RandomSampler): ...\n")
    study = make_study(space=Floats, sampler={"name": "hub", "path": str(folder)})
    plan = Plan(study, parse_url(sqlite_url), dataclasses.replace(job("new", 1, 1e9), study=study.name), 1)
    study_id, _ = jobs.submit_job(plan)
    assert engine.calls == [("submit", "new", 1)]
    assert f"the sampler module {folder} is stored with the study" in capsys.readouterr().err
    found = connect(sqlite_url)
    (record,) = find_records(found, study_id, "tuner:hub:").values()
    found.dispose()
    assert list(record["files"]) == ["__init__.py"]


def test_a_study_that_had_finished_is_not_finished_once_a_job_with_more_trials_is_submitted(
    engine: Noted, sqlite_url: str
) -> None:
    """Otherwise the launch would cancel its own job before the first worker starts."""
    study = make_study(space=Floats, trials=2)
    url = parse_url(sqlite_url)

    def state_after(trials: int) -> str | None:
        changed = study.changed(trials=trials)
        jobs.submit_job(Plan(changed, url, dataclasses.replace(job(f"of {trials}", 1, 1e9), study=study.name), 1))
        found = connect(sqlite_url)
        state = progress(found, study.name, 1)["study"]["state"]
        found.dispose()
        return state

    assert state_after(2) == "idle"
    storage = tuner.open_storage(url)
    optuna.load_study(study_name=study.name, storage=storage).optimize(lambda trial: trial.suggest_float("x", 0, 1), 2)
    storage.close()
    assert state_after(2) == "finished"
    assert state_after(5) == "idle"


@pytest.mark.parametrize(
    ("state", "reason", "workers", "is_over"),
    [
        ("finished", None, [], True),
        ("finished", None, [{}], False),
        ("finished", "trial 3 reached the target 0.5 with loss 0.4", [], True),
        ("finished", SEARCH_ENDED, [], False),  # another worker may be between two trials
        ("running", None, [{}], False),
    ],
)
def test_a_study_whose_job_is_not_needed_any_more(
    state: str, reason: str | None, workers: list[Any], is_over: bool
) -> None:
    shown: Any = {"study": {"state": state, "reason": reason}, "workers": workers}
    assert follow._is_over(shown) == is_over
