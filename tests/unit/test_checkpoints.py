"""Checkpoints: bit-exact, whole or absent, whatever is done to the process, the disk or the files."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from tuner.errors import CheckpointError
from tuner.training import checkpoints as module
from tuner.training.checkpoints import (
    Checkpoints,
    from_plain,
    is_new_model_better,
    read,
    read_json,
    to_plain,
    write_json,
)
from tuner.training.state import TrainState

NAN, INF = math.nan, math.inf


class Pair(NamedTuple):
    left: Any
    right: Any


def small_state(number: int = 0) -> dict[str, Any]:
    return {"w": np.arange(24, dtype=np.float32).reshape(4, 6) + np.float32(number), "n": np.asarray(number)}


def every_leaf() -> dict[str, Any]:
    """Each kind of leaf and container, with bit patterns that a conversion would lose."""
    params = {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.array([NAN, -0.0, INF])}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    with jax.numpy_dtype_promotion("standard"):
        opt_state = optimizer.init(params)
    bits = np.arange(0, 2**16, 7, dtype=np.uint16)
    return {
        "state": TrainState(
            step=jnp.asarray(7, jnp.int32), params=params, opt_state=opt_state, key=jax.random.key(5), total_steps=9
        ),
        "bfloat16": jnp.asarray(bits.view(ml_dtypes.bfloat16)),
        "float16": bits.view(np.float16),
        "float64": np.array([NAN, 1e-320, -0.0]),
        "int64": np.array([-(2**62) - 1]),
        "bools": jnp.array([True, False]),
        "complex": jnp.array([1 + 2j]),
        "keys": jax.random.split(jax.random.key(1), 3),
        "rbg": jax.random.key(2, impl="rbg"),
        "raw key": jax.random.PRNGKey(3),
        "numbers": (3, 2.5, True, np.float32(1.5), jnp.asarray(4)),
        "pair": Pair(jnp.zeros((0, 3), jnp.bfloat16), [np.zeros((2, 0)), None, (), {}]),
        "layers": {0: jnp.ones(2), 1: {}, 10: np.int8(-3)},
        "a": {"b": jnp.asarray(1.0, jnp.float32)},
        "a.b": jnp.asarray(2.0, jnp.float32),
        "a/b%2Eé": jnp.asarray(3.0, jnp.float32),
    }


def assert_same(found: Any, expected: Any) -> None:
    """Fail unless two trees are the same to the bit, types and weak types included."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for path, (a, b) in zip(
        jax.tree_util.tree_leaves_with_path(found),
        zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True),
        strict=True,
    ):
        assert type(a) is type(b), path
        assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None), path
        if hasattr(b, "dtype") and jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype, path
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path


def abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False)), tree
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2, and the best of step 1."""
    with Checkpoints(tmp_path / "trial") as checkpoints:
        checkpoints.save(1, small_state(1), {"at": 1})
        checkpoints.save_best(1, small_state(1), {"at": "best"})
        checkpoints.save(2, small_state(2), {"at": 2})
    return tmp_path / "trial"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# Trees.


def test_any_tree_comes_back_bit_for_bit() -> None:
    tree = every_leaf()
    plain = to_plain(tree)
    assert all(isinstance(leaf, np.ndarray | jax.Array) for leaf in jax.tree.leaves(plain))
    assert plain["state"]["params"]["Dense_0"]["kernel"].shape == (2, 3)
    assert plain["layers"]["1"] == {} == plain["pair"]["right"]["1"]
    assert plain["keys"].dtype == jnp.uint32
    assert_same(from_plain(plain, tree), tree)


def test_64_bits_that_jax_would_cut_stay_in_numpy() -> None:
    wide = np.array([2**40 + 1])
    assert_same(from_plain({"x": wide}, {"x": jax.ShapeDtypeStruct((1,), np.int64)}), {"x": wide})


@pytest.mark.parametrize("tree", [{}, None, (), np.ones(3), optax.EmptyState(), {"a": {"b": None}}])
def test_trees_of_no_or_one_leaf_come_back(tree: Any, tmp_path: Path) -> None:
    assert_same(from_plain(to_plain(tree), tree), tree)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree, {})
        restored = checkpoints.restore(tree)
    assert restored is not None
    assert_same(restored[1], tree)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": {"x": np.ones(2, np.float32), "y": np.ones(2)}}, "a/y is missing"),
        ({}, "a/x has no place"),
        ({"a": {"x": np.ones((2, 1), np.float32)}}, r"got float32\[2\] at a/x, where the state has float32\[2,1\]"),
        ({"a": {"x": np.ones(2, np.int32)}}, r"got float32\[2\] at a/x, where the state has int32\[2\]"),
        ({"a": {"x": 1}}, r"got float32\[2\] at a/x, where the state has int64\[\]"),
    ],
)
def test_a_tree_that_does_not_fit_is_named(like: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_plain({"a": {"x": np.ones(2, np.float32)}}, like)


def test_leaves_that_are_no_arrays_and_equal_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got str at a/0"):
        to_plain({"a": ["text"]})
    with pytest.raises(CheckpointError, match="name of its own: got two at 1"):
        to_plain({_Loud("1"): 1, _Loud("1 "): 2})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match="keys of JSON must be strings: got 1"):
        checkpoints.save(0, {}, {"history": {1: 2.0}})
    assert not list(tmp_path.iterdir())


class _Loud(str):
    """Two that differ, yet print alike."""

    def __str__(self) -> str:
        return self.strip()


def test_every_leaf_survives_the_disk_and_abstract_states_restore_it(tmp_path: Path) -> None:
    tree = every_leaf()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, tree, {"history": [{"step": 1, "value": NAN}, {"step": 2, "value": -INF}]})
        restored = checkpoints.restore(tree)
        assert restored is not None
        step, found, record = restored
        on_device = tree["state"]
        abstractly = checkpoints.restore({**tree, "state": jax.eval_shape(lambda: on_device)})
    assert step == 7
    assert_same(found, tree)
    assert math.isnan(record["history"][0]["value"])
    assert record["history"][1] == {"step": 2, "value": -INF}
    assert abstractly is not None
    assert_same(abstractly[1]["state"], on_device)


def test_what_is_saved_is_what_the_state_was_when_save_was_called(tmp_path: Path) -> None:
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    array, record = np.zeros(1000), {"history": [1.0]}
    state = {"jax": jnp.zeros((256, 256)), "numpy": array}
    with Checkpoints(tmp_path) as checkpoints, jax.transfer_guard("disallow"):
        checkpoints.save(1, state, record)
        array += 1
        state["jax"] = step(state["jax"])
        record["history"].append(2.0)
        restored = checkpoints.restore(state)
    assert restored is not None
    assert float(np.abs(np.asarray(restored[1]["jax"])).max()) == 0.0 == restored[1]["numpy"].max()
    assert restored[2] == {"history": [1.0]}


@pytest.mark.parametrize(("save_on", "restore_on"), [(8, 1), (1, 8), (8, 4)])
def test_a_checkpoint_moves_between_numbers_of_devices(save_on: int, restore_on: int, tmp_path: Path) -> None:
    def sharded(count: int) -> NamedSharding | SingleDeviceSharding:
        devices = jax.devices()
        if count == 1:
            return SingleDeviceSharding(devices[3])
        return NamedSharding(Mesh(np.array(devices[:count]), ("data",)), PartitionSpec("data"))

    values = jnp.arange(64.0).reshape(16, 4)
    tree = {
        "w": jax.device_put(values, sharded(save_on)),
        "key": jax.random.key(1),
        "none": None,
        "weak": jnp.asarray(2),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        shardings = {
            "w": sharded(restore_on),
            "key": SingleDeviceSharding(jax.devices()[2]),
            "none": None,
            "weak": None,
        }
        restored = checkpoints.restore(abstract(tree), shardings=shardings)
        unplaced = checkpoints.restore(abstract(tree))
    assert restored is not None
    assert unplaced is not None
    assert restored[1]["w"].sharding == sharded(restore_on)
    assert restored[1]["key"].devices() == {jax.devices()[2]}
    assert unplaced[1]["w"].devices() == {jax.devices()[0]}
    for found in (restored[1], unplaced[1]):
        assert np.array_equal(np.asarray(found["w"]), np.asarray(values))
        assert found["key"] == tree["key"]
        assert found["weak"].weak_type


# A folder over time.


def test_the_latest_few_and_the_best_are_kept(saved: Path) -> None:
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(10, small_state(10), {})
        checkpoints.save_best(10, small_state(10), {"at": "new best"})
        checkpoints.save(11, small_state(11), {})
    assert sorted(os.listdir(saved)) == ["best", "latest"]
    assert sorted(os.listdir(saved / "latest")) == ["10", "11"]
    assert read(saved / "best")[1] == read(saved)[1] == {"at": "new best"}
    assert read(saved / "latest" / "10")[0]["n"] == 10
    assert read(saved / "latest")[0]["n"] == 11
    shutil.rmtree(saved / "best")
    assert read(saved)[0]["n"] == 11


def test_saves_are_due_by_the_clock(tmp_path: Path) -> None:
    now = [100.0]
    with Checkpoints(tmp_path, every_s=60.0, clock=lambda: now[0]) as checkpoints:
        now[0] = 159.9
        assert not checkpoints.is_due()
        now[0] = 160.0
        assert checkpoints.is_due()
        checkpoints.save_best(1, {}, {})
        assert checkpoints.is_due()
        checkpoints.save(1, {}, {})
        assert not checkpoints.is_due()
        now[0] = 220.0
        assert checkpoints.is_due()


def test_an_earlier_step_saved_later_is_the_newest(saved: Path) -> None:
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(1, small_state(100), {})
        restored = checkpoints.restore(small_state())
        assert restored is not None
        assert (restored[0], int(restored[1]["n"])) == (1, 100)
        checkpoints.save(0, small_state(0), {})
    assert sorted(os.listdir(saved / "latest")) == ["0", "1"]


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Checkpoints("here/trial") as checkpoints:
        monkeypatch.chdir("/")
        checkpoints.save(3, small_state(3), {})
    monkeypatch.chdir(tmp_path)
    assert read("here/trial")[0]["n"] == 3


def test_nothing_remains_after_close_and_delete(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()
    with caplog.at_level(logging.INFO), Checkpoints(tmp_path / "trial") as checkpoints:
        assert checkpoints.restore({}) is None
        checkpoints.save(1, small_state(), {})
        checkpoints.wait()
        assert checkpoints.restore(small_state()) is not None
    assert threading.active_count() == before
    checkpoints.delete()
    checkpoints.delete()
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_importing_the_module_imports_no_orbax() -> None:
    text = "import sys, tuner.training.checkpoints; sys.exit(any(name.startswith('orbax') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", text], timeout=60).returncode == 0


# Faults.


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
    with Checkpoints(saved) as checkpoints:
        for name in names:
            shutil.copytree(whole, newest)
            spoil(newest / name)
            with pytest.raises(CheckpointError, match=f"{name.name}|{newest}"):
                read(newest)
            restored = checkpoints.restore(small_state())
            assert restored is not None
            assert restored[0] == 1
            assert_same(restored[1], small_state(1))
            said = capfd.readouterr().err
            assert said.startswith(f"tuner: checkpoint {newest} refused: "), said
            assert said.endswith("; using the one before\n")
            assert said.count("\n") == 1
            assert read(saved / "latest")[1] == {"at": 1}
            shutil.rmtree(newest)


def _with_format(record: dict[str, Any]) -> Any:
    return {**record, "format": 2}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_with_format, "must be of format 1: got format 2"),
        (lambda record: {"lr": 0.1}, "must be one of tuner's"),
        (lambda record: [1], "must be one of tuner's"),
        (lambda record: {**record, "record": {"at": 3}}, "record.json differs"),
        (lambda record: {**record, "digest": None}, "record.json differs"),
    ],
)
def test_foreign_and_altered_records_are_refused(
    change: Any, why: str, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved / "latest" / "2" / "record.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=why):
        read(path.parent)
    with Checkpoints(saved) as checkpoints:
        restored = checkpoints.restore(small_state())
        assert restored is not None
        assert restored[0] == 1
        assert why in capfd.readouterr().err
        assert checkpoints.restore({"other": 1}) is None
        told = capfd.readouterr().err.splitlines()
        assert [line.rsplit("; ", 1)[1] for line in told] == ["using the one before", "there is none before"]
        assert "other is missing" in told[1]
        # Training starts anew, at a step below that of the refused ones; what it saves is not pushed out by them.
        checkpoints.save(0, {"other": 1}, {})
        checkpoints.wait()
        assert sorted(os.listdir(saved / "latest")) == ["0", "1"]


def test_a_torn_best_is_told_and_not_passed_over(saved: Path) -> None:
    _truncate(saved / "best" / "record.json")
    with pytest.raises(CheckpointError, match="must be JSON"):
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
    with pytest.raises(CheckpointError, match="path must be a checkpoint or a folder of checkpoints"):
        read(path)
    if content != "file":
        assert Checkpoints(path).restore({}) is None


def test_left_overs_of_killed_saves_are_removed_and_those_of_living_ones_are_not(saved: Path) -> None:
    for dead in (saved / ".tmp-1" / "arrays", saved / "latest" / ".tmp-2"):
        dead.mkdir(parents=True)
    with module._scratch(saved) as alive, Checkpoints(saved) as checkpoints:
        (alive / "arrays").mkdir()
        checkpoints.save(3, small_state(3), {})
        checkpoints.wait()
        assert sorted(os.listdir(saved)) == sorted([alive.name, "best", "latest"])
        assert (alive / "arrays").exists()
        # A folder too old to be written still goes, lock or no lock.
        os.utime(alive, (0, 0))
        checkpoints.save(4, small_state(4), {})
        checkpoints.wait()
        assert sorted(os.listdir(saved)) == ["best", "latest"]
    assert sorted(os.listdir(saved / "latest")) == ["3", "4"]


def test_a_scratch_folder_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [2]

    def remove_first(*_: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            shutil.rmtree(next(tmp_path.iterdir()))

    monkeypatch.setattr(module.fcntl, "flock", remove_first)
    with module._scratch(tmp_path) as scratch:
        assert left == [-1]
        assert list(tmp_path.iterdir()) == [scratch]
    assert not list(tmp_path.iterdir())


def test_a_kill_while_one_is_removed_leaves_no_half_of_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
    module._discard(saved / "latest" / "1")
    assert [name for name in os.listdir(saved / "latest") if not name.startswith(".tmp-")] == ["2"]


def test_a_kill_between_the_two_renames_loses_nothing(saved: Path) -> None:
    (saved / "best").rename(saved / ".old-best-1a")
    (saved / "latest" / "2").rename(saved / "latest" / ".old-2-1a")
    assert read(saved)[1] == read(saved / "best")[1] == {"at": "best"}
    with Checkpoints(saved) as checkpoints:
        restored = checkpoints.restore(small_state())
        assert restored is not None
        assert restored[0] == 2
        checkpoints.save_best(2, small_state(2), {"at": "new"})
        checkpoints.save(2, small_state(2), {})
    assert sorted(os.listdir(saved)) == ["best", "latest"]
    assert sorted(os.listdir(saved / "latest")) == ["1", "2"]
    assert read(saved)[1] == {"at": "new"}


# TensorStore's callbacks may come after Orbax has closed its event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("by", ["us", "orbax"])
def test_a_full_disk_stops_nothing(
    by: str,
    small_disk: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by == "orbax":
        monkeypatch.setattr(module, "_check_space", lambda *_: None)
    with Checkpoints(small_disk / "trial") as checkpoints:
        checkpoints.save(1, small_state(1), {})
        checkpoints.wait()
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(2**20))
        checkpoints.save(2, small_state(2), {})
        with pytest.raises(
            CheckpointError, match=f"latest/2 must be written: got .*({'No space' if by == 'us' else 'EXHAUSTED'})"
        ):
            checkpoints.wait()
        checkpoints.wait()
        checkpoints.save(3, small_state(3), {})
        wait_for(lambda: checkpoints._writing[0].done())
        ballast.unlink()
        checkpoints.save(4, small_state(4), {})
        checkpoints.wait()
        said = capfd.readouterr().err
        assert said.startswith(f"tuner: checkpoint {small_disk}/trial/latest/3 must be written: got ")
        assert said.endswith("; training goes on\n")
        assert said.count("\n") == 1
        assert not caplog.records
        assert sorted(os.listdir(small_disk / "trial")) == ["latest"]
        assert sorted(os.listdir(small_disk / "trial" / "latest")) == ["1", "4"]


def wait_for(condition: Any) -> None:
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s
        threading.Event().wait(0.01)


def test_a_vanished_folder_is_made_again_and_a_blocked_one_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "trial"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, small_state(1), {})
        checkpoints.wait()
        shutil.rmtree(folder)
        checkpoints.save(2, small_state(2), {})
        checkpoints.wait()
        assert read(folder)[0]["n"] == 2
        shutil.rmtree(folder)
        folder.write_text("in the way")
        checkpoints.save(3, small_state(3), {})
        with pytest.raises(CheckpointError, match="latest/3 must be written: got FileExistsError"):
            checkpoints.close()
    with pytest.raises(CheckpointError, match="must be removable: got NotADirectoryError"):
        checkpoints.delete()
    with pytest.raises(KeyError, match="mine"), Checkpoints(folder) as checkpoints:
        raise KeyError(checkpoints.save(4, small_state(4), {}) or "mine")
    assert "latest/4 must be written" in capfd.readouterr().err


def test_a_folder_that_vanishes_during_a_write_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = module._write

    def write_and_lose(folder: Path, *rest: Any) -> None:
        write(folder, *rest)
        shutil.rmtree(tmp_path / "trial")

    monkeypatch.setattr(module, "_write", write_and_lose)
    checkpoints = Checkpoints(tmp_path / "trial")
    checkpoints.save(1, small_state(1), {})
    with pytest.raises(CheckpointError, match="must be written: got FileNotFoundError"):
        checkpoints.wait()
    monkeypatch.undo()
    checkpoints.save(2, small_state(2), {})
    checkpoints.close()
    assert read(tmp_path / "trial")[0]["n"] == 2


_WRITER = """
import os, signal, sys
import orbax.checkpoint
import numpy as np
from tuner.training.checkpoints import Checkpoints

def state(n):
    return {"w": np.arange(24, dtype=np.float32).reshape(4, 6) + np.float32(n), "n": np.asarray(n)}

def write(folder, step, same, best):
    with Checkpoints(folder) as checkpoints:
        while True:
            step += 1
            (checkpoints.save_best if best else checkpoints.save)(7 if same else step, state(step), {"n": step})
            checkpoints.wait()
            print(step, flush=True)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the killed leave no zombies
for line in sys.stdin:
    folder, step, same, best = line.split()
    if (pid := os.fork()) == 0:
        write(folder, int(step), int(same), int(best))
    print("pid", pid, flush=True)
"""


@pytest.fixture
def zygote() -> Iterator[subprocess.Popen[str]]:
    """A process that has everything imported and forks a writer for each line it is given."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _start_writer(zygote: subprocess.Popen[str], *words: Any) -> int:
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    print(*words, file=zygote.stdin, flush=True)
    while not (line := zygote.stdout.readline()).startswith("pid"):
        assert line, "the writer has ended"
    return int(line.split()[1])


def _kill_after(zygote: subprocess.Popen[str], pid: int, delay_s: float) -> int:
    """Kill a writer some time after its first save; return the last step it is known to have saved."""
    assert zygote.stdout is not None
    step = int(zygote.stdout.readline())
    threading.Event().wait(delay_s)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    return step


@pytest.mark.parametrize("best", [0, 1])
@pytest.mark.parametrize("same", [0, 1])
def test_a_kill_at_any_moment_leaves_a_good_checkpoint(
    same: int, best: int, zygote: subprocess.Popen[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chance, step = random.Random(7), 0
    for _ in range(10):
        saved_step = _kill_after(zygote, _start_writer(zygote, tmp_path, step, same, best), chance.uniform(0, 0.2))
        assert saved_step > step
        if best:
            plain, record = read(tmp_path / "best")
        else:
            restored = Checkpoints(tmp_path).restore(small_state())
            assert restored is not None
            _, plain, record = restored
        step = record["n"]
        assert step >= saved_step
        assert_same(plain, small_state(step))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10**6, small_state(), {})
    assert not [path for path in tmp_path.rglob(".*") if "best" not in path.name]
    assert capfd.readouterr().err == ""


def test_what_is_being_read_stays(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with module._held(saved / "best") as held:
        shutil.rmtree(saved / "best")
        assert [path.name for path in held.iterdir()]
        assert (held / "arrays" / "manifest.ocdbt").exists()
        assert json.loads((held / "record.json").read_text())["record"] == {"at": "best"}

    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    # Without hard links, or where the folder is read-only.
    monkeypatch.setattr(module.os, "link", refuse)
    assert read(saved)[1] == {"at": 2}
    monkeypatch.setattr(module, "_scratch", refuse)
    assert read(saved)[1] == {"at": 2}
    assert os.listdir(saved) == ["latest"]


def test_two_writers_and_a_reader_do_not_disturb_each_other(
    zygote: subprocess.Popen[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pids = [_start_writer(zygote, tmp_path, 0, 1, best) for best in (0, 0, 1, 1)]
    wait_for(lambda: (tmp_path / "best").exists() and (tmp_path / "latest" / "7").exists())
    end_s, reads = time.monotonic() + 5, 0
    while time.monotonic() < end_s:
        plain, record = read(tmp_path)
        assert_same(plain, small_state(record["n"]))
        reads += 1
    for pid in pids:
        os.kill(pid, 0)  # each is still alive
        os.kill(pid, signal.SIGKILL)
    assert reads > 0
    assert read(tmp_path / "latest")[0]["w"].shape == (4, 6)
    assert capfd.readouterr().err == ""


# What is better, and JSON.


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


def test_json_holds_what_is_not_finite(tmp_path: Path) -> None:
    value = {"a": [NAN, INF, -INF, 1.5, None, True], "NaN": {"s": ["NaN", "\\NaN", "-Infinity", "\\", "nan", "é"]}}
    write_json(tmp_path / "x.json", {**value, "t": (np.float32(2.5), jnp.asarray(NAN), np.int64(3))})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    found = read_json(tmp_path / "x.json")
    assert found["t"][0] == 2.5
    assert math.isnan(found["t"][1])
    assert found["t"][2] == 3
    assert math.isnan(found["a"].pop(0))
    assert found.pop("t")
    value["a"].pop(0)
    assert found == value


def test_a_failed_write_leaves_the_old_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, 2)
    monkeypatch.undo()
    assert read_json(path) == 1
    assert os.listdir(tmp_path) == ["x.json"]
    with path.open() as old:
        write_json(path, 3)
        assert (old.read(), read_json(path)) == ("1", 3)
