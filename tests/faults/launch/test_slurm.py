"""Workers that a real Slurm preempts, ends at the time limit or cancels: what must come back does, and the rest not."""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm_cluster
from after_faults import are_at_work, attempts_of, check_study_after_faults, endings_of, holders, table
from notice_server import NoticeServer
from postgres_server import Server
from slurm_cluster import SlurmCluster

from tuner.storage.sql.tables import attempts

Wait = Callable[..., Any]
NO_SLURM = slurm_cluster.reason_to_skip()
ON = ("launch", "tiny.py", "--on", "slurm", "--workers", "2")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NO_SLURM is not None, reason=f"no Slurm: {NO_SLURM}")]


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    with slurm_cluster.running(Path(tempfile.mkdtemp(prefix="tuner-slurm-")), nodes=2) as cluster:
        yield cluster


@pytest.fixture
def tuner(
    tuner_on_sqlite: Any, slurm: SlurmCluster, server: Server, url: str, tiny_function: Path, wait_until: Wait
) -> Iterator[Any]:
    """The command line of a login node. The study has four trials of 10 epochs, which wait at the fourth if held."""
    held = {"TINY_TRIALS": "4", "TINY_EPOCHS": "10", "TINY_HOLD_EPOCH": "4"}
    tuner_on_sqlite.env |= {"TUNER_STORAGE": url, **slurm.env, **held}
    yield tuner_on_sqlite
    slurm.ask("scancel", "--user=root")
    wait_until(lambda: not slurm.states())


@pytest.fixture
def hold(tuner: Any) -> Path:
    """The file whose existence keeps all trials from their ends."""
    path = tuner.folder / "hold"
    path.touch()
    tuner.env["TINY_HOLD_FILE"] = str(path)
    return path


def logs(tuner: Any) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in (tuner.folder / "tuner-logs").glob("*.log"))


def finish(tuner: Any, url: str) -> None:
    """Run the rest of the budget, and check that nothing was lost or doubled."""
    done = tuner.run("worker", "tiny.py", TINY_HOLD_FILE="")
    assert done.returncode == 0, done.stderr
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", 4, epochs=10)


def test_a_launch_on_slurm_ends_like_any_other(tuner: Any, url: str, slurm: SlurmCluster) -> None:
    with NoticeServer() as server:
        done = tuner.run(*ON, "--option", "partition=main", "--devices-per-worker", "1", "--notify", server.url)

    assert done.returncode == 0, done.stderr + logs(tuner)
    assert "tuner: tiny: finished, 4 complete, best " in done.stderr
    assert done.stdout.startswith("best trial of 'tiny':")
    assert slurm.states() == {}
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", 4, epochs=10)
    assert set(map(tuple, endings_of(url).values())) == {("complete",)}
    assert "Traceback" not in done.stderr + logs(tuner)
    assert url not in logs(tuner) + done.stderr
    assert {body["event"] for body in server.got} >= {"budget_nearly_used", "finished"}
    assert "very-secret" not in logs(tuner) + done.stderr


def test_preempted_workers_give_back_their_trials_and_come_back(
    tuner: Any, url: str, slurm: SlurmCluster, hold: Path, wait_until: Wait
) -> None:
    launch = tuner.start(*ON)
    wait_until(are_at_work(url))
    # Both nodes for a job of higher priority.
    slurm.ask("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    wait_until(lambda: [tries[0].ending for tries in attempts_of(url).values()] == ["preempted"] * 2)
    hold.unlink()

    output, _ = launch.communicate(timeout=300)

    assert launch.returncode == 0, output + logs(tuner)
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", 4, epochs=10)
    assert sorted(map(tuple, endings_of(url).values())) == [("complete",)] * 2 + [("preempted", "complete")] * 2
    text = logs(tuner)
    assert text.count("worker ended with status 130; back to the queue") == 2, text
    restarted = [tries[1].worker for tries in attempts_of(url).values() if len(tries) == 2]
    assert all(".1.1" in worker for worker in restarted), "by the same elements, which Slurm has started again"
    assert text.count("trial 0, epoch 1:") == 1, "it resumed from its checkpoint"


def test_a_worker_on_two_hosts_is_preempted_and_comes_back(
    tuner: Any, tiny_study: Path, url: str, slurm: SlurmCluster, wait_until: Wait, tmp_path: Path
) -> None:
    """One worker, a process on each node, trains one trial after another; both nodes are taken from it."""
    notes = tmp_path / "steps"
    tuner.env |= {"TINY_TRIALS": "1", "TINY_EPOCHS": "40", "TINY_LOOP": "step"}
    tuner.env |= {"TINY_STEP_S": "0.3", "TINY_STEPS_FILE": str(notes)}
    launch = tuner.start(*ON[:-1], "1", "--hosts-per-worker", "2", "--devices-per-worker", "1")
    wait_until(lambda: notes.exists() and len(notes.read_text().splitlines()) >= 12)
    (element,) = slurm.states()
    assert "NumNodes=2 " in slurm.ask("scontrol", "show", "job", "--oneliner", element)
    slurm.ask("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    wait_until(lambda: endings_of(url)[0][0] == "preempted")

    output, _ = launch.communicate(timeout=600)

    assert launch.returncode == 0, output + logs(tuner)
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", 1, epochs=40)
    assert endings_of(url) == {0: ["preempted", "complete"]}
    text = logs(tuner)
    assert text.count("worker ended with status 130; back to the queue") == 1, text
    assert text.count("trial 0, epoch 1:") == 1, "it resumed from its checkpoint"
    assert "Traceback" not in text
    assert set(table(url, attempts.c.devices)) == {(2,)}
    ranks = {line.split()[0] for line in notes.read_text().splitlines()}
    assert len(ranks) == 4, "two processes before and two after"


def test_workers_at_the_time_limit_come_back(
    tuner: Any, url: str, slurm: SlurmCluster, hold: Path, wait_until: Wait
) -> None:
    # Slurm sends the signal 60 seconds before the end, which it checks every half minute.
    tuner.env["TINY_TRIALS"] = "1"
    launch = tuner.start("launch", "tiny.py", "--on", "slurm", "--workers", "1", "--option", "time=2")
    wait_until(are_at_work(url, 1))
    wait_until(lambda: "back to the queue" in logs(tuner))  # in two minutes
    wait_until(lambda: endings_of(url)[0] == ["preempted", None])
    hold.unlink()

    output, _ = launch.communicate(timeout=600)

    assert launch.returncode == 0, output + logs(tuner)
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", 1, epochs=10)
    assert endings_of(url)[0] == ["preempted", "complete"]
    assert logs(tuner).count("trial 0, epoch 1:") == 1


@pytest.mark.parametrize(
    "way", ["scancel", *(pytest.param(way, marks=pytest.mark.long) for way in ("ctrl-c", "stop", "scale to 0"))]
)
def test_a_cancelled_job_gives_back_its_trials_and_does_not_come_back(
    tuner: Any, url: str, slurm: SlurmCluster, hold: Path, wait_until: Wait, way: str
) -> None:
    launch = tuner.start(*ON)
    wait_until(are_at_work(url))
    (job,) = {name.partition("_")[0] for name in slurm.states()}

    again = "run the same command again to finish the rest"
    if way == "ctrl-c":
        launch.send_signal(signal.SIGINT)
        status, last = 130, f"stopped with 0 trials of 'tiny' finished; {again}"
    elif way == "scancel":
        slurm.ask("scancel", job)
        status, last = 130, f"the workers of slurm job {job} were stopped; {again}"
    else:
        done = tuner.run(*(("stop", "tiny") if way == "stop" else ("scale", "tiny", "0")))
        assert done.returncode == 0, done.stderr
        is_stop = way == "stop"
        # Workers also exit by themselves when their study is stopped, perhaps before the command looks.
        ways = "is cancelled|has ended" if is_stop else "is cancelled"
        assert re.search(f"tuner: slurm job {job} ({ways})\n", done.stderr), done.stderr
        status = 0 if is_stop else 130
        stopped = "study 'tiny' is stopped: run `tuner resume tiny`, then launch it again"
        last = stopped if is_stop else f"slurm job {job} was cancelled; {again}"
    output, _ = launch.communicate(timeout=300)

    assert (launch.returncode, output.splitlines()[-1]) == (status, f"tuner: {last}"), output + logs(tuner)
    wait_until(lambda: not slurm.states())
    assert holders(url) == [], "no trial runs"
    assert sorted(map(tuple, endings_of(url).values())) == [("preempted",)] * 2
    assert "back to the queue" not in logs(tuner)
    if way == "stop":
        assert tuner.run_here("resume", "tiny").returncode == 0
    if way == "scale to 0":
        done = tuner.run("scale", "tiny", "1")
        assert done.returncode == 0, done.stderr
        wait_until(lambda: len(holders(url)) == 1)
        assert tuner.run("scale", "tiny", "0").returncode == 0
    finish(tuner, url)


def test_a_job_grows_and_shrinks(tuner: Any, url: str, slurm: SlurmCluster, hold: Path, wait_until: Wait) -> None:
    done = tuner.run("launch", "tiny.py", "--on", "slurm", "--workers", "1", "--detach")
    assert done.returncode == 0, done.stderr
    wait_until(are_at_work(url, 1))

    grown = tuner.run("scale", "tiny", "3")
    wait_until(are_at_work(url, 3))
    assert grown.returncode == 0, grown.stderr
    assert grown.stderr.strip().endswith(": 3 workers")
    shrunk = tuner.run("scale", "tiny", "1")

    assert shrunk.returncode == 0, shrunk.stderr
    wait_until(lambda: len(slurm.states()) == 1)
    # One runs on, and takes the trials that the others gave back after its own.
    wait_until(lambda: sum(tries[-1] is None for tries in endings_of(url).values()) == 1)
    assert [tries[0] for tries in endings_of(url).values()].count("preempted") == 2
    assert tuner.run("scale", "tiny", "1").stderr == "tuner: study 'tiny' has 1 worker already\n"
    assert tuner.run("stop", "tiny").returncode == 0
    wait_until(lambda: not slurm.states())
    tuner.run_here("resume", "tiny")
    finish(tuner, url)


def test_logs_of_workers_and_trials(tuner: Any, url: str, slurm: SlurmCluster) -> None:
    done = tuner.run(*ON, TINY_EPOCHS="3")
    assert done.returncode == 0, done.stderr

    every = tuner.run("logs", "tiny").stdout.splitlines()
    third = tuner.run_here("logs", "tiny", "--trial", "2").stdout.splitlines()
    worker = attempts_of(url)[2][0].worker
    of_worker = tuner.run_here("logs", "tiny", "--worker", worker).stdout.splitlines()

    assert {int(line.split("trial ")[1][0]) for line in every if ": trial " in line} == {0, 1, 2, 3}
    assert [line.partition("epoch ")[2][0] for line in third if "epoch" in line] == ["1", "2", "3"]
    assert set(re.findall(r"trial (\d+)", "\n".join(third))) == {"2"}
    assert set(third) <= set(of_worker)
    for words, status in ((["--trial", "9"], 2), (["--worker", "none"], 2)):
        wrong = tuner.run_here("logs", "tiny", *words)
        assert (wrong.returncode, wrong.stdout) == (status, "")
        assert len(wrong.stderr.splitlines()) == 1, wrong.stderr


def test_a_study_that_fails_ends_the_launch_with_its_error(tuner: Any, url: str, slurm: SlurmCluster) -> None:
    done = tuner.run(*ON, TINY_MODE="bug")
    assert done.returncode == 3, done.stderr
    assert "the same error ended 3 trials in a row" in done.stderr
    assert done.stderr.strip().endswith("RuntimeError: planted bug")
    assert slurm.states() == {}


def test_a_search_that_has_tried_everything_is_no_failure(tuner: Any, tiny_function: Path, slurm: SlurmCluster) -> None:
    grid = 'optuna.samplers.GridSampler({"learning_rate": [0.01, 0.02], "noise": [0.5]})'
    text = tiny_function.read_text().replace('sampler="random"', f"sampler={grid}")
    tiny_function.write_text(f"import optuna\n{text}")

    done = tuner.run("launch", "tiny.py", "--on", "slurm", "--workers", "1")

    assert done.returncode == 0, done.stderr + logs(tuner)
    assert "tuner: the sampler has ended the search with 2 trials finished" in done.stderr


def test_workers_that_crash_end_the_launch(tuner: Any, tiny_function: Path, slurm: SlurmCluster) -> None:
    tiny_function.write_text(
        f"{tiny_function.read_text()}\nimport os\nif 'SLURM_JOB_ID' in os.environ:\n    os._exit(9)\n"
    )

    done = tuner.run("launch", "tiny.py", "--on", "slurm", "--workers", "1")

    assert done.returncode == 3, done.stderr
    assert "but study 'tiny' is not finished (exit statuses: 9); run `tuner logs tiny` to see why" in done.stderr
    assert logs(tuner).count("worker ended with status 9, crash") == 4
