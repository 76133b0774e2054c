"""Workers in pods of a Kubernetes that is a server on loopback: its pods are processes, which it evicts and ends."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from after_faults import are_at_work, attempts_of, check_study_after_faults, endings_of
from kubernetes_api import JOBS, SECRETS, KubernetesAPI, serving

Wait = Callable[..., Any]
EPOCHS = 10

pytestmark = pytest.mark.slow


@pytest.fixture
def api(tuner_on_postgres: Any, tiny_function: Path, tmp_path: Path) -> Iterator[KubernetesAPI]:
    """The server; its pods run in the folder of the study. Trials wait at the fourth epoch if they are held."""
    tuner = tuner_on_postgres
    tuner.env |= {"KUBECONFIG": str(tmp_path / "kubeconfig"), "TINY_TRIALS": "4", "TINY_EPOCHS": str(EPOCHS)}
    tuner.env |= {"TINY_HOLD_FILE": str(tmp_path / "hold"), "TINY_HOLD_EPOCH": "4"}
    tuner.env["TUNER_ARTIFACTS"] = str(tmp_path / "volume")
    env = {name: value for name, value in tuner.env.items() if name != "TUNER_STORAGE"}
    with serving(KubernetesAPI(folder=tmp_path, env=env), tmp_path / "kubeconfig") as api:
        yield api


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """The file whose existence keeps all trials from their ends."""
    path = tmp_path / "hold"
    path.touch()
    return path


@pytest.fixture
def on(tmp_path: Path) -> tuple[str, ...]:
    options = ("--option", "image=i", "--option", f"volume=claim:{tmp_path / 'volume'}")
    return ("launch", "tiny.py", "--on", "kubernetes", "--workers", "2", *options)


def finish(tuner: Any, url: str, tmp_path: Path) -> None:
    """Run the rest of the budget here, and check that nothing was lost or doubled."""
    done = tuner.run("worker", "tiny.py", TINY_HOLD_FILE="")
    assert done.returncode == 0, done.stderr
    check_study_after_faults(url, tmp_path / "volume", 4, epochs=EPOCHS)


def test_evicted_workers_give_back_their_trials_and_new_pods_resume_them(
    tuner_on_postgres: Any,
    postgres_url: str,
    api: KubernetesAPI,
    on: tuple[str, ...],
    hold: Path,
    tmp_path: Path,
    wait_until: Wait,
) -> None:
    launch = tuner_on_postgres.start(*on)
    wait_until(are_at_work(postgres_url))
    (path,) = [path for path in api.objects if path.startswith(JOBS)]
    name, seen = path.rpartition("/")[2], len(api.asked)
    api.refused["GET", path] = (409, "etcdserver: leader changed")
    wait_until(lambda: ("GET", path) in api.asked[seen:])
    del api.refused["GET", path]
    for pod in list(api.pods):
        api.evict(pod)
    wait_until(lambda: [tries[0].ending for tries in attempts_of(postgres_url).values()] == ["preempted"] * 2)
    hold.unlink()

    output, _ = launch.communicate(timeout=300)

    assert launch.returncode == 0, output
    check_study_after_faults(postgres_url, tmp_path / "volume", 4, epochs=EPOCHS)
    assert (
        sorted(map(tuple, endings_of(postgres_url).values())) == [("complete",)] * 2 + [("preempted", "complete")] * 2
    )
    assert [pod.process.returncode for pod in api.pods] == [130, 130, 0, 0]
    ran = {attempt.worker for tries in attempts_of(postgres_url).values() for attempt in tries}
    assert ran == {pod.name for pod in api.pods}, "workers have the names of their pods"
    assert (
        f"cannot ask for the state of kubernetes job lab/{name}: Kubernetes does not read a Job: etcdserver" in output
    )
    logs = tuner_on_postgres.run("logs", "tiny")
    assert {line.partition(": ")[0] for line in logs.stdout.splitlines()} == {pod.name for pod in api.pods[2:]}
    assert ("DELETE", f"jobs/{name}") not in api.changes(), "the logs of a job that is complete can be read"
    worker = api.pods[2].name
    one = tuner_on_postgres.run("logs", "tiny", "--worker", worker).stdout
    assert [f"{worker}: {line}" for line in one.splitlines()] == [
        line for line in logs.stdout.splitlines() if line.startswith(worker)
    ]
    assert postgres_url not in logs.stdout


@pytest.mark.parametrize(
    "way", ["stop", pytest.param("ctrl-c", marks=pytest.mark.long), pytest.param("scale to 0", marks=pytest.mark.long)]
)
def test_a_cancelled_job_gives_back_its_trials_and_is_deleted(
    tuner_on_postgres: Any,
    postgres_url: str,
    api: KubernetesAPI,
    on: tuple[str, ...],
    hold: Path,
    tmp_path: Path,
    wait_until: Wait,
    way: str,
) -> None:
    tuner = tuner_on_postgres
    launch = tuner.start(*on, *(("--detach",) if way != "ctrl-c" else ()))
    wait_until(are_at_work(postgres_url))
    (job,) = [path.rpartition("/")[2] for path in api.objects if path.startswith(JOBS)]
    assert api.objects[f"{SECRETS}/{job}"]["stringData"] == {"url": postgres_url}
    if way == "ctrl-c":
        launch.send_signal(signal.SIGINT)
    output, _ = launch.communicate(timeout=300)
    if way == "ctrl-c":
        assert launch.returncode == 130, output
    else:
        assert launch.returncode == 0, output
        done = tuner.run(*(("stop", "tiny") if way == "stop" else ("scale", "tiny", "0")))
        assert done.returncode == 0, done.stderr
        output = done.stderr

    # Workers also exit by themselves when their study is stopped, perhaps before the command looks.
    ways = "is cancelled|has ended" if way == "stop" else "is cancelled"
    assert re.search(f"tuner: kubernetes job lab/{job} ({ways})\n", output), output
    assert all(pod.process.poll() is not None for pod in api.pods)
    assert sorted(map(tuple, endings_of(postgres_url).values())) == [("preempted",)] * 2
    assert len(api.pods) == 2, "none was started again"
    if way == "stop":
        assert tuner.run_here("resume", "tiny").returncode == 0
    finish(tuner, postgres_url, tmp_path)


def test_a_job_grows_and_shrinks(
    tuner_on_postgres: Any,
    postgres_url: str,
    api: KubernetesAPI,
    on: tuple[str, ...],
    hold: Path,
    tmp_path: Path,
    wait_until: Wait,
) -> None:
    tuner = tuner_on_postgres
    done = tuner.run(*on, "--detach")
    assert done.returncode == 0, done.stderr
    wait_until(are_at_work(postgres_url))
    grown = tuner.run("scale", "tiny", "3")
    wait_until(are_at_work(postgres_url, 3))
    assert grown.stderr.strip().endswith(": 3 workers")
    shrunk = tuner.run("scale", "tiny", "1")
    assert shrunk.returncode == 0, shrunk.stderr
    wait_until(lambda: len([pod for pod in api.pods if pod.process.poll() is None]) == 1)
    assert sorted(tries[-1] or "" for tries in endings_of(postgres_url).values()) == ["", "preempted", "preempted"]
    assert tuner.run("stop", "tiny").returncode == 0
    tuner.run_here("resume", "tiny")
    finish(tuner, postgres_url, tmp_path)


def test_a_study_that_fails_ends_the_job(
    tuner_on_postgres: Any, postgres_url: str, api: KubernetesAPI, on: tuple[str, ...]
) -> None:
    api.env["TINY_MODE"] = "bug"
    tuner_on_postgres.env["TINY_MODE"] = "bug"
    done = tuner_on_postgres.run(*on)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr.partition("launch again\n")[0]
    assert 3 in [pod.process.poll() for pod in api.pods]
