"""What is asked of Ray, and what an actor does when its worker has ended; no Ray is started."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tuner.errors import UsageError
from tuner.launch.engines import ray as engine
from tuner.launch.engines.engine import EngineError, Job, Part
from tuner.launch.engines.ray import Ray, address_of, parse_settings
from tuner.launch.engines.ray_driver import Restarts
from tuner.launch.engines.ray_link import ClusterGone


class Asked:
    """Takes the place of a link, and notes what is asked."""

    address = "10.0.0.1:6379"

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.state: dict[str, Any] = {"pending": 0, "running": 0, "ended": []}

    def ask(self, call: str, **arguments: Any) -> Any:
        self.calls.append((call, arguments))
        return self.state if call == "state" else None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked()
    monkeypatch.setattr(engine, "link_to", lambda address: made)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made


def a_job(folder: Path, devices: int = 0, **options: str) -> Job:
    return Job(
        key="k",
        engine="ray",
        study="My Study",
        command=("python", "-m", "tuner"),
        folder=folder,
        logs=folder / "logs",
        devices_per_worker=devices,
        options=options,
        launched_at_s=1.0,
    )


@pytest.mark.parametrize("status", [0, 2, 3])
def test_a_worker_that_has_ended_the_work_is_not_started_again(status: int) -> None:
    assert Restarts().pause_s(status, 1.0) is None


@pytest.mark.parametrize(("status", "pause_s"), [(75, 60.0), (130, 10.0), (143, 10.0)])
def test_a_worker_that_may_go_on_later_is_started_again_for_ever(status: int, pause_s: float) -> None:
    restarts = Restarts()
    assert [restarts.pause_s(status, 1.0) for _ in range(9)] == [pause_s] * 9


def test_a_worker_that_crashes_is_given_up_after_the_fourth_time_in_a_row() -> None:
    restarts = Restarts()
    assert [restarts.pause_s(1, 1.0) for _ in range(4)] == [1.0, 1.0, 1.0, None]
    restarts = Restarts()
    ran = [1.0, 1.0, 1.0, 600.0, 1.0, 1.0, 1.0]
    assert [restarts.pause_s(137, ran_s) for ran_s in ran] == [1.0] * 6 + [None], "it worked for ten minutes between"


def test_settings_become_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert parse_settings({}).bundle(0) == {"CPU": 1.0}
    assert parse_settings({}).address == "local"
    given = {"address": "[::1]:6379", "cpus": "4", "memory": "1.5Gi", "device": "TPU", "resources": "a=1,b=.5"}
    bundle = {"CPU": 4.0, "TPU": 8, "memory": 1610612736, "a": 1.0, "b": 0.5}
    assert parse_settings(given).bundle(8) == bundle


def test_the_address_is_the_option_or_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address_of({}) == "local"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert address_of({}) == "head:6379"
    assert address_of({"address": "auto"}) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UsageError, match=r"RAY_ADDRESS must be auto.*got 'http.*8265'; pass `options` address=auto"):
        address_of({})
    assert address_of({"address": "local"}) == "local"


def test_a_job_is_submitted_grows_and_shrinks(tmp_path: Path, asked: Asked) -> None:
    job = Ray().submit(a_job(tmp_path, devices=2), 2, {"TUNER_STORAGE": "secret"})
    ((call, given),) = asked.calls
    name = job.parts[0].id.removeprefix("10.0.0.1:6379/")
    assert (call, given["names"]) == ("submit", [f"{name}-1", f"{name}-2"])
    assert name.startswith("tuner-my-study-")
    assert given["bundle"] == {"CPU": 1.0, "GPU": 2}
    assert given["environment"] == {"TUNER_STORAGE": "secret"}
    assert given["command"][-3:] == ["python", "-m", "tuner"]
    assert Path(given["command"][3]).is_file(), "the supervisor"

    grown = Ray().scale(job, 3, {})
    assert [part.workers for part in grown.parts] == [2, 1]
    shrunk = Ray().scale(grown, 1, {})

    assert [part.workers for part in shrunk.parts] == [1, 0]
    stopped = [given["names"] for call, given in asked.calls if call == "stop"]
    other = grown.parts[1].id.rpartition("/")[2]
    assert stopped == [[f"{other}-1"], [f"{name}-2"]]
    assert other != name


def test_a_worker_without_devices_sees_none(tmp_path: Path, asked: Asked) -> None:
    Ray().submit(a_job(tmp_path), 1, {"A": "b"})
    assert asked.calls[0][1]["environment"] == {"CUDA_VISIBLE_DEVICES": "", "A": "b"}


def test_what_is_shown_before_a_launch_has_no_secret_and_is_what_is_asked(tmp_path: Path, asked: Asked) -> None:
    job = a_job(tmp_path, address="auto")
    shown = json.loads(Ray().script(job, 2))
    Ray().submit(job, 2, {"TUNER_STORAGE": "secret"})
    assert {"address": "auto", **asked.calls[0][1]} == {**shown, "environment": asked.calls[0][1]["environment"]}


def test_statuses_and_reasons_are_known_when_all_have_ended(
    tmp_path: Path, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Ray().submit(a_job(tmp_path), 2, {})
    asked.state = {"pending": 1, "running": 0, "ended": [{"status": 9, "note": None}]}
    assert Ray().state(job).statuses == ()
    note = "cannot start a worker on n1: No such file or directory: '/data'"
    asked.state = {"pending": 0, "running": 0, "ended": [{"status": 9, "note": None}, {"status": 2, "note": note}]}
    assert sorted(Ray().state(job).statuses) == [2, 9]
    assert note in capsys.readouterr().err


def test_a_cluster_that_has_ended_has_no_workers(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Ray().submit(a_job(tmp_path), 2, {})

    def gone(address: str) -> None:
        raise ClusterGone(f"no Ray runs at {address}")

    monkeypatch.setattr(engine, "link_to", gone)
    assert Ray().state(job).is_over
    Ray().cancel(job)
    with pytest.raises(EngineError, match=r"no Ray runs at 10\.0\.0\.1:6379"):
        Ray().scale(job, 3, {})


def test_logs_are_found_by_the_names_of_workers(tmp_path: Path, asked: Asked) -> None:
    job = Ray().submit(a_job(tmp_path), 11, {})
    name = job.parts[0].id.rpartition("/")[2]
    for stem in (f"{name}-10", f"{name}-2", f"{name}-x", "other-1"):
        (job.logs / f"{stem}.log").write_text("line\n")
    assert [log.name for log in Ray().logs(job, [])] == [f"{name}-2", f"{name}-10"]
    assert [log.name for log in Ray().logs(job, [f"host:{name}-10.a1b2c3.1"])] == [f"{name}-10"]
    closed = Job.from_json(job.closed().to_json())
    assert closed.parts == (Part(job.parts[0].id, 0),)
    assert len(Ray().logs(closed, [])) == 2


def test_a_worker_on_several_hosts_is_refused(tmp_path: Path) -> None:
    job = dataclasses.replace(a_job(tmp_path), hosts_per_worker=2)
    with pytest.raises(UsageError, match=r"`hosts_per_worker` works with `on` slurm only: got 2 with ray"):
        Ray().check(job)
