"""Workers that span several processes: the numbers are those of one process, also after the death of a rank."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from after_faults import check_study_after_faults, endings_of, results, table
from command_line import Tuner
from slurm_cluster import free_ports

from tuner.storage.sql.tables import attempts, reports, workers

Wait = Callable[..., Any]
TRIALS, EPOCHS = 2, 3
NEAR = 1e-5
"""What the metrics of groups may differ by: sums over a batch are made in another order."""

pytestmark = pytest.mark.slow


def start_group(tuner: Tuner, ranks: int, **env: str) -> list[subprocess.Popen[str]]:
    (port,) = free_ports(1)
    place = ("--hosts", str(ranks), "--coordinator", f"127.0.0.1:{port}")
    return [tuner.start("worker", "tiny.py", *place, "--rank", str(rank), **env) for rank in range(ranks)]


def ends(group: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Return the exit statuses of all ranks, and all that they printed."""
    texts = [process.communicate(timeout=1200)[0] for process in group]
    return [process.returncode for process in group], "\n".join(f"== {at}\n{text}" for at, text in enumerate(texts))


def make_tuner(folder: Path) -> Tuner:
    (folder / "tiny.py").write_text((Path(__file__).parents[2] / "tiny_study.py").read_text())
    tuner = Tuner(folder, f"sqlite:///{folder / 'study.db'}")
    tuner.env |= {"TINY_TRIALS": str(TRIALS), "TINY_EPOCHS": str(EPOCHS), "TINY_LEASE_S": "5", "TINY_LOOP": "step"}
    return tuner


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What the trials come to in one process."""
    tuner = make_tuner(tmp_path_factory.mktemp("alone"))
    done = tuner.run("worker", "tiny.py")
    assert done.returncode == 0, done.stderr
    return results(tuner.env["TUNER_STORAGE"])


@pytest.fixture
def tuner(tmp_path: Path) -> Any:
    made = make_tuner(tmp_path)
    yield made
    made.end()


def check_near(url: str, alone: dict[int, Any]) -> None:
    """Check that all trials have the hyperparameters, the value and the reports that they have in one process."""
    found = results(url)
    assert found.keys() == alone.keys()
    for number, (hparams, value, curve) in alone.items():
        assert found[number][0] == hparams
        assert math.isclose(found[number][1], value, rel_tol=NEAR)
        assert [point[:2] for point in found[number][2]] == [point[:2] for point in curve], "the same epochs and steps"
        for (_, _, theirs), (_, _, mine) in zip(curve, found[number][2], strict=True):
            assert json.loads(mine) == pytest.approx(json.loads(theirs), rel=NEAR), f"trial {number}"


def check_devices(url: str, ranks: int, groups: int) -> None:
    """Check what is stored of the devices of groups."""
    assert set(table(url, attempts.c.devices)) == {(ranks,)}, "device hours count all devices"
    stored = table(url, workers.c.devices, workers.c.about)
    assert len(stored) == groups
    for devices, about in stored:
        assert devices == f"{ranks} devices of {ranks} hosts"
        assert len(json.loads(about)["hosts"]) == ranks


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "loop"), [(2, "auto"), (4, "step")])
def test_a_group_has_the_numbers_of_one_process(tuner: Tuner, alone: dict[int, Any], ranks: int, loop: str) -> None:
    url = tuner.env["TUNER_STORAGE"]

    statuses, text = ends(start_group(tuner, ranks, TINY_LOOP=loop))

    assert statuses == [0] * ranks, text
    assert "Traceback" not in text
    check_near(url, alone)
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", TRIALS, epochs=EPOCHS)
    check_devices(url, ranks, groups=1)


def steps_of(path: Path, trial: int) -> int:
    """Return how many notes there are of a trial's programs, of all ranks."""
    return 0 if not path.exists() else sum(line.split()[1] == str(trial) for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("killed", "loop"), [*(pytest.param(rank, "step", marks=pytest.mark.long) for rank in (0, 1)), (1, "auto")]
)
def test_a_killed_rank_ends_the_group_and_another_one_finishes_its_trial(
    tuner: Tuner, alone: dict[int, Any], wait_until: Wait, tmp_path: Path, killed: int, loop: str
) -> None:
    """The first trial is of an undisturbed group, and has the numbers of one process as well."""
    url, notes = tuner.env["TUNER_STORAGE"], tmp_path / "steps"
    tuner.env["TINY_LOOP"] = loop
    slow = {"TINY_STEPS_FILE": str(notes), "TINY_STEP_S": {"step": "0.5", "auto": "3"}[loop], "TINY_SAVE_S": "0"}
    group = start_group(tuner, 2, **slow)
    if loop == "step":
        wait_until(lambda: steps_of(notes, 1) >= 5)  # in the first or second of the three steps of an epoch
    else:  # with a checkpoint, however many steps a program has
        wait_until(lambda: steps_of(notes, 1) >= 3 and list(tmp_path.glob("tuner-artifacts/*/1/latest/*")))

    group[killed].send_signal(signal.SIGKILL)
    statuses, text = ends(group)

    assert statuses[killed] == -signal.SIGKILL
    assert statuses[1 - killed] == 1, text
    assert f"rank {killed} on " in text
    ending = endings_of(url)[1]
    assert ending == (["died"] if killed == 1 else [None]), "given back at once, or at the end of the lease"
    again, more = ends(start_group(tuner, 2, TINY_STEPS_FILE=str(tmp_path / "more")))
    assert again == [0, 0], more
    assert "Traceback" not in more
    check_near(url, alone)
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", TRIALS, epochs=EPOCHS)
    assert endings_of(url) == {0: ["complete"], 1: ["died", "complete"]}
    check_devices(url, 2, groups=2)
    first = int((tmp_path / "more").read_text().splitlines()[0].split()[2])
    assert first > int(notes.read_text().splitlines()[0].split()[2]), "it resumed from the checkpoint"


@pytest.mark.long
def test_a_stopped_group_gives_back_its_trial_and_one_process_goes_on(
    tuner: Tuner, alone: dict[int, Any], wait_until: Wait, tmp_path: Path
) -> None:
    url, notes = tuner.env["TUNER_STORAGE"], tmp_path / "steps"
    group = start_group(tuner, 2, TINY_STEPS_FILE=str(notes), TINY_STEP_S="0.5")
    wait_until(lambda: steps_of(notes, 0) >= 5)

    group[1].send_signal(signal.SIGTERM)  # only its host is taken away; test_slurm.py has signals to all ranks
    statuses, text = ends(group)

    assert statuses == [130, 130], text
    assert endings_of(url) == {0: ["preempted"]}
    alone_now = tuner.run("worker", "tiny.py", TINY_STEPS_FILE=str(tmp_path / "more"))
    assert alone_now.returncode == 0, alone_now.stderr
    check_near(url, alone)
    check_study_after_faults(url, tuner.folder / "tuner-artifacts", TRIALS, epochs=EPOCHS)
    assert int((tmp_path / "more").read_text().splitlines()[0].split()[2]) > 1, "it resumed from the checkpoint"


@pytest.mark.long
def test_an_error_in_a_trial_fails_it_and_the_group_goes_on_to_the_same_end_as_one_process(tuner: Tuner) -> None:
    statuses, text = ends(start_group(tuner, 2, TINY_MODE="bug", TINY_TRIALS="5"))
    assert statuses == [3, 0], text
    assert "the same error ended 3 trials in a row" in text
    assert [*endings_of(tuner.env["TUNER_STORAGE"]).values()] == [["failed", "failed"]] * 3, "each is tried again once"


@pytest.mark.long
def test_a_trial_that_rank_0_ends_at_a_report_ends_on_all_ranks(tuner: Tuner) -> None:
    """Trials with much noise diverge in their first epoch; the group goes on with the next."""
    statuses, text = ends(start_group(tuner, 2, TINY_MODE="nan", TINY_TRIALS="6"))
    assert statuses == [0, 0], text
    assert "Traceback" not in text
    found = {row["number"]: (row["outcome"], row["hparams"]["noise"] > 0.5) for row in tuner.rows("trials", "tiny")}
    assert set(found.values()) == {("complete", False), ("diverged", True)}
    assert len(found) == 6


def test_each_rank_reads_its_share_of_a_stream_and_hooks_of_rank_0_count(tuner: Tuner, tmp_path: Path) -> None:
    url, metrics = tuner.env["TUNER_STORAGE"], []
    shutil.copy(Path(__file__).parents[2] / "streamed_study.py", tmp_path / "tiny.py")
    for ranks in (1, 2):
        (tmp_path / "read").mkdir()
        if ranks == 1:
            done = tuner.run("worker", "tiny.py")
            assert done.returncode == 0, done.stderr
        else:
            statuses, text = ends(start_group(tuner, 2))
            assert statuses == [0, 0], text
        pids = sorted(int(path.name) for path in (tmp_path / "read").iterdir())
        read = [[int(line) for line in (tmp_path / "read" / str(pid)).read_text().split()] for pid in pids]
        metrics.append([json.loads(text) for (text,) in table(url, reports.c.metrics, by=(reports.c.epoch,))])
        assert len(read) == ranks
        assert {row for rows in read for row in rows} == set(range(72))
        if ranks == 2:
            counts = [len(rows) for rows in read]
            assert max(counts) < 0.6 * sum(counts), counts
        assert {found.pop("process") for found in metrics[-1]} <= {float(pid) for pid in pids}
        pictures = list((tmp_path / "tuner-artifacts").rglob("picture.png"))
        assert len(pictures) == 1
        shutil.rmtree(tmp_path / "read")
        shutil.rmtree(tmp_path / "tuner-artifacts")
        (tmp_path / "study.db").unlink()
    for alone, together in zip(*metrics, strict=True):
        assert together == pytest.approx(alone, rel=NEAR)
