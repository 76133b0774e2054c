"""Workers on a real Ray of three nodes: what must come back does, and the rest not."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_cluster
from after_faults import are_at_work, attempts_of, check_study_after_faults, endings_of, holders
from command_line import users_environment
from postgres_server import Server
from ray_cluster import RayCluster

Wait = Callable[..., Any]
NO_RAY = ray_cluster.reason_to_skip()
# For the workers, which have the environment of their node. Each notes its process, its devices and its node's raylet.
BEFORE = """
import os
from pathlib import Path

for name, value in {"TINY_TRIALS": "4", "TINY_EPOCHS": "40", "TINY_PAUSE_S": "0.3", "TINY_HOLD_FILE": "hold"}.items():
    os.environ.setdefault(name, value)
if "RAY_RAYLET_PID" in os.environ:
    noted = [os.environ["TUNER_WORKER"], os.environ["CUDA_VISIBLE_DEVICES"] or "none", os.environ["RAY_RAYLET_PID"]]
    Path(f"notes-{os.getpid()}").write_text(" ".join(noted))
"""
LONG = {"TINY_EPOCHS": "400", "TINY_PAUSE_S": "1"}
"""Trials that do not end while a test looks at them, however busy the machine is."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NO_RAY is not None, reason=f"no Ray: {NO_RAY}")]


@pytest.fixture(scope="module")
def ray() -> Iterator[RayCluster]:
    paths = [os.environ.get("PYTHONPATH"), str(Path(ray_cluster.__file__).parent)]
    env = {
        **users_environment(),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XDG_CACHE_HOME": os.environ["TUNER_TESTS_CACHE"],
    }
    with ray_cluster.running(env) as cluster:
        yield cluster


@pytest.fixture
def tuner(tuner_on_sqlite: Any, server: Server, url: str, tiny_function: Path) -> Any:
    """The command line; workers have four trials of 40 epochs, 12 seconds each."""
    tiny_function.write_text(BEFORE + tiny_function.read_text())
    tuner_on_sqlite.env |= {"TUNER_STORAGE": url}
    return tuner_on_sqlite


@pytest.fixture
def on(ray: RayCluster, tuner: Any) -> Iterator[tuple[str, ...]]:
    """A launch on the cluster."""
    yield ("launch", "tiny.py", "--on", "ray", "--option", f"address={ray.address}", "--workers")
    tuner.run("scale", "tiny", "0")


def settings(tuner: Any, **values: str) -> None:
    """Set what the study does, also for workers."""
    path = tuner.folder / "tiny.py"
    path.write_text(f"import os\nos.environ.update({values!r} | os.environ)\n{path.read_text()}")


def notes(tuner: Any) -> dict[str, tuple[int, str, int]]:
    """Return the process, the devices and the raylet of each worker."""
    found = {path: path.read_text().split() for path in tuner.folder.glob("notes-*")}
    return {words[0]: (int(path.name[6:]), words[1], int(words[2])) for path, words in found.items() if len(words) == 3}


def logs(tuner: Any) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in (tuner.folder / "tuner-logs").glob("*.log"))


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_lost_node_costs_no_trial(tuner: Any, url: str, ray: RayCluster, on: Any, wait_until: Wait) -> None:
    launch = tuner.start(*on, "2", "--devices-per-worker", "2")
    wait_until(are_at_work(url, 2))
    hold = tuner.folder / "hold"
    hold.touch()
    wait_until(lambda: len(holders(url)) == 2)
    at_work = {worker: notes(tuner)[worker] for worker in holders(url)}
    # Each has both devices of a node, and not of the same.
    assert [devices for _, devices, _ in at_work.values()] == ["0,1", "0,1"]
    assert len({node for _, _, node in at_work.values()}) == 2

    lost, (process, _, node) = next((name, it) for name, it in at_work.items() if it[2] in ray.raylets)
    ray.kill(node)
    wait_until(lambda: not is_running(process))
    hold.unlink()
    output, _ = launch.communicate(timeout=300)

    assert launch.returncode == 0, output + logs(tuner)
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", 4, epochs=40)
    number, tries = next(found for found in attempts_of(url).items() if found[1][0].worker == lost)
    assert [one.ending for one in tries] == ["died", "complete"]
    assert logs(tuner).count(f"trial {number}, epoch 1:") == 1, "it resumed from its checkpoint"
    actor = re.sub(r"^.*:|\..*$", "", lost)
    again = [where for worker, (_, _, where) in notes(tuner).items() if f":{actor}." in worker and worker != lost]
    assert len(again) == 1, "Ray has started the actor once more"
    assert node not in again
    ray.add_node()


@pytest.mark.long
def test_a_job_grows_shrinks_and_is_stopped(tuner: Any, url: str, on: Any, wait_until: Wait) -> None:
    settings(tuner, **LONG)
    done = tuner.run(*on, "1", "--detach")
    assert done.returncode == 0, done.stderr
    wait_until(are_at_work(url, 1))

    grown = tuner.run("scale", "tiny", "3")
    wait_until(are_at_work(url, 3))
    assert grown.stderr.strip().endswith(": 3 workers")
    shrunk = tuner.run("scale", "tiny", "2")

    assert (shrunk.returncode, len(holders(url))) == (0, 2), shrunk.stderr
    assert sorted(tries[0] or "" for tries in endings_of(url).values()) == ["", "", "preempted"]
    assert tuner.run("scale", "tiny", "2").stderr == "tuner: study 'tiny' has 2 workers already\n"
    processes = [process for process, _, _ in notes(tuner).values()]
    stopped = tuner.run("stop", "tiny")
    assert "is cancelled" in stopped.stderr
    assert holders(url) == []
    assert not any(map(is_running, processes))
    worker = attempts_of(url)[0][0].worker
    of_worker = tuner.run("logs", "tiny", "--worker", worker).stdout
    assert "trial 0, epoch 1:" in of_worker
    assert set(re.findall(r"trial (\d)", tuner.run("logs", "tiny", "--trial", "1").stdout)) == {"1"}
    assert url not in logs(tuner) + done.stderr + grown.stderr
    tuner.run_here("resume", "tiny")
    done = tuner.run("launch", "tiny.py", "--workers", "2", TINY_PAUSE_S="0")
    assert done.returncode == 0, done.stderr
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", 4, epochs=400)


@pytest.mark.long
def test_ctrl_c_gives_trials_back_and_a_lost_worker_comes_back(tuner: Any, url: str, on: Any, wait_until: Wait) -> None:
    settings(tuner, **LONG)
    launch = tuner.start(*on, "1")
    wait_until(are_at_work(url, 1))
    # Its actor's process, the parent of the supervisor that is the parent of the worker.
    ((worker, (process, devices, _)),) = notes(tuner).items()
    assert devices == "none", "none were asked for"
    parents = [process]
    for _ in range(2):
        parents.append(int(Path(f"/proc/{parents[-1]}/stat").read_text().rpartition(")")[2].split()[1]))
    os.kill(parents[2], signal.SIGKILL)
    wait_until(lambda: not is_running(process))
    wait_until(lambda: holders(url) not in ([], [worker]) and len(notes(tuner)) == 2)

    launch.send_signal(signal.SIGINT)
    output, _ = launch.communicate(timeout=300)

    again = "stopped with 0 trials of 'tiny' finished; run the same command again to finish the rest"
    assert (launch.returncode, output.splitlines()[-1]) == (130, f"tuner: {again}"), output + logs(tuner)
    assert holders(url) in ([], [worker]), "the lease of the killed worker may not have ended yet"
    by_worker = {one.worker: one.ending for tries in attempts_of(url).values() for one in tries}
    assert by_worker.pop(worker) in (None, "died")
    assert list(by_worker.values()) == ["preempted"]
    assert not any(is_running(process) for process, _, _ in notes(tuner).values())


@pytest.mark.long
def test_a_study_that_fails_ends_the_launch_with_its_error(tuner: Any, on: Any) -> None:
    settings(tuner, TINY_MODE="bug")
    done = tuner.run(*on, "1")
    assert done.returncode == 3, done.stderr
    assert "the same error ended 3 trials in a row" in done.stderr
    assert done.stderr.strip().endswith("RuntimeError: planted bug")


@pytest.mark.long
def test_workers_that_crash_end_the_launch(tuner: Any, on: Any) -> None:
    path = tuner.folder / "tiny.py"
    path.write_text(f"{path.read_text()}\nif 'TUNER_WORKER' in os.environ:\n    os._exit(9)\n")

    done = tuner.run(*on, "1")

    assert done.returncode == 3, done.stderr
    assert "but study 'tiny' is not finished (exit statuses: 9); run `tuner logs tiny` to see why" in done.stderr
    assert logs(tuner).count("worker ended with status 9, crash") == 4
