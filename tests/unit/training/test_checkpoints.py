"""Checkpoints: whole or absent, whatever is done to the process, the disk or the files."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_state import assert_same, restored, small_state, write_best

from tuner.errors import CheckpointError
from tuner.training.saved import files
from tuner.training.saved.checkpoints import Checkpoints, is_new_model_better, read

NAN, INF = math.nan, math.inf


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 10 and 20, and the best of step 10."""
    with Checkpoints(tmp_path / "trial") as checkpoints:
        checkpoints.save(10, small_state(10), {"at": 10})
        assert write_best(checkpoints, 10, {"at": "best"}) == tmp_path / "trial" / "best"
        checkpoints.save(20, small_state(20), {"at": 20})
    return tmp_path / "trial"


# A folder over time.


def test_the_latest_few_and_the_best_are_kept(saved: Path) -> None:
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(30, small_state(30), {})
        write_best(checkpoints, 30, {"at": "new best"})
        checkpoints.save(40, small_state(40), {})
    assert sorted(os.listdir(saved)) == ["best", "latest"]
    assert [len(os.listdir(saved / name)) for name in ("best", "latest")] == [1, 2]
    assert read(saved / "best")[1] == read(saved)[1] == {"at": "new best"}
    assert [int(read(path)[0]["n"]) for path in files.newest_first(saved / "latest")] == [40, 30]
    assert read(saved / "latest")[0]["n"] == 40
    shutil.rmtree(saved / "best")
    assert read(saved)[0]["n"] == 40


def test_the_newest_is_the_last_written_also_at_an_earlier_step_and_after_nine(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (*range(100, 109), 1):
            checkpoints.save(step, small_state(step), {})
        found = restored(checkpoints)
    assert (found[0], int(found[1]["n"])) == (1, 1)
    assert [path.name for path in files.newest_first(tmp_path / "latest")] == ["10", "9"]


def test_a_best_needs_an_offer_and_is_the_last_offered(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "trial")
    assert checkpoints.write_best() is None
    assert not (tmp_path / "trial").exists()
    checkpoints.offer_best(1, small_state(1), {"loss": NAN})
    checkpoints.offer_best(2, small_state(2), {"loss": INF})
    assert checkpoints.write_best() == tmp_path / "trial" / "best"
    assert_same(read(tmp_path / "trial"), (small_state(2), {"loss": INF}))


def test_what_was_kept_for_resuming_goes_and_so_does_an_empty_folder(saved: Path) -> None:
    (saved / ".tmp-1" / "arrays").mkdir(parents=True)
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.has_latest()
        checkpoints.save(30, small_state(30), {})
        checkpoints.delete_latest()
        assert not checkpoints.has_latest()
        assert os.listdir(saved) == ["best"]
        assert read(saved)[1] == {"at": "best"}
        shutil.rmtree(saved / "best")
        checkpoints.delete_latest()
        checkpoints.delete_latest()
        assert not saved.exists()
        assert checkpoints.restore(small_state()) is None
        checkpoints.save(40, small_state(40), {})
        assert restored(checkpoints)[0] == 40


def test_another_process_may_write_while_the_latest_are_deleted(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write = files._write

    def write_slowly(*arguments: Any) -> None:
        write(*arguments)
        Checkpoints(saved).delete_latest()

    monkeypatch.setattr(files, "_write", write_slowly)
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(30, small_state(30), {})
    assert capfd.readouterr().err.startswith(f"tuner: cannot write a checkpoint to {saved}/latest: FileNotFoundError")
    assert [path.name for path in saved.iterdir() if any(path.iterdir())] == ["best"]
    monkeypatch.undo()
    with checkpoints:
        checkpoints.save(40, small_state(40), {})
    assert restored(checkpoints)[0] == 40


def test_saves_are_due_by_the_clock(tmp_path: Path) -> None:
    now = [100.0]
    with Checkpoints(tmp_path, every_s=60.0, clock=lambda: now[0]) as checkpoints:
        now[0] = 159.9
        assert not checkpoints.is_due()
        now[0] = 160.0
        assert checkpoints.is_due()
        write_best(checkpoints, 1, {})
        assert checkpoints.is_due()
        checkpoints.save(1, {}, {})
        assert not checkpoints.is_due()
        now[0] = 220.0
        assert checkpoints.is_due()


def test_what_is_saved_is_what_the_state_was_when_save_was_called(tmp_path: Path) -> None:
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    array, record = np.zeros(1000), {"history": [1.0]}
    state = {"jax": jnp.zeros((256, 256)), "numpy": array}
    with Checkpoints(tmp_path) as checkpoints, jax.transfer_guard("disallow"):
        checkpoints.save(1, state, record)
        array += 1
        state["jax"] = step(state["jax"])
        record["history"].append(2.0)
        found = checkpoints.restore(state)
    assert found is not None
    assert float(np.abs(np.asarray(found[1]["jax"])).max()) == 0.0 == found[1]["numpy"].max()
    assert found[2] == {"history": [1.0]}


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Checkpoints("here/trial") as checkpoints:
        monkeypatch.chdir("/")
        checkpoints.save(3, small_state(3), {})
    monkeypatch.chdir(tmp_path)
    assert read("here/trial")[0]["n"] == 3


def test_the_thread_of_a_write_has_ended_when_the_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[threading.Thread] = []

    class EndsLate(threading.Thread):
        def run(self) -> None:
            made.append(self)
            super().run()
            time.sleep(0.2)

    monkeypatch.setattr(files.threading, "Thread", EndsLate)
    files._unless_it_stalls(tmp_path, lambda: None, 60.0)
    assert [thread.is_alive() for thread in made] == [False]


def test_nothing_is_said_logged_or_left_running(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()
    with caplog.at_level(logging.INFO), Checkpoints(tmp_path / "trial") as checkpoints:
        assert checkpoints.restore({}) is None
        checkpoints.save(1, small_state(), {})
        assert restored(checkpoints)[0] == 1
    assert threading.active_count() == before
    checkpoints.delete_latest()
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_importing_the_module_imports_no_orbax() -> None:
    text = (
        "import sys, tuner.training.saved.checkpoints; sys.exit(any(name.startswith('orbax') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", text], timeout=300).returncode == 0


def test_what_cannot_be_saved_is_an_error_at_once(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="keys of JSON must be strings: got 1"):
            checkpoints.save(0, {}, {"history": {1: 2.0}})
        with pytest.raises(TypeError, match="object is not JSON serializable"):
            checkpoints.save(0, {}, {"history": object()})
        with pytest.raises(CheckpointError, match="must be an array: a is str"):
            checkpoints.save(0, {"a": "text"}, {})
    assert not list(tmp_path.iterdir())


# Refusals.


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [_truncate, _flip, Path.unlink])
def test_any_spoilt_file_is_refused_and_the_one_before_is_used(
    spoil: Any, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest, whole = saved / "latest" / "2", saved.parent / "whole"
    newest.rename(whole)
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(names) >= 6
    checkpoints = Checkpoints(saved)
    for name in names:
        shutil.copytree(whole, newest)
        spoil(newest / name)
        with pytest.raises(CheckpointError, match=f"{name.name}|{newest}"):
            read(newest)
        found = restored(checkpoints)
        assert found[0] == 10
        assert_same(found[1], small_state(10))
        said = capfd.readouterr().err
        assert said.startswith(f"tuner: cannot use the checkpoint {newest}: "), said
        assert said.endswith("; trying the one before it\n")
        assert said.count("\n") == 1
        assert read(saved / "latest")[1] == {"at": 10}
        shutil.rmtree(newest)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda head: {**head, "format": 2}, "has format 2"),
        (lambda head: {"lr": 0.1}, "is not a checkpoint of tuner"),
        (lambda head: [1], "is not a checkpoint of tuner"),
        (lambda head: {**head, "record": {"at": 3}}, "the checkpoint is damaged: record.json"),
        (lambda head: {**head, "digest": None}, "the checkpoint is damaged: record.json"),
    ],
)
def test_altered_records_are_refused(change: Any, why: str, saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved / "latest" / "2" / "record.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=why):
        read(path.parent)
    with Checkpoints(saved) as checkpoints:
        assert restored(checkpoints)[0] == 10
        assert why in capfd.readouterr().err
        _truncate(saved / "latest" / "1" / "record.json")
        assert checkpoints.restore(small_state()) is None
        told = capfd.readouterr().err.splitlines()
        assert [line.rsplit("; ", 1)[1] for line in told] == ["trying the one before it", "there is no older one"]
        # Training starts anew; what it saves is not pushed out by the refused ones.
        checkpoints.save(0, {"other": 1}, {})
        checkpoints.wait()
        assert sorted(os.listdir(saved / "latest")) == ["2", "3"]


def test_checkpoints_of_another_training_are_an_error(saved: Path) -> None:
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(30, {"other": 1}, {"seed": 3, "hparams": {"rates": (1.0, NAN)}})
        with pytest.raises(
            CheckpointError, match=rf"in {saved} are .* have seed=3, this training has seed=4; use another"
        ):
            checkpoints.restore(small_state(), identity={"seed": 4})
        with pytest.raises(CheckpointError, match="have epochs=None, this training has epochs=1"):
            checkpoints.restore(small_state(), identity={"seed": 3, "epochs": 1})
        same = {"seed": 3, "hparams": {"rates": [1.0, NAN]}}
        assert checkpoints.restore({"other": 1}, identity=same) is not None


@pytest.mark.parametrize(
    ("like", "why"),
    [
        ({"other": 1}, "the array other is missing"),
        ({"w": small_state()["w"]}, "the state has no array n"),
        ({**small_state(), "w": np.ones((4, 7), np.float32)}, r"w is float32\[4,6\], and float32\[4,7\] in the state"),
    ],
)
def test_checkpoints_of_another_state_are_an_error_and_stay(
    like: Any, why: str, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = "the checkpoints in"
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(
            CheckpointError,
            match=f"^{start} {saved} are from another training: they have another state, {why}; use another",
        ):
            checkpoints.restore(like, identity={"at": 20})
        # Of another training by its record, which says more; also behind a torn one.
        with pytest.raises(CheckpointError, match="have at=20, this training has at=21"):
            checkpoints.restore(like, identity={"at": 21})
        assert capfd.readouterr().err == ""
        _truncate(saved / "latest" / "2" / "record.json")
        with pytest.raises(CheckpointError, match=why):
            checkpoints.restore(like)
    assert sorted(os.listdir(saved / "latest")) == ["1", "2"]


def test_a_torn_best_is_told_and_not_passed_over(saved: Path) -> None:
    _truncate(saved / "best" / "1" / "record.json")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        read(saved)


@pytest.mark.parametrize("content", ["nothing", "empty", "file", "other"])
def test_what_is_no_checkpoint_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if content == "file":
        path.write_text("")
    elif content != "nothing":
        path.mkdir()
    if content == "other":
        (path / "latest" / "notes").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="pass a checkpoint or a folder of checkpoints"):
        read(path)
    assert not Checkpoints(path).has_latest()
    assert Checkpoints(path).restore({}) is None


# Faults.


def test_left_overs_of_killed_saves_are_removed_and_those_of_living_ones_are_not(saved: Path) -> None:
    dead, alive = saved / ".tmp-1", saved / ".tmp-2"
    for path in (dead, alive):
        (path / "arrays").mkdir(parents=True)
    os.utime(dead, (0, 0))
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(30, small_state(30), {})
    assert sorted(os.listdir(saved)) == [".tmp-2", "best", "latest"]
    assert (alive / "arrays").exists()


def test_one_that_is_removed_goes_in_one_go(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # killed before
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(30, small_state(30), {})
    assert sorted(os.listdir(saved / "latest")) == ["2", "3"]


def test_one_that_another_process_removes_first_is_no_error(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed_too_early(series: Path) -> list[Path]:
        *newer, oldest = newest_first(series)
        return [*newer, series / "0", oldest]

    newest_first = files.newest_first
    monkeypatch.setattr(files, "newest_first", listed_too_early)
    files.add(saved / "latest", files.Content(30, small_state(30), {}), keep=2)
    assert sorted(os.listdir(saved / "latest")) == ["2", "3"]


def test_a_number_taken_by_a_faster_process_is_not_written_over(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "latest" / "3").write_text("not even a folder")
    monkeypatch.setattr(files, "newest_first", lambda series: [])
    files.add(saved / "latest", files.Content(30, small_state(30), {}), keep=2)
    assert sorted(os.listdir(saved / "latest")) == ["1", "2", "3", "4"]
    assert read(saved / "latest" / "1")[1] == {"at": 10}
    assert read(saved / "latest" / "4")[0]["n"] == 30


def test_a_reader_goes_on_to_what_came_meanwhile(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    came = iter([True])

    def load_late(path: Path) -> files.Content:
        if next(came, False):
            files.add(saved / "latest", files.Content(30, small_state(30), {}), keep=1)
        return files.load(path)

    def refuse(path: Path, error: CheckpointError) -> None:
        raise AssertionError(path) from error

    found = files.newest_good(saved / "latest", load_late, refuse)
    assert found is not None
    assert found.step == 30


def test_a_vanished_folder_is_made_again_and_a_blocked_one_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "trial"
    with Checkpoints(folder) as checkpoints:
        for number in (1, 2):
            checkpoints.save(number, small_state(number), {})
            checkpoints.wait()
            assert read(folder)[0]["n"] == number
            shutil.rmtree(folder)
        folder.write_text("in the way")
        checkpoints.save(3, small_state(3), {})
    assert f"cannot write a checkpoint to {folder}/latest: NotADirectoryError" in capfd.readouterr().err
    with pytest.raises(KeyError, match="mine"), Checkpoints(folder) as checkpoints:
        raise KeyError(checkpoints.save(4, small_state(4), {}) or "mine")
    assert "cannot write a checkpoint" in capfd.readouterr().err


def test_the_same_trouble_is_told_once_and_another_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "trial"
    folder.write_text("in the way")

    def told() -> list[str]:
        return capfd.readouterr().err.splitlines()

    with Checkpoints(folder, every_s=0) as checkpoints:
        for step in range(3):
            checkpoints.save(step, small_state(), {})
        checkpoints.wait()
        (line,) = told()
        assert line.endswith("; training continues")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, next(free)))
            free = iter(range(9))
            folder.unlink()
            for step in range(3):
                checkpoints.save(step, small_state(), {})
            checkpoints.wait()
        (line,) = told()
        assert "No space left" in line
        # After one that was written it is news again.
        checkpoints.save(1, small_state(), {})
        checkpoints.wait()
        shutil.rmtree(folder)
        folder.write_text("in the way")
        checkpoints.save(2, small_state(), {})
        checkpoints.wait()
        assert len(told()) == 1
        # The best is written when the training has ended; each time somebody asks for it.
        for _ in range(2):
            assert write_best(checkpoints, 2, {}) is None
            (line,) = told()
            assert line.startswith(f"tuner: cannot write a checkpoint to {folder}/best: NotADirectoryError")
            assert "training continues" not in line


def test_a_write_that_stalls_is_given_up_and_the_next_one_succeeds(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = threading.Event()
    with Checkpoints(saved) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(files, "_LOOK_S", 0.01)
            patch.setattr(files, "_STALLED_S", 0.05)
            patch.setattr(files, "_write_arrays", lambda *_: answer.wait())
            checkpoints.save(30, small_state(30), {})
            checkpoints.wait()
        assert files.has_stalled()
        what = f"cannot write a checkpoint to {saved}/latest: TimeoutError: nothing was written for 0 s"
        assert capfd.readouterr().err == f"tuner: {what}; training continues\n"
        assert sorted(path.name for path in saved.iterdir()) == ["best", "latest"]
        assert restored(checkpoints)[0] == 20
        checkpoints.save(40, small_state(40), {})
        assert restored(checkpoints)[0] == 40
    answer.set()
    for thread in files._stalled:
        thread.join()
    assert not files.has_stalled()


@pytest.mark.parametrize(
    ("sizes", "looks"), [([1, 2, 3, 4, 5, 6], 6), ([1, 1, 2, 2, 3, 3], 6), ([1, 2, 2, 2, 3, 4], 4)]
)
def test_a_write_is_given_up_after_two_looks_without_a_new_byte(
    sizes: list[int], looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the folder finds so many bytes; the write ends after the last."""
    seen, is_over = [], threading.Event()

    def found(_: Path) -> int:
        seen.append(sizes[min(len(seen), len(sizes) - 1)])
        if len(seen) == len(sizes):
            is_over.set()
            is_over_and_noticed.wait(300)
        return seen[-1]

    is_over_and_noticed = threading.Event()

    def write() -> None:
        is_over.wait(300)
        is_over_and_noticed.set()

    monkeypatch.setattr(files, "_LOOK_S", 0.01)
    monkeypatch.setattr(files, "_size", found)
    with pytest.raises(TimeoutError) if looks < len(sizes) else contextlib.nullcontext():
        files._unless_it_stalls(tmp_path, write, 0.02)
    assert len(seen[: len(sizes)]) == looks
    is_over.set()


def test_a_large_checkpoint_may_be_compressed_for_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    monkeypatch.setattr(files, "_check_space", lambda *_: None)
    monkeypatch.setattr(files, "_unless_it_stalls", lambda _folder, _write, limit_s: limits.append(limit_s))
    for count in (1, 2**40):  # float64; a terabyte is a second for each 10 MB
        array = np.broadcast_to(np.zeros(1), count)
        folder = tmp_path / str(count)
        folder.mkdir()
        files._write(folder, files.Content(1, {"a": array}, {}))
    assert limits == [300.0, 2**43 / 1e7]


@pytest.mark.parametrize("every_s", [-1, -0.1, NAN, "60", None, True])
def test_seconds_between_saves_are_a_number(every_s: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"every_s must be a number of seconds, at least 0: got {every_s!r}"):
        Checkpoints(tmp_path, every_s=every_s)


# What is better.


@pytest.mark.parametrize(
    ("new", "best", "larger", "smaller"),
    [
        (2.0, 1.0, True, False),
        (1.0, 2.0, False, True),
        (1.0, 1.0, False, False),
        (0.0, -0.0, False, False),
        (NAN, 1.0, False, False),
        (NAN, NAN, False, False),
        (NAN, None, False, False),
        (None, 1.0, False, False),
        (None, None, False, False),
        (None, NAN, False, False),
        (1.0, NAN, True, True),
        (-1e300, None, True, True),
        (0.0, None, True, True),
        (INF, 1.0, True, False),
        (-INF, 1.0, False, True),
        (INF, INF, False, False),
        (1.0, INF, False, True),
        (1.0, -INF, True, False),
        (INF, None, True, False),
        (-INF, NAN, False, True),
    ],
)
def test_is_new_model_better(new: float | None, best: float | None, larger: bool, smaller: bool) -> None:
    assert is_new_model_better(new, best, "maximize") is larger
    assert is_new_model_better(new, best, "minimize") is smaller


def test_a_direction_is_maximize_or_minimize() -> None:
    with pytest.raises(ValueError, match="'maximize' or 'minimize': got 'max'"):
        is_new_model_better(1.0, None, "max")


def test_of_asyncio_only_writes_that_failed_before_are_unsaid(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    late = "Future exception was never retrieved\nfuture: <Future finished exception=ValueError('{}')>"
    logging.getLogger("asyncio").error(late.format("RESOURCE_EXHAUSTED: Failed writing: /a/ocdbt.process_0/d/1"))
    assert not caplog.records
    logging.getLogger("asyncio").error(late.format("of somebody else"))
    logging.getLogger("asyncio").error("/ocdbt is fine")
    assert len(caplog.records) == 2
    of_task = "Task exception was never retrieved\nfuture: <Task finished>"
    logging.getLogger("asyncio").error(of_task, exc_info=ValueError("NOT_FOUND: /a/ocdbt.process_0/d/1"))
    assert len(caplog.records) == 2
    logging.getLogger("asyncio").error(of_task, exc_info=ValueError("of somebody else"))
    assert len(caplog.records) == 3


def test_a_training_that_may_restart_removes_checkpoints_of_another_and_says_why(tmp_path: Path) -> None:
    said: list[str] = []
    old = {"w": np.zeros(3, np.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, old, {"seed": 1})
        checkpoints.save(6, old, {"seed": 1})

    for like, identity, why in (
        (old, {"seed": 2}, "its checkpoint has seed=1, this training has seed=2"),
        ({"w": np.zeros(4, np.float32)}, {"seed": 1}, "its checkpoint has another state, "),
    ):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match="use another folder"):
            checkpoints.restore(like, identity=identity)
        kept = tmp_path.with_name(f"kept {len(said)}")
        shutil.copytree(tmp_path, kept)
        with Checkpoints(kept, restart=said.append) as checkpoints:
            assert checkpoints.restore(like, identity=identity) is None
            assert checkpoints.restored is None
            assert not checkpoints.has_latest(), "else the next worker would start it again once more"
        assert said[-1].startswith(why)
        assert len(said) in (1, 2)
    with Checkpoints(tmp_path, restart=said.append) as checkpoints:
        found = checkpoints.restore(old, identity={"seed": 1})
    assert found is not None
    assert found[0] == 6
    assert len(said) == 2
