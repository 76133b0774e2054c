"""Artifacts in S3: workers that are killed or ended resume on another machine; a store that is away stops no trial."""

from __future__ import annotations

import re
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from after_faults import endings_of, processes_of, results, table
from command_line import Tuner
from object_server import ObjectServer

import tuner
from tuner.storage.sql.tables import records, trials
from tuner.training.saved.checkpoints import read

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[2]
EPOCHS = 8
STEPS = {"TINY_EPOCHS": str(EPOCHS), "TINY_LOOP": "step", "TINY_SAVE_S": "0", "TINY_LEASE_S": "2"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    server = ObjectServer(tmp_path_factory.mktemp("moto"))
    yield server
    server.close()


class Machines:
    """Workers of one study on several machines: each has a cache folder of its own, all have the database and S3."""

    def __init__(self, tuner: Tuner, server: ObjectServer, folder: Path) -> None:
        self.tuner, self.server, self.folder = tuner, server, folder
        self.url = tuner.env["TUNER_STORAGE"]
        self.prefix = uuid.uuid4().hex
        self.hold, self.steps = folder / "hold", folder / "steps"
        tuner.env |= STEPS | server.env | {"TUNER_ARTIFACTS": f"s3://bucket/{self.prefix}"}

    def cache(self, machine: str) -> Path:
        return self.folder / f"cache-{machine}"

    def start(self, machine: str, *, trials: int = 1, **env: str) -> Any:
        own = {"XDG_CACHE_HOME": str(self.cache(machine)), "TINY_TRIALS": str(trials)}
        files = {"TINY_HOLD_FILE": str(self.hold), "TINY_STEPS_FILE": str(self.steps)}
        return self.tuner.start("worker", "tiny.py", **(own | files | env))

    def finish(self, machine: str, trials: int = 1) -> str:
        process = self.start(machine, trials=trials)
        return ended(process)

    def steps_of(self, process: Any) -> list[int]:
        lines = self.steps.read_text().splitlines() if self.steps.exists() else []
        return [int(line.split()[2]) for line in lines if line.split()[0] == str(process.pid)]

    def listed(self) -> list[str]:
        """Return the keys of the study, without its name."""
        return [key.split("/", 2)[2] for key in self.server.keys(f"{self.prefix}/")]

    def saved(self) -> list[int]:
        """Return the numbers of the complete checkpoints of the first attempt of trial 0."""
        found = [re.fullmatch(r"0/1/latest/(\d+)/record\.json", key) for key in self.listed()]
        return sorted(int(one[1]) for one in found if one)

    def checkpoints(self) -> dict[int, str | None]:
        source = trials.join(records, records.c.trial_id == trials.c.trial_id)
        return dict(table(self.url, trials.c.number, records.c.checkpoint, source=source))

    def local(self, machine: str, pattern: str) -> list[Path]:
        return sorted(self.cache(machine).glob(f"tuner/artifacts/*/tiny-*/{pattern}"))


def ended(process: Any, status: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


@pytest.fixture
def machines(tuner_on_sqlite: Tuner, server: ObjectServer, tiny_function: Path) -> Machines:
    return Machines(tuner_on_sqlite, server, tiny_function.parent)


def quiet(folder: Path, file: str, trials: int) -> Tuner:
    """Run the study without anything that goes wrong, its checkpoints in a folder."""
    folder.mkdir()
    (folder / "tiny.py").write_text((TESTS / file).read_text())
    tuner = Tuner(folder, f"sqlite:///{folder / 'quiet.db'}")
    done = tuner.run("worker", "tiny.py", **{**STEPS, "TINY_SAVE_S": "60"}, TINY_TRIALS=str(trials))
    assert done.returncode == 0, done.stderr
    return tuner


def start_and_hold(machines: Machines, wait_until: Callable[..., Any], **env: Any) -> Any:
    """Start a worker on machine `a`, and hold its training in the middle of trial 0, when S3 has a checkpoint."""
    process = machines.start("a", TINY_PAUSE_S="0.2", **env)
    wait_until(lambda: len(set(machines.steps_of(process))) >= 3)
    machines.hold.touch()
    wait_until(lambda: machines.saved() and max(machines.saved()) >= 2)
    return process


@pytest.mark.parametrize("file", [pytest.param("tiny_function.py", marks=pytest.mark.long), "tiny_study.py"])
def test_a_trial_of_a_killed_worker_resumes_on_another_machine_bit_for_bit(
    file: str, machines: Machines, wait_until: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machines.folder / "tiny.py").write_text((TESTS / file).read_text())
    process = start_and_hold(machines, wait_until)
    process.send_signal(signal.SIGKILL)
    process.wait()
    machines.hold.unlink()

    second = machines.start("b")
    ended(second)

    assert min(machines.steps_of(second)) > min(machines.steps_of(process)), "it does not start again"
    assert endings_of(machines.url) == {0: ["died", "complete"]}
    alone = quiet(tmp_path / "quiet", file, 1)
    assert results(machines.url) == results(alone.env["TUNER_STORAGE"])
    url = machines.checkpoints()[0]
    assert url is not None
    assert re.fullmatch(rf"s3://bucket/{machines.prefix}/tiny-[0-9a-f]{{8}}/0/2/best", url)
    assert {key.split("/")[2] for key in machines.listed()} == {"best", "log.txt"}, (
        "what it was resumed from is removed"
    )
    assert {key.split("/")[1] for key in machines.listed()} == {"2"}
    for name, value in (machines.server.env | {"XDG_CACHE_HOME": str(machines.cache("c"))}).items():
        monkeypatch.setenv(name, value)
    (expected,) = alone.folder.glob("tuner-artifacts/*/0/best")
    if file == "tiny_function.py":
        np.testing.assert_array_equal(tuner.load_state(url), tuner.load_state(expected))
    else:
        from tuner.object_storage import fetched

        found, arrays = read(fetched(url))[0], read(expected)[0]
        np.testing.assert_equal(found, arrays)


def test_a_worker_that_is_asked_to_end_uploads_its_last_state_first(
    machines: Machines, wait_until: Callable[..., Any]
) -> None:
    process = start_and_hold(machines, wait_until)
    process.send_signal(signal.SIGTERM)
    machines.hold.unlink()  # it saves once more, and ends

    ended(process, 130)

    newest = max(int(path.name) for path in machines.local("a", "0/1/latest/*"))
    assert machines.saved()[-1] == newest
    second = machines.start("b")
    ended(second)
    assert machines.steps_of(second)[0] == newest + 1
    assert endings_of(machines.url) == {0: ["preempted", "complete"]}


def test_a_checkpoint_without_its_record_or_with_a_damaged_file_is_not_used(
    machines: Machines, wait_until: Callable[..., Any]
) -> None:
    process = start_and_hold(machines, wait_until)
    wait_until(lambda: len(machines.saved()) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    machines.hold.unlink()
    good, damaged = machines.saved()[-2:]
    (key,) = [key for key in machines.server.keys(machines.prefix) if key.endswith(f"/latest/{damaged}/arrays.npz")]
    machines.server.put(key, machines.server.get(key)[:-1])
    half = key.replace(f"/latest/{damaged}/", f"/latest/{damaged + 5}/")
    machines.server.put(half, b"the record is not written yet")

    second = machines.start("b")
    output = ended(second)

    assert machines.steps_of(second)[0] == good + 1
    assert output.count("it is incomplete; trying the one before it") == 1
    assert endings_of(machines.url) == {0: ["died", "complete"]}


@pytest.mark.long
def test_a_store_that_is_away_during_a_trial_has_the_checkpoint_afterwards(
    machines: Machines, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    process = start_and_hold(machines, wait_until)
    machines.server.gate.shut()
    machines.hold.unlink()
    wait_until(lambda: len(set(machines.steps_of(process))) >= EPOCHS - 1)
    machines.hold.touch()
    machines.server.gate.open()
    machines.hold.unlink()

    output = ended(process)

    assert output.count("uploads are tried again") <= 1
    assert endings_of(machines.url) == {0: ["complete"]}
    assert results(machines.url) == results(quiet(tmp_path / "quiet", "tiny_function.py", 1).env["TUNER_STORAGE"])
    assert str(machines.checkpoints()[0]).startswith("s3://")
    assert {key.split("/", 2)[2] for key in machines.listed()} == {"best/arrays.npz", "best/record.json", "log.txt"}


def test_trials_end_while_the_store_is_away_and_their_checkpoints_arrive_later(
    machines: Machines, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    process = start_and_hold(machines, wait_until, TINY_TRIALS="2")
    machines.server.gate.shut()
    try:
        machines.hold.unlink()
        wait_until(lambda: 0 in machines.checkpoints())
        first = machines.checkpoints()[0]
        assert first is not None
        assert Path(first).is_dir(), "the record has what is true"
        output = ended(process)
        assert output.count("uploads are tried again") == 1, output
        assert output.count("not uploaded to") == 1
        assert endings_of(machines.url) == {0: ["complete"], 1: ["complete"]}
        assert all(Path(str(path)).is_dir() for path in machines.checkpoints().values())
    finally:
        machines.server.gate.open()

    machines.finish("a", trials=3)

    assert sorted(machines.checkpoints()) == [0, 1, 2], "the budget is exact"
    assert all(str(path).startswith("s3://") for path in machines.checkpoints().values())
    files = ("best/arrays.npz", "best/record.json", "log.txt")
    assert set(machines.listed()) == {f"{number}/1/{name}" for number in range(3) for name in files}
    assert results(machines.url) == results(quiet(tmp_path / "quiet", "tiny_function.py", 3).env["TUNER_STORAGE"])
    assert processes_of(machines.url) == []


@pytest.mark.long
def test_what_a_worker_could_not_upload_in_a_trial_arrives_while_it_runs_the_next(
    machines: Machines, wait_until: Callable[..., Any]
) -> None:
    process = start_and_hold(machines, wait_until, TINY_TRIALS="2")
    machines.server.gate.shut()
    try:
        machines.hold.unlink()
        wait_until(lambda: 0 in machines.checkpoints())
        machines.hold.touch()
    finally:
        machines.server.gate.open()
    wait_until(lambda: "0/1/best/record.json" in machines.listed())
    machines.hold.unlink()

    ended(process)

    assert all(str(path).startswith("s3://") for path in machines.checkpoints().values())
    assert sorted(machines.checkpoints()) == [0, 1]
    assert not [key for key in machines.listed() if "/latest/" in key]
